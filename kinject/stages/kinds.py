"""A table by kind of question, where the records say of which kind each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinject.data.records import KIND, Record, first_entity
from kinject.errors import InputError

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
