"""How far what we compute lies from the authors' releases, where it does: the table in docs/paper.md, row by row."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from encoding_cases import host as tokenizer_of
from flax import nnx
from test_k_adapter import small
from test_pluglm import SIZE, plugin_of
from tiny import random_host, tiny_batch, tiny_config

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.models.heads import DependencyHead
from kinject.plugins.kformer import Kformer
from kinject.plugins.pluglm import Found
from kinject.tasks.protocol import PROTOCOLS, Thunlp

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"


def sizes():
    """{name of a row's test: its figure} of the table."""
    rows = re.findall(r"^\|.*\| ([\d.]+)[^|]* \| `(\w+)` \|$", PAGE.read_text(), re.M)
    return {name: float(size) for size, name in rows}


def told(name, value):
    """The page says this figure, to a tenth of it."""
    assert value == pytest.approx(sizes()[name], rel=0.1), f"{name}: {value}"


def apart(one, other):
    """Norm of the difference over that of the second."""
    return float(np.linalg.norm(np.asarray(one) - np.asarray(other)) / np.linalg.norm(np.asarray(other)))


@pytest.fixture(scope="module")
def encoder():
    return random_host(tiny_config(num_hidden_layers=4)).encoder


def test_every_row_of_the_table_has_its_test():
    assert sizes().keys() <= set(globals()) and len(sizes()) == 4
    held = {
        name
        for name, value in globals().items()
        if getattr(value, "__code__", None) and "told" in value.__code__.co_names
    }
    assert held == sizes().keys()


def memory_of(reader, hidden, found, weights):
    """Output of the fusion from all heads' contexts: as the formula has them, and as the release lays them out."""
    rows, tokens, size = hidden.shape
    context = jnp.einsum("bhlj,bjhd->bhld", weights, reader.value(found.values.reshape(rows, -1, size)))
    heads = context.shape[1]
    formula = context.transpose(0, 2, 1, 3)
    released = context.reshape(rows * heads, tokens, -1).reshape(rows, tokens, heads, -1)
    return np.asarray(reader.output(formula)), np.asarray(reader.output(released))


def test_fusion_of_pluglm():
    plugin = plugin_of(seed=3)
    reader = plugin.readers[0]
    draw = np.random.default_rng(1)
    keys, values = (jnp.asarray(draw.normal(size=(2, 1, 3, size)), jnp.float32) for size in (8, SIZE))
    found = Found(rows=jnp.zeros((2, 1, 3), jnp.int32), keys=keys, values=values)
    outputs = []
    for length in (7, 9):
        hidden = jnp.asarray(np.random.default_rng(2).normal(size=(2, 9, SIZE))[:, :length], jnp.float32)
        queries = reader.queries(hidden[:, :7], jnp.ones((2, 1, 7), bool))
        ours, weights = reader.fuse(hidden, queries, found, jnp.zeros((2, length), jnp.int32))
        formula, released = memory_of(reader, hidden, found, weights)
        np.testing.assert_allclose(ours, formula, rtol=0, atol=1e-5)
        bias = np.asarray(reader.output.bias[...])
        outputs.append((formula[:, :7] - bias, released[:, :7] - bias))
    np.testing.assert_allclose(outputs[0][0], outputs[1][0], rtol=0, atol=1e-5)
    assert apart(outputs[1][1], outputs[0][1]) > 0.5  # two more positions of padding change the release's real ones
    told("test_fusion_of_pluglm", apart(outputs[0][1], outputs[0][0]))


def test_padding_of_k_adapter(encoder):
    """The release attends to padding: half as much of it as there is text, here."""
    batch = tiny_batch(encoder.config, [8, 8], 12)
    plugin = small(scale=0.1)
    states = encoder(batch, plugin).hidden_states
    ours = np.asarray(plugin.adapt(states, batch))[:, :8]
    theirs = np.asarray(plugin.adapt(states, {**batch, "segment_ids": jnp.ones_like(batch["segment_ids"])}))[:, :8]
    told("test_padding_of_k_adapter", apart(theirs, ours))


def test_positions_of_the_linguistic_head(encoder):
    """Loss of an untrained head, in nats: over the sentence's 16 positions, and over all 64."""
    config = encoder.config
    head = DependencyHead(config, 64, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    batch = tiny_batch(config, [16], 16)
    hidden = encoder(batch).last
    places = jnp.arange(1, 15, dtype=jnp.int32)[None]
    labels = jnp.full((1, 14), 3)
    losses = [
        float(
            optax.softmax_cross_entropy_with_integer_labels(
                head.scores(hidden, batch["segment_ids"], places, beyond=beyond), labels
            ).mean()
        )
        for beyond in (False, True)
    ]
    told("test_positions_of_the_linguistic_head", losses[1] - losses[0])


def test_loss_of_fewrel():
    """Relative difference of an AdamW step between a mean over 100 losses and their sum, gradients of BERT's size."""
    gradient = np.random.default_rng(0).normal(size=10_000) * 1e-4
    steps = []
    for scale in (1.0, 100.0):
        optimizer = optax.adamw(2e-5, eps=1e-6, weight_decay=0.0)
        start = jnp.zeros(10_000)
        update, _ = optimizer.update(jnp.asarray(scale * gradient), optimizer.init(start), start)
        steps.append(update)
    told("test_loss_of_fewrel", 100 * apart(steps[0], steps[1]))


def test_markers_in_a_pair_of_roberta_that_is_too_long():
    """Theirs stops at `#`, and a marker inside a text is `Ġ#`; ours stops there too, and keeps every mention."""
    tokenizer = tokenizer_of("bpe")
    passage = Passage("a b c ka mo d e", [Mention(6, 8, "Q1", "#", "#"), Mention(9, 11, "Q2", "$", "$")])
    pair = Passage(passage.text, passage.mentions, passage.text, passage.mentions)
    whole = PROTOCOLS["thunlp"].pair_encoder(EntityEncoder(tokenizer)).encode_batch([pair])[0]
    short = PROTOCOLS["thunlp"].pair_encoder(EntityEncoder(tokenizer, len(whole) - 3)).encode_batch([pair])[0]
    kept = (short.markers >= 0).sum()
    assert len(short) == len(whole) - 3 and kept == (whole.markers >= 0).sum() == 8


def test_nothing_is_dropped_of_kformers_activations():
    assert Kformer.Config().dropout == 0


@pytest.mark.parametrize("family", ["wordpiece", "bpe"])
def test_positions_behind_a_letter_that_becomes_two(family):
    """`İ` lowercased is two letters, and the authors' mention is what then stands at its old place."""
    text, start = "İ ka mo b", 2
    encoder = EntityEncoder(tokenizer_of(family))
    theirs = PROTOCOLS["thunlp"].encode([Passage(Thunlp().text(text), [Mention(start, start + 3)])], encoder, None)[0]
    lowered = text.lower()
    assert lowered[start : start + 3] == " ka" and len(lowered) == len(text) + 1
    low, high = theirs.spans[0]
    assert tokenizer_of(family).decode(theirs.token_ids[low:high]).strip() == "ka"


@pytest.mark.parametrize("words", [["ka", "mo", "a"], ["a", "ka", "mo"]])
@pytest.mark.parametrize("slot", [True, False])
def test_spelling_of_roberta_is_that_of_one_string(words, slot):
    """Slots and markers as in `# E/ ka # …`, where E takes the space behind it: built as one string, by hand."""
    tokenizer = tokenizer_of("bpe")
    at = words.index("ka")
    encoder = PROTOCOLS["thunlp"].spelled(EntityEncoder(tokenizer))
    (one,) = encoder.encode_batch(
        [Passage(words, [Mention(at, at + 1, "Q1", "#", "#")])], lambda ids: np.zeros(len(ids), np.int32) - (not slot)
    )
    before = " ".join([*words[:at], "#"])
    behind = f"ka # {' '.join(words[at + 1 :])}"
    if slot:
        ids = [*tokenizer.pieces([before])[0].ids, tokenizer.unk_id, *tokenizer.pieces([f"/ {behind}"])[0].ids]
    else:
        ids = tokenizer.pieces([f"{before} {behind}"])[0].ids
    assert one.token_ids[1:-1].tolist() == list(ids)
    low, high = one.spans[0]
    assert tokenizer.decode(one.token_ids[low:high]).strip() == "ka"
