"""Batches without data: what arrays a task's batch has, for compiling a step ahead of time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Extent:
    """How large a batch is.

    Attributes:
      rows: B, over all devices.
      length: L, padded.
      entities: M of a row; how many a data set has is not known without it, and changes little.
      places: P, positions that are read, for tasks in which the data decides that.
      knowledge_dim: k of the entity vectors; None without knowledge.
      hidden_size: D of the host.
      outputs: of the host's head, where their number is the task's.
      choices: of an example of multiple choice, the most that the data set has.
    """

    rows: int
    length: int
    entities: int = 2
    places: int = 8
    knowledge_dim: int | None = None
    hidden_size: int = 0
    outputs: int = 0
    choices: int = 4

    def tokens(self, *several: int) -> Shapes:
        """The arrays that every batch has: [B, …, L] tokens, [B, …, M] entities and their vectors, weights [B].

        Args:
          several: axes between rows and positions, such as a few-shot example's N and K.
        """
        count = self.entities if self.knowledge_dim is not None else 0
        names = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")
        made = {name: self.whole(*several, self.length) for name in names}
        made |= {"entity_ids": self.whole(*several, count), "index": self.whole(), "weights": self.real()}
        if count:
            made["entity_vectors"] = self.real(*several, count, self.knowledge_dim)
        return made

    def whole(self, *axes: int) -> jax.ShapeDtypeStruct:
        """int32 [B, *axes]."""
        return jax.ShapeDtypeStruct((self.rows, *axes), jnp.int32)

    def real(self, *axes: int) -> jax.ShapeDtypeStruct:
        """float32 [B, *axes]."""
        return jax.ShapeDtypeStruct((self.rows, *axes), jnp.float32)
