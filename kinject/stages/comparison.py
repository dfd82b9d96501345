"""A stage's comparison of a host with and without plugins: the look-ups beside it that use no language model, and its
table by kind of question, where the records say of which kind each is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from kinject.data.records import KIND, Record, first_entity
from kinject.errors import InputError
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


Rows = dict[str, np.ndarray]
"""By row, for each example how right it was: 1.0 or 0.0, NaN where the row says nothing of it."""


def kinds_of(records: Sequence[Record]) -> np.ndarray:
    """The kind of question that each record is, str [n].

    Raises:
      InputError: a record that does not say so.
    """
    for record in records:
        if not isinstance(record.fields.get(KIND), str):
            problem = f"field {KIND} is {record.fields.get(KIND)!r}, not the name of a kind of question"
            raise InputError(record.where, problem, "leave by_kind out, or name the kind in every record")
    return np.array([record.fields[KIND] for record in records])


def by_kind(right: Mapping[str, np.ndarray], kinds: np.ndarray) -> dict[str, dict[str, Any]]:
    """{kind: {"n": examples, row: mean, …}}, kinds in the order of the records."""
    return {
        kind: {"n": int((kinds == kind).sum())}
        | {row: mean for row, values in right.items() if (mean := mean_of(values[kinds == kind])) is not None}
        for kind in dict.fromkeys(kinds.tolist())
    }


def mean_of(values: np.ndarray) -> float | None:
    """The mean of what is a number, None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def mean_over_kinds(kinds: Mapping[str, Mapping[str, Any]], row: str) -> float:
    """A row's mean over the kinds, each counting alike."""
    return float(np.mean([rows[row] for rows in kinds.values() if row in rows]))


def follows(records: Sequence[Record], labels: np.ndarray, predicted: np.ndarray, donors: np.ndarray) -> np.ndarray:
    """Whether each answer is the one of the entity whose knowledge was put there, to the same kind of question.

    Args:
      records: n, with their kinds.
      labels: their right answers, [n].
      predicted: what was answered, [n].
      donors: of which record's entity the knowledge came, int [n].

    Returns:
      float [n]: NaN where the other entity is not asked this, or has the same answer.
    """
    answers = {(first_entity(record), record.fields[KIND]): labels[i] for i, record in enumerate(records)}
    found = np.full(len(records), np.nan)
    for i, record in enumerate(records):
        other = answers.get((first_entity(records[donors[i]]), record.fields[KIND]))
        if other is not None and other != labels[i]:
            found[i] = predicted[i] == other
    return found


def nearest_of_kind(
    vectors: np.ndarray, found: np.ndarray, train: Sequence[Record], asked: np.ndarray, test: Sequence[Record]
) -> np.ndarray:
    """How right the answer of the nearest training entity to the same kind of question is: float [n].

    Args:
      vectors: of the first entity of each training record, [m, k].
      found: whether it has one, bool [m].
      train: the m training records.
      asked: of the first entity of each test record, [n, k].
      test: the n test records.
    """
    from sklearn.neighbors import KNeighborsClassifier

    of_train, of_test = kinds_of(train), kinds_of(test)
    labels = np.array([record.fields["label"] for record in train])
    right = np.zeros(len(test))
    for kind in np.unique(of_test):
        known, here = (of_train == kind) & found, of_test == kind
        if known.any():
            said = KNeighborsClassifier(1).fit(vectors[known], labels[known]).predict(asked[here])
            right[here] = said == [record.fields["label"] for record in np.array(test, object)[here]]
    return right


def majority_of_kind(train: Sequence[Record], test: Sequence[Record]) -> np.ndarray:
    """How right the most frequent training answer to the same kind of question is: float [n]."""
    often: dict[str, str] = {}
    of_train, labels = kinds_of(train), np.array([record.fields["label"] for record in train])
    for kind in np.unique(of_train):
        values, counts = np.unique(labels[of_train == kind], return_counts=True)
        often[str(kind)] = str(values[np.argmax(counts)])
    return np.array([float(often.get(record.fields[KIND]) == record.fields["label"]) for record in test])
