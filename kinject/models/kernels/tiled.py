"""A matrix product in tiles whose results are worked on before they leave the core, for GPUs.

XLA adds a vector to a product where it ends. What reads or writes a second array of the result's size, such as an
activation that is kept with its slope, it makes a pass of its own. Written in Pallas for Triton, in tiles that fit the
shared memory of any GPU since Ampere. No GPU was at hand when it was; of its code for an H100 is known that it
multiplies on warp groups (wgmma) what is copied while they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models.kernels.rows import Arrays

ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a tile, and of what is multiplied at a time
Finish = Callable[..., tuple[jax.Array, ...]]


def tiled(
    inputs: jax.Array,
    kernel: jax.Array,
    beside: Arrays,
    finish: Finish,
    results: tuple[str, ...],
    *,
    turned: bool = False,
    of_rows: Arrays = (),
    interpret: bool = False,
) -> Arrays:
    """Products of rows with a kernel, and what `finish` makes of them and of other arrays.

    Args:
      inputs: [M, K], K a multiple of `DEPTH`.
      kernel: [K, N], or [N, K] if it is `turned`.
      beside: arrays [M, N], or vectors [N].
      finish: of the columns' numbers int32 [1, n], float32 sums [m, n] and a part of each array of `beside`, and of
        `of_rows` as [m, 1], to the results of a tile: [m, n], or [m] of one that is `reduced`.
      results: of each what it is: `whole` = [M, N'] in the dtype of the inputs, N' being N filled up to full tiles;
        `reduced` = float32 [tiles of columns, M].
      turned: which axis of the kernel is contracted.
      of_rows: vectors [M].
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
    forms = {
        "whole": (of_tile, jax.ShapeDtypeStruct((count, tiles * COLUMNS), inputs.dtype)),
        "reduced": (
            pl.BlockSpec((None, ROWS), lambda i, j: (j, i)),
            jax.ShapeDtypeStruct((tiles, count), jnp.float32),
        ),
    }
    specs, made = zip(*(forms[one] for one in results), strict=True)
    given = [of_tile if one.ndim > 1 else of_column for one in beside] + [of_row] * len(of_rows)
    return pl.pallas_call(
        partial(_tile, finish=finish, beside=len(beside), read=len(given), sides=(count, width), turned=turned),
        grid=(pl.cdiv(count, ROWS), tiles),  # tiles of the same columns lie side by side
        in_specs=[pl.BlockSpec((ROWS, depth), lambda i, j: (i, 0)), of_kernel, *given],
        out_specs=specs,
        out_shape=made,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        metadata={"flops": str(2 * count * depth * width)},
        interpret=interpret,
        name="tiled_product",
    )(inputs, kernel, *beside, *of_rows)


def _tile(*refs: Any, finish: Finish, beside: int, read: int, sides: tuple[int, int], turned: bool) -> None:
    """One tile: its products step by step, and what is made of them. What lies beyond the sides is 0 or not written."""
    from jax.experimental import pallas as pl

    rows_ref, kernel_ref, *others = refs
    columns = pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS)
    inside = (pl.program_id(0) * ROWS + jnp.arange(ROWS) < sides[0])[:, None]
    within = (columns < sides[1])[None, :]
    all_there = sides[1] % COLUMNS == 0

    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        here = pl.ds(step * DEPTH, DEPTH)
        ours = _load(rows_ref.at[:, here], inside)
        theirs = kernel_ref.at[:, here] if turned else kernel_ref.at[here, :]
        mask = None if all_there else within.T if turned else within
        return total + pl.dot(ours, _load(theirs, mask), trans_b=turned)

    total = lax.fori_loop(0, rows_ref.shape[1] // DEPTH, add, jnp.zeros((ROWS, COLUMNS), jnp.float32))
    parts = []
    for number, ref in enumerate(others[:read]):
        if number >= beside:
            parts.append(_load(ref, inside[:, 0])[:, None])
        elif len(ref.shape) == 1:
            parts.append(_load(ref, None if all_there else within[0])[None, :].astype(jnp.float32))
        else:
            parts.append(_load(ref, inside).astype(jnp.float32))
    for ref, values in zip(others[read:], finish(columns[None, :], total, *parts), strict=True):
        _store(ref, values, inside if values.ndim > 1 else inside[:, 0])


def _load(ref: Any, mask: jax.Array | None) -> jax.Array:
    from jax.experimental.pallas import triton

    if mask is None:
        return triton.load(ref)
    return triton.load(ref, mask=jnp.broadcast_to(mask, ref.shape), other=0)


def _store(ref: Any, values: jax.Array, mask: jax.Array) -> None:
    from jax.experimental.pallas import triton

    triton.store(ref, values.astype(ref.dtype), mask=jnp.broadcast_to(mask, values.shape))
