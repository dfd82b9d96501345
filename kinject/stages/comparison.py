"""Host alone, host with a plugin, and the control that shows whether it was the knowledge that did it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kinject.data.pipeline import Examples, Feed
from kinject.data.records import Record
from kinject.knowledge.base import KnowledgeBase
from kinject.plugins.base import Plugin
from kinject.stages.base import ReadyHost
from kinject.tasks.base import Task
from kinject.training.loop import evaluate
from kinject.training.mesh import Placement
from kinject.training.partition import hold
from kinject.training.step import Program, make_evaluation_step, split_program

Predictions = dict[str, np.ndarray]


def derangement(count: int, seed: int) -> np.ndarray:
    """A permutation of `count` items in which none keeps its place (one cycle): int [count]."""
    order = np.random.default_rng(seed).permutation(count)
    shuffled = np.empty(count, np.int64)
    shuffled[order] = np.roll(order, 1)
    return shuffled


@dataclass
class Comparison:
    """Evaluates one host on data sets, with and without plugins; compiles once a program and shape.

    Attributes:
      batch_size: rows an evaluation step.
    """

    host: ReadyHost
    task: Task
    max_length: int | None
    placement: Placement
    batch_size: int = 100
    _steps: dict[Program, Any] = field(default_factory=dict, repr=False)

    def host_alone(self, records: Sequence[Record]) -> tuple[dict[str, float], Predictions]:
        """No slots, no plugin: the host as it was frozen."""
        examples = self.task.examples(records, self.host.encoder(self.max_length), None)
        return self._evaluate(None, Feed(examples))

    def with_plugin(
        self, plugin: Plugin, knowledge: KnowledgeBase, records: Sequence[Record]
    ) -> tuple[dict[str, float], Predictions]:
        """Slots for all entities that have a vector, through the plugin."""
        return self._evaluate(plugin, Feed(self._plugged(knowledge, records), knowledge.gather))

    def shuffled(
        self, plugin: Plugin, knowledge: KnowledgeBase, records: Sequence[Record], seed: int
    ) -> tuple[dict[str, float], Predictions, np.ndarray]:
        """The same plugin and the same slots, but every row gets another row's entities.

        Returns:
          (metrics, predictions, int [n]: whose entities each record got).
        """
        examples = self._plugged(knowledge, records)
        entities = _entities_in_order(examples)
        donors = derangement(len(entities), seed)

        def swap(bucket: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"entity_ids": entities[donors][bucket["index"]]}

        return *self._evaluate(plugin, Feed(examples.with_arrays(swap), knowledge.gather)), donors

    def coverage(self, knowledge: KnowledgeBase, records: Sequence[Record]) -> float:
        """Share of the mentions whose entity has a vector."""
        ids = [mention.entity for record in records for mention in record.mentions]
        _, found = knowledge.gather(knowledge.rows([one or "" for one in ids]))
        return float(found.mean()) if len(ids) else 0.0

    def _plugged(self, knowledge: KnowledgeBase, records: Sequence[Record]) -> Examples:
        return self.task.examples(records, self.host.encoder(self.max_length), knowledge)

    def _evaluate(self, plugin: Plugin | None, feed: Feed) -> tuple[dict[str, float], Predictions]:
        program, params = split_program(self.host.loaded.host, plugin, self.task)
        if program not in self._steps:
            self._steps[program] = make_evaluation_step(program)
        _, params = hold({}, params, "float32", self.placement.replicated)
        return evaluate(program, params, feed, self.batch_size, self.placement, self._steps[program])


def _entities_in_order(examples: Examples) -> np.ndarray:
    """Entity rows of all examples in their given order, int32 [n, M], padded with -1 where buckets differ in M."""
    widest = max(bucket["entity_ids"].shape[1] for bucket in examples.buckets)

    def widen(bucket: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = bucket["entity_ids"]
        return {"entity_ids": np.pad(ids, ((0, 0), (0, widest - ids.shape[1])), constant_values=-1)}

    return examples.with_arrays(widen).in_order("entity_ids")


def nearest_neighbour(
    knowledge: KnowledgeBase, train: Sequence[Record], test: Sequence[Record], label: str = "label"
) -> float:
    """Accuracy of the label of the nearest training entity, from vectors alone: no language model."""
    from sklearn.neighbors import KNeighborsClassifier

    def known(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        vectors, found = knowledge.gather(knowledge.rows([record.mentions[0].entity or "" for record in records]))
        return vectors, found, np.array([record.fields[label] for record in records])

    vectors, found, labels = known(train)
    classifier = KNeighborsClassifier(1).fit(vectors[found], labels[found])
    vectors, found, labels = known(test)
    return float(((classifier.predict(vectors) == labels) & found).mean())


def majority(train: Sequence[Record], test: Sequence[Record], label: str = "label") -> float:
    """Accuracy of always giving the most frequent training label."""
    values, counts = np.unique([record.fields[label] for record in train], return_counts=True)
    return float(np.mean([record.fields[label] == values[counts.argmax()] for record in test]))
