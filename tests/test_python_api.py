"""The Python API without a config file: it does what configs do, by the same code."""

import csv
import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from tiny_world import evaluate_stage, plugin_stage, question, run_experiment

import kinject
from kinject.api.tune import candidates, read_fit
from kinject.cli.tune import main as tune_command
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.plugins.store import load_plugin
from kinject.serving.evaluation import labelled

FIT = {"batch_size": 8, "steps": 12, "log_every": 2, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def host(world):
    return kinject.Host.load(world / "host")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """A copy: its names are indexed beside it."""
    folder = tmp_path_factory.mktemp("base") / "knowledge"
    return kinject.KnowledgeBase.open(shutil.copytree(world / "knowledge", folder))


def tuned(host, base, **changes):
    start = {"initialise": "ridge_label", "optimizer": {"name": "adam", "schedule": "constant", "warmup": 0}}
    return kinject.tune(host, base, map(question, range(40)), **FIT | start | {"learning_rate": 0.02} | changes)


@pytest.fixture(scope="module")
def plugin(host, base):
    return tuned(host, base)


@pytest.fixture(scope="module")
def other(host, base):
    return tuned(host, base, seed=1)


def numbers(plugin):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_plugin(plugin.stored.folder).plugin)]


def unlinked(i):
    return {key: value for key, value in question(i).items() if key != "mentions"}


def test_it_makes_the_plugin_and_the_table_of_a_config(world, host, base, plugin, tmp_path):
    """The same bits and the same numbers."""
    fit = FIT | {"epochs": None, "optimizer": {"name": "adam", "learning_rate": 0.02, "clip": 1.0}}
    stages = {"plugin": plugin_stage(world, initialise="ridge_label", fit=fit)}
    stages["evaluate"] = evaluate_stage(world, {"plugin": "@plugin"}, examples=0)
    rows = run_experiment({"seed": 0, "stages": stages}, tmp_path / "run")["evaluate"]["cities"]
    theirs = load_plugin(tmp_path / "run" / "plugin")
    assert all(map(np.array_equal, numbers(plugin), jax.tree.leaves(theirs.plugin)))
    assert plugin.metrics == theirs.manifest["metrics"]
    found = plugin.evaluate(host, base, read_records(world / "test.jsonl"))
    assert all(rows[key] == value for key, value in found.rows.items()) and found.n == 10
    assert found.plugin == 1 > found.host and found.wrong_vectors < 1 and found.says_the_wrong_ones > 0
    assert "cities: accuracy of 10 answers, 100.0% of the mentions have a vector" in repr(found)


def test_a_text_says_its_mentions_or_they_are_looked_for(host, base, plugin):
    records = [unlinked(i) if i % 2 else question(i) for i in range(40)]
    given = [one["mentions"] for one in map(question, range(40))]
    found = [[dataclasses.asdict(each) for each in one.mentions] for one in labelled(records, base, None, ("label",))]
    assert [[{key: one[key] for key in ("start", "end", "entity")} for one in each] for each in found] == given
    assert plugin.evaluate(host, base, map(unlinked, range(40, 60))).coverage == 1


def test_a_table_of_labelled_texts_is_records(base, tmp_path):
    asked = [unlinked(i) for i in range(6)]
    with (tmp_path / "asked.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, asked[0])
        writer.writeheader()
        writer.writerows(asked)
    read = labelled(tmp_path / "asked.csv", base, None, ("label",))
    known = labelled(asked, base, None, ("label",))
    assert [(one.source, one.mentions, one.fields) for one in read] == [
        (one.source, one.mentions, one.fields) for one in known
    ]
    (tmp_path / "asked.csv").write_text("sentence,label\nx,y\n")
    with pytest.raises(InputError, match=r"asked\.csv:2: has neither 'text' nor 'tokens'"):
        labelled(tmp_path / "asked.csv", base, None, ("label",))


def test_it_answers_one_with_one_and_several_with_a_list(host, plugin):
    asked = [{key: value for key, value in question(i).items() if key != "label"} for i in range(50, 53)]
    host.plug(plugin)
    assert host.plugged == ("cities",) and "plugged in: cities (60 entities)" in repr(host)
    one, several = host.predict(asked[0], compare=True), host.predict(asked)
    assert one.label == several[0].label == question(50)["label"] and [one.label for one in several] == [
        question(i)["label"] for i in range(50, 53)
    ]
    assert [each.label for each in host.stream(iter(asked))] == [each.label for each in several]
    assert not one.truncated and "read by cities" in repr(one) and f"'{one.before[0].label}'" in repr(one)
    assert host.trainable_parameters()[0] == plugin.trainable_parameters() == 16 * 8 + 16
    assert host.unplug(plugin).plugged == () and host.plug(plugin).unplug().plugged == ()
    with pytest.raises(InputError, match="it is not plugged in"):
        host.unplug(plugin)
    with pytest.raises(InputError, match="input: it is 3; give a text"):
        host.predict(3)
    long = {"text": question(51)["text"] + " is far ." * 12}
    assert host.predict(long).truncated and host.predict(long).to_json()["truncated"]


def test_two_of_one_name_stay_two(host, base, plugin, other, tmp_path):
    """Both folders are called `plugin`."""
    one = plugin.save(tmp_path / "a" / "plugin")
    other = other.save(tmp_path / "b" / "plugin")
    host.plug(one, knowledge=base)
    with pytest.raises(InputError, match="reads the same knowledge base as plugin"):
        host.plug(other, knowledge=base)
    assert host.plug(one, knowledge=base).plugged == ("plugin",), "the same one is no other"
    host.unplug()


def test_what_is_saved_is_the_plugin(plugin, tmp_path):
    folder = plugin.save(tmp_path / "saved")
    again = kinject.Plugin.load(folder)
    assert again.same_as(plugin) and all(map(np.array_equal, numbers(again), numbers(plugin)))
    assert "40 records given from Python" in (folder / "README.md").read_text()
    assert "not saved yet" in repr(plugin) and "saved)" in repr(again)
    with pytest.raises(InputError, match="it exists already"):
        plugin.save(folder)


def test_average_is_the_mean_of_plugins_of_one_space(host, plugin, other, tmp_path):
    made = kinject.average([plugin, other], weights=[3, 1])
    for mean, one, two in zip(numbers(made), numbers(plugin), numbers(other), strict=True):
        np.testing.assert_allclose(mean, 0.75 * one + 0.25 * two, rtol=1e-6)
    assert host.plug(made, name="mean").plugged == ("mean",)
    host.unplug("mean")
    assert "the mean of `plugin` (0.75), `plugin` (0.25)" in (made.save(tmp_path / "mean") / "README.md").read_text()
    with pytest.raises(InputError, match="give one each"):
        kinject.average([plugin, other], weights=[1])
    manifest = {**other.manifest, "method_config": {"mapper": "identity"}}
    wider = kinject.Plugin(dataclasses.replace(other.stored, manifest=manifest))
    with pytest.raises(InputError, match="its settings is"):
        kinject.average([plugin, wider])


def test_a_run_that_was_cut_short_goes_on(host, base, plugin, tmp_path):
    made = tuned(host, base, workdir=tmp_path)
    assert all(map(np.array_equal, numbers(made), numbers(plugin)))
    before = (tmp_path / "plugin" / "plugin.json").read_bytes()
    assert tuned(host, base, workdir=tmp_path).same_as(made), "it was done"
    assert (tmp_path / "plugin" / "plugin.json").read_bytes() == before
    with pytest.raises(InputError, match="holds a run of another config"):
        tuned(host, base, workdir=tmp_path, steps=13)
    assert json.loads((tmp_path / "config.json").read_text())["stages"]["plugin"]["host"].endswith("host")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rat": 1}, "tune: learning_rat: there is no such option; did you mean learning_rate"),
        ({"method": "map_tunin"}, "method.name: .*did you mean map_tuning"),
        ({"initialise": "ridge_lable"}, "did you mean ridge_label"),
    ],
)
def test_what_is_wrong_is_one_line(host, base, changes, said):
    with pytest.raises(InputError, match=said):
        tuned(host, base, **changes)
    with pytest.raises(InputError, match="records:1: field 'label' is missing"):
        kinject.tune(host, base, [{"text": "city1 is in [MASK] ."}])
    with pytest.raises(InputError, match="records: there is none"):
        kinject.tune(host, base, [])


def test_auto_tries_a_few_settings_and_says_so(base, world, tmp_path, capsys, monkeypatch):
    assert len(candidates("map_tuning")) == 4 and len(candidates("kformer")) == 3
    monkeypatch.setattr(sys.modules["kinject.api.tune"], "FACTORS", (1.0,))  # `kinject.api.tune` is the function
    monkeypatch.setattr("kinject.inference.xla.keep_compiled", lambda: None)
    words = ["--host", str(world / "host"), "--knowledge", str(base.folder), "--data", str(world / "train.jsonl")]
    words += ["--dev", str(world / "dev.jsonl"), "--test", str(world / "test.jsonl"), "--auto", "--quiet"]
    words += ["--out", str(tmp_path / "made"), "--steps=2", "--batch_size=8", "--evaluate_every=0"]
    assert tune_command(words) == 0
    said = capsys.readouterr().out
    made = kinject.Plugin.load(tmp_path / "made")
    tried = made.manifest["config"]["tried"]
    assert [one["settings"] for one in tried] == candidates("map_tuning")
    assert made.metrics["dev_accuracy"] == max(one["score"] for one in tried)
    assert said.count("tried {") == len(tried) == 2 and "host + plugin, wrong vectors" in said
    assert "Settings chosen on development data out of" in (tmp_path / "made" / "README.md").read_text()
    assert tune_command(words) == 2 and "it exists already" in capsys.readouterr().err
    assert tune_command([*words[:-5], "--out", str(tmp_path / "x"), "--step=2"]) == 2
    assert "did you mean steps?" in capsys.readouterr().err


def test_options_of_fit_and_of_its_optimizer_go_where_they_belong():
    made = read_fit("map_tuning", {"steps": 3, "learning_rate": 0.5, "optimizer": {"name": "sgd"}}, has_dev=True)
    assert made["steps"] == 3 and made["epochs"] is None and made["evaluate_every"] == "epoch"
    assert made["optimizer"]["learning_rate"] == 0.5 and made["optimizer"]["name"] == "sgd"
    assert read_fit("k_adapter", {}, has_dev=False)["optimizer"]["learning_rate"] == 3e-4
