"""What a task's batch holds: padded rows with slots and spans, rows of several texts, and all of it without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Passage, Rows, rows_with_vector

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase


def slot_rows(knowledge: KnowledgeBase | None) -> Rows | None:
    """Entity ids -> knowledge rows, -1 for entities without a vector; None when the plugin is off."""
    return None if knowledge is None else rows_with_vector(knowledge)


def plain_passages(records: Sequence[Record]) -> list[Passage]:
    """The records' texts with their mentions, as they are."""
    return [Passage(record.source, record.mentions, where=record.where) for record in records]


def pad_rows(encoder: EntityEncoder, rows: Sequence[Encoded], length: int) -> dict[str, np.ndarray]:
    """The arrays of `EntityEncoder.pad`, with as many places for entities as the row with the most of them needs."""
    return encoder.pad(rows, length, max(len(one.entities) for one in rows))


def first_span(one: Encoded) -> np.ndarray:
    """int32 [2]: start and end of the first mention's pieces; (0, 0) where there is no mention."""
    return one.spans[0] if len(one.spans) else np.zeros(2, np.int32)


PER_EXAMPLE = ("labels", "weights", "index")  # all else in the batch of such a task has the axes of its token ids


def flat_rows(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch of examples of several texts, [B, N, L] or [B, N, K, L], as the encoder reads it: [rows, L].

    All axes of the token ids but the last become one, and what an example has once is left out. What a method's
    `prepare` adds to such examples has these axes too: knowledge of a choice stands with the choice.
    """
    axes = batch["token_ids"].ndim - 1
    count = math.prod(batch["token_ids"].shape[:-1])
    rows = {name: values for name, values in batch.items() if name not in PER_EXAMPLE}
    return {name: values.reshape(count, *values.shape[axes:]) for name, values in rows.items()}


Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Extent:
    """How large a batch is, for compiling a step ahead of time.

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

    def tokens(self, *axes: int) -> Shapes:
        """The arrays that every batch has: [B, …, L] tokens, [B, …, M] entities and their vectors, weights [B].

        Args:
          axes: axes between rows and positions, such as a few-shot example's N and K.
        """
        count = self.entities if self.knowledge_dim is not None else 0
        names = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")
        made = {name: self.whole(*axes, self.length) for name in names}
        made |= {"entity_ids": self.whole(*axes, count), "index": self.whole(), "weights": self.real()}
        if count and self.knowledge_dim is not None:
            made["entity_vectors"] = self.real(*axes, count, self.knowledge_dim)
        return made

    def whole(self, *axes: int) -> jax.ShapeDtypeStruct:
        """int32 [B, *axes]."""
        return jax.ShapeDtypeStruct((self.rows, *axes), jnp.int32)

    def real(self, *axes: int) -> jax.ShapeDtypeStruct:
        """float32 [B, *axes]."""
        return jax.ShapeDtypeStruct((self.rows, *axes), jnp.float32)
