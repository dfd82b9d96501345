"""One text for a classifier: its ids, and what a plugin puts in its slots, as a graph that begins there reads them.

No batch of examples is made, and JAX is called only for entities that were not asked about before: what a plugin that
maps entities puts in a slot depends on nothing else, so it is kept. A run of the graph leaves nothing else in a CPU's
caches, so what is around it costs four times as much as it seems: few calls, and lists instead of small arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isfinite
from typing import Any, cast

import numpy as np

from kinject.data.encode import Encoded, EntityEncoder
from kinject.data.pipeline import Batch
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.program import Model
from kinject.models.seams import Plugin
from kinject.serving.plugin import ActivePlugins
from kinject.serving.programs import LEAST_ENTITIES, POSSIBLE, Programs, power_of_two
from kinject.serving.queries import Label, Prediction, Query, Refused
from kinject.serving.runtime import Either, Layers, Slots
from kinject.tasks.base import Task, slot_rows

KEPT = 4096  # entities
FEW = 64  # labels that are ranked as a list


class SingleTexts:
    """Answers single texts of a host with what is plugged in; made anew when that changes.

    Args:
      task: of the host.
      active: what is plugged in.
      model: the host with it, on the device.
      layers: which embed, and run it.
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
        layers: Layers,
        programs: Programs,
        encoder: Callable[[], EntityEncoder],
    ):
        self.task, self.active, self.layers = task, active, layers
        self.programs, self.encoder = programs, encoder
        reads = encoder()
        self.tokenizer, self.most = reads.tokenizer, reads.max_length
        self._program = model.program
        self._params = {path: leaf for path, leaf in model.params.items() if path.startswith("plugin/")}
        self._known: dict[int, np.ndarray] = {}

    @staticmethod
    def takes(plugin: Plugin | None) -> bool:
        """Whether such a plugin, or none, can be answered for."""
        return plugin is None or plugin.maps_entities

    def __call__(self, record: Record, step: Either) -> tuple[Any, bool] | None:
        """What an answer step, which `embeds`, yields of a text, [1, …] each, and whether the text was too long.

        None = it is to be asked as ever, also because it must be refused.
        """
        read = self._read(record)
        return None if read is None else (step.one(*read[:2]), read[2])

    def predict(self, query: Query | Refused, top: int) -> Prediction | None:
        """The answer, with `top` labels at most, that the engine makes of `__call__`; None as there."""
        task, active = self.task, self.active
        if isinstance(query, Refused) or len(task.labels or ()) > FEW or (read := self._read(query.record)) is None:
            return None
        batch: Any = read[0]
        raw, scores = (task.choices(cast(Any, one), batch)[0].tolist() for one in self.layers.scores_of(*read[:2]))
        if task.scores == "raw":
            scores = raw
        if not all(map(isfinite, scores)):
            return None
        record, tokenizer = query.record, self.tokenizer
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:top]  # of equal ones the first
        possible = [number for number in best if raw[number] > POSSIBLE]
        labels = tuple(Label(task.choice_name(number, record, tokenizer), scores[number]) for number in possible)
        entities = active.linked([record])[0] if record.mentions else ()
        alone = active.leaves_alone(entities)
        return Prediction(query.line, labels, entities, id=query.id, truncated=read[2], host_alone=alone)

    def _read(self, record: Record) -> tuple[Batch, Slots | None, bool] | None:
        """The batch [1, L] of a text, what stands in its slots, and whether it was too long; None = ask as ever."""
        try:
            texts = self.task.passage_texts(record)
            if texts is None:
                return None
            if not record.mentions:
                ids, second = self.tokenizer.passage(texts)
                if len(ids) <= self.most:
                    return plain_batch(ids, second, self.tokenizer.pair_type), None, False
            reads = self.encoder()
            knowledge = self.active.knowledge if self.active.reads_slots else None
            pair = texts[1] if len(texts) > 1 else None
            encoded = reads.encode(texts[0], record.mentions, pair, rows=slot_rows(knowledge))
            return encoded_batch(encoded), self._slots(encoded), bool(reads.shortened)
        except InputError:
            return None

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
    batch: Batch = {"token_ids": np.array([ids], np.int32), **_rest(len(ids))}
    if second < len(ids):
        types = np.zeros((1, len(ids)), np.int32)
        types[0, second:] = pair_type
        batch["type_ids"] = types
    return batch


def encoded_batch(encoded: Encoded) -> Batch:
    """The batch [1, L] of one encoded passage."""
    batch: Batch = {"token_ids": encoded.token_ids[None], **_rest(len(encoded.token_ids))}
    return {**batch, "type_ids": encoded.type_ids[None]}


@lru_cache(512)
def _rest(length: int) -> Batch:
    """What the batch of a passage of one text has beside its ids. It is shared, so nothing is written to it."""
    row = {
        "segment_ids": np.ones((1, length), np.int32),
        "position_ids": np.arange(length, dtype=np.int32)[None],
        "type_ids": np.zeros((1, length), np.int32),
        "weights": np.ones(1, np.float32),
    }
    for values in row.values():
        values.setflags(write=False)
    return row
