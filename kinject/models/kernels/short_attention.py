"""Attention of short rows in one kernel, for GPUs: of queries, keys and values together to the context, and back.

XLA makes of the same formula five passes over memory forwards and seven backwards: it splits queries, keys and values
and turns them heads first, writes float32 scores, reads them for the softmax, and turns the context back. Of a row of
32 positions a head's scores are 4 KB, which a core has in its registers. So one program computes one head of one row
whole, reads the fused projection as it lies and writes the context as the next product wants it. Backwards it computes
scores and softmax again, which costs less than to read them, and writes one gradient for all three.

The arithmetic is that of `products.py`: scores and softmax float32, probabilities rounded before they weight values.
What is not rounded on the way to a gradient any more is the slope of the probabilities. Written in Pallas for Triton;
no GPU was at hand when it was: its numbers are tested in the interpreter, its bytes by a program compiled for an H100.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kinject.models.kernels.rows import Arrays, by_rows
from kinject.models.kernels.tiled import dot, load, store

LONGEST = 128  # positions; of longer rows a core's registers do not hold a head's scores
HEAD_DIMS = (16, 32, 64, 128)  # what a tile may be wide
LEAST = 16  # rows of a tile that matrix units take


def attends_short(fused: jax.Array, queries: int = 0) -> bool:
    """Whether there is a kernel for queries, keys and values [B, L, c, H, Dh] where there are any (`for_kernels`).

    And for P = `queries` apart from them.
    """
    return max(fused.shape[1], queries) <= LONGEST and fused.shape[-1] in HEAD_DIMS


def short_attention(
    queries: jax.Array | None,
    fused: jax.Array,
    own: jax.Array | None,
    segment_ids: jax.Array,
    plain: Callable[..., jax.Array],
) -> jax.Array:
    """The context of attention inside each segment: [B, L or P, H, Dh] in the dtype of `fused`.

    Args:
      queries: bfloat16 [B, P, H, Dh], None = they are the first part of `fused`; scores are scaled by 1 / sqrt(Dh).
      fused: queries, keys and values, bfloat16 [B, L, 3, H, Dh], or keys and values [B, L, 2, H, Dh].
      own: int32 [B, P], the segments that the queries stand in; None where these are in `fused`.
      segment_ids: int32 [B, L]; nobody attends to 0. To a query that sees nothing all positions are equal.
      plain: the same of the same four as a formula, for any other platform.
    """
    return lax.platform_dependent(queries, fused, own, segment_ids, cuda=attention_kernel, default=plain)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention_kernel(
    queries: jax.Array | None,
    fused: jax.Array,
    own: jax.Array | None,
    segment_ids: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """`short_attention`'s kernel; with `interpret` JAX computes it, on any platform."""
    return _forward_call(interpret)(*_given(queries, fused, own, segment_ids))[0]


def _forwards(
    queries: jax.Array | None, fused: jax.Array, own: jax.Array | None, segment_ids: jax.Array, interpret: bool
) -> tuple[jax.Array, Arrays]:
    context = attention_kernel(queries, fused, own, segment_ids, interpret)
    return context, _given(queries, fused, own, segment_ids)


def _backwards(interpret: bool, kept: Arrays, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    *of_queries, of_fused = _backward_call(interpret)(*kept, gradient)
    return (of_queries[0] if of_queries else None), of_fused, None, None


attention_kernel.defvjp(_forwards, _backwards)


def _given(queries: jax.Array | None, fused: jax.Array, own: jax.Array | None, segment_ids: jax.Array) -> Arrays:
    """What a kernel reads: (fused, segments), or (queries, their segments, keys and values, segments)."""
    if queries is None or own is None:
        return fused, segment_ids
    return queries, own, fused, segment_ids


def _forward_call(interpret: bool) -> Callable[..., tuple[jax.Array, ...]]:
    """Of what `_given` returns."""

    def compute(*given: jax.Array) -> tuple[jax.Array, ...]:
        first = given[0]
        context = jax.ShapeDtypeStruct((*first.shape[:2], *first.shape[-2:]), first.dtype)
        return _call(_forward_kernel, given, (), (context,), 2, interpret)

    return by_rows(compute)


def _backward_call(interpret: bool) -> Callable[..., tuple[jax.Array, ...]]:
    """Of the same and the context's gradient."""

    def compute(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        *given, gradient = arrays
        slopes = tuple(jax.ShapeDtypeStruct(one.shape, one.dtype) for one in given[::2])
        return _call(_backward_kernel, tuple(given), (gradient,), slopes, 5, interpret)

    return by_rows(compute)


def _call(
    kernel: Any, given: Arrays, gradients: Arrays, results: tuple[Any, ...], products: int, interpret: bool
) -> Arrays:
    """Runs a kernel once for each head of each row; `products` of matrices [queries, Dh] x [Dh, keys] in each."""
    from jax.experimental import pallas as pl  # whoever has no GPU need not wait for it
    from jax.experimental.pallas import triton

    (rows, queries), (heads, width), keys = given[0].shape[:2], given[0].shape[-2:], given[-1].shape[1]

    def block(one: Any) -> pl.BlockSpec:
        """All positions of a row, to the next power of two; of one head where there are heads."""
        places = _tile(one.shape[1])
        if one.ndim == 2:
            return pl.BlockSpec((None, places), lambda head, row: (row, 0))
        parts = one.shape[2:-2]
        return pl.BlockSpec(
            (None, places, *parts, None, width), lambda head, row: (row, 0, *(0 for _ in parts), head, 0)
        )

    return pl.pallas_call(
        partial(kernel, queries=queries, keys=keys, crossed=len(given) > 2),
        grid=(heads, rows),  # heads first: those of a row lie side by side
        in_specs=[block(one) for one in (*given, *gradients)],
        out_specs=tuple(block(one) for one in results),
        out_shape=results,
        compiler_params=triton.CompilerParams(num_warps=2 if _tile(keys) <= 32 else 4, num_stages=1),
        metadata={"flops": str(2 * products * rows * heads * queries * keys * width)},
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*given, *gradients)


def _tile(length: int) -> int:
    return max(LEAST, 1 << (length - 1).bit_length())


class _Tiles(NamedTuple):
    """What one program has of one head of one row.

    Attributes:
      queries: [P, Dh], P and L each a power of two; zeros stand beyond the row's end.
      keys: [L, Dh].
      values: [L, Dh].
      probabilities: float32 [P, L], rounded to the dtype of the values.
      visible: bool [P, L].
      scale: of the scores.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    probabilities: jax.Array
    visible: jax.Array
    scale: float


def _tiles(refs: tuple[Any, ...], queries: int, keys: int, crossed: bool) -> _Tiles:
    """Reads a head, and computes its scores and their softmax."""

    if crossed:
        query_ref, own_ref, fused_ref, segment_ref = refs
        query, first = _load(query_ref, queries), 0
    else:
        fused_ref, segment_ref = refs
        query, own_ref, first = _load(fused_ref.at[:, np.int32(0)], queries), segment_ref, 1
    key, value = (_load(fused_ref.at[:, np.int32(first + i)], keys) for i in range(2))
    own, segments = _load(own_ref, queries), _load(segment_ref, keys)
    visible = (own[:, None] == segments[None, :]) & (segments[None, :] != 0)
    scale = query.shape[-1] ** -0.5
    scores = dot(query, key, trans_b=True) * scale
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)  # as the formula has it: uniform if all are hidden
    scores = jnp.where((jnp.arange(key.shape[0]) < keys)[None, :], scores, -jnp.inf)  # which are no positions at all
    weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    probabilities = weights / jnp.sum(weights, axis=1, keepdims=True)
    return _Tiles(query, key, value, probabilities.astype(value.dtype).astype(jnp.float32), visible, scale)


def _forward_kernel(*refs: Any, queries: int, keys: int, crossed: bool) -> None:

    *given, context_ref = refs
    tiles = _tiles(tuple(given), queries, keys, crossed)
    _store(context_ref, dot(tiles.probabilities.astype(tiles.values.dtype), tiles.values), queries)


def _backward_kernel(*refs: Any, queries: int, keys: int, crossed: bool) -> None:

    count = 4 if crossed else 2
    tiles, gradient = _tiles(refs[:count], queries, keys, crossed), _load(refs[count], queries)
    dtype, chances = tiles.values.dtype, tiles.probabilities
    of_values = dot(chances.astype(dtype), gradient, trans_a=True)
    slope = dot(gradient, tiles.values, trans_b=True)
    slope = chances * (slope - jnp.sum(chances * slope, axis=1, keepdims=True))
    slope = (jnp.where(tiles.visible, slope, 0) * tiles.scale).astype(dtype)
    of_queries, of_keys = dot(slope, tiles.keys), dot(slope, tiles.queries, trans_a=True)
    if crossed:
        _store(refs[-2], of_queries, queries)
    else:
        _store(refs[-1].at[:, np.int32(0)], of_queries, queries)
    first = 0 if crossed else 1
    _store(refs[-1].at[:, np.int32(first)], of_keys, keys)
    _store(refs[-1].at[:, np.int32(first + 1)], of_values, keys)


def _load(ref: Any, length: int) -> jax.Array:
    """The first `length` rows of a tile, and zeros."""
    return load(ref, _inside(ref, length))


def _store(ref: Any, values: jax.Array, length: int) -> None:
    store(ref, values, _inside(ref, length))


def _inside(ref: Any, length: int) -> jax.Array:
    inside = jnp.arange(ref.shape[0]) < length
    return inside[:, None] if len(ref.shape) > 1 else inside
