"""`python -m benchmarks`: rows of all scripts in one file, and a script that fails among them."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GOOD = """
import json, sys
out = sys.argv[sys.argv.index("--json") + 1]
row = {"name": "it", "ratio": 2.5, "ours": 5000.0, "theirs": 2000.0, "unit": sys.argv[1], "goal": ">= 9", "met": False}
open(out, "w").write(json.dumps([row]))
"""
BAD = "raise SystemExit('no such luck')"


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """The module, with three little scripts in the place of the benchmarks."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    module = importlib.import_module("benchmarks.__main__")
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, text in {"good": GOOD, "bad": BAD, "silent": "", "last": GOOD}.items():
        (scripts / f"{name}.py").write_text(text)
    monkeypatch.setattr(module, "HERE", scripts)
    monkeypatch.setattr(module, "SCRIPTS", {name: module.Script("long", "short") for name in ("good", "bad", "last")})

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        return module.exit_code(module.main)

    run.module = module
    return run


def test_a_script_that_fails_is_told_and_the_rest_goes_on(runner, tmp_path, capsys):
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    assert runner("--json", str(out), "--markdown", str(page), "--quick") == 1
    made = json.loads(out.read_text())
    assert [(row["benchmark"], row["unit"]) for row in made["rows"]] == [("good", "short"), ("last", "short")]
    assert [one.get("error") for one in made["scripts"]] == [None, "it ended with 1", None]
    assert "no such luck" in made["scripts"][1]["log"] and "no such luck" in capsys.readouterr().err
    assert {"command", "hardware", "versions", "load before"} <= set(made["about"])
    text = page.read_text()
    assert "| good | it | 5,000 | 2,000 | 2.50x | short | >= 9: **not met** |" in text
    assert "**failed: it ended with 1**" in text


def test_only_some_and_rows_that_are_missing(runner, tmp_path):
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    assert runner("--json", str(out), "--markdown", str(page), "--only", "last") == 0
    assert [(row["benchmark"], row["unit"]) for row in json.loads(out.read_text())["rows"]] == [("last", "long")]
    assert "it wrote no rows" in runner.module.run("silent", [])["error"]


def test_bad_arguments_write_nothing(runner, tmp_path, capsys):
    out, page = tmp_path / "out.json", tmp_path / "out.md"
    assert runner("--json", str(out), "--markdown", str(page), "--only", "lats") == 2
    assert "there is no benchmark lats" in capsys.readouterr().err
    page.write_text("mine")
    assert runner("--json", str(out), "--markdown", str(page)) == 2
    assert page.read_text() == "mine" and not out.exists()


def test_every_script_is_there_and_explains_itself(runner):
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    for name in importlib.reload(runner.module).SCRIPTS:
        assert (folder / f"{name}.py").read_text().startswith('"""')


@pytest.mark.parametrize(
    ("goal", "ours", "ratio", "met"),
    [
        ("<= 1.5", 1.5, None, True),
        ("<= 1.5", 1.6, 9.0, False),
        (">= 2", 1.0, 3.0, False),
        ("ratio >= 2", 1.0, 3.0, True),
    ],
)
def test_goals(runner, goal, ours, ratio, met):
    assert importlib.import_module("benchmarks.rows").fulfils(goal, ours, ratio) is met


IMPORTS = """
import importlib, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
for file in sorted(folder.glob("[a-z]*.py")):
    importlib.import_module(file.stem)
    print(file.stem)
"""


def test_every_script_finds_what_it_takes_from_the_others():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    done = subprocess.run([sys.executable, "-c", IMPORTS, folder], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {file.stem for file in folder.glob("[a-z]*.py")} >= {"map_tuning", "pipeline"}


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py and what it takes from beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("gpu")


def test_a_gpu_is_asked_for_eight_minutes_at_most(gpu):
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 480
    assert gpu.missing() == []  # of what setup.py asks for, where its tests run


def test_a_part_that_fails_or_does_not_end_is_a_row(gpu, tmp_path):
    bad = gpu.run("parity", gpu.Part("device_parity", "--layers none", "", 60), False, tmp_path, 60)
    assert [row["name"] for row in bad] == ["parity"] and "--layers: invalid int value" in bad[0]["error"]
    late = gpu.run("parity", gpu.Part("device_parity", "", "", 1), False, tmp_path, 60)
    assert late[0]["error"] == "not done after 1 s"


def test_distances_on_an_accelerator_by_hand(gpu):
    distance = importlib.import_module("device_parity").distance
    expected = {"loss": np.float32([2.0]), "logits": np.float32([1.0, -4.0])}
    assert distance({"loss": np.float32([2.1]), "logits": np.float32([2.0, -4.0])}, expected) == (0.25, "logits")
    assert distance({"loss": np.float32([np.nan]), "logits": np.float32([1.0, -4.0])}, expected)[1] == "loss"
