"""K-Adapter: against plain torch layers, at its start, with padding and packing, alone and in a combination."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import fast_jit, random_host, tiny_batch, tiny_config
from tiny_world import same_bits

from kinject.errors import InputError
from kinject.plugins.base import make_plugin
from kinject.plugins.k_adapter import KAdapter, spread
from kinject.plugins.k_adapter_combination import KAdapterCombination
from kinject.tree import flatten

SMALL = {"name": "k_adapter", "width": 12, "heads": 3, "feed_forward": 20, "depth": 1}
D = 32


def small(seed=0, scale=0.2, **changes):
    """A small adapter whose every parameter is random, so that nothing hides behind a zero."""
    plugin = make_plugin({**SMALL, **changes}, hidden_size=D, knowledge_dim=0, seed=seed)
    return drawn(plugin, seed, scale)


def drawn(plugin, seed=0, scale=0.2):
    draw = np.random.default_rng(seed)
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(plugin, nnx.Param)), key=str):
        leaf[...] = jnp.asarray((path[-1] == "scale") + scale * draw.standard_normal(leaf.shape), jnp.float32)
    return plugin


@pytest.fixture(scope="module")
def encoder():
    return random_host(tiny_config(num_hidden_layers=4)).encoder


def run(encoder, batch, plugin=None, key=None):
    graph, state = nnx.split((encoder, plugin))

    def forward(params):
        encoder, plugin = nnx.merge(graph, params)
        found = encoder(batch, plugin, key)
        return found if plugin is None else (found, plugin.adapt(found.hidden_states, batch))

    return fast_jit(forward)(nnx.to_pure_dict(state))


def packed(config):
    """Two rows: two segments and padding, one segment and padding."""
    batch = tiny_batch(config, [9, 6], 11)
    segments = np.zeros((2, 11), np.int32)
    segments[0, :5], segments[0, 5:9], segments[1, :6] = 1, 2, 1
    positions = np.where(segments == 2, np.arange(11) - 5, np.arange(11)) * (segments > 0)
    return {**batch, "segment_ids": jnp.asarray(segments), "position_ids": jnp.asarray(positions, jnp.int32)}


def torch_layer(layer, config):
    """torch's own encoder layer with our arrays: another author's BERT layer."""
    torch = pytest.importorskip("torch")
    width = config.width
    theirs = torch.nn.TransformerEncoderLayer(
        width, config.heads, config.feed_forward, dropout=0.0, activation="gelu", layer_norm_eps=1e-5, batch_first=True
    ).double()
    attention, dense = layer.attention, layer.feed_forward
    arrays = {
        "self_attn.in_proj_weight": np.asarray(attention.qkv.kernel[...]).reshape(width, 3 * width).T,
        "self_attn.in_proj_bias": np.asarray(attention.qkv.bias[...]).reshape(-1),
        "self_attn.out_proj.weight": np.asarray(attention.output.kernel[...]).reshape(width, width).T,
        "self_attn.out_proj.bias": np.asarray(attention.output.bias[...]),
        "linear1.weight": np.asarray(dense.up.kernel[...]).T,
        "linear1.bias": np.asarray(dense.up.bias[...]),
        "linear2.weight": np.asarray(dense.down.kernel[...]).T,
        "linear2.bias": np.asarray(dense.down.bias[...]),
        "norm1.weight": np.asarray(attention.norm.scale[...]),
        "norm1.bias": np.asarray(attention.norm.bias[...]),
        "norm2.weight": np.asarray(dense.norm.scale[...]),
        "norm2.bias": np.asarray(dense.norm.bias[...]),
    }
    theirs.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in arrays.items()})
    return theirs.eval()


def reference(plugin, states, segments, read):
    """The recurrence of the paper in torch, float64: what the last unit yields."""
    torch = pytest.importorskip("torch")
    states = [torch.tensor(np.asarray(state), dtype=torch.float64) for state in states]
    apart = torch.tensor((segments[:, :, None] != segments[:, None, :]) | (segments[:, None, :] == 0))
    apart &= ~torch.eye(
        segments.shape[1], dtype=torch.bool
    )  # torch's softmax wants one visible position, on padding too
    adapted = 0
    with torch.no_grad():
        for unit, index in zip(plugin.units, read, strict=True):
            inputs = states[index] + adapted
            hidden = inputs @ torch.tensor(np.asarray(unit.down.kernel[...])).double() + torch.tensor(
                np.asarray(unit.down.bias[...])
            )
            for layer in unit.layers:
                mask = apart.repeat_interleave(plugin.config.heads, 0)
                hidden = torch_layer(layer, plugin.config)(hidden, src_mask=mask)
            up = torch.tensor(np.asarray(unit.up.kernel[...])).double()
            adapted = inputs + hidden @ up + torch.tensor(np.asarray(unit.up.bias[...]))
    return adapted.numpy()


@pytest.mark.parametrize("layers", [None, (1, 4)])
def test_the_forward_pass_is_that_of_torch(encoder, layers):
    batch = packed(encoder.config)
    plugin = small(layers=layers, depth=2)
    found, got = run(encoder, batch, plugin)
    segments, real = np.asarray(batch["segment_ids"]), np.asarray(batch["segment_ids"]) > 0
    expected = reference(plugin, found.hidden_states, segments, layers or (0, 1, 2))
    np.testing.assert_allclose(np.asarray(got)[real], expected[real], rtol=0, atol=1e-5)
    # and joined as in the paper: Linear([h; a]), whose first block ours holds without the identity
    last = np.asarray(found.hidden_states[-1], np.float64)
    kernel = np.asarray(plugin.join.linear.kernel[...], np.float64)
    kernel[:D] += np.eye(D)
    joined = np.concatenate([last, expected], -1) @ kernel + np.asarray(plugin.join.linear.bias[...])
    np.testing.assert_allclose(np.asarray(found.last)[real], joined[real], rtol=0, atol=2e-5)


def test_joined_by_a_sum(encoder):
    batch, plugin = packed(encoder.config), small(join="add")
    plugin.join.scale[...] = jnp.ones_like(plugin.join.scale[...])
    found, adapted = run(encoder, batch, plugin)
    expected = found.hidden_states[-1] + adapted
    np.testing.assert_allclose(found.last, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("join", ["concat", "add"])
def test_an_untrained_adapter_is_the_host_bit_for_bit(encoder, join):
    batch = packed(encoder.config)
    plugin = make_plugin({**SMALL, "join": join}, hidden_size=D, knowledge_dim=0, seed=4)
    bare, (plugged, adapted) = run(encoder, batch), run(encoder, batch, plugin)
    assert np.asarray(bare.last).tobytes() == np.asarray(plugged.last).tobytes()
    assert float(jnp.abs(adapted).max()) > 0.1  # though the units do compute


def test_the_first_step_reaches_the_join_and_the_second_the_units(encoder):
    batch, plugin = packed(encoder.config), make_plugin(SMALL, hidden_size=D, knowledge_dim=0)
    states = run(encoder, batch).hidden_states
    graph, state = nnx.split(plugin)

    def loss(params):
        return jnp.sum(nnx.merge(graph, params).outputs(states, batch)[:, :4] ** 3)

    def moved(params):
        return {path: float(jnp.abs(leaf).max()) > 0 for path, leaf in flatten(gradient(params)).items()}

    gradient = fast_jit(jax.grad(loss))
    params = nnx.to_pure_dict(state)
    assert {path for path, moves in moved(params).items() if moves} == {"join/linear/kernel", "join/linear/bias"}
    params["join"]["linear"]["kernel"] += 0.01
    still = {path for path, moves in moved(params).items() if not moves}
    assert not still


def test_padding_and_neighbours_change_nothing(encoder):
    plugin = small()
    short, other = tiny_batch(encoder.config, [6], 6), tiny_batch(encoder.config, [5], 5, seed=7)
    alone = np.asarray(run(encoder, short, plugin)[0].last)[0]
    padded = {name: jnp.pad(array, ((0, 0), (0, 5))) for name, array in short.items()}
    packed = {name: jnp.concatenate([short[name], other[name]], 1) for name in short}
    packed["segment_ids"] = jnp.asarray([[1] * 6 + [2] * 5], jnp.int32)
    rows = {name: jnp.concatenate([padded[name], packed[name]]) for name in short}
    for found in np.asarray(run(encoder, rows, plugin)[0].last)[:, :6]:
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def test_dropout_needs_a_key_and_follows_it(encoder):
    batch, plugin = packed(encoder.config), small(dropout=0.3)
    states = run(encoder, batch).hidden_states
    outputs = [np.asarray(plugin.outputs(states, batch, key)) for key in (None, *map(jax.random.key, (1, 1, 2)))]
    assert outputs[1].tobytes() == outputs[2].tobytes()
    assert all(np.abs(outputs[a] - outputs[b]).max() > 1e-3 for a, b in ((0, 1), (1, 3)))


def test_the_papers_shape_has_the_papers_parameters():
    plugin = nnx.eval_shape(lambda: KAdapter(hidden_size=1024, rngs=nnx.Rngs(0)))
    sizes = {path: leaf.size for path, leaf in flatten(nnx.to_pure_dict(nnx.state(plugin))).items()}
    units = sum(size for path, size in sizes.items() if path.startswith("units/"))
    assert units == 3 * (1024 * 768 + 768 + 2 * 7_087_872 + 768 * 1024 + 1024) == 47_251_200
    assert sum(sizes.values()) - units == 2048 * 1024 + 1024


def test_hidden_states_for_any_depth():
    assert spread(24) == (0, 11, 22)
    assert spread(12) == (0, 5, 10)
    assert spread(6) == (0, 2, 4)
    for layers in range(1, 30):
        read = spread(layers)
        assert len(read) == 3 and list(read) == sorted(read) and read[0] == 0 and read[-1] <= layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (3, 1)}, "from the lowest to the highest"),
        ({"layers": ()}, "at least one"),
        ({"layers": (-1, 2)}, "from 0"),
        ({"width": 10}, "no multiple of heads 3"),
        ({"dropout": 1.0}, r"a rate is in \[0, 1\)"),
        ({"join": "mean"}, "'concat' or 'add'"),
        ({"wide": 3}, "did you mean width"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make_plugin({**SMALL, **settings}, hidden_size=D, knowledge_dim=0)


def test_a_host_too_shallow_is_refused(encoder):
    with pytest.raises(InputError, match=r"method\.layers: names hidden state 9, the host's last is 4; leave layers"):
        run(encoder, packed(encoder.config), small(layers=(0, 9)))


def combination(parts, join="concat"):
    made = KAdapterCombination.from_parts(KAdapterCombination.Config(join=join), parts, hidden_size=D, rngs=nnx.Rngs(0))
    return made


@pytest.mark.parametrize("join", ["concat", "add"])
def test_a_combination_is_the_host_until_its_join_is_trained(encoder, join):
    batch = packed(encoder.config)
    parts = {"factual": small(1), "linguistic": small(2, layers=(1, 4))}
    made = combination(parts, join)
    assert same_bits(nnx.state(made.adapters["linguistic"]), nnx.state(parts["linguistic"]))
    states = run(encoder, batch).hidden_states
    assert np.asarray(made.outputs(states, batch)).tobytes() == np.asarray(states[-1]).tobytes()


def test_a_combination_joins_on_two_levels(encoder):
    batch = packed(encoder.config)
    parts = {"factual": small(1), "linguistic": small(2, layers=(1, 4))}
    states = run(encoder, batch).hidden_states
    first = [np.asarray(part.outputs(states, batch), np.float64) for part in parts.values()]
    last = np.asarray(states[-1], np.float64)
    made = drawn(combination(parts), 3)
    for name, part in parts.items():
        nnx.update(made.adapters[name], nnx.state(part))
    linear = made.join.linear
    expected = last + np.concatenate(first, -1) @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
    np.testing.assert_allclose(made.outputs(states, batch), expected, rtol=0, atol=1e-4)
    summed = combination({name: small(seed, join="add") for name, seed in (("a", 1), ("b", 2))}, "add")
    for scale in (summed.join.scale, *(part.join.scale for part in summed.adapters.values())):
        scale[...] = jnp.ones_like(scale[...])
    adapted = [np.asarray(part.adapt(states, batch)) for part in summed.adapters.values()]
    np.testing.assert_allclose(summed.outputs(states, batch), last + adapted[0] + adapted[1], rtol=0, atol=1e-4)


def test_a_combination_needs_adapters():
    with pytest.raises(InputError, match="is made of saved adapters; name their folders as parts"):
        make_plugin({"name": "k_adapter_combination"}, hidden_size=D, knowledge_dim=0)
    with pytest.raises(InputError, match=r"parts\.a: is a plugin of map_tuning, not of k_adapter"):
        combination({"a": make_plugin({"name": "map_tuning"}, hidden_size=D, knowledge_dim=4)})
    with pytest.raises(InputError, match=r"parts\.2nd: cannot be a name here"):
        combination({"2nd": small()})
    with pytest.raises(InputError, match="parts: k_adapter is not made of other plugins: a; leave parts out"):
        KAdapter.from_parts(None, {"a": small()}, hidden_size=D, rngs=nnx.Rngs(0))
