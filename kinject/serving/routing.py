"""Several plugins of entity slots at once: each entity goes through the plugin whose knowledge base knows it.

What makes that sound: such a plugin changes the word embeddings at its own slots and nothing else, a slot belongs to
one entity, and an entity to one plugin, so the plugins write to different places and none reads what another wrote.
Methods that speak at other seams, or prepare what a whole example reads, were each trained alone with all of the host's
hidden states, and are refused in company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.data.encode import rows_with_vector
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.models.seams import Plugin, Table


class JoinedKnowledge:
    """Several knowledge bases as the tasks see one: rows of one behind those of another; the first that knows wins.

    Rows are int32, so all of them together may have 2^31 - 1 entities. Nothing is copied.
    """

    def __init__(self, bases: Sequence[KnowledgeBase]):
        self.bases = tuple(bases)
        self.starts = np.concatenate([[0], np.cumsum([base.size for base in bases])]).astype(np.int64)
        if self.starts[-1] > np.iinfo(np.int32).max:
            raise InputError("knowledge", f"together they have {self.starts[-1]} entities", "plug fewer at once")

    @cached_property
    def dim(self) -> int:
        """The longest vector's numbers; shorter ones are filled up with zeros."""
        return max(base.dim for base in self.bases)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up n ids; int32 [n], -1 where no base has a vector of it."""
        found = np.full(len(ids), -1, np.int64)
        for base, start in zip(self.bases, self.starts, strict=False):
            rows = rows_with_vector(base)(list(ids))
            found = np.where((found < 0) & (rows >= 0), rows + start, found)
        return found.astype(np.int32)

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows int [...] have a vector, bool [...]: those that `rows` tells do."""
        return np.asarray(rows) >= 0

    def owners(self, rows: np.ndarray) -> np.ndarray:
        """Whose each row is, int [...]; -1 of -1."""
        return np.where(rows >= 0, np.searchsorted(self.starts, rows, side="right") - 1, -1)

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [..., k] of rows int [...], and whether there is one, bool [...]."""
        rows = np.asarray(rows)
        vectors, found = np.zeros((*rows.shape, self.dim), np.float32), np.zeros(rows.shape, bool)
        owners = self.owners(rows)
        for number, base in enumerate(self.bases):
            mine = owners == number
            if mine.any():
                vectors[mine, : base.dim], found[mine] = base.gather(rows[mine] - self.starts[number])
        return vectors, found


class Routed(Plugin):
    """Plugins of slots side by side. It is made of them, never trained and never saved.

    Args:
      members: in the order of the bases.
      starts: int [n]: the first row of each member's base in the joined one. A table: swapping compiles nothing.
    """

    def __init__(self, members: Sequence[Plugin], starts: np.ndarray):
        super().__init__(hidden_size=members[0].hidden_size, knowledge_dim=max(one.knowledge_dim for one in members))
        self.members = nnx.List(list(members))
        self.slot_form = members[0].slot_form  # all have the same
        self.maps_entities = all(one.maps_entities for one in members)
        self.starts = Table(jnp.asarray(starts, jnp.int32))

    def embed(self, embeddings: jax.Array, batch: Mapping[str, Any], key: jax.Array | None = None) -> jax.Array:
        """Lets each member fill the slots of its own entities.

        Args:
          embeddings: word embeddings [B, L, D].
          batch: reads `entity_slot` int32 [B, L], `entity_ids` int32 [B, M] and `entity_vectors` float32 [B, M, k].
          key: dropout key or None.
        """
        if "entity_vectors" not in batch:
            return embeddings
        slot, rows = batch["entity_slot"], batch["entity_ids"]
        # [B, M]; a slot without a vector (protocol "thunlp" has such) is the first member's, which maps zeros
        owner = jnp.maximum(jnp.searchsorted(self.starts[...], rows, side="right") - 1, 0)
        here = jnp.where(slot >= 0, jnp.take_along_axis(owner, jnp.maximum(slot, 0), axis=1), -1)
        for number, member in enumerate(self.members):
            own = {
                **batch,
                "entity_slot": jnp.where(here == number, slot, -1),
                "entity_vectors": batch["entity_vectors"][..., : member.knowledge_dim],
            }
            embeddings = member.embed(embeddings, own, key)
        return embeddings
