"""A matrix product in tiles whose results are worked on before they leave the core, for GPUs.

XLA adds a vector to a product where it ends. What reads or writes a second array of the result's size, such as an
activation that is kept with its slope, it makes a pass of its own. Written in Pallas for Triton, in tiles that fit the
shared memory of any GPU since Ampere. No GPU was at hand when it was; of its code for an H100 is known that it
multiplies on warp groups (wgmma) what is copied while they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models.kernels.rows import Arrays

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a tile, and of what is multiplied at a time
Finish = Callable[..., tuple[jax.Array, ...]]
Prepare = Callable[..., jax.Array]


class _Edges(NamedTuple):
    """Where arrays end: M, N, and K of the kernel."""

    rows: int
    columns: int
    depth: int


def tiled(
    inputs: jax.Array,
    kernel: jax.Array,
    beside: Arrays,
    finish: Finish,
    results: tuple[str, ...],
    *,
    turned: bool = False,
    of_rows: Arrays = (),
    prepare: Prepare | None = None,
    of_parts: Arrays = (),
    interpret: bool = False,
) -> Arrays:
    """Products of rows with a kernel, and what `finish` makes of them and of other arrays.

    Args:
      inputs: [M, K], K a multiple of `DEPTH`.
      kernel: [K, N], or [N, K] if it is `turned`; one that ends before the inputs do goes on with zeros.
      beside: arrays [M, N], or vectors [N].
      finish: of the columns' numbers int32 [1, n], float32 sums [m, n] and a part of each array of `beside`, and of
        `of_rows` as [m, 1], to the results of a tile: [m, n], or [m] of one that is `reduced`.
      results: of each what it is: `whole` = [M, N'] in the dtype of the inputs, N' being N filled up to full tiles;
        `reduced` = float32 [tiles of columns, M].
      turned: which axis of the kernel is contracted.
      of_rows: vectors [M].
      prepare: of numbers int32 [1, d] along K, a part [m, d] of the inputs, and of `of_rows` and `of_parts` as [m, 1],
        to what is multiplied in the inputs' place; None = these as they are.
      of_parts: float32 [K / COLUMNS, M].
      interpret: JAX computes it, on any platform.
    """
    from jax.experimental import pallas as pl  # whoever has no GPU need not wait for it
    from jax.experimental.pallas import triton

    (count, depth), width = inputs.shape, kernel.shape[0 if turned else 1]
    tiles = pl.cdiv(width, COLUMNS)
    of_tile = pl.BlockSpec((ROWS, COLUMNS), lambda i, j: (i, j))
    of_column = pl.BlockSpec((COLUMNS,), lambda i, j: (j,))
    of_row = pl.BlockSpec((ROWS,), lambda i, j: (i,))
    of_kernel = pl.BlockSpec(
        (COLUMNS, depth) if turned else (depth, COLUMNS), lambda i, j: (j, 0) if turned else (0, j)
    )
    specs, made = zip(*(_form(one, count, tiles, inputs.dtype) for one in results), strict=True)
    of_part = pl.BlockSpec((depth // COLUMNS, ROWS), lambda i, j: (0, i))
    given = [of_tile if one.ndim > 1 else of_column for one in beside] + [of_row] * len(of_rows)
    edges = _Edges(count, width, kernel.shape[1 if turned else 0])
    return pl.pallas_call(
        partial(_tile, (len(beside), len(of_rows), len(of_parts)), edges, turned, prepare, finish),
        grid=(pl.cdiv(count, ROWS), tiles),  # tiles of the same columns lie side by side
        in_specs=[pl.BlockSpec((ROWS, depth), lambda i, j: (i, 0)), of_kernel, *given, *[of_part] * len(of_parts)],
        out_specs=specs,
        out_shape=made,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        metadata={"flops": str(2 * count * depth * width)},
        interpret=interpret,
        name="tiled_product",
    )(inputs, kernel, *beside, *of_rows, *of_parts)


def _form(result: str, count: int, tiles: int, dtype: Any) -> tuple[Any, jax.ShapeDtypeStruct]:
    """(a tile's part, the whole) of what is made of `count` rows in so many tiles of columns; see `tiled`."""
    from jax.experimental import pallas as pl

    if result == "reduced":
        part = pl.BlockSpec((None, ROWS), lambda i, j: (j, i))
        return part, jax.ShapeDtypeStruct((tiles, count), jnp.float32)
    return pl.BlockSpec((ROWS, COLUMNS), lambda i, j: (i, j)), jax.ShapeDtypeStruct((count, tiles * COLUMNS), dtype)


def dot(left: jax.Array, right: jax.Array, *, trans_a: bool = False, trans_b: bool = False) -> jax.Array:
    """The product of two tiles, either of which may be turned, in float32; Pallas has one of its own up to jax 0.10."""
    axes = ((0 if trans_a else 1,), (1 if trans_b else 0,))
    return lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=jnp.float32)


def _tile(
    counts: tuple[int, int, int],
    edges: _Edges,
    turned: bool,
    prepare: Prepare | None,
    finish: Finish,
    rows_ref: Any,
    kernel_ref: Any,
    *refs: Any,
) -> None:
    """One tile: its products step by step, and what is made of them. What lies beyond the edges is 0 or not written."""
    from jax.experimental import pallas as pl

    beside, of_rows, of_parts = (refs[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(3))
    columns = pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS)
    inside = pl.program_id(0) * ROWS + jnp.arange(ROWS) < edges.rows
    within = columns < edges.columns if edges.columns % COLUMNS else None
    vectors = [load(ref, inside)[:, None] for ref in of_rows]

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        places = step * DEPTH + jnp.arange(DEPTH)
        ours = load(rows_ref.at[:, pl.ds(step * DEPTH, DEPTH)], inside[:, None])
        if prepare is not None:
            parts = [load(ref.at[lax.div(step * DEPTH, COLUMNS)], inside)[:, None] for ref in of_parts]
            ours = prepare(places[None, :], ours, *vectors, *parts).astype(ours.dtype)
        there = places < edges.depth if edges.depth % DEPTH or edges.depth < rows_ref.shape[1] else None
        return total + dot(ours, _kernel(kernel_ref, step, there, within, turned), trans_b=turned)

    total = lax.fori_loop(0, rows_ref.shape[1] // DEPTH, add, jnp.zeros((ROWS, COLUMNS), jnp.float32))
    read = [load(ref, within)[None, :] if len(ref.shape) == 1 else load(ref, inside[:, None]) for ref in beside]
    made = finish(columns[None, :], total, *(one.astype(jnp.float32) for one in read), *vectors)
    for ref, values in zip(refs[sum(counts) :], made, strict=True):
        store(ref, values, inside[:, None] if values.ndim > 1 else inside)


def _kernel(ref: Any, step: jax.Array, there: jax.Array | None, within: jax.Array | None, turned: bool) -> jax.Array:
    """What a step multiplies of the kernel, zeros where it has ended; None = it has not."""
    from jax.experimental import pallas as pl

    here, mask = pl.ds(step * DEPTH, DEPTH), None
    if there is not None or within is not None:
        sides = [jnp.ones(n, bool) if one is None else one for n, one in ((DEPTH, there), (COLUMNS, within))]
        mask = sides[1][:, None] & sides[0][None, :] if turned else sides[0][:, None] & sides[1][None, :]
    return load(ref.at[:, here] if turned else ref.at[here, :], mask)


def load(ref: Any, mask: jax.Array | None) -> jax.Array:
    """What a tile holds where a mask that fits its shape is true, and zeros; None = everywhere."""
    from jax.experimental.pallas import triton

    if mask is None:
        return triton.load(ref)
    return triton.load(ref, mask=jnp.broadcast_to(mask, ref.shape), other=0)


def store(ref: Any, values: jax.Array, mask: jax.Array) -> None:
    """Writes these where the mask is true, in the tile's dtype."""
    from jax.experimental.pallas import triton

    triton.store(ref, values.astype(ref.dtype), mask=jnp.broadcast_to(mask, values.shape))
