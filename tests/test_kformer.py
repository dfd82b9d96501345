"""Kformer against the formula in plain numpy, its edge cases, its start at the host, its folder, its frozen prefix."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fact_world import write_facts
from flax import nnx
from scipy.special import erf
from tiny import fast_jit
from tiny_world import (
    CITIES,
    LANDS,
    as_device,
    evaluate_stage,
    plugin_stage,
    question,
    run_experiment,
    same_bits,
    write_records,
)

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.host import attach_knowledge, knowledge_identity, open_host, task_examples
from kinject.knowledge.base import KnowledgeBase
from kinject.models.heads import logits
from kinject.plugins.base import make_plugin
from kinject.plugins.kformer import Kformer
from kinject.plugins.store import load_plugin, save_plugin
from kinject.reports.console import Reporter
from kinject.tasks.base import make_task
from kinject.training.prefix import stops_at_seam

METHOD = {"name": "kformer", "layers": (1, 2), "facts": 2, "entities": 1, "candidates": 4}


@pytest.fixture(scope="module")
def host(world):
    return open_host(world / "host")


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    return write_facts(tmp_path_factory.mktemp("kformer") / "base")


def randomised(seed=0, **changes):
    """Every parameter random: nothing hides behind a zero."""
    plugin = make_plugin(METHOD | changes, hidden_size=16, knowledge_dim=8)
    draw = np.random.default_rng(seed)
    for leaf in nnx.to_flat_state(nnx.state(plugin, nnx.Param)):
        leaf[1][...] = jnp.asarray(0.5 * draw.normal(size=leaf[1].shape), jnp.float32)
    return plugin


def asked(numbers):
    return [parse_record(question(i), f"test:{row}") for row, i in enumerate(numbers, 1)]


def batch_of(host, plugin, records, knowledge, **options):
    examples = task_examples(make_task("cloze"), plugin, records, host, knowledge, max_length=None, buckets=1)
    examples = attach_knowledge(examples, plugin, records, host, knowledge)
    return as_device(Feed(examples).batch(0, np.arange(len(records))) | options)


def params_of(plugin):
    return [
        [(np.asarray(one.kernel[...], np.float64), np.asarray(one.bias[...], np.float64)) for one in some]
        for some in (plugin.keys, plugin.values)
    ]


def by_hand(plugin, place, table, batch, row, x):
    """What one row's facts add to each x [L, D] in layer `place` of those named, written as the paper has it."""
    facts = [ids[ids >= 0] for ids in np.asarray(batch["fact_ids"][row])]
    means = [table[ids].mean(0) for ids in facts if len(ids)]
    if not means:
        return np.zeros_like(x)
    own = np.asarray(batch["token_ids"][row])[np.asarray(batch["segment_ids"][row]) > 0]
    query = table[own].mean(0)
    best = sorted(means, key=lambda mean: -mean @ query)[: plugin.config.facts]
    (key, key_bias), (value, value_bias) = (some[place] for some in params_of(plugin))
    total = np.zeros_like(x)
    for mean in best:
        inner = x @ (mean @ key + key_bias)
        total += (0.5 * inner * (1 + erf(inner / np.sqrt(2))))[:, None] * (mean @ value + value_bias)
    return total


@pytest.mark.parametrize("facts", [1, 2, 9])
def test_the_seam_is_the_formula(host, knowledge, facts):
    """Rows with three facts, two, one and none; nine neurons where there are at most four facts."""
    plugin = randomised(facts=facts)
    records = asked([4, 7, 12])
    batch = batch_of(host, plugin, records, knowledge)
    ids = np.asarray(batch["fact_ids"]).copy()
    ids[2, 1:] = -1
    ids = np.concatenate([ids, np.full_like(ids[:1], -1)])
    batch = {name: np.concatenate([values, values[:1]]) for name, values in batch.items()} | {"fact_ids": ids}
    batch = as_device(batch)
    draw = np.random.default_rng(1)
    shape = (*batch["token_ids"].shape, 16)
    hidden, output = draw.normal(size=shape).astype(np.float32), draw.normal(size=shape).astype(np.float32)
    table = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...], np.float64)
    read = plugin.before(host.loaded.host.encoder, batch)
    assert plugin.feed_forward(0, hidden, output, read) is output
    for place, layer in enumerate(plugin.config.layers):
        found = plugin.feed_forward(layer, jnp.asarray(hidden), jnp.asarray(output), read)
        for row in range(4):
            expected = output[row] + by_hand(plugin, place, table, batch, row, hidden[row].astype(np.float64))
            np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)
        assert (np.asarray(found[3]) == output[3]).all()


def test_a_fresh_plugin_and_an_example_without_facts_are_the_host_bit_for_bit(host, knowledge):
    model, records = host.loaded.host, asked(range(6))
    fresh = make_plugin(METHOD, hidden_size=16, knowledge_dim=8, seed=3)
    batch = batch_of(host, fresh, records, knowledge)
    assert batch["fact_ids"].shape[1] > 0 and "fact_ids" in batch
    alone = logits(model, batch)
    assert same_bits(logits(model, batch, fresh), alone)
    drawn = randomised()
    assert not np.allclose(logits(model, batch, drawn), alone, atol=1e-3)
    for shape in ((6, 3, 5), (6, 0, 5), (6, 3, 0)):
        nothing = {**batch, "fact_ids": jnp.full(shape, -1, jnp.int32)}
        assert same_bits(logits(model, nothing, drawn), alone)
    paper = make_plugin(METHOD | {"start": "paper"}, hidden_size=16, knowledge_dim=8, seed=3)
    assert not np.allclose(logits(model, batch, paper), alone, atol=1e-5)


def test_padding_enters_nothing(host, knowledge):
    """More padding of facts, of their pieces and of the input changes no bit of what is read there."""
    model, plugin = host.loaded.host, randomised()
    batch = batch_of(host, plugin, asked([3, 4]), knowledge)
    ids = np.asarray(batch["fact_ids"])
    wide = np.full((2, ids.shape[1] + 3, ids.shape[2] + 2), -1, np.int32)
    wide[:, : ids.shape[1], : ids.shape[2]] = ids
    forward = fast_jit(lambda batch: logits(model, batch, plugin))
    expected = forward(batch)
    np.testing.assert_allclose(forward({**batch, "fact_ids": jnp.asarray(wide)}), expected, atol=1e-5)
    per_token = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")
    longer = {
        name: jnp.pad(values, ((0, 0), (0, 4))) if name in per_token else values for name, values in batch.items()
    }
    np.testing.assert_allclose(forward(longer), expected, atol=1e-5)
    everywhere = fast_jit(lambda batch: model.encoder(batch, plugin).last)(longer)
    assert np.isfinite(np.asarray(everywhere)).all()


def test_what_it_adds_at_the_head_s_positions_is_what_it_adds_everywhere(host, knowledge):
    plugin = randomised()
    batch = batch_of(host, plugin, asked([3, 4, 9]), knowledge)
    model, places = host.loaded.host, batch["positions"]
    everywhere = fast_jit(lambda batch: model.encoder(batch, plugin).last)(batch)
    there = fast_jit(lambda batch: model.encoder(batch, plugin, positions=places).last)(batch)
    np.testing.assert_allclose(there[:, 0], everywhere[jnp.arange(3), places[:, 0]], atol=1e-5)


@pytest.mark.parametrize("where", ["everywhere", "positions"])
def test_layers_below_it_may_be_computed_once(host, knowledge, where):
    plugin = randomised()
    assert plugin.first_seam() == 2
    batch = batch_of(host, plugin, asked([3, 4, 9]), knowledge)
    model, positions = host.loaded.host, batch["positions"] if where == "positions" else None
    whole = fast_jit(lambda batch: model.encoder(batch, plugin, positions=positions).last)(batch)
    flops = []
    for seam in (False, True):
        prefix = fast_jit(
            partial(lambda batch, seam: model.encoder.prefix(batch, plugin, stop=1, seam=seam), seam=seam)
        )
        batch |= prefix(batch)
        later = fast_jit(lambda batch: model.encoder(batch, plugin, positions=positions, start=1).last)
        np.testing.assert_allclose(later(batch), whole, atol=1e-5)
        flops.append(later.lower(batch).compile().cost_analysis()["flops"])
    assert flops[1] < 0.6 * flops[0]  # attention and feed-forward of the layer are not computed again


def test_even_its_own_layer_is_frozen_up_to_the_seam():
    plugin, own = randomised(), "host/encoder/layers/1/feed_forward/up/kernel"
    labels = {"plugin/keys/0/kernel": "train", own: "freeze", "host/head/bias": "train"}
    assert stops_at_seam(labels, plugin, 1, 2)
    assert not stops_at_seam(labels, plugin, 0, 2)
    assert not stops_at_seam(labels | {own: "train"}, plugin, 1, 2)
    assert not stops_at_seam(labels, None, 1, 2)
    assert not stops_at_seam(labels, plugin, 1, 1), "beyond the last layer"

    class Reader(Kformer):
        def outputs(self, hidden_states, batch, key=None):
            return hidden_states[-1] + hidden_states[1]

    assert not stops_at_seam(labels, Reader(plugin.config, hidden_size=16), 1, 2), "its input is read"


def test_dropout_is_on_the_neurons_and_only_with_a_key(host, knowledge):
    plugin = randomised(dropout=0.5)
    batch = batch_of(host, plugin, asked([3, 4]), knowledge)
    read = plugin.before(host.loaded.host.encoder, batch)
    x = jnp.ones((*batch["token_ids"].shape, 16))
    zero = jnp.zeros_like(x)
    still, again = (plugin.feed_forward(1, x, zero, read, None) for _ in range(2))
    assert same_bits(still, again)
    dropped = plugin.feed_forward(1, x, zero, read, jax.random.key(0))
    assert not np.allclose(dropped, still) and not np.allclose(
        dropped, plugin.feed_forward(1, x, zero, read, jax.random.key(1))
    )


def test_choices_have_facts_of_their_own(world, tmp_path):
    from tiny_world import write_host

    host = open_host(write_host(tmp_path / "choices", "multiple_choice"))
    values = {"text": "city1 is in", "question": "a place", "choices": ["land1", "land2"], "label": 0}
    records = [
        parse_record({**values, "facts": [["city1 is in land1"], ["city2 is in land2", "far"]]}, "test:1"),
        parse_record({**values, "facts": [["city3"]]}, "test:2"),
        parse_record({**values, "facts": [[], ["city4"]]}, "test:3"),
    ]
    plugin, task = randomised(), make_task("multiple_choice")
    examples = task_examples(task, plugin, records, host, None, max_length=None, buckets=1)
    given = attach_knowledge(examples, plugin, records, host, None)
    ids = given.in_order("fact_ids")
    assert ids.shape == (3, 2, 2, 4)
    assert (ids >= 0).any(-1).sum(-1).tolist() == [[1, 2], [1, 1], [0, 1]]
    batch = as_device(Feed(given).batch(0, np.arange(3)))
    scores, alone = (
        fast_jit(lambda batch, plugin=some: task.outputs(host.loaded.host, plugin, batch))(batch)
        for some in (plugin, None)
    )
    assert scores.shape == (3, 2)
    same = np.isclose(scores, alone, atol=1e-6)
    assert same[2, 0] and same.sum() == 1  # the choice without a fact


def stage_of(world, knowledge, folder, **fit):
    """The method on questions that carry their facts, one that tells and one that does not."""
    told = [{**question(i), "facts": [[f"far in land{i % LANDS}", "a place"]]} for i in range(CITIES)]
    files = {
        name: write_records(folder / f"{name}.jsonl", told[low:high])
        for name, low, high in (("train", 0, 40), ("dev", 40, 50), ("test", 50, 60))
    }
    stage = plugin_stage(world, method=METHOD, fit=fit, dev_data=(str(files["dev"]),))
    return stage | {"knowledge": str(knowledge.folder), "data": (str(files["train"]),)}, str(files["test"])


@pytest.fixture(scope="module")
def trained(world, knowledge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    stage, test = stage_of(
        world, knowledge, folder, steps=100, optimizer={"learning_rate": 0.02}, checkpoint_every=100, buckets=1
    )
    table = evaluate_stage(world, {"plugin": "@made"})
    domain = {"knowledge": str(knowledge.folder), "reference_data": (), "data": (test,)}
    table["domains"]["cities"] |= domain
    return folder / "run", run_experiment({"stages": {"made": stage, "table": table}}, folder / "run"), test


def test_it_learns_to_read_facts_of_entities_it_never_saw(trained):
    found = trained[1]["table"]["cities"]
    assert found["plugin"] >= 0.8 > max(found["host"], found["shuffled"])
    assert found["shuffled_follows_vector"] >= 0.8


def test_a_run_on_the_frozen_prefix_has_the_losses_of_one_without(world, knowledge, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Reporter, "say", lambda _, text: said.append(text))
    stage, _ = stage_of(world, knowledge, tmp_path, steps=6, optimizer={"learning_rate": 0.02}, buckets=1)
    losses = {}
    for name, megabytes in (("kept", 2048), ("one state", 2048), ("computed", 0)):
        if name == "one state":
            assert "made: layers below 1, and 1 up to its seam, are frozen, computed once" in "".join(said)
            monkeypatch.setattr("kinject.training.prefix.stops_at_seam", lambda *_: False)
        fit = stage["fit"] | {"prefix_cache_mb": megabytes}
        run_experiment({"stages": {"made": stage | {"fit": fit}}}, tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["kept"]) == 3
    np.testing.assert_allclose(losses["kept"], losses["computed"], rtol=1e-5)
    np.testing.assert_allclose(losses["one state"], losses["computed"], rtol=1e-5)


READ = """
import sys, numpy as np
from kinject.knowledge.base import KnowledgeBase
from kinject.plugins.store import load_plugin
from kinject.inference.host import knowledge_identity, open_host
from kinject.inference.comparison import Comparison
from kinject.data.records import read_records
from kinject.tasks.base import make_task
from kinject.inference.mesh import Placement
folder, host, base, data, out = sys.argv[1:]
host, base = open_host(host), KnowledgeBase.open(base)
plugin = load_plugin(folder, host=host.identity, knowledge=knowledge_identity(base)).plugin
records = list(read_records(data))
metrics, found = Comparison(host, make_task("cloze"), None, Placement.single()).with_plugin(plugin, base, records)
np.save(out, np.array([metrics["loss"], *found["predicted"]]))
"""


def test_a_new_process_reads_the_folder_to_the_same_numbers(world, knowledge, trained, tmp_path):
    found = []
    for number in range(2):
        out = tmp_path / f"{number}.npy"
        files = [trained[0] / "made", world / "host", knowledge.folder, trained[2], out]
        subprocess.run([sys.executable, "-c", READ, *map(str, files)], check=True, timeout=1800)
        found.append(np.load(out))
    assert found[0].tobytes() == found[1].tobytes()
    accuracy = trained[1]["table"]["cities"]["plugin"]
    lands = [open_host(world / "host").tokenizer.word(f"land{i % 5}")[0] for i in range(50, 60)]
    assert (found[0][1:] == lands).mean() == accuracy


def test_it_is_refused_by_another_host_another_base_and_another_method(world, host, knowledge, trained, tmp_path):
    from tiny_world import write_host

    folder = trained[0] / "made"
    assert load_plugin(folder, host=host.identity, knowledge=knowledge_identity(knowledge)).plugin.name == "kformer"
    with pytest.raises(InputError, match="nor one that it was made from"):
        load_plugin(folder, host=open_host(write_host(tmp_path / "other", seed=9)).identity)
    other = KnowledgeBase.open(world / "knowledge")
    with pytest.raises(InputError, match="it was trained on the knowledge base 'facts'"):
        load_plugin(folder, host=host.identity, knowledge=knowledge_identity(other))
    start = plugin_stage(world, initialise=str(folder))
    start["knowledge"] = str(knowledge.folder)
    with pytest.raises(InputError, match="is a plugin of kformer, not of map_tuning"):
        run_experiment({"stages": {"made": start}}, tmp_path / "run")
    manifest = json.loads((folder / "plugin.json").read_text())
    facts = {"knowledge": manifest["knowledge"], "config": {}, "metrics": {}}
    saved = save_plugin(tmp_path / "again", load_plugin(folder).plugin, host=host.identity, **facts)
    disguised = json.loads((saved / "plugin.json").read_text()) | {"method": "map_tuning", "method_config": {}}
    (saved / "plugin.json").write_text(json.dumps(disguised))
    with pytest.raises(InputError, match=r"parameter keys/0/bias is .* map_tuning has None"):
        load_plugin(saved)


def test_bad_settings_and_hosts_too_shallow_are_told_in_one_line(world, host, knowledge):
    for wrong, message in (
        ({"layers": ()}, "name different ones"),
        ({"layers": (1, 1)}, "name different ones"),
        ({"facts": 0}, "must be 1 or more"),
        ({"layer": 3}, "unknown key layer"),
    ):
        with pytest.raises(InputError, match=message):
            make_plugin(METHOD | wrong, hidden_size=16, knowledge_dim=8)
    deep = Kformer(replace(randomised().config, layers=(3,)), hidden_size=16)
    with pytest.raises(InputError, match="names layer 3, the host has 0 to 2"):
        batch_of(host, deep, asked([1]), knowledge)
