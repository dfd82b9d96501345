"""What a config has wrong is told before its first stage; and what a person who watches is told."""

import io
import json
import sys

import pytest
from rich.console import Console
from tiny_world import plugin_stage, question, run_experiment, write_records

from kinject.cli.parser import typed
from kinject.errors import InputError
from kinject.plugins.base import plugin_class
from kinject.plugins.map_tuning import check_start
from kinject.reports.console import Reporter
from kinject.stages.experiment import Experiment


def classified(world, folder, labels):
    """A host stage whose labels are given, and a plugin and a table that stand on it."""
    made = [{**question(i), "label": label} for i, label in enumerate(labels)]
    (folder / "records").mkdir()
    data = (str(write_records(folder / "records" / "all.jsonl", made)),)
    task = {"task": "sequence_classification", "data": data, "fit": {"steps": 1}}
    host = {"kind": "host", "base": str(world / "raw_host"), "train": (("host/.*", "train"),)} | task
    host["task_options"] = {"labels": ["even", "odd"]}
    plugin = {"kind": "plugin", "host": "@host", "knowledge": str(world / "knowledge")} | task
    domain = {"knowledge": str(world / "knowledge"), "data": data, "plugins": {"plugin": "@plugin"}}
    table = {"kind": "evaluate", "task": task["task"], "host": "@host", "domains": {"all": domain}}
    return {"host": host, "plugin": plugin, "table": table}


@pytest.mark.parametrize("left", [("host", "plugin", "table"), ("plugin",), ("table",)])
def test_a_label_that_the_host_will_not_have_is_told_before_it_is_tuned(world, tmp_path, left):
    stages = classified(world, tmp_path, ["even", "odd", "evn"])
    good = str(write_records(tmp_path / "good.jsonl", [{**question(1), "label": "odd"}]))
    for name in {"host", "plugin"} - set(left):
        stages[name]["data"] = (good,)
    if "table" not in left:
        stages["table"]["domains"]["all"]["data"] = (good,)
    with pytest.raises(InputError, match=r"all\.jsonl:3: field label is 'evn', which is none of the labels; did"):
        Experiment.open({"stages": stages}, tmp_path / "run", devices=1, quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_labels_of_a_folder_of_transformers_are_its_config(world, tmp_path):
    stages = classified(world, tmp_path, ["even", "other"])
    (tmp_path / "theirs").mkdir()
    config = {"model_type": "bert", "id2label": {"0": "even", "1": "odd"}}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    stages = {"plugin": stages["plugin"] | {"host": str(tmp_path / "theirs")}}
    with pytest.raises(InputError, match=r"all\.jsonl:2: field label is 'other'"):
        Experiment.open({"stages": stages}, tmp_path / "run", devices=1, quiet=True)


def test_a_start_is_checked_before_anything_runs(world, tmp_path):
    wrong = {"ridge_lable": "unknown start 'ridge_lable'; did you mean ridge_label", "wherever": "there is no wherever"}
    for start, said in wrong.items():
        with pytest.raises(InputError, match=said):
            stage = plugin_stage(world, initialise=start)
            Experiment.open({"stages": {"plugin": stage}}, tmp_path / "run", devices=1, quiet=True)
    with pytest.raises(InputError, match="zero is a start of map_tuning, not of k_adapter"):
        check_start("zero", plugin_class("k_adapter"), "initialise")


def test_compiling_is_said_with_its_seconds(world, tmp_path, capsys):
    stage = plugin_stage(world, fit={"steps": 1, "log_every": 1, "checkpoint_every": 1})
    with Experiment.open({"stages": {"plugin": stage}}, tmp_path, devices=1) as experiment:
        experiment.execute("plugin")
    said = capsys.readouterr().out.splitlines()
    at = said.index("plugin: compiling")
    assert said[at + 1].startswith("plugin: compiled in ") and said[at + 1].endswith(" s")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_list_is_folded_on_a_terminal_and_whole_elsewhere(terminal):
    stream = io.StringIO()
    text = "\n".join(f"line {number}" for number in range(9))
    Reporter(Console(file=stream, force_terminal=terminal, highlight=False)).say_folded(text)
    said = stream.getvalue().splitlines()
    assert len(said) == (5 if terminal else 9) and ("… and 5 more lines" in said[-1]) == terminal


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/usr/bin/kinject", "kinject train"),
        ("/x/kinject/__main__.py", "python -m kinject train"),
        ("/x/kinject/train.py", "python -m kinject.train"),
    ],
)
def test_commands_are_named_as_they_were_typed(program, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "train"])
    assert " ".join(typed("train")) == words


@pytest.mark.slow
def test_two_steps_still_run(world, tmp_path):
    stages = classified(world, tmp_path, ["even", "odd"] * 4)
    stages["plugin"]["initialise"] = "zero"
    assert run_experiment({"stages": stages}, tmp_path / "run")["table"]["all"]["n"] == 8
