"""Micro-batches: the same sums and the same rows, whatever a batch is cut into."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.inference.program import accumulate_microbatches, map_microbatches, portion_count


def batch_of(rows, length=8):
    ids = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
    return {"token_ids": jnp.asarray(ids), "weights": jnp.arange(float(rows)), "none": jnp.zeros((rows, 0))}


@pytest.mark.parametrize(
    ("rows", "size", "count"),
    [(12, "whole", 1), (12, 96, 1), (12, 95, 2), (12, 24, 4), (12, 20, 6), (12, 1, 12), (7, 8, 7), (7, 30, 7)],
)
def test_the_least_count_that_divides_the_rows_and_keeps_to_the_size(rows, size, count):
    assert portion_count(batch_of(rows), size) == count


@pytest.mark.parametrize(
    ("rows", "size", "parts", "count"), [(12, 48, 2, 2), (12, 20, 2, 6), (12, 20, 4, 3), (8, 1, 4, 2)]
)
def test_devices_have_as_many_rows_of_every_portion(rows, size, parts, count):
    assert portion_count(batch_of(rows), size, parts) == count
    assert rows // count % parts == 0
    assert portion_count(batch_of(512 * parts), "auto", parts) == 2


@pytest.mark.parametrize("size", ["whole", 48, 16, 8])
def test_rows_come_back_in_their_order(size):
    batch = batch_of(12)
    found = map_microbatches(
        lambda rows: {"ids": rows["token_ids"], "twice": rows["weights"] * 2, "none": rows["none"]}, batch, size
    )
    np.testing.assert_array_equal(found["ids"], batch["token_ids"])
    np.testing.assert_array_equal(found["twice"], batch["weights"] * 2)
    assert found["none"].shape == (12, 0)


@pytest.mark.parametrize("size", ["whole", 48, 16, 8])
def test_sums_add_up(size):
    batch = batch_of(12)

    def compute(rows, key):
        assert key is None
        return rows["token_ids"].sum(), {"weights": rows["weights"].sum()}

    total, rest = jax.jit(lambda batch: accumulate_microbatches(compute, batch, None, size))(batch)
    assert int(total) == int(batch["token_ids"].sum())
    assert float(rest["weights"]) == 66.0


def test_each_portion_has_a_key_of_its_own():
    def compute(rows, key):
        return jax.nn.one_hot(jax.random.bits(key) % 997, 997)

    drawn = accumulate_microbatches(compute, batch_of(12), jax.random.key(0), 16, row_parts=4)  # as on one device
    assert drawn.sum() == 6
    assert drawn.max() == 1


def test_auto_is_whole_where_there_are_few_tokens():
    assert portion_count(batch_of(12), "auto") == 1
    assert portion_count(batch_of(256), "auto") == 1
    assert portion_count(batch_of(512), "auto") == 2  # of 4,096 tokens; tests run on CPUs
