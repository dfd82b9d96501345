"""A feed-forward whose products end in GELU and in its gradient, for GPUs: its numbers, and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_host, tiny_batch, tiny_config

from kinject.models.kernels import ahead, plain
from kinject.models.kernels.feed_forward import Sides, feed_forward_kernel
from kinject.models.kernels.tiled import COLUMNS, ROWS, tiled

# Largest difference from the formula, as a share of the largest number of its array. In bfloat16 inputs are exact, and
# activations, slopes and gradients are rounded to 2^-9 of them.
BOUNDS = {"float32": 2e-6, "bfloat16": 1e-2}


def drawn(dtype, length=50, size=COLUMNS, inner=2 * COLUMNS):
    """A stream of 3 rows, which fill no whole number of tiles, the parameters of both layers, and a gradient."""
    generator = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return jnp.asarray(generator.normal(size=shape) * scale, dtype)

    sides = Sides(normal(size, inner, scale=0.15), normal(inner), normal(inner, size, scale=0.1), normal(size))
    return normal(3, length, size), sides, normal(3, length, size)


def formula(hidden, sides):
    inside = jax.nn.gelu(jnp.dot(hidden, sides.up, precision="highest") + sides.up_bias, approximate=False)
    return jnp.dot(inside, sides.down, precision="highest") + sides.down_bias


def pulled(compute, hidden, sides, slope):
    out, back = jax.vjp(compute, hidden, sides)
    return jax.tree.leaves((out, back(slope)))


@pytest.mark.parametrize("dtype", BOUNDS)
def test_it_is_the_formula_with_the_formulas_gradients(dtype):
    inputs = drawn(dtype)
    ours = pulled(lambda *arrays: feed_forward_kernel(*arrays, True), *inputs)
    expected = pulled(formula, *(jax.tree.map(lambda one: one.astype(jnp.float32), each) for each in inputs))
    for got, exact in zip(ours, expected, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got.astype(jnp.float32), exact, rtol=0, atol=BOUNDS[dtype] * float(jnp.abs(exact).max())
        )


def test_mapped_rows_join_and_devices_share_them():
    hidden, sides, slope = drawn("float32", length=8)
    hidden, slope = (jnp.concatenate([one, one[:1]]) for one in (hidden, slope))

    def gradient(hidden, slope):
        return jax.vjp(lambda hidden: feed_forward_kernel(hidden, sides, True), hidden)[1](slope)[0]

    expected = gradient(hidden, slope)
    mapped = jax.vmap(gradient)(*(one.reshape(2, 2, *one.shape[1:]) for one in (hidden, slope)))
    np.testing.assert_allclose(mapped.reshape(expected.shape), expected, atol=1e-5)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    split = [jax.device_put(each, place) for each in (hidden, slope)]
    compiled = jax.jit(gradient).lower(*split).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(*split), expected, atol=1e-5)


def test_parameters_of_their_own_are_mapped_one_by_one():
    hidden, sides, slope = drawn("float32", length=4)
    both = jax.tree.map(lambda one: jnp.stack([one, 0.5 * one]), sides)

    def run(sides):
        return jax.tree.leaves(pulled(lambda *arrays: feed_forward_kernel(*arrays, True), hidden, sides, slope))

    for got, first, second in zip(
        jax.vmap(run)(both), run(sides), run(jax.tree.map(lambda one: 0.5 * one, sides)), strict=True
    ):
        np.testing.assert_allclose(got, jnp.stack([first, second]), atol=1e-4)


@pytest.mark.parametrize("width", [COLUMNS, COLUMNS + 7])
def test_tiles_are_reduced_and_end_where_the_sides_do(width):
    generator = np.random.default_rng(0)
    inputs, kernel = (jnp.asarray(generator.normal(size=(n, 64)), jnp.float32) for n in (ROWS + 3, width))

    def finish(columns, total, vector, rows):
        inside = columns < width
        return jnp.where(inside, total + vector * rows, 0), jnp.where(inside, total, -jnp.inf).max(1)

    vector, rows = jnp.arange(width, dtype=jnp.float32), jnp.arange(ROWS + 3)
    whole, most = tiled(
        inputs, kernel, (vector,), finish, ("whole", "reduced"), turned=True, of_rows=(rows,), interpret=True
    )
    products = np.asarray(inputs, np.float64) @ np.asarray(kernel, np.float64).T
    padded = -(-width // COLUMNS) * COLUMNS
    assert whole.shape == (ROWS + 3, padded) and most.shape == (padded // COLUMNS, ROWS + 3)
    np.testing.assert_allclose(whole[:, :width], products + np.outer(rows, vector), atol=1e-4, rtol=1e-6)
    assert not whole[:, width:].any()
    for number, tile in enumerate(most):
        expected = products[:, number * COLUMNS : (number + 1) * COLUMNS].max(1)
        np.testing.assert_allclose(tile, expected, atol=1e-4)


class Nothing:
    """What LoRA might put beside a dense layer."""

    def add(self, outputs, inputs, key, start=0):
        del inputs, key, start
        return outputs


def test_inputs_are_prepared_part_by_part_and_a_kernel_may_end_before_them():
    generator = np.random.default_rng(0)
    inputs = jnp.asarray(generator.normal(size=(ROWS, 2 * COLUMNS)), jnp.float32)
    kernel = jnp.asarray(generator.normal(size=(COLUMNS + 5, COLUMNS)), jnp.float32)
    parts = jnp.asarray(generator.normal(size=(2, ROWS)), jnp.float32)
    rows = jnp.arange(ROWS)

    def prepare(places, values, rows, factors):
        return jnp.where(places == rows, 0, values * factors)

    (got,) = tiled(
        inputs,
        kernel,
        (),
        lambda columns, total, rows: (total,),
        ("whole",),
        of_rows=(rows,),
        prepare=prepare,
        of_parts=(parts,),
        interpret=True,
    )
    ready = np.asarray(inputs, np.float64) * np.repeat(np.asarray(parts), COLUMNS, 0).T
    ready[rows, rows] = 0
    np.testing.assert_allclose(got, ready[:, : COLUMNS + 5] @ np.asarray(kernel, np.float64), atol=1e-4)


def kernels(length=16, platform="cuda", added=False, slope=jax.grad, **values):
    """How many there are in a program for a platform: of a layer's slope, or of what `slope` makes of the layer."""
    shape = {"hidden_size": COLUMNS, "intermediate_size": COLUMNS, "num_hidden_layers": 1} | values
    host = random_host(tiny_config(**shape), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    if added:
        host.encoder.layers[0].feed_forward.down.lora = Nothing()
    batch = tiny_batch(host.encoder.config, [length] * 8, length)

    def loss(hidden):
        return jnp.sum(host.encoder.run(hidden, batch)[-1].astype(jnp.float32))

    traced = jax.jit(slope(loss)).trace(jnp.zeros((8, length, COLUMNS), jnp.bfloat16))
    return traced.lower(lowering_platforms=(platform,)).as_text().count('"tiled_product"')


def test_only_a_program_for_a_gpu_has_it_and_only_where_tiles_are_full():
    assert kernels(platform="cpu") == 0, "no one asked for a GPU"
    with ahead("cuda"):
        assert kernels() == 2, "one forwards, one backwards"
        assert kernels(slope=lambda loss: loss) == 0, "XLA may do it where no slope is kept"
        assert kernels(platform="cpu") == kernels(platform="tpu") == 0
        assert kernels(length=12) == kernels(intermediate_size=COLUMNS + 64) == 0
        assert kernels(hidden_act="relu") == kernels(added=True) == 0
        with plain():
            assert kernels() == 0
