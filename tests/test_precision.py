"""Products in bfloat16 between float32 activations: what is rounded, what is not, and that training works so."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_host, tiny_config

from kinject.models.kernels.elementwise import ACTIVATIONS, coarse_gelu
from kinject.models.kernels.products import rounded_dot
from kinject.models.layers import Dense, FusedProjection, JoinedProjection
from kinject.models.precision import activations, held, multiplied


def bf16(values):
    return np.asarray(jnp.asarray(values, jnp.bfloat16).astype(jnp.float32))


def test_product_rounds_its_factors_and_nothing_else():
    rng = np.random.default_rng(0)
    inputs, kernel = rng.normal(size=(3, 5, 8)).astype("float32"), rng.normal(size=(8, 2, 4)).astype("float32")
    dimensions = (((2,), (0,)), ((), ()))
    found = rounded_dot(jnp.asarray(inputs), jnp.asarray(kernel, jnp.bfloat16), dimensions)
    assert found.dtype == jnp.float32
    chex.assert_trees_all_close(found, np.einsum("abd,dhk->abhk", bf16(inputs), bf16(kernel)), rtol=1e-6, atol=1e-6)
    assert float(np.abs(found - np.einsum("abd,dhk->abhk", inputs, kernel)).max()) > 1e-4  # it does round


@pytest.mark.parametrize("leading", [(1,), (1, 1, 1)])
def test_a_single_row_is_multiplied_as_any(leading):
    """It takes another way, as CPUs want; the numbers are those of the first of three rows."""
    draw = np.random.default_rng(0)
    rows, kernel = draw.normal(size=(3, 24)).astype(np.float32), draw.normal(size=(24, 2, 5))
    kernel = jnp.asarray(kernel, jnp.bfloat16)

    def of(rows):
        return rounded_dot(rows, kernel, (((rows.ndim - 1,), (0,)), ((), ())))

    one = jnp.asarray(rows[:1].reshape(*leading, 24))
    assert of(one).shape == (*leading, 2, 5)
    np.testing.assert_allclose(of(one).reshape(2, 5), of(jnp.asarray(rows))[0], rtol=1e-6)
    slope, slopes = (jax.grad(lambda rows: (of(rows) ** 2).sum())(each) for each in (one, jnp.asarray(rows)))
    np.testing.assert_allclose(slope.reshape(24), slopes[0], rtol=1e-5)


def test_gradients_are_products_of_rounded_factors():
    rng = np.random.default_rng(1)
    inputs, kernel = rng.normal(size=(3, 2, 4)).astype("float32"), rng.normal(size=(2, 4, 6)).astype("float32")
    weights = rng.normal(size=(3, 6)).astype("float32")
    dimensions = (((1, 2), (0, 1)), ((), ()))

    def loss(inputs, kernel):
        return (rounded_dot(inputs, kernel, dimensions) * weights).sum()

    of_inputs, of_kernel = jax.grad(loss, (0, 1))(jnp.asarray(inputs), jnp.asarray(kernel, jnp.bfloat16))
    assert of_inputs.dtype == jnp.float32 and of_kernel.dtype == jnp.bfloat16
    chex.assert_trees_all_close(of_inputs, np.einsum("bo,hko->bhk", bf16(weights), bf16(kernel)), rtol=1e-5, atol=1e-5)
    expected = np.einsum("bhk,bo->hko", bf16(inputs), bf16(weights))
    chex.assert_trees_all_close(of_kernel.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["dense", "fused", "joined"])
def test_layers_follow_the_dtype_in_which_their_kernel_is_held(kind):
    layer, shape = {
        "dense": (Dense(8, 6, rngs=nnx.Rngs(0)), (2, 3, 8)),
        "fused": (FusedProjection(8, (3, 2, 4), rngs=nnx.Rngs(0)), (2, 3, 8)),
        "joined": (JoinedProjection((2, 4), 8, axis=(-2, -1), rngs=nnx.Rngs(0)), (2, 3, 2, 4)),
    }[kind]
    inputs = jax.random.normal(jax.random.key(0), shape)
    exact = layer(inputs)
    layer.kernel[...] = layer.kernel[...].astype(jnp.bfloat16)
    rounded = layer(inputs)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert not bool((exact == rounded).all())
    chex.assert_trees_all_close(exact, rounded, rtol=0.05, atol=0.05)
    if kind == "fused":
        chex.assert_trees_all_close(layer.part(inputs, 1, 3), rounded[:, :, 1:], rtol=1e-6, atol=1e-6)


def test_what_each_precision_holds():
    matrix, vector, ids = jnp.ones((2, 2)), jnp.ones(2), jnp.ones(2, jnp.int32)
    leaves = (matrix, vector, ids)
    host = "host/encoder/layers/0/feed_forward/up/kernel"
    assert [held("bfloat16_dots", host, leaf).dtype for leaf in leaves] == [jnp.bfloat16, jnp.float32, jnp.int32]
    assert [held("bfloat16", host, leaf).dtype for leaf in leaves] == [jnp.bfloat16, jnp.bfloat16, jnp.int32]
    assert [held("float32", host, leaf).dtype for leaf in leaves] == [jnp.float32, jnp.float32, jnp.int32]
    assert held("bfloat16_dots", "plugin/mapper/kernel", matrix).dtype == jnp.float32
    assert [activations(each) for each in ("float32", "bfloat16", "bfloat16_dots")] == [
        jnp.float32,
        jnp.bfloat16,
        jnp.float32,
    ]
    assert multiplied("bfloat16_dots", "host/head/transform/kernel", matrix).dtype == jnp.bfloat16
    for path in ("plugin/mapper/kernel", "host/encoder/embeddings/word/embedding"):
        assert multiplied("bfloat16_dots", path, matrix).dtype == jnp.float32
    assert multiplied("float32", "host/head/transform/kernel", matrix).dtype == jnp.float32


def test_coarse_gelu_is_gelu_to_its_rounding():
    values = jnp.linspace(-20, 20, 40_001)
    exact = jax.nn.gelu(values, approximate=False)
    assert float(jnp.abs(coarse_gelu(values) - exact).max()) < 2.5e-4
    slope, exact_slope = (jax.vmap(jax.grad(f)) for f in (coarse_gelu, partial(jax.nn.gelu, approximate=False)))
    near = jnp.linspace(-3.9, 3.9, 1001)
    assert float(jnp.abs(slope(near) - exact_slope(near)).max()) < 4e-3
    far = jnp.concatenate([jnp.linspace(-20, -3.9, 1001), jnp.linspace(3.9, 20, 1001)])
    assert float(jnp.abs(slope(far) - exact_slope(far)).max()) < 0.015


def test_coarse_gelu_is_used_only_before_a_rounded_product():
    host = random_host(tiny_config())
    layer, hidden = host.encoder.layers[0].feed_forward, jnp.ones((1, 2, 32))
    exact = layer.down(ACTIVATIONS["gelu"](layer.up(hidden)))
    np.testing.assert_array_equal(layer.inner(hidden), exact)
    layer.down.kernel = nnx.Param(layer.down.kernel[...].astype(jnp.bfloat16))
    np.testing.assert_array_equal(layer.inner(hidden), layer.down(coarse_gelu(layer.up(hidden))))


def test_what_needs_no_rounding_is_held_where_it_lies():
    """A host in float32 is in memory once; committed arrays stay on their device."""
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))
    kept = held("float32", "host/encoder/kernel", matrix)
    assert kept.unsafe_buffer_pointer() == matrix.unsafe_buffer_pointer()
    rounded = held("bfloat16_dots", "host/encoder/kernel", matrix)
    assert not rounded.committed and (rounded == matrix.astype(jnp.bfloat16)).all()
    apart = jax.device_put(matrix, jax.devices()[-1])
    for precision in ("float32", "bfloat16_dots"):
        made = held(precision, "host/encoder/kernel", apart)
        assert made.committed and made.devices() == apart.devices()
