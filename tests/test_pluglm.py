"""PlugLM's module: against plain numpy, its masks, its gates, what it is when the memory is empty."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, softmax
from tiny import fast_jit, random_host, tiny_batch, tiny_config

from kinject.errors import InputError
from kinject.plugins.pluglm import PlugLM

SIZE, ROWS, T = 32, 9, 6
close = {"rtol": 0, "atol": 1e-5}


def plugin_of(seed=0, rows=ROWS, dead=(2,), live=False, **config):
    """A plugin whose every parameter is random, with a random memory in it."""
    config = PlugLM.Config(**{"layers": (1,), "heads": 4, "key_size": 8, "top_k": 3} | config)
    plugin = PlugLM(config, hidden_size=SIZE)
    draw = np.random.default_rng(seed)
    state = nnx.state(plugin, nnx.Param)
    nnx.update(plugin, jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw.normal(size=leaf.shape), jnp.float32), state))
    alive = np.ones(rows, bool)
    alive[list(dead)] = False
    tokens = np.where(np.arange(T) < draw.integers(2, T, (rows, 1)), draw.integers(5, 120, (rows, T)), -1)
    keys, values = draw.normal(size=(rows, 8)), draw.normal(size=(rows, SIZE))
    numbers = (jnp.asarray(part, jnp.float32) for part in (keys, values))
    plugin.set_tables(*numbers, jnp.asarray(alive), jnp.asarray(tokens, jnp.int32))
    plugin.live = live
    return plugin


@pytest.fixture(scope="module")
def host():
    return random_host(tiny_config())


def numbers(module):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))


def linear(p, x):
    return np.tensordot(x, p["kernel"], 1) + p["bias"]


def norm(p, x, eps=1e-6):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def pooled(p, x):
    """One sequence [L, D] -> [D]."""
    scores = (np.tanh(linear(p["hidden"], x)) @ p["score"]["kernel"])[:, 0]
    return softmax(scores) @ x


def plain_memory(plugin, hidden, chosen, keys, values):
    """The memory of one row [L, D], its query pooled from `chosen` [n, D]: loops, one head and token at a time."""
    p, config = numbers(plugin)["readers"][0], plugin.config
    query = norm(p["query_norm"], linear(p["query"], pooled(p["pool"], chosen)))
    alive = np.asarray(plugin.alive[...])
    rows = sorted(np.flatnonzero(alive), key=lambda row: -float(query @ np.asarray(plugin.keys[...])[row]))
    rows = rows[: config.top_k]
    out = np.zeros_like(hidden)
    for token in range(len(hidden)):
        for head in range(config.heads):
            q = np.einsum("d,dk->k", hidden[token], p["attend"]["kernel"][:, head]) + p["attend"]["bias"][head]
            k = np.einsum("nd,dk->nk", values[rows], p["key"]["kernel"][:, head]) + p["key"]["bias"][head]
            v = np.einsum("nd,dk->nk", values[rows], p["value"]["kernel"][:, head]) + p["value"]["bias"][head]
            lengths = np.linalg.norm(query) * np.linalg.norm(keys[rows], axis=1)
            scores = k @ q / np.sqrt(len(q)) + p["beta"][head] * (keys[rows] @ query) / lengths
            out[token] += softmax(scores) @ v @ p["output"]["kernel"][head]
    return out + p["output"]["bias"], rows


@pytest.mark.parametrize("mode", ["gated", "replace"])
@pytest.mark.parametrize("live", [False, True], ids=["stored", "live"])
def test_a_layer_is_what_plain_numpy_says(host, mode, live):
    plugin = plugin_of(mode=mode, live=live)
    lengths = [7, 4]
    batch = tiny_batch(host.encoder.config, lengths, 7)
    hidden, output = (np.random.default_rng(i).normal(size=(2, 7, SIZE)).astype(np.float32) for i in (5, 6))
    keys, values = np.asarray(plugin.keys[...]), np.asarray(plugin.values[...])
    if live:
        p = numbers(plugin)
        tokens = np.asarray(plugin.tokens[...])
        table = numbers(host.encoder.embeddings)
        fresh = []
        for ids in tokens:
            ids = ids[ids >= 0]
            x = table["word"]["embedding"][ids] + table["position"]["embedding"][: len(ids)]
            fresh.append(pooled(p["pool"], norm(table["norm"], x + table["type"]["embedding"][0], 1e-12)))
        keys, values = linear(p["to_key"], np.stack(fresh)), linear(p["to_value"], np.stack(fresh))
    p = numbers(plugin)["readers"][0]
    graph, state = nnx.split((host.encoder, plugin))

    def run(state, hidden, output, batch):
        encoder, plugin = nnx.merge(graph, state)
        return plugin.feed_forward(1, hidden, output, plugin.before(encoder, batch))

    got = np.asarray(fast_jit(run)(state, hidden, output, batch))
    for row, length in enumerate(lengths):
        memory, _ = plain_memory(plugin, hidden[row, :length], hidden[row, :length], keys, values)
        if mode == "gated":
            expected = output[row, :length] + p["gate"] * memory
        else:
            inner = linear(p["up"], hidden[row, :length])
            expected = linear(p["down"], inner * 0.5 * (1 + erf(inner / np.sqrt(2)))) + memory
        np.testing.assert_allclose(got[row, :length], expected, **close)
    assert np.array_equal(plugin.feed_forward(0, hidden, output, batch), output), "another layer's feed-forward"


def test_a_query_over_the_mention_reads_the_mention_alone(host):
    plugin = plugin_of(query="mention", query_from="embeddings")
    batch = tiny_batch(host.encoder.config, [7, 5], 7) | {"mention_spans": jnp.asarray([[2, 4], [0, 0]])}
    hidden = np.random.default_rng(5).normal(size=(2, 7, SIZE)).astype(np.float32)
    _, found, _ = read(plugin, hidden, host, batch)
    states = np.asarray(host.encoder.embed(batch))
    stored = [np.asarray(part[...]) for part in (plugin.keys, plugin.values)]
    for row, (low, high) in enumerate([(2, 4), (0, 5)]):  # without a mention: the whole sequence
        _, rows = plain_memory(plugin, hidden[row], states[row, low:high], *stored)
        assert found.rows[row, 0].tolist() == [int(one) for one in rows]


def read(plugin, hidden, host, batch):
    """`plugin.read` of layer 1, compiled."""
    graph, state = nnx.split((host.encoder, plugin))

    def run(state, hidden, batch):
        encoder, plugin = nnx.merge(graph, state)
        return plugin.read(1, hidden, plugin.before(encoder, batch))

    return fast_jit(run)(state, hidden, batch)


def output_of(host, plugin, batch):
    graph, state = nnx.split((host, plugin))

    def run(state, batch):
        host, plugin = nnx.merge(graph, state)
        return host.encoder(batch, plugin).last

    return np.asarray(fast_jit(run)(state, batch))


def test_a_fresh_plugin_and_an_empty_memory_are_the_host_bit_for_bit(host):
    batch = tiny_batch(host.encoder.config, [7, 5], 7)
    alone = output_of(host, None, batch)
    fresh = PlugLM(PlugLM.Config(layers=(0, 1), heads=4, top_k=3), hidden_size=SIZE)
    full = plugin_of()
    fresh.set_tables(jnp.ones((4, 128)), jnp.ones((4, SIZE)), jnp.ones(4, bool))
    assert output_of(host, fresh, batch).tobytes() == alone.tobytes()
    assert output_of(host, full, batch).tobytes() != alone.tobytes()
    full.set_tables()
    assert output_of(host, full, batch).tobytes() == alone.tobytes()
    assert output_of(host, plugin_of(dead=range(ROWS)), batch).tobytes() == alone.tobytes()


def test_fewer_passages_than_k_are_all_that_is_read(host):
    batch = tiny_batch(host.encoder.config, [7, 5], 7)
    few, many = plugin_of(dead=range(2, ROWS)), plugin_of(rows=2, dead=(), top_k=2)
    many.keys[...], many.values[...] = few.keys[...][:2], few.values[...][:2]
    hidden = np.random.default_rng(5).normal(size=(2, 7, SIZE)).astype(np.float32)
    (memory, found, weights), (other, _, _) = (read(plugin, hidden, host, batch) for plugin in (few, many))
    np.testing.assert_allclose(memory, other, **close)
    assert np.all(np.asarray(found.rows)[..., 2:] == -1) and not np.asarray(weights)[..., 2:].any()


def test_packed_sequences_read_as_they_do_alone(host):
    plugin = plugin_of(segments=2)
    alone = tiny_batch(host.encoder.config, [4, 3], 4)
    row = {name: np.concatenate([array[0, :4], array[1, :3]])[None] for name, array in alone.items()}
    row["segment_ids"] = np.array([[1, 1, 1, 1, 2, 2, 2]], np.int32)
    packed, apart = output_of(host, plugin, row), output_of(host, plugin, alone)
    np.testing.assert_allclose(packed[0, :4], apart[0], **close)
    np.testing.assert_allclose(packed[0, 4:], apart[1, :3], **close)
    single = plugin_of()  # one segment a row: the second reads nothing, the first as before
    _, _, weights = read(single, jnp.ones((1, 7, SIZE)), host, row)
    assert np.asarray(weights)[0, :, :4].any() and not np.asarray(weights)[0, :, 4:].any()


def test_every_token_may_ask_for_itself(host):
    plugin = plugin_of(query="token")
    batch = tiny_batch(host.encoder.config, [5], 7)
    hidden = jnp.asarray(np.random.default_rng(5).normal(size=(1, 7, SIZE)), jnp.float32)
    memory, found, weights = read(plugin, hidden, host, batch)
    assert found.rows.shape == (1, 7, 3) and weights.shape == (1, 4, 7, 21)
    # a token's answer is its own: it does not move when the others do
    moved, _, _ = read(plugin, hidden.at[0, 0].add(1.0), host, batch)
    np.testing.assert_allclose(memory[0, 1:5], moved[0, 1:5], **close)
    assert not np.allclose(memory[0, 0], moved[0, 0]) and not np.asarray(memory)[0, 5:].any()


def test_large_scores_do_not_overflow(host):
    plugin = plugin_of()
    plugin.readers[0].pool.score.kernel[...] *= 1e6
    memory, _, _ = read(plugin, jnp.ones((1, 7, SIZE)), host, tiny_batch(host.encoder.config, [3], 7))
    assert np.isfinite(np.asarray(memory)).all()


def test_gradient_reaches_the_passages_that_were_found_and_no_other(host):
    plugin = plugin_of(live=True)
    batch = tiny_batch(host.encoder.config, [7], 7)
    graph, params, rest = nnx.split(plugin, nnx.Param, ...)
    hidden = jnp.asarray(np.random.default_rng(5).normal(size=(1, 7, SIZE)), jnp.float32)
    given = plugin.before(host.encoder, batch)

    def loss(params, keys):
        plugin = nnx.merge(graph, params, {**rest, "keys": rest["keys"].replace(keys)})
        return (plugin.read(1, hidden, given)[0] ** 2).sum()

    of_params, of_keys = fast_jit(jax.grad(loss, argnums=(0, 1)))(params, plugin.keys[...])
    for part in (of_params["pool"]["hidden"], of_params["to_key"], of_params["to_value"]):
        assert np.asarray(part["kernel"][...]).any()
    assert not np.asarray(of_keys).any(), "stale keys are searched, not differentiated"


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"layers": ()}, "method.layers"),
        ({"layers": (1, 1)}, "name each once"),
        ({"heads": 5}, "method.heads: 5 does not divide"),
        ({"top_k": 0}, "method.top_k"),
        ({"query": "mention", "segments": 2}, "method.segments"),
    ],
)
def test_refused_configurations(wrong, said):
    config = dataclasses.replace(PlugLM.Config(layers=(1,), heads=4), **wrong)
    with pytest.raises(InputError, match=said):
        PlugLM(config, hidden_size=SIZE)


def test_a_layer_that_the_host_has_not(host):
    plugin = PlugLM(PlugLM.Config(layers=(2,), heads=4), hidden_size=SIZE)
    with pytest.raises(InputError, match="layer 2 of a host with 2"):
        host.encoder(tiny_batch(host.encoder.config, [3], 3), plugin)
