"""DKPLM: forward and losses beside a plain version, which mention is chosen, frozen hosts and open ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import fast_jit
from tiny_world import CITIES, LANDS, VOCABULARY, as_device, run_experiment, vectors, write_host, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.host import attach_knowledge, open_host, task_examples
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.plugins.base import make_plugin
from kinject.plugins.dkplm import TEXTS, choose_triples, relation_vectors
from kinject.plugins.store import load_plugin
from kinject.tasks.base import make_task
from kinject.tasks.relation_decoding import neighbourhoods, sampled_softmax


def write_graph(folder):
    """Cities with vectors, in lands with vectors of their own."""
    ids = [f"Q{i}" for i in range(CITIES)] + [f"L{i}" for i in range(LANDS)]
    names = [f"city{i}" for i in range(CITIES)] + [f"land{i}" for i in range(LANDS)]
    triples = np.array([[i, 0, CITIES + i % LANDS] for i in range(CITIES - 1)])
    made = np.concatenate([vectors(), np.random.default_rng(5).normal(size=(LANDS, 8))]).astype(np.float32)
    said = ["a place"] * CITIES + [""] * LANDS
    return write_knowledge(
        folder,
        name="graph",
        ids=ids,
        labels=names,
        vectors=made,
        descriptions=said,
        triples=triples,
        relations={"in": "is in"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dkplm")
    write_host(folder / "host", layers=1)
    write_graph(folder / "kb")
    lines = []
    for i in range(40):
        mention = {"start": 11, "end": 11 + len(f"city{i}"), "entity": f"Q{i}"}
        lines.append({"text": f"a place of city{i} is far in a place .", "mentions": [mention]})
    write_records(folder / "texts.jsonl", lines)
    return folder


@pytest.fixture(scope="module")
def host(folder):
    return open_host(folder / "host", head="masked_lm")


@pytest.fixture(scope="module")
def knowledge(folder):
    return KnowledgeBase.open(folder / "kb")


def records(folder, count=3):
    lines = (folder / "texts.jsonl").read_text().splitlines()[:count]
    return [parse_record(json.loads(line), f"texts:{i}") for i, line in enumerate(lines)]


def drawn(plugin):
    """Every parameter random, so that nothing hides behind a zero or a one."""
    draw = np.random.default_rng(7)
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(plugin, nnx.Param)), key=str):
        leaf[...] = jnp.asarray((path[-1] == "scale") + 0.3 * draw.standard_normal(leaf.shape), jnp.float32)
    return plugin


def batch_of(folder, host, knowledge, plugin, **options):
    task = make_task("relation_decoding", **options)
    some = records(folder)
    examples = task_examples(task, plugin, some, host, knowledge, max_length=None, buckets=1)
    (batch,) = Feed(attach_knowledge(examples, plugin, some, host, knowledge)).evaluation(3)
    return task, as_device(batch)


def norm(x, scale, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale + bias


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class Plain:
    """The host's embedding layer and head, and the method's formulas, in NumPy; layers are the encoder's own."""

    def __init__(self, host, plugin):
        self.model, self.plugin = host.loaded.host, plugin
        own = self.model.encoder.embeddings
        self.word, self.position, self.type = (
            np.asarray(one.embedding[...], np.float64) for one in (own.word, own.position, own.type)
        )
        self.norm = [np.asarray(one[...], np.float64) for one in (own.norm.scale, own.norm.bias)]
        self.p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(plugin, nnx.Param)))

    def linear(self, name, x):
        one = self.p[name]
        return x @ one["kernel"] + one.get("bias", 0)

    def encode(self, embedded, segments):
        """Hidden states from embeddings before the LayerNorm, [L, D]."""
        first = norm(embedded, *self.norm, 1e-12)
        batch = {"segment_ids": segments[None], "token_ids": np.zeros_like(segments)[None]}
        batch |= {
            "position_ids": batch["token_ids"],
            "type_ids": batch["token_ids"],
            "entity_slot": batch["token_ids"] - 1,
        }
        run = self.model.encoder.run(jnp.asarray(first[None], jnp.float32), as_device(batch), None, None)
        return np.asarray(list(run)[-1][0], np.float64)

    def scores(self, hidden):
        head = self.model.head
        dense = hidden @ np.asarray(head.transform.kernel[...], np.float64) + np.asarray(head.transform.bias[...])
        dense = np.asarray(jax.nn.gelu(jnp.asarray(dense, jnp.float32), approximate=False), np.float64)
        normed = norm(dense, np.asarray(head.norm.scale[...]), np.asarray(head.norm.bias[...]), 1e-12)
        return normed @ self.word.T + np.asarray(head.bias[...])

    def pool(self, name, states):
        p = self.p[name]
        weights = np.exp(
            log_softmax((np.tanh(states @ p["hidden"]["kernel"] + p["hidden"]["bias"]) @ p["score"]["kernel"])[:, 0])
        )
        return weights @ states

    def text(self, ids):
        ids = ids[ids >= 0]
        embedded = self.word[ids] + self.position[: len(ids)] + self.type[0]
        pooled = self.pool("pool", self.encode(embedded, np.ones(len(ids), np.int32)))
        return norm(self.linear("project", pooled), self.p["norm"]["scale"], self.p["norm"]["bias"], 1e-6)

    def losses(self, batch, row):
        one = {name: np.asarray(values)[row] for name, values in batch.items()}
        length = int((one["segment_ids"] > 0).sum())
        ids, (low, high) = one["token_ids"][:length], one["mention_spans"]
        embedded = self.word[ids] + self.position[:length] + self.type[0]
        if self.plugin.config.variant == "easynlp":
            embedded[low:high] = self.linear("know", (one["dkplm_other"] + one["dkplm_relation"]).astype(np.float64))
            hidden = self.encode(embedded, np.ones(length, np.int32))
            factor = np.tile(self.linear("know", np.ones(8)), (length, 1))
            factor[low:high] = self.linear("know", one["dkplm_relation"].astype(np.float64))
            likely = log_softmax(self.scores(hidden * factor))
            decoding = -np.mean([likely[place, ids[place]] for place in range(low, high)])
        else:
            relation, other, said = (self.text(one[name]) for name in TEXTS)
            pseudo = self.linear("mix", np.concatenate([relation + other, said]))
            embedded[low:high] = pseudo + self.position[low:high] + self.type[0]
            hidden = self.encode(embedded, np.ones(length, np.int32))
            likely = log_softmax(self.scores(hidden))
            state, found = self.pool("span_pool", hidden[low:high]), []
            for place, piece in enumerate(one["dkplm_answer"]):
                state = np.tanh(self.p["scale"] * relation * self.linear("step", state))
                if piece >= 0:
                    right, wrong = (
                        np.exp(state @ self.word[piece]),
                        np.exp(self.word[one["dkplm_negatives"][place]] @ state),
                    )
                    found.append(-np.log(right / (right + wrong.sum())))
            decoding = np.mean(found)
        asked = one["weights"] > 0
        hidden_words = -np.mean(
            [likely[p, y] for p, y in zip(one["positions"][asked], one["labels"][asked], strict=True)]
        )
        return decoding, hidden_words


@pytest.mark.parametrize("variant", ["paper", "easynlp"])
def test_forward_and_losses_are_those_of_a_plain_version(folder, host, knowledge, variant):
    plugin = drawn(
        make_plugin({"name": "dkplm", "variant": variant, "text_length": 10}, hidden_size=16, knowledge_dim=8)
    )
    task, batch = batch_of(folder, host, knowledge, plugin, rate=0.3)
    got = np.asarray(fast_jit(lambda batch: task.outputs(host.loaded.host, plugin, batch))(batch))
    plain = Plain(host, plugin)
    np.testing.assert_allclose(got, [plain.losses(batch, row) for row in range(3)], rtol=0, atol=1e-5)
    losses, weights = task.loss(jnp.asarray(got), batch)
    np.testing.assert_allclose(losses, got.mean(1), rtol=1e-6)
    assert weights.tolist() == [1, 1, 1]
    spans = np.asarray(batch["mention_spans"])
    for row, (low, high) in enumerate(spans):  # masked LM leaves the mention alone
        asked = np.asarray(batch["positions"])[row][np.asarray(batch["weights"])[row] > 0]
        assert not set(asked.tolist()) & set(range(low, high))
        assert VOCABULARY[int(batch["token_ids"][row, low])] == f"city{row}"
    answers = [[VOCABULARY[i] for i in row if i >= 0] for row in np.asarray(batch["dkplm_answer"])]
    assert answers == [["land0"], ["land1"], ["land2"]]


def test_sampled_softmax():
    draw = np.random.default_rng(0)
    states, words = draw.normal(size=(2, 3, 4)).astype(np.float32), draw.normal(size=(9, 4)).astype(np.float32)
    right, drawn_pieces = draw.integers(0, 9, (2, 3)), draw.integers(0, 9, (2, 3, 5))
    got = sampled_softmax(jnp.asarray(states), jnp.asarray(words), jnp.asarray(right), jnp.asarray(drawn_pieces))
    for b, a in np.ndindex(2, 3):
        scores = np.exp(words @ states[b, a])
        expected = -np.log(scores[right[b, a]] / (scores[right[b, a]] + scores[drawn_pieces[b, a]].sum()))
        assert float(got[b, a]) == pytest.approx(expected, rel=1e-5)


def test_triples_and_relations(folder, knowledge):
    some = records(folder, 5)
    chosen = choose_triples(
        [*some, parse_record({"text": "x", "mentions": [{"start": 0, "end": 1, "entity": "L3"}]}, "x")], knowledge, 0
    )
    assert chosen.other[:5].tolist() == [CITIES + i % LANDS for i in range(5)] and chosen.relation.tolist() == [0] * 6
    assert chosen.other[5] % LANDS == 3 and chosen.other[5] < CITIES  # a land is the tail of its cities
    values, triples = np.asarray(knowledge.vectors), np.asarray(knowledge.triples)
    np.testing.assert_allclose(
        relation_vectors(knowledge), [(values[triples[:, 2]] - values[triples[:, 0]]).mean(0)], atol=1e-6
    )
    near = neighbourhoods(triples, knowledge.size, np.array([0, CITIES]), 1)
    assert near == {0: 1, CITIES: 12}
    assert neighbourhoods(triples, knowledge.size, np.array([0]), 2) == {0: 12}


def test_the_long_tail(folder, host, knowledge):
    plugin = make_plugin({"name": "dkplm"}, hidden_size=16, knowledge_dim=8)
    some = records(folder, 6)
    often = [*some, some[0], some[0]]

    def kept(chosen, **options):
        task = make_task("relation_decoding", **options)
        return task_examples(task, plugin, chosen, host, knowledge, max_length=None, buckets=1)

    assert kept(often).record_index.tolist() == [1, 2, 3, 4, 5]
    assert kept(often).notes == {"left out: named as often as the mean": 3}
    assert kept(often, below_mean=False).size == 8
    with pytest.raises(InputError, match=r"no mention is of the long tail: .*too few or too many neighbours': 6"):
        kept(some, neighbours=(2, 9))
    assert kept(some, neighbours=(2, 20), hops=2).size == 6
    half = kept(some, important=0.5)
    assert half.in_order("important").sum() == 3
    with pytest.raises(InputError, match="trains a plugin that reads a graph"):
        make_task("relation_decoding").examples(some, host.encoder(None), knowledge)


def stage_of(folder, **changes):
    fit = {
        "batch_size": 10,
        "steps": 3,
        "log_every": 1,
        "checkpoint_every": 3,
        "buckets": 1,
        "optimizer": {"learning_rate": 0.01},
    }
    made = {
        "kind": "plugin",
        "task": "relation_decoding",
        "host": str(folder / "host"),
        "knowledge": str(folder / "kb"),
    }
    return {
        **made,
        "data": (str(folder / "texts.jsonl"),),
        "method": {"name": "dkplm", "text_length": 10},
        "fit": fit,
        **changes,
    }


@pytest.mark.slow
def test_an_adapter_on_a_frozen_host_and_an_open_one(folder, host, tmp_path):
    open_rules = (("plugin/.*", "train"), ("host/.*", "train"))
    stages = {"frozen": stage_of(folder), "open": stage_of(folder, train=open_rules)}
    results = run_experiment({"seed": 0, "stages": stages}, tmp_path / "run")
    assert all(np.isfinite(results[name]["loss"]) for name in stages)
    stored = load_plugin(tmp_path / "run" / "frozen", host=host.identity)
    assert (
        stored.manifest["method_config"]["variant"] == "paper" and not (tmp_path / "run" / "frozen" / "host").exists()
    )
    moved = open_host(tmp_path / "run" / "open" / "host", head="masked_lm").loaded.host
    before = host.loaded.host.encoder.embeddings.word.embedding[...]
    assert float(jnp.abs(moved.encoder.embeddings.word.embedding[...] - before).max()) > 0  # used alone from here on


def test_refused(folder, host, knowledge):
    with pytest.raises(InputError, match="dkplm easynlp reads entity vectors"):
        make_plugin({"name": "dkplm", "variant": "easynlp"}, hidden_size=16, knowledge_dim=0)
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8)
    task = make_task("relation_decoding")
    with pytest.raises(InputError, match="relation_decoding trains the method dkplm"):
        task.outputs(host.loaded.host, plugin, {})
    with pytest.raises(InputError, match=r"task_options\.weight"):
        make_task("relation_decoding", weight=0)
