"""Where a plugin's training starts when nobody says so, and that what was begun otherwise stays as it was."""

import json
import re
import sys
from pathlib import Path

import pytest
from tiny_world import plugin_stage, question, run_experiment, sentence, write_records

import kinject
from kinject.config import read_config
from kinject.stages.experiment import Experiment, read_stages

ROOT = Path(__file__).resolve().parents[1]
PAPER = [path for path in sorted((ROOT / "configs" / "paper").glob("*.py")) if "get_config" in path.read_text()]
GENERAL = {"task": "mention_masked_lm", "initialise": "random", "max_length": 64, "method": {"name": "map_tuning"}}
RULES = [["plugin/.*", "train"], [".*", "freeze"]]


def settings_of(path, arg, folder):
    """The settings of a paper's config as a run keeps them."""
    (folder / "base").mkdir(exist_ok=True)
    stages = read_stages(read_config(f"{path}:{arg}"))
    return {name: stage.model_dump(mode="json") for name, stage in stages.items()}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_configs_say_where_they_start(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    for stage in read_config(str(path))["stages"].values():
        if stage["kind"] == "plugin":
            assert stage["initialise"] in ("random", "@mapper"), path


@pytest.mark.parametrize(
    ("name", "arg", "fit"),
    [
        ("general_map_tuning", "25,3", {"batch_size": 64, "epochs": 3, "dropout": "all"}),
        ("downstream_map_tuning", "wiki80,12", {"batch_size": 64, "epochs": 12, "dropout": "none"}),
    ],
)
def test_their_settings_did_not_move_with_the_default(name, arg, fit, tmp_path):
    made = settings_of(ROOT / "configs" / "paper" / f"{name}.py", arg, tmp_path)["mapper"]
    assert GENERAL.items() <= made.items() and made["train"] == RULES and fit.items() <= made["fit"].items()
    assert made["fit"]["optimizer"]["learning_rate"] == {"25,3": 3e-5, "wiki80,12": 2e-4}[arg]
    assert made["dropout"] == {"25,3": 0.25, "wiki80,12": None}[arg] and made["ridge_penalty"] == 0.1


def test_each_task_and_method_has_a_start_that_suits_it(world, tmp_path):
    still = {"steps": 1, "batch_size": 4, "optimizer": {"learning_rate": 1e-9}}

    def start(**changes):
        stage = {key: value for key, value in plugin_stage(world, **changes).items() if key != "initialise"}
        stage["fit"] = still
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run_experiment({"stages": {"plugin": stage}}, folder)
        return json.loads((folder / "plugin" / "plugin.json").read_text())["config"]["initialise"]

    unknown = write_records(tmp_path / "unknown.jsonl", [{**question(i), "mentions": []} for i in range(4)])
    masked = write_records(tmp_path / "masked.jsonl", [sentence(i, i + 20) for i in range(9)])
    assert start() == "ridge_label"
    assert start(task="mention_masked_lm", data=(str(masked),)) == "ridge_mention"
    assert start(data=(str(unknown),)) == "zero", "nothing to fit"
    assert start(method={"name": "map_tuning", "mapper": "identity"}) == "random", "that is the identity"


def test_the_default_start_answers_where_a_random_one_does_not(world):
    """With no training to speak of, which tells the starts apart."""
    host, base = kinject.Host.load(world / "host"), kinject.KnowledgeBase.open(world / "knowledge")
    found = {}
    for start in (None, "random"):
        plugin = kinject.tune(
            host, base, world / "train.jsonl", initialise=start, steps=1, batch_size=4, learning_rate=1e-9
        )
        found[start] = plugin.evaluate(host, base, world / "test.jsonl").plugin
    assert found[None] == 1 > found["random"] + 0.4


def test_a_run_that_began_with_the_old_default_goes_on(world, tmp_path):
    stage = plugin_stage(world, fit={"steps": 1, "log_every": 1, "checkpoint_every": 1})
    run_experiment({"stages": {"plugin": stage}}, tmp_path)
    del stage["initialise"]
    again = Experiment.open({"stages": {"plugin": stage}}, tmp_path, devices=1, quiet=True)
    assert again.choose(None) == [] and again.config["stages"]["plugin"]["initialise"] == "random"
    with pytest.raises(kinject.InputError, match=re.escape("initialise was 'random' and is 'zero'")):
        Experiment.open({"stages": {"plugin": {**stage, "initialise": "zero"}}}, tmp_path, devices=1, quiet=True)
