"""A whole forward pass: embeddings, layers, head, with or without a plugin, from any layer on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kinject.models.encoder import gather_positions, site
from kinject.models.heads import DependencyHead, HostModel, MaskedLMHead
from kinject.models.seams import Plugin

HEAD_SITE = 1_000_003  # far from the sites of the layers


def encode(
    host: HostModel,
    batch: Mapping[str, jax.Array],
    plugin: Plugin | None = None,
    key: jax.Array | None = None,
    *,
    positions: jax.Array | None = None,
    start: int = 0,
) -> jax.Array:
    """What the head reads.

    Args:
      host: the host.
      batch: docs/architecture.md; with `start` > 0 also what `encode_prefix` makes.
      plugin: the knowledge plugin, None = the bare host.
      key: dropout key, None = no dropout.
      positions: int32 [B, P] where the head reads, None = everywhere.
      start: the layers below are not computed; the plugin must not touch them.

    Returns:
      [B, P, D], or [B, L, D] without positions.
    """
    encoder = host.encoder
    batch = batch if plugin is None else plugin.before(encoder, batch)
    hidden = batch["prefix"].astype(encoder.dtype) if start else encoder.embed(batch, plugin, key)
    everywhere = (plugin is not None and plugin.reads_sequence) or start == len(encoder.layers)
    early = None if everywhere else positions
    kept = [batch.get(f"state_{i}") for i in range(start)]
    below = [None if one is None else one.astype(encoder.dtype) for one in kept]
    inner = batch.get("prefix_inner") if start else None
    first = hidden if inner is None else None  # no one reads it then
    inner = None if inner is None else inner.astype(encoder.dtype)
    states: tuple[Any, ...] = (
        *below,
        first,
        *encoder.run(hidden, batch, plugin, key, start=start, positions=early, inner=inner),
    )
    last = encoder.finish(states, batch, plugin, key)
    return gather_positions(last, positions) if everywhere and positions is not None else last


def logits(
    host: HostModel,
    batch: Mapping[str, jax.Array],
    plugin: Plugin | None = None,
    key: jax.Array | None = None,
    *,
    start: int = 0,
) -> jax.Array:
    """The head's scores at `batch["positions"]` ([B, P]; the first token where there are none).

    Returns:
      float32 [B, P, V] of a masked-LM head, [B, P, C] of any other, [B, 1, C] of one that joins its P positions.
    """
    positions = batch.get("positions")
    if positions is None:
        positions = jnp.zeros((batch["token_ids"].shape[0], 1), jnp.int32)
    hidden = encode(host, batch, plugin, key, positions=positions, start=start)
    if isinstance(host.head, MaskedLMHead):
        return host.head.logits(hidden, host.encoder.embeddings.word.embedding[...])
    if host.head is None or isinstance(host.head, DependencyHead):
        raise ValueError("this host has no head to read the encoder with")
    return host.head.logits(hidden, site(key, HEAD_SITE))


def encode_prefix(
    host: HostModel, batch: Mapping[str, jax.Array], plugin: Plugin | None = None, *, stop: int, seam: bool = False
) -> dict[str, jax.Array]:
    """What a batch needs for `start=stop`, computed without dropout.

    Returns:
      `prefix` [B, L, D], hidden state number `stop`, and `state_<i>` [B, L, D] of each below that the plugin reads.
      With `seam`, layer `stop` is computed up to the plugin's seam: `prefix` is what its attention yields, and
      `prefix_inner` [B, L, D] its feed-forward.
    """
    encoder = host.encoder
    batch = batch if plugin is None else plugin.before(encoder, batch)
    hidden = encoder.embed(batch, plugin)
    states = [hidden, *encoder.run(hidden, batch, plugin, stop=stop)]
    kept = {f"state_{i}": states[i] for i in kept_states(plugin, len(encoder.layers), stop)}
    if not seam:
        return {"prefix": states[-1], **kept}
    attended, inner = encoder.to_seam(stop, states[-1], batch)
    return {"prefix": attended, "prefix_inner": inner, **kept}


def kept_states(plugin: Plugin | None, layers: int, stop: int) -> tuple[int, ...]:
    """The hidden states below `stop` that the plugin reads at its `outputs`."""
    return () if plugin is None else tuple(i for i in plugin.reads_states(layers) if i < stop)
