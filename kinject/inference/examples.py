"""Records -> the examples that a method sees: slots where it reads them, and what it prepares beyond them."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np

from kinject.data.pipeline import Examples
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import HostBundle
from kinject.knowledge.base import KnowledgeBase
from kinject.models.seams import Plugin
from kinject.tasks.base import Task


def task_examples(
    task: Task,
    plugin: Plugin | None,
    records: Sequence[Record],
    host: HostBundle,
    knowledge: KnowledgeBase | None,
    *,
    max_length: int | None,
    buckets: int = 3,
) -> Examples:
    """What the task makes of records for a plugin: with slots for one that reads them, bare for any other or none."""
    encoder = host.encoder(max_length)
    make = task.examples if plugin is not None and plugin.reads_slots else task.bare_examples
    return task.prepare(make(records, encoder, knowledge, buckets=buckets), records, host, max_length)


def attach_knowledge(
    examples: Examples,
    plugin: Plugin | None,
    records: Sequence[Record],
    host: HostBundle,
    knowledge: KnowledgeBase | None,
    donors: np.ndarray | None = None,
) -> Examples:
    """The examples with what the plugin prepares for each.

    Args:
      examples: made of the records.
      plugin: None and a plugin that prepares nothing leave the examples as they are.
      records: as the examples were made of.
      host: the frozen host.
      knowledge: the knowledge base, None where there is none.
      donors: int [n]: the example whose knowledge each one gets; None = its own.

    Raises:
      InputError: the plugin reads records, and an example of this task is made of several.
    """
    if plugin is None or type(plugin).prepare is Plugin.prepare:
        return examples
    owners = record_of(examples, records)
    if donors is not None:
        owners = owners[donors]
    return plugin.prepare(examples, [records[i] for i in owners], host, knowledge)


def record_of(examples: Examples, records: Sized) -> np.ndarray:
    """Of which record each example was made, int [n].

    Raises:
      InputError: it was made of several.
    """
    if examples.record_index is not None:
        return examples.record_index
    if examples.size != len(records):
        problem = f"it makes {examples.size} examples of {len(records)} records, several of which share one"
        raise InputError("task", problem, "use a method that reads slots, or a task with one record an example")
    return np.arange(len(records))


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
