"""How a kernel for GPUs is spread: over devices and over `jax.vmap`, by the rows that it computes one by one.

To XLA such a kernel is a black box. Left alone, it would gather a batch that is split over devices, and compute all of
it on each. So each kernel is told to be what it is: a function of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Arrays = tuple[jax.Array, ...]


def by_rows(compute: Callable[..., Arrays], whole: int = 0) -> Callable[..., Arrays]:
    """A function that computes row by row, as one that devices share and `jax.vmap` takes.

    Args:
      compute: of arrays, to a tuple of arrays. The first axis of each is the rows, but for the last `whole` arguments,
        which every row reads as they are.
      whole: how many these are.

    Returns:
      The same function. A device computes the rows it has. An axis that is mapped joins the rows; where an argument
      that all rows read has one of its own, the calls are made one by one.
    """
    spread = custom_partitioning(compute)
    spread.def_partition(
        lambda mesh, arguments, results: _partition(compute, whole, mesh, arguments, results),
        sharding_rule=lambda mesh, arguments, results: _rule(whole, arguments, results),
    )

    @custom_vmap
    def mapped(*arguments: jax.Array) -> Arrays:
        return spread(*arguments)

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], *arguments: jax.Array) -> tuple[Arrays, Any]:
        count = len(arguments) - whole
        if any(batched[count:]):
            results = lax.map(
                lambda each: mapped(*each), tuple(_each(size, *one) for one in zip(batched, arguments, strict=True))
            )
        else:
            rows = [_each(size, *one) for one in zip(batched[:count], arguments[:count], strict=True)]
            joined = mapped(*(one.reshape(-1, *one.shape[2:]) for one in rows), *arguments[count:])
            results = tuple(one.reshape(size, -1, *one.shape[1:]) for one in joined)
        return results, tuple(True for _ in results)

    return mapped


def _each(size: int, batched: bool, array: jax.Array) -> jax.Array:
    return array if batched else jnp.broadcast_to(array, (size, *array.shape))


def _rule(whole: int, arguments: Any, results: Any) -> str:
    """Says to the partitioner that rows are what arguments and results have in common."""

    def sides(number: int, one: Any, shared: bool) -> str:
        return " ".join("rows" if shared and axis == 0 else f"f{number}_{axis}" for axis in range(len(one.shape)))

    count = len(arguments)
    given = [sides(i, one, i < count - whole) for i, one in enumerate(arguments)]
    made = [sides(count + i, one, True) for i, one in enumerate(results)]
    return f"{', '.join(given)} -> {', '.join(made)}"


def _partition(compute: Callable[..., Arrays], whole: int, mesh: Any, arguments: Any, results: Any) -> Any:
    """What each device computes: its rows, of everything else all."""
    first = jax.tree.leaves(arguments)[0].sharding
    axis = first.spec[0] if len(first.spec) else None

    def rows(one: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(axis, *(None,) * (len(one.shape) - 1)))

    def all_of(one: Any) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*(None,) * len(one.shape)))

    count = len(arguments) - whole
    given = tuple(rows(one) if i < count else all_of(one) for i, one in enumerate(arguments))
    return mesh, compute, jax.tree.map(rows, results), given
