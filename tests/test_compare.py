"""Stage `compare`: scores are those of an evaluation, controls where there is one, costs beside the host's."""

from pathlib import Path

import numpy as np
import pytest
from fact_world import write_facts
from tiny_world import evaluate_stage, plugin_stage, run_experiment

from kinject.config import read_config
from kinject.errors import InputError
from kinject.stages.compare import HOST_ROW, costs, table
from kinject.stages.experiment import Experiment
from kinject.sweep import markdown

TEXT = {"name": "retrieved_text", "budget": 20}
ADAPTER = {"name": "k_adapter", "layers": (1,), "width": 8, "heads": 2, "depth": 1, "feed_forward": 8}


def test_costs_are_medians_of_turns_beside_the_host():
    """A machine that slows down threefold in the middle changes no ratio."""
    order = []

    def timer(name, seconds):
        spent = iter(seconds)

        def run():
            order.append(name)
            return next(spent)

        return run, 5.0, 0.4

    found = costs({HOST_ROW: timer("host", [1, 1, 3, 3, 1]), "slow": timer("slow", [2, 2, 6, 6, 9])}, 10, 5)
    assert order == ["host", "slow"] * 5
    assert found["slow"]["latency_ratio"] == 2 and found[HOST_ROW]["latency_ratio"] == 1
    assert found["slow"]["milliseconds"] == 600 and found["slow"]["prepare_milliseconds"] == 40


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    base = str(write_facts(folder / "base").folder)
    vectors = plugin_stage(world, initialise="ridge_label", fit={"steps": 2}) | {"knowledge": base}
    adapter = plugin_stage(world, method=ADAPTER, fit={"steps": 2}) | {"knowledge": None}
    methods = {"vectors": {"plugin": "@vectors"}, "adapter": {"plugin": "@adapter"}, "text": {"plugin": TEXT}}
    methods["other_host"] = {"plugin": TEXT, "host": str(world / "raw_host")}
    compare = {
        "kind": "compare",
        "task": "cloze",
        "host": str(world / "host"),
        "repeats": 2,
        "domains": {"cities": {"knowledge": base, "data": (str(world / "test.jsonl"),), "methods": methods}},
    }
    again = evaluate_stage(world, {"plugin": "@vectors", "text": TEXT})
    again["domains"]["cities"] |= {"knowledge": base, "reference_data": ()}
    stages = {"vectors": vectors, "adapter": adapter, "compare": compare, "table": again}
    return run_experiment({"seed": 3, "stages": stages}, folder / "run")


def test_scores_are_those_of_an_evaluation_and_costs_are_there(compared):
    found, expected = compared["compare"]["cities"], compared["table"]["cities"]
    rows = found["methods"]
    assert list(rows) == ["host", "vectors", "adapter", "text", "other_host"] and found["n"] == 10
    assert rows["host"]["score"] == expected["host"]
    assert rows["vectors"]["score"] == expected["plugin"] and rows["text"]["score"] == expected["text"]
    assert (
        rows["vectors"]["parameters"] == 8 * 16 + 16 and rows["text"]["parameters"] == rows["host"]["parameters"] == 0
    )
    assert [name for name, row in rows.items() if "shuffled" in row] == ["vectors", "text", "other_host"]
    assert rows["vectors"]["training_seconds"] == compared["seconds"]["vectors"]
    assert rows["text"]["training_seconds"] == 0
    assert all(row["latency_ratio"] > 0 and np.isfinite(row["milliseconds"]) for row in rows.values())
    assert rows["host"]["latency_ratio"] == 1
    lengths = {name: row["tokens"] for name, row in rows.items()}
    assert lengths["host"] == lengths["adapter"] < lengths["vectors"] < lengths["text"] == lengths["other_host"]


def test_the_table_shows_every_row_and_a_sweep_gathers_its_numbers(compared):
    shown = table("cities", compared["compare"]["cities"]).splitlines()
    assert len(shown) == 2 + 5 and len({line.count("|") for line in shown}) == 1
    assert shown[3].startswith("| vectors |") and "| 144 |" in shown[3]
    row = {"config": "c", "measure": "compare.cities.methods.text.score", "mean": 0.5, "deviation": 0.1, "seeds": 3}
    row["published"] = None
    assert "compare.cities.methods.text.score | 0.5" in markdown([row, {**row, "measure": "host.loss"}])


def test_what_is_not_there_is_told_before_anything_runs(world, tmp_path):
    domain = {"knowledge": str(world / "knowledge"), "data": (str(world / "test.jsonl"),)}
    for method, message in (
        ({"plugin": "@nowhere"}, r"methods\.x\.plugin: @nowhere names no stage"),
        ({"plugin": TEXT, "host": "@nowhere"}, r"methods\.x\.host: @nowhere names no stage"),
        ({"plugin": {"name": "retrieved"}}, "there is no plugin called 'retrieved'"),
        ({}, r"methods\.x\.plugin: it is missing"),
    ):
        stage = {"kind": "compare", "task": "cloze", "host": str(world / "host")}
        stage["domains"] = {"cities": domain | {"methods": {"x": method}}}
        with pytest.raises(InputError, match=message):
            run_experiment({"stages": {"compare": stage}}, tmp_path / "run")


def test_the_config_gives_every_method_the_same_data_and_budget(tmp_path):
    found = read_config(str(Path(__file__).parents[1] / "configs" / "compare.py"))
    Experiment.open(found, tmp_path / "run", devices=1, quiet=True)  # checks every stage, writes nothing
    stages = found["stages"]
    for domain, compared in stages["compare"]["domains"].items():
        trained = [stages[row["plugin"][1:]] for row in compared["methods"].values() if isinstance(row["plugin"], str)]
        assert {stage["method"]["name"] if "method" in stage else "map_tuning" for stage in trained} == {
            "map_tuning",
            "kformer",
            "k_adapter",
        }
        for name in ("data", "dev_data", "host", "knowledge", "fit", "task"):
            assert all(stage[name] == trained[0][name] for stage in trained), (domain, name)
    assert not (tmp_path / "run").exists()
