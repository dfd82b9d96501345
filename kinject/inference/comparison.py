"""Host alone, host with a plugin, and the control that shows whether it was the knowledge that did it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kinject.data.facts import mean_length
from kinject.data.pipeline import Examples, Feed
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import (
    HostBundle,
    attach_knowledge,
    derangement,
    record_of,
    task_examples,
    with_head,
)
from kinject.inference.mesh import Placement, place_params
from kinject.inference.program import Program, evaluate, make_evaluation_step, split_program, step_feed
from kinject.knowledge.added import vectors_of_added
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import Precision
from kinject.models.seams import Plugin
from kinject.plugins.store import TrainedHead
from kinject.tasks.base import Task
from kinject.tree import Flat

Predictions = dict[str, np.ndarray]


@dataclass
class Comparison:
    """Evaluates one host on data sets, with and without plugins; compiles once a program and shape.

    Attributes:
      batch_size: rows an evaluation step.
      precision: what the host is held and computed in.
    """

    host: HostBundle
    task: Task
    max_length: int | None
    placement: Placement
    batch_size: int = 100
    precision: Precision = "float32"
    _steps: dict[Program, Any] = field(default_factory=dict, repr=False)

    def host_alone(
        self, records: Sequence[Record], knowledge: KnowledgeBase | None = None
    ) -> tuple[dict[str, float], Predictions]:
        """No slots, no plugin: the host as it was frozen.

        Args:
          records: what is asked.
          knowledge: of the plugin that it is compared with; a task may leave out what that knows nothing of.
        """
        return self._evaluate(None, Feed(self._examples(None, knowledge, records)))

    def with_head(self, head: TrainedHead, where: Path) -> Comparison:
        """The same under the head that a plugin brought along, of the folder `where`.

        Raises:
          InputError: it has other labels than the host's own, or does not fit this host.
        """
        host = with_head(self.host, head, where)
        self.task.for_host(host.loaded, where)  # its labels must be the task's; what is compiled serves all such heads
        return replace(self, host=host, _steps=self._steps)

    def with_plugin(
        self, plugin: Plugin, knowledge: KnowledgeBase | None, records: Sequence[Record]
    ) -> tuple[dict[str, float], Predictions]:
        """What the plugin reads, through the plugin: slots of all entities that have a vector, or what it prepares."""
        examples = self._examples(plugin, knowledge, records)
        return self._evaluate(plugin, self._given(examples, plugin, knowledge, records))

    def with_added(
        self, plugin: Plugin, knowledge: KnowledgeBase, records: Sequence[Record]
    ) -> tuple[dict[str, float], Predictions]:
        """As `with_plugin`, the vectors of all entities of the records made of their triples alone (see added.py).

        Raises:
          InputError: the knowledge base has no triples.
        """
        if knowledge.triples is None:
            raise InputError(knowledge.folder, "it has no triples to make vectors of", "leave `added` out")
        rows = knowledge.rows([one.entity or "" for record in records for one in record.mentions])
        new = np.unique(rows[rows >= 0])
        made = vectors_of_added(knowledge.vectors, knowledge.triples, len(knowledge.relations), new)

        def gather(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            vectors, found = knowledge.gather(asked)
            at = np.searchsorted(new, asked).clip(max=len(new) - 1)
            return np.where((new[at] == asked)[..., None], made[at], vectors), found

        examples = self._examples(plugin, knowledge, records)
        return self._evaluate(plugin, replace(self._given(examples, plugin, knowledge, records), gather=gather))

    def shuffled(
        self, plugin: Plugin, knowledge: KnowledgeBase | None, records: Sequence[Record], seed: int
    ) -> tuple[dict[str, float], Predictions, np.ndarray]:
        """The same plugin and the same slots, but every row gets another's knowledge.

        Where the plugin reads slots, those of a row with as many entities; else what it prepares for a record that
        names other entities. The examples of a record that a task joins get one record's.

        Returns:
          (metrics, predictions, int [n]: whose knowledge each example got, each record where the task joins examples;
          its own where it has none to exchange).
        """
        examples = self._examples(plugin, knowledge, records)
        of = record_of(examples, records) if self.task.joins else np.arange(examples.size)
        _, first = np.unique(of, return_index=True)  # the example that speaks for those that are joined
        if plugin.reads_slots:
            examples, donors = _swap_entities(examples, of, first, seed)
        else:
            donors = derangement(_linked_alike(records)[record_of(examples, records)[first]], seed)
        given = self._given(examples, plugin, knowledge, records, first[donors][of])
        return *self._evaluate(plugin, given), donors

    def rows(
        self, plugin: Plugin, knowledge: KnowledgeBase | None, records: Sequence[Record], seed: int
    ) -> dict[str, Any]:
        """The rows of a table: host, plugin and, for a plugin that reads knowledge of each example, the control.

        Returns:
          `n`, `metric`, `host`, `plugin`; `shuffled`; `shuffled_follows_vector`, how often the control says what is
          right of the entity whose knowledge it got, where answers are labels; `coverage` with a knowledge base.
        """
        metric = self.task.metric
        found, alone = self.host_alone(records, knowledge)
        rows: dict[str, Any] = {"n": len(next(iter(alone.values()))), "metric": metric, "host": found[metric]}
        found, predictions = self.with_plugin(plugin, knowledge, records)
        rows["plugin"] = found[metric]
        if plugin.reads_examples():
            found, swapped, donors = self.shuffled(plugin, knowledge, records, seed)
            rows["shuffled"] = found[metric]
            if "label" in predictions:
                rows["shuffled_follows_vector"] = share_of(followed(predictions, swapped, donors))
        if knowledge is not None:
            rows["coverage"] = self.coverage(knowledge, records)
        return rows

    def timer(
        self, plugin: Plugin | None, knowledge: KnowledgeBase | None, records: Sequence[Record]
    ) -> tuple[Callable[[], float], float, float]:
        """How long the records take, once they are on the device and the program is compiled.

        Returns:
          (a call that evaluates all of them and returns the seconds it took; mean tokens of a row; seconds that the
          plugin took to prepare its knowledge).
        """
        examples = self._examples(plugin, knowledge, records)
        started = time.perf_counter()
        feed = Feed(examples) if plugin is None else self._given(examples, plugin, knowledge, records)
        prepared = time.perf_counter() - started
        step, params = self._program(plugin)
        read, rows = step_feed(feed, self.batch_size, self.placement)
        batches = [self.placement.batch(batch) for batch in read.evaluation(rows)]

        def run() -> float:
            started = time.perf_counter()
            jax.block_until_ready([step(params, batch) for batch in batches])
            return time.perf_counter() - started

        run()
        return run, mean_length(feed.examples), prepared

    def coverage(self, knowledge: KnowledgeBase, records: Sequence[Record]) -> float:
        """Share of the mentions whose entity has a vector."""
        ids = [mention.entity for record in records for mention in record.mentions]
        _, found = knowledge.gather(knowledge.rows([one or "" for one in ids]))
        return float(found.mean()) if len(ids) else 0.0

    def _examples(self, plugin: Plugin | None, knowledge: KnowledgeBase | None, records: Sequence[Record]) -> Examples:
        return task_examples(self.task, plugin, records, self.host, knowledge, max_length=self.max_length)

    def _given(
        self,
        examples: Examples,
        plugin: Plugin,
        knowledge: KnowledgeBase | None,
        records: Sequence[Record],
        donors: np.ndarray | None = None,
    ) -> Feed:
        examples = attach_knowledge(examples, plugin, records, self.host, knowledge, donors)
        return Feed(examples, None if knowledge is None else knowledge.gather)

    def _evaluate(self, plugin: Plugin | None, feed: Feed) -> tuple[dict[str, float], Predictions]:
        step, params = self._program(plugin)
        program, _ = split_program(self.host.loaded.host, plugin, self.task)
        metrics, predictions = evaluate(program, params, feed, self.batch_size, self.placement, step)
        return metrics, self.task.of_records(predictions)

    def _program(self, plugin: Plugin | None) -> tuple[Any, Flat]:
        """The compiled evaluation step and the parameters on the devices."""
        program, params = split_program(self.host.loaded.host, plugin, self.task)
        program = replace(program, row_parts=self.placement.row_parts)
        if program not in self._steps:
            self._steps[program] = make_evaluation_step(program)
        return self._steps[program], place_params({}, params, self.precision, self.placement, program.tables)[1]


def followed(predictions: Predictions, swapped: Predictions, donors: np.ndarray) -> np.ndarray:
    """Whether the control said what is right of the entity whose knowledge it got, bool [those that got another's]."""
    return (swapped["predicted"] == predictions["label"][donors])[donors != np.arange(len(donors))]


def share_of(right: np.ndarray) -> float:
    """The mean of bool [n]; 0 of none."""
    return float(right.mean()) if right.size else 0.0


def _swap_entities(examples: Examples, of: np.ndarray, first: np.ndarray, seed: int) -> tuple[Examples, np.ndarray]:
    """The examples with the entities of others that have as many, and whose.

    Args:
      examples: n of them.
      of: int [n]: of which group each example is; a group is exchanged as one, and has one set of entities.
      first: int [groups]: an example of each.
      seed: of the exchange.

    Returns:
      (the examples, int [groups]: whose entities each group got).
    """
    entities = _entities_in_order(examples)
    donors = _donors(entities[first], seed)
    swapped, theirs = entities.copy(), entities[first[donors][of]]
    swapped[entities >= 0] = theirs[theirs >= 0]  # donors have as many, maybe elsewhere

    def swap(bucket: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"entity_ids": swapped[bucket["index"]]}

    return examples.with_arrays(swap), donors


def _linked_alike(records: Sequence[Record]) -> np.ndarray:
    """A number for each record, int [n]; records share one that link the same entities or, linking none, one text."""
    groups: dict[Any, int] = {}
    linked = [tuple(sorted({one.entity for one in record.mentions if one.entity})) for record in records]
    keys = [entities or record.text for entities, record in zip(linked, records, strict=True)]
    return np.array([groups.setdefault(key, len(groups)) for key in keys], np.int64)


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
