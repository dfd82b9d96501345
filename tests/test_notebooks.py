"""Every notebook is executed as it stands, on runs of the tiny world in the place of the real ones.

What the notebooks read, `runs/quickstart`, `runs/delivery`, `runs/ablation` and
`runs/compare_small`, is made here, in seconds.
"""

import base64
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from fact_world import write_facts
from nbclient import NotebookClient
from tiny_world import evaluate_stage, plugin_stage, question, run_experiment, write_records

from kinject.cli.sweep import SweepRun, gather
from kinject.config import read_config
from kinject.reports.results import run_folder

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SPLITS = {"host": range(0, 15), "plugin": range(15, 40), "dev": range(40, 48), "test": range(48, 60)}
FIT = {"batch_size": 8, "steps": 4, "log_every": 2, "evaluate_every": 2, "checkpoint_every": 4, "buckets": 1}
CHANGES = (("", 0), ("initialise=zero", 0))


def write_run(world, folder):
    """A workdir with what the notebooks read of such runs: one domain, a host, a plugin, a table."""
    write_facts(folder / "geography/knowledge", name="geography")
    for split, numbers in SPLITS.items():
        asked = ({**question(number), "kind": "country", "wording": "x"} for number in numbers)
        write_records(folder / f"geography/records/{split}.jsonl", asked)
    shutil.copytree(world / "host", folder / "host")
    records, knowledge = folder / "geography/records", str(folder / "geography/knowledge")
    fit = FIT | {"steps": 30, "evaluate_every": 0, "checkpoint_every": 30}
    plugin = plugin_stage(world, initialise="ridge_label", fit=fit)
    plugin |= {"host": str(folder / "host"), "knowledge": knowledge, "data": (str(records / "plugin.jsonl"),)}
    table = evaluate_stage(world, {"plugin": "@geography_plugin"}) | {"host": str(folder / "host")}
    domain = table["domains"].pop("cities")
    domain |= {"knowledge": knowledge, "data": (str(records / "test.jsonl"),)}
    table["domains"]["geography"] = domain | {"by_kind": True, "reference_data": (str(records / "plugin.jsonl"),)}
    run_experiment({"name": folder.name, "stages": {"geography_plugin": plugin, "evaluate": table}}, folder)


def write_ablation(folder):
    runs = []
    for change, seed in CHANGES:
        spec = f"configs/ablation.py{':' if change else ''}{change}"
        config = read_config(spec) | {"seed": seed}
        config["stages"]["plugin"]["fit"] |= FIT
        runs.append(SweepRun(spec, seed, run_folder(folder, spec, seed), ()))
        run_experiment(config, runs[-1].workdir)
    gather(runs, folder)


def write_comparison(folder):
    spec = "configs/compare.py:base=runs/quickstart,steps=40"
    compare = read_config(spec)["stages"]["compare"] | {"repeats": 1, "timed": 4}
    zero = f"{run_folder(Path('runs/ablation'), 'configs/ablation.py:initialise=zero', 0)}/plugin"
    methods = {"map_tuning": {"plugin": "runs/quickstart/geography_plugin"}, "young_map": {"plugin": zero}}
    compare["domains"]["geography"]["methods"] = methods
    run = SweepRun(spec, 0, run_folder(folder, spec, 0), ())
    run_experiment({"name": "compare_small", "stages": {"compare": compare}}, run.workdir)
    gather([run], folder)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the paths of the configs and notebooks are relative to the repository's root
        write_run(world, folder / "runs/quickstart")
        write_run(world, folder / "runs/delivery")
        write_ablation(Path("runs/ablation"))
        write_comparison(Path("runs/compare_small"))
    return folder


def outputs(book, kind):
    return [one for cell in book.cells if cell.cell_type == "code" for one in cell.outputs if one.output_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, 4)
    stored = len(pictures(book))
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(book, timeout=1800, startup_timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    assert len(pictures(book)) == stored, "as many plots as are stored"


def pictures(book):
    shown = [one for kind in ("display_data", "execute_result") for one in outputs(book, kind)]
    return [base64.b64decode(one.data["image/png"]) for one in shown if "image/png" in one.data]


def test_there_are_five():
    assert [path.stem[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_its_outputs(path):
    text, book = path.read_text(), nbformat.read(path, 4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom, once"
    assert not outputs(book, "error") and "/tmp/" not in text and f"{Path.home()}/" not in text
    assert not [one for one in outputs(book, "stream") if one.name == "stderr"]
    assert pictures(book) and all(len(picture) < 100_000 for picture in pictures(book))


def test_your_own_knowledge_takes_twenty_lines():
    book = nbformat.read(ROOT / "notebooks/4_your_own_knowledge.ipynb", 4)
    (cell,) = [cell for cell in book.cells if cell.source.startswith("# the 20 lines")]
    statements = cell.metadata.get("lines") or [line for line in cell.source.splitlines()[1:] if line.strip()]
    assert len(statements) <= 20, json.dumps(statements, indent=1)
