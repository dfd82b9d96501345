"""docs/jobs.md as a newcomer would follow it: its blocks run as they stand, in one process, on a small model."""

import io
import json
import re
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import own_files
import pytest
from test_your_own import write_small_model

from kinject.cli import sweep
from kinject.cli.main import main
from kinject.reports.results import FinishedSweep

PAGE = Path(__file__).resolve().parents[1] / "docs" / "jobs.md"
JOBS = {
    int(number): (bool(mark), block.splitlines())
    for number, mark, block in re.findall(
        r"^## (\d)\..*?(<!-- run -->\n)?```bash\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
}


def small(words, base):
    """A command of the page with a small host and two steps of training: what is learned, test_your_own.py looks at."""
    steps = ("fit.buckets=1", "fit.epochs=None", "fit.steps=2")
    if words[0] == "train":
        changes = [f"host.base={base}", *(f"{stage}.{one}" for stage in ("host", "plugin") for one in steps)]
        return words + [f"--config.stages.{one}" for one in changes]
    if words[0] == "tune":
        return [*words, "--buckets=1", "--steps=2"]
    return words


def follow(line, base, monkeypatch):
    """Runs one line of the page and returns what it printed."""
    words = shlex.split(line)
    if words[:2] == ["python", "tests/own_files.py"]:
        own_files.write(Path(words[2]))
        return ""
    if words[:2] == ["cp", "-r"]:
        shutil.copytree(*words[2:])
        return ""
    assert words.pop(0) == "kinject"
    out = io.StringIO()
    source, target = (words[words.index(sign) + 1] if sign in words else None for sign in "<>")
    words = words[: min(words.index(sign) if sign in words else len(words) for sign in "<>")]
    given = Path(source).read_bytes() if source else b""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    with redirect_stdout(out):
        assert main(small(words, base)) == 0, line
    if target:
        Path(target).write_text(out.getvalue())
    return out.getvalue()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """What each line printed, by job, and the folder."""
    folder = tmp_path_factory.mktemp("jobs")
    base = write_small_model(folder / "models" / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("kinject.inference.xla.keep_compiled", lambda: None)
        return folder, {job: [follow(line, base, patch) for line in JOBS[job][1]] for job in (1, 2, 4)}


def answers(printed):
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_a_table_with_odd_columns_becomes_a_plugin(followed):
    folder, said = followed
    build, _, split, _, asked = said[1][1:]
    assert "Country: 200 facts, 9 values" in build and "not read: Since" in build
    assert "plugin: " in split and len((folder / "my" / "linked.jsonl").read_text().splitlines()) == 500
    rows = json.loads((folder / "runs/own/results.json").read_text())["evaluate"]["own"]
    assert rows["coverage"] == 1 and {"host", "plugin", "shuffled"} < set(rows)
    assert [one["entities"][0]["entity"] for one in answers(asked)] == ["C199", "C198", "C197"]


@pytest.mark.slow
def test_a_classifier_is_answered_alone_and_with_a_plugin(followed):
    folder, said = followed
    _, alone, tuned, plugged = said[2]
    assert all(one["entities"] == [] and one["labels"] for one in answers(alone)) and "wrong vectors" in tuned
    assert [one["before"][0]["label"] for one in answers(plugged)] == [
        one["labels"][0]["label"] for one in answers(alone)
    ]
    assert all(one["entities"][0]["plugin"] == "plugin" for one in answers(plugged))
    kept = (folder / "my/classifier/model.safetensors").read_bytes()
    assert kept == (folder / "runs/own/host/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_catalogue_that_has_grown_is_read_by_the_same_plugin(followed):
    _, (added, asked) = followed[0], followed[1][4]
    assert "200 entities are there already" in added and "C200: placed by triples of 3, trust" in added
    assert [one["entities"][0]["entity"] for one in answers(asked)] == ["C200", "C201", "C202"]
    assert not any(one.get("host_alone") for one in answers(asked))


@pytest.mark.slow
def test_an_ablation_is_a_row_a_start_with_its_report(followed, monkeypatch, capsys):
    """The runs of the sweep are one, with two steps; the others are left out, as of a sweep that was cut short."""
    folder, _ = followed
    monkeypatch.chdir(folder)
    monkeypatch.setattr("kinject.inference.xla.keep_compiled", lambda: None)
    first, report = JOBS[6][1]
    words = shlex.split(first)[2:]
    assert main(["sweep", *words, "--lines"]) == 0
    lines = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 9
    assert (
        main(["train", *lines[3], "--config.stages.plugin.fit.epochs=None", "--config.stages.plugin.fit.steps=2"]) == 0
    )
    assert sweep.main([*words, "--gather"]) == 0
    (name,) = FinishedSweep.open("runs/starts").runs
    assert name == "own:my,host=my/classifier,stages.plugin.initialise=zero"
    assert main(shlex.split(report)[1:]) == 0
    assert "stages.plugin.initialise=zero" in Path("runs/starts/report.html").read_text()


def test_the_page_has_six_jobs_and_says_which_run():
    assert list(JOBS) == [1, 2, 3, 4, 5, 6] and [job for job, (runs, _) in JOBS.items() if runs] == [1, 2, 4, 6]
