"""Stage `compare`: scores are those of an evaluation, controls where there is one, costs beside the host's."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from fact_world import write_facts
from tiny_world import CITIES, LANDS, evaluate_stage, plugin_stage, question, run_experiment, write_records

from kinject.cli.sweep import markdown
from kinject.config import read_config
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import open_host
from kinject.inference.mesh import Placement
from kinject.inference.passages import attach, exchange_values
from kinject.memory.store import PassageMemory
from kinject.plugins.base import plugin_class, plugin_names
from kinject.plugins.store import load_plugin
from kinject.reports.tables import comparison
from kinject.stages.compare import HOST_ROW, costs
from kinject.stages.experiment import Experiment
from kinject.tasks.base import make_task

TEXT = {"name": "retrieved_text", "budget": 20}
PLUGLM = {"name": "pluglm", "layers": (2,), "heads": 2, "key_size": 8, "top_k": 2, "beta": 10.0}
PLUGLM |= {"query": "mention", "query_from": "embeddings"}
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
def ran(world, tmp_path_factory):
    """The results of a run that compares, and what it said."""
    folder = tmp_path_factory.mktemp("compared")
    base = str(write_facts(folder / "base").folder)
    vectors = plugin_stage(world, initialise="ridge_label", fit={"steps": 2}) | {"knowledge": base}
    adapter = plugin_stage(world, method=ADAPTER, fit={"steps": 2}) | {"knowledge": None}
    lines = [{"text": f"city{i} is in land{i % LANDS} .", "entity": f"Q{i}"} for i in range(CITIES)]
    memory = {name: adapter[name] for name in ("task", "host", "data", "fit")} | {"kind": "memory_plugin"}
    memory |= {"passages": (str(write_records(folder / "passages.jsonl", lines)),), "refresh_every": 4, "length": 8}
    memory |= {"method": PLUGLM, "fit": memory["fit"] | {"steps": 8, "buckets": 1}}
    methods = {"vectors": {"plugin": "@vectors"}, "adapter": {"plugin": "@adapter"}, "text": {"plugin": TEXT}}
    methods["passages"] = {"plugin": "@memory/plugin", "memory": "@memory/memory"}
    methods["other_host"] = {"plugin": TEXT, "host": str(world / "raw_host")}
    other = write_facts(folder / "other", name="other", triples=False).folder  # descriptions of every second city alone
    of_its_own = {"other_base": {"plugin": TEXT, "knowledge": str(other)}}
    kinds = [{**question(i), "kind": ("one", "other")[i % 3 > 0]} for i in range(50, 60)]
    asked = {"knowledge": base, "data": (str(write_records(folder / "kinds.jsonl", kinds)),), "by_kind": True}
    compare = {
        "kind": "compare",
        "task": "cloze",
        "host": str(world / "host"),
        "repeats": 2,
        "domains": {
            "cities": {"knowledge": base, "data": (str(world / "test.jsonl"),), "methods": methods},
            "kinds": {**asked, "methods": {**of_its_own, "vectors": methods["vectors"]}},
        },
    }
    again = evaluate_stage(world, {"plugin": "@vectors", "text": TEXT})
    again["domains"]["cities"] |= {"knowledge": base, "reference_data": ()}
    again["domains"]["kinds"] = {**asked, "plugins": {"plugin": "@vectors"}}
    stages = {"vectors": vectors, "adapter": adapter, "memory": memory, "compare": compare, "table": again}
    with redirect_stdout(io.StringIO()) as said:
        found = run_experiment({"seed": 3, "stages": stages}, folder / "run", quiet=False)
    return found, said.getvalue()


@pytest.fixture(scope="module")
def compared(ran):
    return ran[0]


def test_each_row_is_told_as_it_comes(ran):
    found, said = ran
    told = [line for line in said.splitlines() if line.startswith("compare: cities: ")]
    assert [line.split(": ")[2] for line in told[:-1]] == list(found["compare"]["cities"]["methods"])
    assert all(": accuracy " in line for line in told[:-1]) and told[-1].endswith("timing, 2 turns of 10 examples")
    assert ["others' knowledge" in line for line in told[:4]] == [False, True, False, True], "where there is a control"


def test_scores_are_those_of_an_evaluation_and_costs_are_there(compared):
    found, expected = compared["compare"]["cities"], compared["table"]["cities"]
    rows = found["methods"]
    assert list(rows) == ["host", "vectors", "adapter", "text", "passages", "other_host"]
    assert found["n"] == 10
    assert rows["host"]["score"] == expected["host"]
    assert rows["vectors"]["score"] == expected["plugin"] and rows["text"]["score"] == expected["text"]
    assert (
        rows["vectors"]["parameters"] == 8 * 16 + 16 and rows["text"]["parameters"] == rows["host"]["parameters"] == 0
    )
    assert rows["other_host"]["parameters"] > 1000, "all of that host was trained"
    assert [name for name, row in rows.items() if "shuffled" in row] == ["vectors", "text", "passages", "other_host"]
    assert rows["vectors"]["training_seconds"] == compared["seconds"]["vectors"]
    assert rows["text"]["training_seconds"] == 0
    assert "training_seconds" not in rows["other_host"], "it was trained elsewhere: that is not free"
    assert all(row["latency_ratio"] > 0 and np.isfinite(row["milliseconds"]) for row in rows.values())
    assert rows["host"]["latency_ratio"] == 1
    lengths = {name: row["tokens"] for name, row in rows.items()}
    assert (
        lengths["host"]
        == lengths["adapter"]
        == lengths["passages"]
        < lengths["vectors"]
        < lengths["text"]
        == lengths["other_host"]
    )


def test_kinds_count_alike_and_a_row_may_have_a_base_of_its_own(compared):
    found, expected = compared["compare"]["kinds"], compared["table"]["kinds"]["kinds"]
    rows = found["methods"]
    assert (
        found["kinds"] == {kind: values["n"] for kind, values in expected.items()}
        and sum(found["kinds"].values()) == 10
    )
    for row, other in (("host", "host"), ("vectors", "plugin")):
        assert rows[row]["score_kinds"] == {kind: values[other] for kind, values in expected.items()}
    for score in ("score", "shuffled"):
        assert rows["vectors"][score] == np.mean(list(rows["vectors"][f"{score}_kinds"].values()))
    texts = compared["compare"]["cities"]["methods"]["text"]["tokens"]
    assert rows["host"]["tokens"] < rows["other_base"]["tokens"] < texts, "fewer facts, of a base of its own"


def test_the_table_shows_every_row_and_a_sweep_gathers_its_numbers(compared):
    shown = comparison("cities", compared["compare"]["cities"]).splitlines()
    assert len(shown) == 2 + 6 and len({line.count("|") for line in shown}) == 1
    assert shown[3].startswith("| vectors |") and "| 144 |" in shown[3]
    seconds = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in shown[2:]}
    assert seconds["text"] == "0" and seconds["other host"] == seconds["host"] == ""
    row = {"config": "c", "measure": "compare.cities.methods.text.score", "mean": 0.5, "deviation": 0.1, "seeds": 3}
    row["published"] = None
    assert "compare.cities.methods.text.score | 0.5" in markdown([row, {**row, "measure": "host.loss"}])


def test_what_is_not_there_is_told_before_anything_runs(world, tmp_path):
    domain = {"knowledge": str(world / "knowledge"), "data": (str(world / "test.jsonl"),)}
    for method, message in (
        ({"plugin": "@nowhere"}, r"methods\.x\.plugin: @nowhere names no stage"),
        ({"plugin": TEXT, "host": "@nowhere"}, r"methods\.x\.host: @nowhere names no stage"),
        ({"plugin": {"name": "retrieved"}}, "there is no plugin called 'retrieved'"),
        ({"plugin": TEXT, "memory": "@nowhere"}, r"methods\.x: .*memory needs the folder of the plugin that reads it"),
        ({"plugin": str(world / "host"), "memory": "@nowhere"}, r"methods\.x\.memory: @nowhere names no stage"),
        ({}, r"methods\.x\.plugin: it is missing"),
        ({"plugin": TEXT, "knowledge": "@nowhere"}, r"methods\.x\.knowledge: @nowhere names no stage"),
    ):
        stage = {"kind": "compare", "task": "cloze", "host": str(world / "host")}
        stage["domains"] = {"cities": domain | {"methods": {"x": method}}}
        with pytest.raises(InputError, match=message):
            run_experiment({"stages": {"compare": stage}}, tmp_path / "run")


@pytest.mark.parametrize("domain", ["geography", "biology"])
def test_the_config_gives_every_method_the_same_data_and_budget(domain, tmp_path):
    configs = Path(__file__).parents[1] / "configs"
    found = read_config(f"{configs / 'compare.py'}:domain={domain}")
    Experiment.open(found, tmp_path / "run", devices=1, quiet=True)  # checks every stage, writes nothing
    stages, quickstart = found["stages"], read_config(str(configs / "quickstart.py"))["stages"]
    for name in ("geography", "biology", "host", f"{domain}_plugin"):
        assert stages[name] == quickstart[name], "the main job's, as it is there"
    compared = stages["compare"]["domains"][domain]
    named = {row: method["plugin"] for row, method in compared["methods"].items()}
    trained = {row: stages[one[1:].partition("/")[0]] for row, one in named.items() if isinstance(one, str)}
    fits = {row: stage["fit"] for row, stage in trained.items() if "fit" in stage}
    of_their_own = {"closed_form", "k_adapters_combined", "pluglm"}
    assert set(fits) >= {"map_tuning", "kformer", "k_adapter", "dkplm", *of_their_own}
    for row, fit in fits.items():
        assert trained[row]["host"] == "@host" and trained[row]["data"] == stages[f"{domain}_plugin"]["data"]
        assert fit["batch_size"] == 50 and fit["compute_dtype"] == fits["map_tuning"]["compute_dtype"]
        assert trained[row].get("knowledge", f"@{domain}/knowledge") == f"@{domain}/knowledge"
    for row in set(fits) - of_their_own:
        assert fits[row] == fits["map_tuning"]
    methods = {one["name"] for one in named.values() if isinstance(one, dict)} | {"map_tuning"}
    methods |= {stage["method"]["name"] for stage in trained.values() if "method" in stage}
    methods |= {stage["kind"] for stage in trained.values()}
    ours = {name for name in plugin_names() if plugin_class(name).__module__.startswith("kinject.plugins.")}
    missing = sorted(ours - methods)
    assert not missing, f"no row for {', '.join(missing)}: give every method of the house one in configs/compare.py"
    assert not (tmp_path / "run").exists()


def test_a_memory_and_its_control_are_what_the_plugin_says_by_hand(compared, world, tmp_path_factory):
    folder = next(tmp_path_factory.getbasetemp().glob("compared*")) / "run"
    host = open_host(world / "host", head="masked_lm")
    task = make_task("cloze").for_host(host.loaded, "host").for_evaluation()
    comparison, records = Comparison(host, task, None, Placement.single()), list(read_records(world / "test.jsonl"))
    plugin = load_plugin(folder / "memory" / "plugin", host=host.identity).plugin
    memory = PassageMemory.open(folder / "memory" / "memory")
    attach(plugin, [memory], host.identity)
    row, size = compared["compare"]["cities"]["methods"]["passages"], memory.size
    assert row["score"] == comparison.with_plugin(plugin, None, records)[0]["accuracy"]
    before = np.array(plugin.values[...])
    exchange_values(plugin, 7)
    after, keys = np.array(plugin.values[...]), np.array(plugin.keys[...])
    assert np.array_equal(np.sort(after[:size], 0), np.sort(before[:size], 0)) and np.array_equal(keys, memory.keys)
    assert not (after[:size] == before[:size]).all(1).any() and np.array_equal(after[size:], before[size:])
    assert 0 <= row["shuffled"] <= 1 and row["parameters"] > 0
