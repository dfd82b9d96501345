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


def by_rows(compute: Callable[..., Arrays], whole: int = 0, axes: int = 1) -> Callable[..., Arrays]:
    """A function that computes row by row, as one that devices share and `jax.vmap` takes.

    Args:
      compute: of arrays, to a tuple of arrays. The first axis of each is the rows, but for the last `whole` arguments,
        which every row reads as they are.
      whole: how many these are.
      axes: how many axes of rows the arguments have; `compute` sees them joined.

    Returns:
      The same function. A device computes the rows it has. An axis that is mapped is another axis of rows; where an
      argument that all rows read has one of its own, the calls are made one by one.
    """

    def joined(*arguments: jax.Array) -> Arrays:
        count, lead = len(arguments) - whole, arguments[0].shape[:axes]
        rows = [one.reshape(-1, *one.shape[axes:]) for one in arguments[:count]]
        return tuple(one.reshape(*lead, *one.shape[1:]) for one in compute(*rows, *arguments[count:]))

    spread = custom_partitioning(joined)
    spread.def_partition(
        lambda mesh, arguments, results: (mesh, joined, *_sides(whole, axes, mesh, arguments, results)),
        sharding_rule=lambda mesh, arguments, results: _rule(whole, axes, arguments, results),
    )

    @custom_vmap
    def mapped(*arguments: jax.Array) -> Arrays:
        return spread(*arguments)

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], *arguments: jax.Array) -> tuple[Arrays, Any]:
        def each(number: int) -> jax.Array:
            one = arguments[number]
            return one if batched[number] else jnp.broadcast_to(one, (size, *one.shape))

        count = len(arguments) - whole
        if any(batched[count:]):
            results = lax.map(lambda given: mapped(*given), tuple(map(each, range(len(arguments)))))
        else:
            results = by_rows(compute, whole, axes + 1)(*map(each, range(count)), *arguments[count:])
        return results, tuple(True for _ in results)

    return mapped


def _rule(whole: int, axes: int, arguments: Any, results: Any) -> str:
    """Says to the partitioner that rows are what arguments and results have in common."""

    def factors(number: int, one: Any, shared: bool) -> str:
        own = axes if shared else 0
        return " ".join(f"rows{i}" if i < own else f"f{number}_{i}" for i in range(len(one.shape)))

    count = len(arguments)
    given = [factors(i, one, i < count - whole) for i, one in enumerate(arguments)]
    made = [factors(count + i, one, True) for i, one in enumerate(results)]
    return f"{', '.join(given)} -> {', '.join(made)}"


def _sides(whole: int, axes: int, mesh: Any, arguments: Any, results: Any) -> tuple[Any, Any]:
    """How results and arguments lie on the devices: by rows as the first argument does, of everything else all."""
    first = jax.tree.leaves(arguments)[0].sharding.spec
    lead = (*first, *(None,) * axes)[:axes]

    def placed(one: Any, shared: bool) -> NamedSharding:
        own = lead if shared else ()
        return NamedSharding(mesh, PartitionSpec(*own, *(None,) * (len(one.shape) - len(own))))

    count = len(arguments) - whole
    made = jax.tree.map(lambda one: placed(one, True), results)
    return made, tuple(placed(one, i < count) for i, one in enumerate(arguments))
