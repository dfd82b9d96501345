"""Passages to memory to answers: training with refresh, edits in the next call, concatenation, refusals, resuming."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_world import CITIES, LANDS, question, run_experiment, same_bits, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import open_host
from kinject.inference.mesh import Placement
from kinject.inference.passages import (
    PassageEncoder,
    attach,
    make_readings,
    passage_ids,
    passages_used,
    sync,
    tagged,
)
from kinject.knowledge.base import write_knowledge
from kinject.memory.store import Passage, PassageMemory, build_memory
from kinject.plugins.base import make_plugin
from kinject.plugins.store import HostIdentity, load_plugin
from kinject.tasks.base import make_task

METHOD = {"name": "pluglm", "layers": (2,), "heads": 2, "key_size": 8, "top_k": 2}
METHOD |= {"query": "mention", "query_from": "embeddings", "beta": 10.0}


def config(world, **fit):
    fit = {"batch_size": 10, "steps": 8, "log_every": 4, "checkpoint_every": 4, "buckets": 1, **fit}
    return {
        "kind": "memory_plugin",
        "task": "cloze",
        "host": str(world / "host"),
        "passages": (str(world / "passages.jsonl"),),
        "length": 8,
        "refresh_every": 4,
        "method": METHOD,
        "data": (str(world / "train.jsonl"),),
        "fit": {**fit, "optimizer": {"learning_rate": 0.02}},
    }


def update(world, **changes):
    made = {
        "kind": "memory_update",
        "host": str(world / "host"),
        "plugin": "@memory/plugin",
        "memory": "@memory/memory",
        "data": (str(world / "test.jsonl"),),
    }
    return made | changes


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    """The tiny world with passages beside it."""
    folder = tmp_path_factory.mktemp("memory") / "world"
    shutil.copytree(world, folder)
    lines = [{"text": f"city{i} is in land{i % LANDS} .", "entity": f"Q{i}"} for i in range(CITIES)]
    write_records(folder / "passages.jsonl", lines)
    write_records(folder / "few.jsonl", lines[48:54])
    write_records(folder / "asked.jsonl", ({**question(i), "entity": f"Q{i}"} for i in range(50, 60)))
    return folder


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("memory") / "run"
    results = run_experiment({"seed": 3, "stages": {"memory": config(place), "asked": update(place)}}, workdir)
    return workdir, results


@pytest.fixture(scope="module")
def loaded(place, trained):
    host = open_host(place / "host", head="masked_lm")
    plugin = load_plugin(trained[0] / "memory" / "plugin", host=host.identity).plugin
    return host, plugin, PassageMemory.open(trained[0] / "memory" / "memory")


def copied(memory, folder):
    shutil.copytree(memory.folder, folder, ignore=shutil.ignore_patterns(".lock"))
    return PassageMemory.open(folder, write=True)


def question_batch(host, place, count=3):
    records = list(read_records(place / "test.jsonl"))[:count]
    examples = make_task("cloze").examples(records, host.encoder(None), None, buckets=1)
    return records, next(Feed(examples).evaluation(count))


def test_what_the_stages_report_and_leave(trained):
    workdir, results = trained
    assert results["memory"]["passages"] == CITIES and results["memory"]["steps"] == 8
    rows = results["asked"]["questions"]
    assert rows["n"] == 10 and rows["passages_edited"] == 10 and rows["empty_memory_is_the_host"] == 1.0
    assert rows["empty_memory"] == rows["host"] and 0 <= rows["updated_follow"] <= 1
    assert rows["retrieved"] >= rows["retrieved_first"]
    assert all(len(one["passages"]) == 2 for one in rows["examples"])
    manifest = json.loads((workdir / "memory" / "plugin" / "plugin.json").read_text())
    assert not {"keys", "values", "alive", "tokens"} & manifest["parameters"].keys()
    source, edited = (PassageMemory.open(workdir / stage / "memory") for stage in ("memory", "asked"))
    assert source.size == edited.size == CITIES
    changed = {one.entity for _, one in edited.passages()} ^ {one.entity for _, one in source.passages()}
    assert not changed and sum(a != b for a, b in zip(_facts(source), _facts(edited), strict=True)) == 5


def _facts(memory):
    return sorted((one.entity, one.text) for _, one in memory.passages())


def test_stored_keys_are_those_that_the_trained_plugin_makes(loaded):
    host, plugin, memory = loaded
    tokens, keys, values = PassageEncoder(host, plugin, 8)([memory.passage(row).text for row in (0, 59)])
    assert np.array_equal(memory.tokens[[0, 59]], tokens)
    np.testing.assert_allclose(memory.keys[[0, 59]], keys, atol=1e-6)
    np.testing.assert_allclose(memory.values[[0, 59]], values, atol=1e-6)


def test_a_run_cut_on_a_refresh_ends_with_the_same_bits(place, trained, tmp_path, monkeypatch):
    from kinject.training.loop import Fit

    whole, save, compiled = Fit._save, [], []

    def cut(self, step):
        whole(self, step)
        save.append(step)
        compiled.append(self.train_step._cache_size())
        if step == 4:
            self.checkpoints.wait()
            raise KeyboardInterrupt

    stages = {"seed": 3, "stages": {"memory": config(place)}}
    monkeypatch.setattr(Fit, "_save", cut)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(stages, tmp_path / "run")
    monkeypatch.setattr(Fit, "_save", whole)
    run_experiment(stages, tmp_path / "run")
    assert save == [4] and compiled == [1], "refreshed tables compile nothing"
    one, other = (load_plugin(folder / "memory" / "plugin").plugin for folder in (trained[0], tmp_path / "run"))
    assert same_bits(nnx.state(one, nnx.Param), nnx.state(other, nnx.Param))
    keys = [PassageMemory.open(folder / "memory" / "memory").keys for folder in (trained[0], tmp_path / "run")]
    assert keys[0].tobytes() == keys[1].tobytes()


def test_the_host_may_be_trained_along_as_in_pretraining(place, tmp_path):
    stage = config(place, steps=4) | {"train": ((".*", "train"),), "method": METHOD | {"mode": "replace"}}
    run_experiment({"seed": 3, "stages": {"memory": stage}}, tmp_path / "run")
    before, after = (open_host(folder, head="masked_lm") for folder in (place / "host", tmp_path / "run/memory/host"))
    assert after.identity.fingerprint != before.identity.fingerprint
    assert before.identity.encoder_fingerprint in after.identity.lineage
    plugin = load_plugin(tmp_path / "run/memory/plugin", host=after.identity).plugin
    memory = PassageMemory.open(tmp_path / "run/memory/memory")
    attach(plugin, [memory], after.identity)
    with pytest.raises(InputError, match="neither this host's"):
        load_plugin(tmp_path / "run/memory/plugin", host=before.identity)
    _, keys, _ = PassageEncoder(after, plugin, 8)([memory.passage(7).text])  # the trained host's embeddings read it
    np.testing.assert_allclose(memory.keys[7:8], keys, atol=1e-6)


def test_a_checkpoint_between_refreshes_is_refused(place, tmp_path):
    stage = config(place, log_every=3, checkpoint_every=6)
    with pytest.raises(InputError, match="checkpoint_every: 6 is no multiple of refresh_every 4"):
        run_experiment({"seed": 3, "stages": {"memory": stage}}, tmp_path / "run")


def test_an_edit_is_read_in_the_next_call_and_two_memories_are_one(place, loaded, tmp_path):
    host, plugin, memory = loaded
    records, batch = question_batch(host, place)
    encoder = PassageEncoder(host, plugin, 8)
    name = records[0].mentions[0].entity
    second = [Passage("land1 is a place .", "Q0")]
    about = {"name": "second", "capacity": 4, **encoder.about()}
    build_memory(tmp_path / "second", second, encoder, **about)
    with copied(memory, tmp_path / "first") as first:
        both = [first, PassageMemory.open(tmp_path / "second")]
        attach(plugin, both, host.identity)
        assert plugin.keys.shape == (first.capacity + 4, 8) and int(plugin.alive[...].sum()) == CITIES + 1
        graph, _ = nnx.split(plugin)
        rows, weights = make_readings(host.loaded.host, plugin)(batch)[2]
        used = passages_used((rows, weights), both, 0, int(batch["positions"][0, 0]))
        assert len(used) == 2 and sum(weight for *_, weight in used) == pytest.approx(1, abs=1e-5)
        assert used[0][2] >= used[1][2]

        gone = [row for row in rows[0, 0].tolist() if row < first.capacity]
        first.delete(gone)
        assert sync(plugin, both) == len(gone)
        (new,) = first.add([Passage("land2 is in land2 .", name)], encoder)
        assert sync(plugin, both) == 1 and sync(plugin, both) == 0
        assert nnx.split(plugin)[0] == graph, "an edit compiles nothing"
        again, _ = make_readings(host.loaded.host, plugin)(batch)[2]
        assert not set(gone) - {new} & set(again[0, 0].tolist())
        assert np.array_equal(plugin.keys[...][: first.capacity], first.keys)
        assert np.array_equal(plugin.alive[...][: first.capacity], first.alive)


def test_a_memory_of_another_host_or_plugin_is_refused(loaded, place, world, tmp_path):
    host, plugin, memory = loaded
    other = HostIdentity("sha256:x", ("sha256:x",), host.identity.hidden_size)
    with pytest.raises(InputError, match="not this host's; build the memory with this host"):
        attach(plugin, [memory], other)
    fresh = make_plugin(METHOD, hidden_size=16, knowledge_dim=0, seed=9)
    with pytest.raises(InputError, match="encoded by another plugin"):
        attach(fresh, [memory], host.identity)
    with pytest.raises(InputError, match="map_tuning reads no memory"):
        stage = config(place) | {"method": {"name": "map_tuning"}}
        run_experiment({"seed": 3, "stages": {"memory": stage}}, tmp_path / "run")
    with pytest.raises(InputError, match="refresh_every=0 keeps the memory of a trained plugin"):
        run_experiment({"seed": 3, "stages": {"memory": config(place) | {"refresh_every": 0}}}, tmp_path / "run")


def test_a_split_memory_answers_as_a_whole_one(place, loaded):
    from jax.sharding import AxisType

    host, plugin, memory = loaded
    _, batch = question_batch(host, place)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    attach(plugin, [memory], host.identity)
    rows, weights = make_readings(host.loaded.host, plugin)(batch)[2]
    attach(plugin, [memory], host.identity, mesh=(mesh, "rows"))
    assert len(plugin.keys[...].sharding.device_set) == 2
    with jax.set_mesh(mesh):
        other, parted = make_readings(host.loaded.host, plugin)(batch)[2]
    assert np.array_equal(rows, other)
    np.testing.assert_allclose(weights, parted, atol=1e-5)


def test_a_tag_stands_before_passages_and_inputs(loaded):
    host, _, _ = loaded
    marked = tagged(host.tokenizer, "#")
    plain, with_tag = (passage_ids(each, ["city1 is in land1 ."], 8)[0] for each in (host.tokenizer, marked))
    assert with_tag[1] == host.tokenizer.word("#")[0]
    assert [one for one in with_tag if one >= 0] == [plain[0], with_tag[1], *[one for one in plain[1:] if one >= 0]]
    with pytest.raises(InputError, match="tag"):
        tagged(host.tokenizer, "§§§")


def test_passages_say_what_the_knowledge_base_knows(world, tmp_path):
    write_knowledge(
        tmp_path / "kb",
        name="kb",
        ids=["Q0", "Q1"],
        vectors=np.ones((2, 2), np.float32),
        labels=["city0", "land0"],
        descriptions=["a far place", ""],
        triples=np.array([[0, 0, 1]], np.int32),
        relations=["country"],
    )
    stage = {"kind": "passages", "knowledge": str(tmp_path / "kb"), "templates": {"country": "[head] is in [tail] ."}}
    run_experiment({"seed": 0, "stages": {"texts": stage | {"descriptions": True}}}, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "texts" / "passages.jsonl").read_text().splitlines()]
    head = [{"start": 0, "end": 5, "entity": "Q0"}]
    texts = ("city0 is in land0 .", "city0: a far place")
    assert lines == [{"text": text, "entity": "Q0", "mentions": head} for text in texts]
    wrong = stage | {"templates": {"capital": "[head]"}}
    with pytest.raises(InputError, match="no relation 'capital'; there is country"):
        run_experiment({"seed": 0, "stages": {"texts": wrong}}, tmp_path / "other")


# ---- another memory beside the first, and what each of them is worth --------------------------------------------


FROZEN_RETRIEVAL = (
    (r"plugin/(to_key|pool|readers/\d+/(pool|query|query_norm))/.*", "freeze"),
    ("plugin/.*", "train"),
    (".*", "freeze"),
)


@pytest.fixture(scope="module")
def evaluated(place, tmp_path_factory):
    again = {"kind": "memory", "host": str(place / "host"), "plugin": "@memory/plugin", "length": 8}
    stages = {
        "memory": config(place, steps=24) | {"train": FROZEN_RETRIEVAL},
        "same": again | {"passages": (str(place / "passages.jsonl"),)},
        "few": again | {"passages": (str(place / "few.jsonl"),), "capacity": 9},
        "rows": {
            "kind": "memory_evaluate",
            "host": str(place / "host"),
            "plugin": "@memory/plugin",
            "memories": {"both": ("@memory/memory", "@few/memory"), "few": ("@few/memory",)},
            "task": "cloze",
            "texts": {"asked": (str(place / "asked.jsonl"),), "all": (str(place / "train.jsonl"),)},
        },
    }
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    return workdir, run_experiment({"seed": 3, "stages": stages}, workdir)


def test_passages_encoded_by_a_trained_plugin_are_those_of_its_own_stage(evaluated):
    workdir, results = evaluated
    first, same = (PassageMemory.open(workdir / stage / "memory") for stage in ("memory", "same"))
    assert results["same"] == {"passages": CITIES} and results["few"] == {"passages": 6}
    assert all(getattr(first, name).tobytes() == getattr(same, name).tobytes() for name in ("tokens", "keys", "values"))
    assert list(first.passages()) == list(same.passages())


def test_rows_are_what_the_plugin_says_with_each_of_the_memories(place, evaluated):
    workdir, results = evaluated
    host = open_host(place / "host", head="masked_lm")
    plugin = load_plugin(workdir / "memory" / "plugin", host=host.identity).plugin
    first, few = (PassageMemory.open(workdir / stage / "memory") for stage in ("memory", "few"))
    task = make_task("cloze").for_host(host.loaded, "host").for_evaluation()
    comparison = Comparison(host, task, None, Placement.single())
    for name, file in (("asked", "asked.jsonl"), ("all", "train.jsonl")):
        rows, records = results["rows"][name], list(read_records(place / file))
        expected = {"n": len(records), "metric": "accuracy"}
        expected["empty_memory"] = comparison.host_alone(records)[0]["accuracy"]  # a gated plugin is then the host
        for row, memories in {"both": [first, few], "few": [few]}.items():
            attach(plugin, memories, host.identity)
            expected[row] = comparison.with_plugin(plugin, None, records)[0]["accuracy"]
        assert {key: rows[key] for key in expected} == expected
        assert name == "asked" or len({rows[row] for row in ("empty_memory", "both", "values_of_others")}) > 1
        assert ("retrieved" in rows) == (name == "asked")


def test_retrieval_counts_passages_about_the_same_thing(place, evaluated):
    workdir, results = evaluated
    host = open_host(place / "host", head="masked_lm")
    plugin = load_plugin(workdir / "memory" / "plugin", host=host.identity).plugin
    memories = [PassageMemory.open(workdir / stage / "memory") for stage in ("memory", "few")]
    attach(plugin, memories, host.identity)
    _, batch = question_batch(host, place, 10)  # city50 to city59, as in asked.jsonl
    found = make_readings(host.loaded.host, plugin)(batch)[2][0][:, 0]
    places = {i: {i} | ({memories[0].capacity + i - 48} if i < 54 else set()) for i in range(50, 60)}
    rows = [
        [row in places[50 + i] for row in of] for i, of in zip(batch["index"].tolist(), found.tolist(), strict=True)
    ]
    assert results["rows"]["asked"]["retrieved_first"] == np.mean([one[0] for one in rows])
    assert results["rows"]["asked"]["retrieved"] == np.mean([any(one) for one in rows]) > 0


def test_memories_that_cannot_be_read_together_are_refused(place, evaluated, tmp_path):
    workdir, _ = evaluated
    plugin = {"host": str(place / "host"), "plugin": str(workdir / "memory" / "plugin")}
    tagged_one = plugin | {"kind": "memory", "passages": (str(place / "few.jsonl"),), "length": 8, "tag": "#"}
    both = {"both": (str(workdir / "memory" / "memory"), "@tagged/memory")}
    rows = plugin | {"kind": "memory_evaluate", "task": "cloze", "memories": both}
    rows["texts"] = {"asked": (str(place / "asked.jsonl"),)}
    with pytest.raises(InputError, match=r"stages\.rows\.memories: they have different tags"):
        run_experiment({"seed": 3, "stages": {"tagged": tagged_one, "rows": rows}}, tmp_path / "run")
    absent = rows | {"memories": {"both": (str(tmp_path / "nowhere"),)}}
    with pytest.raises(InputError, match=r"stages\.rows\.memories\.both: there is no"):
        run_experiment({"seed": 3, "stages": {"rows": absent}}, tmp_path / "other")
