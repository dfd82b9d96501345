"""What a frozen host puts out where sentences mention entities: the evidence of `KnowledgeBase.add(…, read=…)`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import HostBundle

STEP = 16  # texts are padded to a multiple of so many positions: few programs


def read_mentions(
    host: HostBundle, records: Iterable[Record], *, max_length: int | None = None, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Reads records with linked mentions, without any slot.

    Args:
      host: any; its head is not used.
      records: texts whose mentions have an entity; mentions without one are passed over.
      max_length: positions a text, None = the host's maximum.
      batch_size: texts a forward pass.

    Returns:
      By entity id, float32 [n, D]: the last layer's mean over the pieces of each of its n mentions.

    Raises:
      InputError: a text that cannot be encoded, or none mentions an entity.
    """
    encoder = EntityEncoder(host.tokenizer, max_length)
    graph, state = nnx.split(host.loaded.host)

    @jax.jit
    def run(state: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return nnx.merge(graph, state).encoder(batch).last.astype(np.float32)

    kept = [one for one in records if any(mention.entity is not None for mention in one.mentions)]
    if not kept:
        raise InputError("sentences", "none of them mentions an entity", "link them: kinject link")
    encoded = encoder.encode_batch([Passage(one.source, list(one.mentions), where=one.where) for one in kept])
    found: dict[str, list[np.ndarray]] = {}
    order = sorted(range(len(kept)), key=lambda place: len(encoded[place]))
    for low in range(0, len(order), batch_size):
        some = order[low : low + batch_size]
        length = -(-max(len(encoded[place]) for place in some) // STEP) * STEP
        full = [encoded[place] for place in some] + [encoded[some[0]]] * (batch_size - len(some))
        hidden = np.asarray(run(state, encoder.pad(full, length, 0)))
        for row, place in enumerate(some):
            for mention, (start, stop) in zip(kept[place].mentions, encoded[place].spans.tolist(), strict=True):
                if mention.entity is not None and 0 <= start < stop:
                    found.setdefault(mention.entity, []).append(hidden[row, start:stop].mean(axis=0))
    return {one: np.stack(rows) for one, rows in found.items()}
