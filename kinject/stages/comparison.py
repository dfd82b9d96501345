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


def derangement(groups: np.ndarray, seed: int) -> np.ndarray:
    """A permutation in which every item gets one of another group, as far as no group holds more than half of them.

    Args:
      groups: int [n]: of which group each item is; for n different ones it is a derangement.
      seed: which permutation.

    Returns:
      int [n]: whose place each item takes.
    """
    draw = np.random.default_rng(seed)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rank = draw.permutation(len(sizes))[group]
    order = np.lexsort((draw.permutation(len(groups)), rank))  # group by group, both in random order
    shuffled = np.empty(len(groups), np.int64)
    shuffled[order] = np.roll(order, -sizes.max(initial=0))  # the group at a distance of the largest is another
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

    def host_alone(
        self, records: Sequence[Record], knowledge: KnowledgeBase | None = None
    ) -> tuple[dict[str, float], Predictions]:
        """No slots, no plugin: the host as it was frozen.

        Args:
          records: what is asked.
          knowledge: of the plugin that it is compared with; a task may leave out what that knows nothing of.
        """
        examples = self.task.bare_examples(records, self.host.encoder(self.max_length), knowledge)
        return self._evaluate(None, Feed(self._prepared(examples, records)))

    def with_plugin(
        self, plugin: Plugin, knowledge: KnowledgeBase, records: Sequence[Record]
    ) -> tuple[dict[str, float], Predictions]:
        """Slots for all entities that have a vector, through the plugin."""
        return self._evaluate(plugin, Feed(self._plugged(knowledge, records), knowledge.gather))

    def shuffled(
        self, plugin: Plugin, knowledge: KnowledgeBase, records: Sequence[Record], seed: int
    ) -> tuple[dict[str, float], Predictions, np.ndarray]:
        """The same plugin and the same slots, but every row gets other entities: those of a row with as many.

        Returns:
          (metrics, predictions, int [n]: whose entities each example got; its own where there is no slot).
        """
        examples = self._plugged(knowledge, records)
        entities = _entities_in_order(examples)
        donors = _donors(entities, seed)

        swapped = entities.copy()
        swapped[entities >= 0] = entities[donors][entities[donors] >= 0]  # donors have as many, maybe elsewhere

        def swap(bucket: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"entity_ids": swapped[bucket["index"]]}

        return *self._evaluate(plugin, Feed(examples.with_arrays(swap), knowledge.gather)), donors

    def coverage(self, knowledge: KnowledgeBase, records: Sequence[Record]) -> float:
        """Share of the mentions whose entity has a vector."""
        ids = [mention.entity for record in records for mention in record.mentions]
        _, found = knowledge.gather(knowledge.rows([one or "" for one in ids]))
        return float(found.mean()) if len(ids) else 0.0

    def _plugged(self, knowledge: KnowledgeBase, records: Sequence[Record]) -> Examples:
        examples = self.task.examples(records, self.host.encoder(self.max_length), knowledge)
        return self._prepared(examples, records)

    def _prepared(self, examples: Examples, records: Sequence[Record]) -> Examples:
        return self.task.prepare(examples, records, self.host, self.max_length)

    def _evaluate(self, plugin: Plugin | None, feed: Feed) -> tuple[dict[str, float], Predictions]:
        program, params = split_program(self.host.loaded.host, plugin, self.task)
        if program not in self._steps:
            self._steps[program] = make_evaluation_step(program)
        _, params = hold({}, params, "float32", self.placement.replicated, program.tables)
        return evaluate(program, params, feed, self.batch_size, self.placement, self._steps[program])


def _entities_in_order(examples: Examples) -> np.ndarray:
    """Entity rows of all examples in their given order, int32 [n, …, M], padded with -1 where buckets differ in M."""
    widest = max(bucket["entity_ids"].shape[-1] for bucket in examples.buckets)

    def widen(bucket: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = bucket["entity_ids"]
        pad = [(0, 0)] * (ids.ndim - 1) + [(0, widest - ids.shape[-1])]
        return {"entity_ids": np.pad(ids, pad, constant_values=-1)}

    return examples.with_arrays(widen).in_order("entity_ids")


def _donors(entities: np.ndarray, seed: int) -> np.ndarray:
    """Whose entities each row gets, int [n], of entity rows int32 [n, …, M]: as many, but not the same."""
    entities = entities.reshape(len(entities), -1)
    donors = np.arange(len(entities))
    counts = (entities >= 0).sum(1)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        _, groups = np.unique(entities[rows], axis=0, return_inverse=True)
        donors[rows] = rows[derangement(groups.reshape(-1), seed)]
    return donors


def nearest_neighbour(
    knowledge: KnowledgeBase, train: Sequence[Record], test: Sequence[Record], label: str = "label"
) -> float:
    """Accuracy of the label of the nearest training entity, from vectors alone: no language model.

    A record speaks through its first mention; one without a vector is learned nothing from, and answered wrongly.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def known(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        entities = [record.mentions[0].entity if record.mentions else None for record in records]
        vectors, found = knowledge.gather(knowledge.rows([entity or "" for entity in entities]))
        return vectors, found, np.array([record.fields[label] for record in records])

    vectors, found, labels = known(train)
    if not found.any():
        return 0.0
    classifier = KNeighborsClassifier(1).fit(vectors[found], labels[found])
    vectors, found, labels = known(test)
    return float(((classifier.predict(vectors) == labels) & found).mean())


def majority(train: Sequence[Record], test: Sequence[Record], label: str = "label") -> float:
    """Accuracy of always giving the most frequent training label."""
    values, counts = np.unique([record.fields[label] for record in train], return_counts=True)
    return float(np.mean([record.fields[label] == values[counts.argmax()] for record in test]))
