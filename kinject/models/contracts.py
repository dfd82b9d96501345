"""What arrays must look like where rooms meet: asserted with chex while a program is traced, at no cost to a step.

A failed assertion is a fault of a method's or a task's code, not of a user's input: an AssertionError that names the
seam, the method, and both shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from kinject.models.seams import Plugin

TOKENS = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")


def check_seam(new: Any, old: jax.Array, plugin: Plugin, seam: str) -> jax.Array:
    """What a plugin's seam returned for `old` [B, L, D], brought to its dtype.

    Raises:
      AssertionError: it is no array of floating point numbers in the shape of `old`.
    """
    import chex  # not with the module: it looks for a folder of temporary files as it is imported

    told = f"plugin {plugin.name}: {seam} must return floating point numbers in the shape that it got, {old.shape}"
    chex.assert_shape(new, old.shape, custom_message=told)
    chex.assert_type(new, float, custom_message=told)
    return new.astype(old.dtype)


def check_batch(batch: Mapping[str, Any], hidden_size: int, plugin: Plugin | None) -> None:
    """Holds a batch to docs/architecture.md: whole numbers [B, L], entities [B, M], kept hidden states [B, L, D].

    Args:
      batch: as the encoder is about to read it, after the plugin's `before`.
      hidden_size: D.
      plugin: who may have changed it, for the message and for the size of its vectors.

    Raises:
      AssertionError: an array has another shape or kind of numbers.
    """
    import chex

    whose = "the batch" if plugin is None else f"the batch that plugin {plugin.name} got, or that its `before` returned"
    tokens = {name: batch[name] for name in TOKENS if name in batch}
    told = f"{whose}: {', '.join(tokens)} must be whole numbers [B, L]"
    chex.assert_type(list(tokens.values()), int, custom_message=told)
    chex.assert_equal_shape(list(tokens.values()), custom_message=told)
    rows, length = batch["segment_ids"].shape
    if "entity_ids" in batch:
        chex.assert_shape(batch["entity_ids"], (rows, None), custom_message=f"{whose}: entity_ids must be [B, M]")
    if "entity_vectors" in batch:
        size = plugin.knowledge_dim if plugin is not None and plugin.reads_slots and plugin.knowledge_dim else None
        told = f"{whose}: entity_vectors must be floating point numbers [B, M, k], k {size or 'any'}"
        chex.assert_shape(batch["entity_vectors"], (rows, None, size), custom_message=told)
        chex.assert_type(batch["entity_vectors"], float, custom_message=told)
    kept = [name for name in batch if name in ("prefix", "prefix_inner") or name.startswith("state_")]
    for name in kept:
        told = f"{whose}: {name} must be a hidden state [B, L, D]"
        chex.assert_shape(batch[name], (rows, length, hidden_size), custom_message=told)


def check_rows(tables: Mapping[str, Any], owner: str) -> None:
    """Holds tables to each other: each [N, …] with the same N.

    Args:
      tables: by name.
      owner: whose they are, for the message.

    Raises:
      AssertionError: one has another number of rows.
    """
    import chex

    told = f"{owner}: tables {', '.join(tables)} must have a row each for the same things"
    chex.assert_equal_shape_prefix(list(tables.values()), 1, custom_message=told)
