"""One text for a classifier: its ids, and what a plugin puts in its slots, as a graph that begins there reads them.

No batch of examples is made, and JAX is called only for entities that were not asked about before: what a plugin that
maps entities puts in a slot depends on nothing else, so it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kinject.data.encode import Encoded, EntityEncoder
from kinject.data.pipeline import Batch
from kinject.data.records import Record
from kinject.inference.program import Model
from kinject.models.seams import Plugin
from kinject.serving.plugin import ActivePlugins
from kinject.serving.programs import LEAST_ENTITIES, Programs, power_of_two
from kinject.serving.runtime import Either, Slots
from kinject.tasks.base import Task, slot_rows

KEPT = 4096  # entities
ONE_ROW = np.ones(1, np.float32)


class SingleTexts:
    """Answers single texts of a host with what is plugged in; made anew when that changes.

    Args:
      task: of the host.
      active: what is plugged in.
      model: the host with it, on the device.
      programs: compile what fills slots.
      encoder: makes what encodes a text for it.

    Raises:
      InputError: texts of a length that the host does not have.
    """

    def __init__(
        self,
        task: Task,
        active: ActivePlugins,
        model: Model,
        programs: Programs,
        encoder: Callable[[], EntityEncoder],
    ):
        self.task, self.active, self.programs, self.encoder = task, active, programs, encoder
        reads = encoder()
        self.tokenizer, self.most = reads.tokenizer, reads.max_length
        self._program = model.program
        self._params = {path: leaf for path, leaf in model.params.items() if path.startswith("plugin/")}
        self._known: dict[int, np.ndarray] = {}

    @staticmethod
    def takes(plugin: Plugin | None) -> bool:
        """Whether such a plugin, or none, can be answered for."""
        return plugin is None or plugin.maps_entities

    def __call__(self, record: Record, step: Either) -> Any:
        """What an answer step yields of a text, [1, …] each, and whether it was too long; None = ask as ever.

        Args:
          record: the text.
          step: which `embeds`.

        Raises:
          InputError: a record that the task cannot use.
        """
        texts = self.task.passage_texts(record)
        if texts is None:
            return None
        if not record.mentions:
            ids, second = self.tokenizer.passage(texts)
            if len(ids) <= self.most:
                return step.one(plain_batch(ids, second, self.tokenizer.pair_type)), False
        reads = self.encoder()
        knowledge = self.active.knowledge if self.active.reads_slots else None
        pair = texts[1] if len(texts) > 1 else None
        encoded = reads.encode(texts[0], record.mentions, pair, rows=slot_rows(knowledge))
        return step.one(encoded_batch(encoded), self._slots(encoded)), bool(reads.shortened)

    def _slots(self, encoded: Encoded) -> Slots | None:
        """What stands in the slots, float32 [n, E], and where, int64 [n, 2]."""
        if not len(encoded.entity_rows):
            return None
        places = np.flatnonzero(encoded.entity_slot >= 0)
        rows = encoded.entity_rows[encoded.entity_slot[places]].tolist()
        known = self._known  # another thread may put another in its place
        found = {row: known[row] for row in dict.fromkeys(rows) if row in known}
        if new := self._made([row for row in dict.fromkeys(rows) if row not in found]):
            found |= new
            self._known = {**known, **new} if len(known) + len(new) <= KEPT else new
        cells = np.zeros((len(places), 2), np.int64)
        cells[:, 1] = places
        return np.stack([found[row] for row in rows]), cells

    def _made(self, rows: list[int]) -> dict[int, np.ndarray]:
        """What the plugin puts in a slot of each of these entities, float32 [E]."""
        if not rows:
            return {}
        count = max(LEAST_ENTITIES, power_of_two(len(rows)))
        ids = np.full((1, count), -1, np.int32)
        ids[0, : len(rows)] = rows
        vectors, _ = self.active.knowledge.gather(ids)
        made = np.asarray(self.programs.slots(self._program)(self._params, ids, vectors))
        return {row: made[number] for number, row in enumerate(rows)}


def plain_batch(ids: list[int], second: int, pair_type: int) -> Batch:
    """The batch [1, L] of one passage of texts without mentions, whose second text begins at `second`."""
    types = np.zeros((1, len(ids)), np.int32)
    if second < len(ids):
        types[0, second:] = pair_type
    return _batch(np.array([ids], np.int32), types)


def encoded_batch(encoded: Encoded) -> Batch:
    """The batch [1, L] of one encoded passage."""
    return _batch(encoded.token_ids[None], encoded.type_ids[None])


def _batch(token_ids: np.ndarray, type_ids: np.ndarray) -> Batch:
    return {
        "token_ids": token_ids,
        "segment_ids": np.ones(token_ids.shape, np.int32),
        "position_ids": np.arange(token_ids.shape[1], dtype=np.int32)[None],
        "type_ids": type_ids,
        "weights": ONE_ROW,
    }
