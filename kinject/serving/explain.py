"""Why an answer is what it is: what each entity adds to it, and the passages that a memory gave.

Leaving one out: the same question is asked again without that entity's slot (without its link, where the method reads
facts rather than slots), and the first answer's score compared. Gradient times input needs one backward pass for all
entities of a text. The former is what would have happened; the latter is its slope here, close to zero where the host
is certain anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.passages import make_readings, passages_used
from kinject.plugins.pluglm import PlugLM
from kinject.serving.engine import Engine
from kinject.serving.plugin import ActivePlugins
from kinject.serving.queries import Contribution, Explanation

FIRST_POSITION = np.zeros((1, 1), np.int32)


class Explainer:
    """Explains the first answers of windows of records.

    Raises:
      InputError: a task whose answers are not labels of a text.
    """

    def __init__(self, engine: Engine, active: ActivePlugins):
        if engine.task.answer != "labels":
            problem = "the answers of this task are places in a text, or a vector, and one label is explained"
            raise InputError("explain", problem, "leave it out")
        self.engine, self.active = engine, active
        self.model = engine.model(active.plugin)
        self.reader = active.plugin if isinstance(active.plugin, PlugLM) else None
        self.readings = None if self.reader is None else make_readings(engine.host(active).loaded.host, self.reader)

    def explain(
        self, records: Sequence[Record], found: Mapping[int, Mapping[str, np.ndarray]]
    ) -> dict[int, Explanation]:
        """Explanations by number of the record, of those that were `found`: rows of an answer step by number."""
        numbers = sorted(found)
        if not numbers:
            return {}
        asked = [records[number] for number in numbers]
        first = [_first(found[number]) for number in numbers]
        choices, scores = np.array([one for one, _ in first], np.int64), [score for _, score in first]
        entities = [self._read(record) for record in asked]
        without = self._without(asked, entities, choices)
        gradients = self._gradients(asked, entities, choices)
        passages = self._passages(asked)
        made = {}
        for at, number in enumerate(numbers):
            contributions = tuple(
                Contribution(entity, scores[at] - without[at, entity], gradients.get((at, entity)))
                for entity in entities[at]
                if (at, entity) in without
            )
            made[number] = Explanation(contributions, passages.get(at) if self.readings is not None else None)
        return made

    def _read(self, record: Record) -> list[str]:
        """The entities of a record that the plugin reads, in the order of the text, each once."""
        mentions = sorted(record.mentions, key=lambda one: one.start)
        ids = list(dict.fromkeys(one.entity for one in mentions if one.entity is not None))
        return [one for one, reader in zip(ids, self.active.readers(ids), strict=True) if reader is not None]

    def _without(
        self, records: Sequence[Record], entities: Sequence[Sequence[str]], choices: np.ndarray
    ) -> dict[tuple[int, str], float]:
        """The first answer's score without each of the entities, by (record, entity)."""
        places = [(at, entity) for at, some in enumerate(entities) for entity in some]
        variants = [_left_out(records[at], entity, self.active.reads_slots) for at, entity in places]
        step = self.engine.programs.probability(self.model.program)
        explained = choices[[at for at, _ in places]] if places else choices[:0]
        asked = self.engine.ask(variants, self.active, self.model, step, explained)
        return {places[number]: float(score) for number, score in asked.rows()}

    def _gradients(
        self, records: Sequence[Record], entities: Sequence[Sequence[str]], choices: np.ndarray
    ) -> dict[tuple[int, str], float]:
        """Gradient times input of the entities' slots, by (record, entity)."""
        if not self.active.reads_slots:
            return {}
        gradient = self.engine.programs.gradient(self.model.program)

        def step(params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return gradient(params, batch), batch["entity_ids"]

        made = {}
        for at, (slopes, rows) in self.engine.ask(records, self.active, self.model, step, choices).rows():
            for entity, row in zip(entities[at], self.active.slot_rows(entities[at]).tolist(), strict=True):
                made[at, entity] = float(slopes[rows == row].sum())
        return made

    def _passages(self, records: Sequence[Record]) -> dict[int, tuple[tuple[str, str, float], ...]]:
        """What the position of the answer read in the last memory layer, by record."""
        if self.reader is None or self.readings is None:
            return {}
        readings, layer = self.readings, self.reader.config.layers[-1]

        def step(params: Any, batch: Mapping[str, jax.Array]) -> Any:
            del params  # the readings hold them
            positions = batch.get("positions", np.repeat(FIRST_POSITION, len(batch["weights"]), axis=0))
            return *readings(batch)[layer], positions[:, 0]

        made = {}
        for at, (rows, weights, position) in self.engine.ask(records, self.active, self.model, step).rows():
            reading = rows[None], weights[None]
            made[at] = tuple(passages_used(reading, self.active.memories, 0, int(position)))
        return made


def _first(row: Mapping[str, np.ndarray]) -> tuple[int, float]:
    """(number, score) of the first answer."""
    if "numbers" in row:
        return int(row["numbers"][0]), float(row["scores"][0])
    number = int(np.argmax(row["scores"]))
    return number, float(row["scores"][number])


def _left_out(record: Record, entity: str, slots: bool) -> Record:
    """The record as it is without one entity: without its slots, or without its links."""
    change = {"slot": False} if slots else {"entity": None}
    mentions = (replace(one, **change) if one.entity == entity else one for one in record.mentions)
    return replace(record, mentions=tuple(mentions))
