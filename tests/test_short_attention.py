"""Attention of short rows as a kernel for GPUs: the formula's numbers, and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_host, tiny_batch, tiny_config
from tiny_families import family_config

from kinject.models.kernels import ahead, plain
from kinject.models.kernels.products import for_kernels
from kinject.models.kernels.short_attention import LONGEST, attends_short, attention_kernel

# Largest difference from the formula in float64, of numbers about 1. In bfloat16 inputs are exact; what comes out is
# rounded to 2^-9 of it, as probabilities and slopes are on the way.
BOUNDS = {"float32": 2e-6, "bfloat16": 3e-2}


def drawn(rows, length, heads, width, dtype, parts=3, seed=0):
    """Projections [B, L, parts, H, Dh] and segments: of the second row some and of the last all is padding."""
    generator = np.random.default_rng(seed)
    fused = jnp.asarray(generator.normal(size=(rows, length, parts, heads, width)), dtype)
    segments = generator.integers(1, 3, (rows, length)).astype(np.int32)
    segments[1, length // 2 :], segments[-1] = 0, 0
    return fused, jnp.asarray(segments)


def itself(fused, segments):
    return attention_kernel(None, fused, None, segments, True)


def formula(queries, keys, values, own, segments, slope):
    """The context [B, P, H, Dh], and the gradients of queries, keys and values, in float64."""
    scale = queries.shape[-1] ** -0.5
    scores = np.einsum("bphd,blhd->bhpl", queries, keys) * scale
    visible = (own[:, None, :, None] == segments[:, None, None, :]) & (segments != 0)[:, None, None, :]
    scores = np.where(visible, scores, np.finfo(np.float32).min)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("bphd,blhd->bhpl", slope, values)
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True)) * visible * scale
    return (
        np.einsum("bhpl,blhd->bphd", weights, values),
        np.einsum("bhpl,blhd->bphd", of_scores, keys),
        np.einsum("bhpl,bphd->blhd", of_scores, queries),
        np.einsum("bhpl,bphd->blhd", weights, slope),
    )


def wide(array):
    return np.asarray(jnp.asarray(array, jnp.float32), np.float64)


def close(got, expected, dtype):
    np.testing.assert_allclose(wide(got), expected, atol=BOUNDS[dtype], rtol=BOUNDS[dtype])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("length", "width"), [(16, 64), (5, 16), (33, 32), (LONGEST, 16)])
def test_a_row_attends_as_the_formula_says(length, width, dtype):
    fused, segments = drawn(3, length, 2, width, dtype)
    slope = jnp.asarray(np.random.default_rng(1).normal(size=(3, length, 2, width)), dtype)
    got, back = jax.vjp(lambda fused: itself(fused, segments), fused)
    (found,) = back(slope)
    assert got.dtype == found.dtype == fused.dtype and got.shape == slope.shape and found.shape == fused.shape
    own = np.asarray(segments)
    expected, *slopes = formula(*np.moveaxis(wide(fused), 2, 0), own, own, wide(slope))
    close(got, expected, dtype)
    close(found, np.stack(slopes, 2), dtype)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("places", "length", "width"), [(1, 16, 64), (3, 7, 16), (20, 40, 32)])
def test_chosen_positions_attend_as_the_formula_says(places, length, width, dtype):
    fused, segments = drawn(3, length, 2, width, dtype, parts=2)
    generator = np.random.default_rng(1)
    queries, slope = (jnp.asarray(generator.normal(size=(3, places, 2, width)), dtype) for _ in range(2))
    own = jnp.take_along_axis(segments, jnp.asarray(generator.integers(0, length, (3, places))), axis=1)
    got, back = jax.vjp(lambda *arrays: attention_kernel(*arrays, own, segments, True), queries, fused)
    found = back(slope)
    sides = wide(queries), *np.moveaxis(wide(fused), 2, 0), np.asarray(own), np.asarray(segments), wide(slope)
    expected, of_queries, *others = formula(*sides)
    close(got, expected, dtype)
    close(found[0], of_queries, dtype)
    close(found[1], np.stack(others, 2), dtype)


def test_mapped_and_split_rows_are_the_same_rows():
    """`jax.vmap` joins them, and two devices share them."""
    fused, segments = drawn(4, 8, 2, 16, "float32")
    plainly = itself(fused, segments)
    mapped = jax.vmap(itself)(fused.reshape(2, 2, *fused.shape[1:]), segments.reshape(2, 2, -1))
    np.testing.assert_array_equal(mapped.reshape(plainly.shape), plainly)
    alone = jax.vmap(lambda fused: itself(fused, segments[:1]))(fused[:, None])
    np.testing.assert_array_equal(alone[0], plainly[:1])
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    split = [jax.device_put(each, place) for each in (fused, segments)]
    compiled = jax.jit(itself).lower(*split).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(*split), plainly, atol=1e-6)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "rows"))
    both = [jax.device_put(each.reshape(2, 2, *each.shape[1:]), place) for each in (fused, segments)]
    compiled = jax.jit(jax.vmap(itself)).lower(*both).compile()
    assert "all-gather" not in compiled.as_text(), "each device has its rows of each map"
    np.testing.assert_allclose(compiled(*both).reshape(plainly.shape), plainly, atol=1e-6)


def step(host, batch, key):
    """Loss and gradients of the input, as a function to lower."""

    def loss(hidden):
        positions = jnp.asarray([[1], [2]], jnp.int32)
        last = host.encoder.run(hidden, batch, key=key, positions=positions)[-1]
        return jnp.sum(jnp.square(last.astype(jnp.float32)))

    return jax.jit(jax.grad(loss))


def lowered(host, platform="cuda", key=None):
    batch = tiny_batch(host.encoder.config, [12, 9], 12)
    hidden = jnp.zeros((2, 12, host.encoder.config.hidden_size), host.encoder.dtype)
    return step(host, batch, key).trace(hidden).lower(lowering_platforms=(platform,)).as_text()


KERNELS = ("forward_kernel", "backward_kernel")


def test_only_a_program_for_a_gpu_has_it():
    heads = {"num_attention_heads": 1, "hidden_size": 16}
    host = random_host(tiny_config(**heads), "masked_lm", dtype=jnp.bfloat16)
    assert not any(name in lowered(host, "cpu") for name in KERNELS), "no one asked for a GPU"
    with ahead("cuda"):
        text = lowered(host)
        assert all(text.count(f'"{name}"') == len(host.encoder.layers) for name in KERNELS)
        assert not any(name in lowered(host, platform) for platform in ("cpu", "tpu") for name in KERNELS)
        with plain():
            assert not any(name in lowered(host) for name in KERNELS)
    with ahead("tpu"):
        assert not any(name in lowered(host) for name in KERNELS)


def test_what_it_does_not_take_is_left_to_the_formula():
    def taken(length=12, width=16, dtype=jnp.bfloat16):
        fused = jax.ShapeDtypeStruct((2, length, 3, 4, width), dtype)
        return for_kernels(fused) and attends_short(fused)

    with ahead("cuda"):
        assert taken() and taken(length=LONGEST)
        assert not taken(length=LONGEST + 1) and not taken(width=24) and not taken(width=8)
        assert not taken(dtype=jnp.float32)
    assert not taken()


def test_dropped_probabilities_are_left_to_the_formula():
    host = random_host(tiny_config(num_attention_heads=1, hidden_size=16), dtype=jnp.bfloat16)
    with ahead("cuda"):
        assert host.encoder.layers[0].attention.is_usual(None)
        assert not host.encoder.layers[0].attention.is_usual(jax.random.key(0))
        assert all(name not in lowered(host, key=jax.random.key(0)) for name in KERNELS)


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "mpnet"])
def test_attention_of_another_kind_keeps_its_scores(family):
    host = random_host(family_config(family, hidden_size=64), dtype=jnp.bfloat16)
    with ahead("cuda"):
        assert not any(name in lowered(host) for name in KERNELS)
