"""Exact search: a block at a time and over two devices it finds what one sorted matrix product finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny import fast_jit

from kinject.memory.search import sharded_top_k, top_k


def drawn(queries, rows, seed=0, dead=0.3):
    draw = np.random.default_rng(seed)
    # small integers: scores are exact in any order of summation, and many are equal
    numbers = draw.integers(-2, 3, (queries + rows, 4)).astype(np.float32)
    return numbers[:queries], numbers[queries:], draw.random(rows) > dead


def brute_force(queries, keys, alive, k):
    scores = np.where(alive, queries @ keys.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, 1)
    pad = ((0, 0), (0, k - order.shape[1]))
    best, order = np.pad(best, pad, constant_values=-np.inf), np.pad(order, pad, constant_values=-1)
    return best, np.where(np.isfinite(best), order, -1)


@pytest.mark.parametrize("rows, k, block", [(1, 3, 64), (7, 1, 5), (33, 9, 5), (33, 3, 1), (16, 9, 8), (16, 16, 64)])
def test_blocks_find_what_one_product_finds(rows, k, block):
    queries, keys, alive = drawn(3, rows, seed=rows * 100 + k)
    scores, found = fast_jit(lambda *given: top_k(*given, k, block))(queries, keys, alive)
    expected, order = brute_force(queries, keys, alive, k)
    assert np.array_equal(scores, expected) and np.array_equal(found, order)


def test_nothing_alive_and_no_rows_at_all():
    queries, keys, _ = drawn(2, 5)
    for rows in (5, 0):
        scores, found = top_k(jnp.asarray(queries), jnp.asarray(keys[:rows]), jnp.zeros(rows, bool), 3)
        assert np.all(np.asarray(found) == -1) and np.all(np.isneginf(scores))


@pytest.mark.parametrize("rows, k", [(40, 3), (40, 30), (6, 5)])
def test_two_devices_find_what_one_finds(rows, k):
    queries, keys, alive = drawn(4, rows, seed=rows + k)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("rows"))
    placed = jax.device_put(keys, split), jax.device_put(alive, split)
    search = jax.jit(lambda q, keys, alive: sharded_top_k(q, keys, alive, k, mesh, "rows", block=8))
    scores, found = search(queries, *placed)
    expected, order = brute_force(queries, keys, alive, k)
    assert np.array_equal(scores, expected) and np.array_equal(found, order)


def test_the_scores_of_all_rows_never_exist_at_once():
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((64, 8), "f4"), ((100_000, 8), "f4"))]
    compiled = jax.jit(lambda q, keys, alive: top_k(q, keys, alive, 5, 1000)).lower(
        *shapes, jax.ShapeDtypeStruct((100_000,), bool)
    )
    assert compiled.compile().memory_analysis().temp_size_in_bytes < 64 * 100_000 * 4 / 10
