"""A stage's comparison of a host with and without plugins, and the look-ups beside it that use no language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from kinject.data.records import Record
from kinject.inference.comparison import Comparison
from kinject.inference.host import open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import Precision, activations
from kinject.stages.base import Run, StageConfig
from kinject.tasks.base import make_task


class AskingConfig(StageConfig):
    """`host` is asked what `task` asks, `batch_size` questions at once, each of at most `max_length` tokens."""

    host: str
    task: str
    task_options: dict[str, Any] = {}
    max_length: int | None = None
    batch_size: int = Field(100, ge=1)


def comparison_of(
    run: Run, config: AskingConfig, reference: str, stage: str, where: str, precision: Precision
) -> Comparison:
    """The comparison that a stage's settings describe.

    Args:
      run: the run whose stages may be referred to.
      config: the settings.
      reference: the host.
      stage: config key of the stage, for messages.
      where: config key of the host.
      precision: what the host is held and computed in.
    """
    task = make_task(config.task, f"{stage}.task", **config.task_options)
    host = open_host(run.model(reference, where), head=task.head or "none", dtype=activations(precision))
    task = task.for_host(host.loaded, where).for_evaluation()
    return Comparison(host, task, config.max_length, run.placement, config.batch_size, precision)


def nearest_neighbour(
    knowledge: KnowledgeBase, train: Sequence[Record], test: Sequence[Record], label: str = "label"
) -> np.ndarray:
    """How right the label of the nearest training entity is, from vectors alone, float [n]: no language model.

    A record speaks through its first mention; one without a vector is learned nothing from, and answered wrongly.
    """
    from sklearn.neighbors import KNeighborsClassifier

    vectors, found = first_entities(knowledge, train)
    if not found.any():
        return np.zeros(len(test))
    classifier = KNeighborsClassifier(1).fit(vectors[found], _values(train, label)[found])
    vectors, found = first_entities(knowledge, test)
    return ((classifier.predict(vectors) == _values(test, label)) & found).astype(float)


def first_entities(knowledge: KnowledgeBase, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, k] of the first entity of each record, zeros where it has none, and whether it has one, bool [n]."""
    entities = [record.mentions[0].entity if record.mentions else None for record in records]
    return knowledge.gather(knowledge.rows([entity or "" for entity in entities]))


def _values(records: Sequence[Record], field: str) -> np.ndarray:
    return np.array([record.fields[field] for record in records])


def majority(train: Sequence[Record], test: Sequence[Record], label: str = "label") -> float:
    """Accuracy of always giving the most frequent training label."""
    values, counts = np.unique([record.fields[label] for record in train], return_counts=True)
    return float(np.mean([record.fields[label] == values[np.argmax(counts)] for record in test]))
