"""Micro-batches: a batch's rows computed a portion at a time, inside one step.

What a step computes of a row does not depend on the other rows, so a batch may be taken in portions: sums of losses and
gradients are added up, predictions are put side by side. On an accelerator that saves memory. On a CPU it saves time:
the temporaries of a thousand or two tokens are soon used again, those of ten thousand go to memory and come back.

Portion j of m holds the rows j, j + m, j + 2 m, …, so that each is spread over a mesh as the whole batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from pydantic import Field

MicroBatch = Annotated[int, Field(ge=1)] | Literal["auto", "whole"]  # tokens, all devices together
CPU_TOKENS = 2048


def portion_count(batch: Mapping[str, jax.Array], size: MicroBatch, row_parts: int = 1) -> int:
    """Into how many portions a batch is cut: the least that divides its rows and leaves no more than `size` tokens.

    A portion is one row a device at least, however long that is.

    Args:
      batch: any that has `token_ids`, padding included, first axis = rows.
      size: tokens; "auto" is 2048 for each of `row_parts` on a CPU, and elsewhere, as "whole", no limit.
      row_parts: how many devices share the rows, each as many of every portion.
    """
    if size == "auto":
        size = CPU_TOKENS * row_parts if jax.default_backend() == "cpu" else "whole"
    if size == "whole":
        return 1
    rows, tokens = batch["token_ids"].shape[0], batch["token_ids"].size
    most = max(rows // row_parts, 1)
    dividing = (count for count in range(1, most + 1) if most % count == 0)
    return next(count for count in dividing if tokens <= size * count or count == most)


def map_microbatches(
    compute: Callable[[Mapping[str, jax.Array]], Any],
    batch: Mapping[str, jax.Array],
    size: MicroBatch,
    row_parts: int = 1,
) -> Any:
    """What `compute` yields of the whole batch (a tree of arrays, first axis = rows), computed in portions."""
    count = portion_count(batch, size, row_parts)
    if count == 1:
        return compute(batch)
    found = lax.map(compute, _cut(batch, count))

    def join(parts: jax.Array) -> jax.Array:
        return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[0] * parts.shape[1], *parts.shape[2:])

    return jax.tree.map(join, found)


def accumulate_microbatches(
    compute: Callable[[Mapping[str, jax.Array], jax.Array | None], Any],
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    size: MicroBatch,
    row_parts: int = 1,
) -> Any:
    """The sum over portions of what `compute(portion, key)` yields, a tree of arrays.

    A portion's dropout key is its own; a batch that is not cut has the step's. With a key the portions are those of one
    device whatever `row_parts` is, so that the same is dropped on any number of devices.
    """
    count = portion_count(batch, size, row_parts if key is None else 1)
    if count == 1:
        return compute(batch, key)

    def add(total: Any, numbered: tuple[jax.Array, Mapping[str, jax.Array]]) -> tuple[Any, None]:
        number, portion = numbered
        found = compute(portion, None if key is None else jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), None

    parts = _cut(batch, count)
    like = jax.eval_shape(lambda portion: compute(portion, key), jax.tree.map(lambda leaf: leaf[0], parts))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(add, nothing, (jnp.arange(count), parts))[0]


def _cut(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Every array [rows, …] -> [count, rows / count, …]; some may be empty, as without any entity."""

    def cut(values: jax.Array) -> jax.Array:
        return jnp.moveaxis(values.reshape(values.shape[0] // count, count, *values.shape[1:]), 1, 0)

    return {name: cut(values) for name, values in batch.items()}
