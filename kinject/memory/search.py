"""Exact search: the k rows of a key table with the largest inner product, in blocks, on one device or over a mesh axis.

PlugLM (Cheng et al., "Language Model with Plug-in Knowledge Memory") searches all keys by one matrix product; a block
at a time, the [Q, N] scores never exist at once.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

BLOCK = 32_768  # rows of keys scored at a time: 64 queries take 8 MiB of scores


def top_k(
    queries: jax.Array, keys: jax.Array, alive: jax.Array, k: int, block: int = BLOCK
) -> tuple[jax.Array, jax.Array]:
    """Finds the k best rows of each query; of equal scores the lower row comes first.

    Args:
      queries: [Q, d].
      keys: [N, d]; any float dtype, scored in float32.
      alive: bool [N]: rows that count.
      k: how many, whatever N is.
      block: rows scored at a time; bounds what is held beside the inputs to Q * (block + k) numbers.

    Returns:
      (scores float32 [Q, k] in falling order, rows int32 [Q, k]); where fewer than k rows are alive, -inf and -1.
    """
    size, count = min(block, keys.shape[0]), queries.shape[0]
    best = jnp.full((count, k), -jnp.inf, jnp.float32), jnp.full((count, k), -1, jnp.int32)
    if size == 0:
        return best

    def merge(number: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low = jnp.minimum(number * size, keys.shape[0] - size)  # the last block reaches back into the one before
        rows = low + jnp.arange(size, dtype=jnp.int32)
        part = jax.lax.dynamic_slice_in_dim(keys, low, size)
        usable = jax.lax.dynamic_slice_in_dim(alive, low, size) & (rows >= number * size)
        scores = jnp.einsum("qd,nd->qn", queries, part.astype(queries.dtype), preferred_element_type=jnp.float32)
        found, at = jax.lax.top_k(jnp.where(usable, scores, -jnp.inf), min(k, size))
        return merged(best, (found, jnp.where(jnp.isfinite(found), rows[at], -1)), k)

    return jax.lax.fori_loop(0, -(-keys.shape[0] // size), merge, best)


def merged(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array], k: int) -> tuple[jax.Array, jax.Array]:
    """The k best of two results; on equal scores `one` comes first."""
    scores, rows = (jnp.concatenate(pair, axis=-1) for pair in zip(one, other, strict=True))
    best, at = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(rows, at, axis=-1)


def sharded_top_k(
    queries: jax.Array, keys: jax.Array, alive: jax.Array, k: int, mesh: Mesh, axis: str, block: int = BLOCK
) -> tuple[jax.Array, jax.Array]:
    """`top_k` where keys and alive are split over a mesh axis: each device searches its rows, then k a device travel.

    Queries are [B, d], keys [N, d], alive bool [N]; scores and rows come back as [B, k]. N must be a multiple of the
    axis' size. The results are the same on all devices, and the same as `top_k`'s.
    """

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axis), PartitionSpec(axis)),
        out_specs=(PartitionSpec(), PartitionSpec()),
        check_vma=False,
    )
    def search(queries: jax.Array, keys: jax.Array, alive: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, rows = top_k(queries, keys, alive, k, block)
        rows = jnp.where(rows >= 0, rows + jax.lax.axis_index(axis) * keys.shape[0], -1)
        everyone = [jax.lax.all_gather(part, axis, axis=1, tiled=True) for part in (scores, rows)]
        best, at = jax.lax.top_k(everyone[0], k)
        return best, jnp.take_along_axis(everyone[1], at, axis=1)

    return search(queries, keys, alive)
