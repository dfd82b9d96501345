"""What runs and sweeps reported, read back, drawn and written as a page."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from finished import SEEDS, STEPS, write_sweep
from matplotlib.colors import to_rgb

from kinject.cli.report import main
from kinject.errors import EXIT_BAD_INPUT, InputError
from kinject.reports import plots
from kinject.reports.html import html
from kinject.reports.results import FinishedRun, FinishedSweep, open_results, run_folder

SPECS = [f"config.py:steps={steps}" for steps in STEPS]


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return write_sweep(world, tmp_path_factory.mktemp("finished") / "sweep")


@pytest.fixture(scope="module")
def sweep(folder):
    return FinishedSweep.open(folder)


@pytest.fixture(scope="module")
def run(sweep):
    return sweep.runs[SPECS[1]][0]


def compared(**scores):
    """A run as a stage `compare` leaves it: {method: (parameters, score)}."""
    methods = {name: {"parameters": size, "score": score} for name, (size, score) in scores.items()}
    table = {"made": {"n": 7, "metric": "accuracy", "knowledge": "k", "methods": methods}}
    return FinishedRun(Path("run"), {"stages": {"compare": {"kind": "compare"}}}, {"compare": table}, (), ())


def test_a_run_is_read_as_it_was_written(run, folder):
    assert run.folder == run_folder(folder, SPECS[1], 0)
    assert run.table() == run.results["evaluate"] and list(run.tables()) == ["evaluate"]
    steps, values = run.curve("plugin", "dev_accuracy")
    assert steps == [8, 16] and max(values) == run.results["plugin"]["dev_accuracy"]
    assert [one["stage"] for one in run.provenance] == ["plugin", "evaluate"]
    about = run.provenance[0]
    assert about["hardware"]["cores"] > 0 and sum(about["hardware"]["devices"].values()) > 0
    assert {"python", "jax", "kinject"} <= set(about["versions"])
    with pytest.raises(InputError, match=r"metrics\.jsonl: stage plugin logged no dev_acuracy; did you mean dev_acc"):
        run.curve("plugin", "dev_acuracy")


def test_a_sweep_is_read_with_its_runs(sweep):
    assert list(sweep.runs) == SPECS and [list(seeds) for seeds in sweep.runs.values()] == [list(SEEDS)] * 2
    mean, deviation = sweep.value(SPECS[0], "evaluate.cities.plugin")
    values = [run.results["evaluate"]["cities"]["plugin"] for run in sweep.runs[SPECS[0]].values()]
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert sweep.value(SPECS[0], "nothing") is None
    assert list(sweep.evaluated()) == ["evaluate.cities"]


def test_what_is_drawn_is_what_was_reported(sweep, run):
    (axes,) = plots.ablation_bars(sweep, "evaluate.cities").axes
    drawn = {(round(bar.get_y()), round(bar.get_width(), 6)) for bar in axes.patches}
    for place, config in enumerate(SPECS):
        for row in ("plugin", "shuffled"):
            assert (place, round(100 * sweep.value(config, f"evaluate.cities.{row}")[0], 6)) in drawn
    assert [text.get_text() for text in axes.get_yticklabels()] == ["steps=8", "steps=16"]
    (level,) = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    assert level.get_xdata()[0] == pytest.approx(100 * run.table()["cities"]["host"]), "the host is the same for all"

    (axes,) = plots.score_over_steps(sweep, "evaluate.cities").axes
    assert list(axes.lines[0].get_xdata()) == list(STEPS)
    expected = [100 * sweep.value(config, "evaluate.cities.plugin")[0] for config in SPECS]
    assert list(axes.lines[0].get_ydata()) == pytest.approx(expected)

    (axes,) = plots.accuracy_over_steps({"16 steps": list(sweep.runs[SPECS[1]].values())}).axes
    curves = [one.curve("plugin", "dev_accuracy")[1] for one in sweep.runs[SPECS[1]].values()]
    assert list(axes.lines[0].get_ydata()) == pytest.approx(100 * np.mean(curves, 0))
    assert {line.get_label() for line in axes.lines[1:]} == {
        "host alone (no plugin), held out",
        "host + plugin, wrong vectors, held out",
    }


def test_gain_and_pareto(run):
    (axes,) = plots.coverage_and_gain([run, run]).axes
    rows = run.table()["cities"]
    assert axes.lines[0].get_xydata()[0] == pytest.approx([100, 100 * (rows["plugin"] - rows["host"])])
    runs = [compared(host=(0, 0.2), small=(10, 0.5), worse=(99, 0.4 + gap), big=(1000, 0.9)) for gap in (0.0, 0.04)]
    (axes,) = plots.pareto(runs).axes
    front = axes.lines[0].get_xydata().tolist()
    assert front == [[0, 20], [10, 50], [1000, 90]], "a method that a smaller one beats is not on the line"
    assert {text.get_text().strip() for text in axes.texts} == {"host", "small", "worse", "big"}
    with pytest.raises(InputError, match="no domain moon; it has made"):
        plots.pareto(runs, "moon")
    with pytest.raises(InputError, match="no stage compare is finished"):
        plots.pareto([run])


def test_colours_can_be_told_apart_in_grey():
    """Those that stand beside each other differ in lightness; bars have hatching, lines marks and dashes besides."""
    grey = [np.dot(to_rgb(fill["color"]), (0.299, 0.587, 0.114)) for fill in plots.FILLS.values()]
    assert min(abs(one - other) for i, one in enumerate(grey) for other in grey[:i]) > 0.1
    looks = {(look["marker"], str(look["linestyle"])) for look in map(plots._style, range(5))}
    assert len(looks) == 5


def test_figures_are_saved_whole_twice_the_same(run, tmp_path):
    first = [path.read_bytes() for path in plots.save(plots.result_bars(run.table()), tmp_path / "a" / "bars")]
    again = [path.read_bytes() for path in plots.save(plots.result_bars(run.table()), tmp_path / "a" / "bars")]
    assert first == again and first[0].startswith(b"\x89PNG") and b"<svg" in first[1]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"bars.png", "bars.svg"}


class Page(HTMLParser):
    """Tags that stand open, what the page would load, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_of_a_run_holds_all_and_loads_nothing(run):
    page = Page(html(run))
    assert page.open == [] and page.loads and all(one.startswith("data:image/svg+xml;base64,") for one in page.loads)
    assert len(page.loads) == 2, "bars and curves"
    text = " ".join(page.texts)
    rows = run.table()["cities"]
    for row in ("host", "plugin", "shuffled", "nearest_neighbour"):
        assert f"{100 * rows[row]:.1f}" in text
    for part in ("tiny 16 <steps>", "wrong vectors", "cores; devices", "python 3.", '"batch_size": 8', "best_step"):
        assert part in text
    assert not re.search(r"url\(|@import", html(run))


def test_the_page_of_a_sweep(sweep, folder, capsys):
    text = (folder / "report.html").read_text()  # written when it was gathered
    page = Page(text)
    mean, deviation = sweep.value(SPECS[1], "evaluate.cities.plugin")
    assert f"{100 * mean:.1f} ± {100 * deviation:.1f}" in page.texts and len(page.loads) == 1
    assert main([str(folder)]) == 0 and capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text() == text


def refused(capsys, *arguments):
    assert main([str(one) for one in arguments]) == EXIT_BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("kinject: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_line(run, folder, tmp_path, capsys):
    there = tmp_path / "there.html"
    there.write_text("mine")
    assert "it exists; choose another file" in refused(capsys, run.folder, "--out", there)
    assert there.read_text() == "mine"
    assert "cannot be written" in refused(capsys, run.folder, "--out", tmp_path / "no" / "where.html")
    assert "there is no such folder" in refused(capsys, tmp_path / "nowhere")
    assert "no config.json" in refused(capsys, tmp_path)
    broken = Path(shutil.copytree(run.folder, tmp_path / "broken"))
    metrics = (broken / "metrics.jsonl").read_text()
    (broken / "metrics.jsonl").write_text(metrics + '{"stage": "plug')  # torn by a kill
    assert open_results(broken).metrics == run.metrics
    (broken / "metrics.jsonl").write_text("{}\n" + metrics)
    assert "metrics.jsonl:1: it has no stage" in refused(capsys, broken)
    (broken / "metrics.jsonl").write_text("stage 1\n" + metrics)
    assert "metrics.jsonl:1: it is not JSON" in refused(capsys, broken)
    (broken / "results.json").write_text("[1]")
    assert "results.json: it is not a JSON object" in refused(capsys, broken)
    (broken / "results.json").unlink()
    assert "no stage is finished" in refused(capsys, broken)
    bad = Path(shutil.copytree(folder, tmp_path / "bad"))
    (bad / "results.parquet").write_bytes(b"PAR1 no")
    assert "it is not parquet" in refused(capsys, bad)


def test_without_matplotlib_there_are_tables(run):
    """In a process whose import of matplotlib fails, as where it is not installed."""
    code = f"""
import importlib.util, sys
sys.modules["matplotlib"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "matplotlib" else find(name, *more)
from kinject.reports.html import html
from kinject.reports.results import FinishedRun
from kinject.reports import plots
from kinject.errors import InputError
run = FinishedRun.open({str(run.folder)!r})
page = html(run)
try:
    plots.result_bars(run.table())
except InputError as error:
    print(error)
print("pip install" in page, "data:image" in page, "<table>" in page, "jax" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert done.stderr == "" and done.stdout.splitlines() == [
        "plots: matplotlib is not installed; pip install 'kinject[plots]'",
        "True False True False",
    ]


def test_old_workdirs_say_that_they_noted_nothing(run, tmp_path):
    old = Path(shutil.copytree(run.folder, tmp_path / "old"))
    (old / "provenance.jsonl").unlink()
    found = FinishedRun.open(old)
    assert "did not note command" in html(found) and json.loads((old / "config.json").read_text()) == found.config
