"""The paper's tasks from a raw model to a table: host, plugin and evaluation of each, and labels that must agree."""

import json

import pytest
from paper_records import LANDS, asked, parsed, relation, typed
from tiny_world import evaluate_stage, plugin_stage, run_experiment, write_host, write_host_and_base, write_records

from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.plugins.store import load_plugin
from kinject.tasks.base import make_task


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_host_and_base(tmp_path_factory.mktemp("paper"), "raw")


def labelled_records(folder):
    """60 of each; the labels depend on the city's number modulo 5, which its vector tells."""
    relations = [relation(i, (i * 7 + 3) % 60, f"land{i % 5 % 3}") for i in range(60)]
    types = [typed(i, [f"land{i % 5 % 3}", *(["land0"] if i % 5 == 4 else [])]) for i in range(60)]
    return {
        "relation_classification": str(write_records(folder / "relations.jsonl", relations)),
        "entity_typing": str(write_records(folder / "types.jsonl", types)),
        "entity_questions": str(write_records(folder / "asked.jsonl", [asked(i, [f"land{i % 5}"]) for i in range(60)])),
        "few_shot_relations": str(write_records(folder / "few.jsonl", relations)),
    }


OPTIONS = {
    "relation_classification": {"labels": LANDS},
    "entity_typing": {"labels": LANDS},
    "entity_questions": {},
    "few_shot_relations": {"n_way": 3, "queries": 2, "episodes": 20, "evaluation_episodes": 4, "protocol": "thunlp"},
}


@pytest.fixture(scope="module")
def runs(files):
    """For every task: a host made from the raw model, a plugin tuned through it, and both measured."""
    data, results = labelled_records(files / "data"), {}
    for name, options in OPTIONS.items():
        fit = {"batch_size": 12, "steps": 30, "buckets": 1, "checkpoint_every": 30, "evaluate_every": 15}
        fit["optimizer"] = {"learning_rate": 0.01}
        shared = {"task": name, "data": (data[name],), "dev_data": (data[name],)}
        host = {"kind": "host", **shared, "base": str(files / "raw"), "task_options": options, "fit": fit}
        # the plugin and the table take their labels from the host
        later = {key: value for key, value in options.items() if key != "labels"}
        plugin = plugin_stage(files, **shared, host="@host", fit=fit, task_options=later)
        table = evaluate_stage(files, {"plugin": "@plugin"}, task=name, host="@host", task_options=later)
        table["domains"]["cities"] |= {"data": (data[name],), "reference_data": ()}
        folder = files / "runs" / name
        results[name] = run_experiment({"seed": 0, "stages": {"host": host, "plugin": plugin, "table": table}}, folder)
    return files / "runs", results


@pytest.mark.parametrize("name", OPTIONS)
def test_a_task_from_raw_model_to_table(name, runs):
    folder, results = runs
    table = results[name]["table"]["cities"]
    metric = "dev_f1" if name == "entity_typing" else "dev_accuracy"
    assert table["n"] == (4 * 3 * 2 if name == "few_shot_relations" else 60)
    # the table measures what the stages measured on the same questions
    assert table["plugin"] == pytest.approx(results[name]["plugin"][metric])
    assert table["host"] == pytest.approx(results[name]["host"][metric])
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["stage"] == "plugin" and "loss" in line]
    assert len(losses) == 15 and sum(losses[-5:]) < sum(losses[:5])
    manifest = json.loads((folder / name / "host" / "host.json").read_text())
    assert manifest["labels"] == (LANDS if "labels" in OPTIONS[name] else None) and manifest["task"] == name
    assert load_plugin(folder / name / "plugin").plugin.name == "map_tuning"


def test_questions_are_learned_through_the_slot(runs):
    table = runs[1]["entity_questions"]["table"]["cities"]
    assert table["plugin"] > table["shuffled"] and table["plugin"] > table["host"]


def test_labels_of_a_host_are_strict(runs, files):
    folder, _ = runs
    host = open_host(folder / "relation_classification" / "host", head="classification").loaded
    make = make_task
    assert make("relation_classification").for_host(host, "host").labels == tuple(LANDS)
    assert make("relation_classification", labels=LANDS).for_host(host, "host").labels == tuple(LANDS)
    swapped = make("relation_classification", labels=["land0", "land2", "land1"])
    with pytest.raises(InputError, match=r"^stages\.x: label 1 of the host is 'land1', not 'land2'; leave"):
        swapped.for_host(host, "stages.x")
    with pytest.raises(InputError, match="made for 3 labels, not 2"):
        make("relation_classification", labels=LANDS[:2]).for_host(host, "stages.x")
    bare = open_host(write_host(files / "untold", "pair_score"), head="pair_score").loaded  # it names no labels
    with pytest.raises(InputError, match=r"the host has no label names; give them as task_options\.labels"):
        make("relation_classification").for_host(bare, "stages.x")
    with pytest.raises(InputError, match="the host has 1 outputs for 3 labels"):
        make("relation_classification", labels=LANDS).for_host(bare, "stages.x")
    with pytest.raises(InputError, match=r"task_options\.labels: a host for this task is made with the names"):
        make("entity_typing").num_labels  # noqa: B018
    with pytest.raises(InputError, match=r"task_options\.labels: labels are not known"):
        make("entity_typing").examples(parsed(typed()), None, None)


def test_wrong_labels_stop_a_stage_before_it_trains(runs, files):
    folder, _ = runs
    host = str(folder / "relation_classification" / "host")
    data = (str(files / "data" / "relations.jsonl"),)
    options = {"labels": [*LANDS[::-1]]}
    stage = plugin_stage(files, task="relation_classification", host=host, data=data, task_options=options)
    with pytest.raises(InputError, match=r"^stages\.plugin\.host: label 0 of the host is 'land0', not 'land2'"):
        run_experiment({"seed": 0, "stages": {"plugin": stage}}, files / "refused")
    assert not (files / "refused" / "plugin").exists()
