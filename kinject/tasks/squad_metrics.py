"""Scores of answers as SQuAD's evaluation scripts compute them.

Answers are compared without case, punctuation, articles and extra white space: exact match and token F1 (Rajpurkar et
al., EMNLP 2016). Where a question may have none (SQuAD 2.0; Rajpurkar et al., ACL 2018), a model answers nothing where
its doubt, the score of no answer less that of its best answer, is above a threshold. An answer of nothing is worth 1
where there is none, else 0. Beside the score at a threshold that was given, the protocol has the best that any
threshold gives. That one was chosen on the very questions: it bounds, and measures nothing.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """The answer in lower case without ASCII punctuation, the words a, an and the, and extra white space."""
    plain = answer.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(answer: str, right: str) -> float:
    """1.0 where both are the same, normalised, else 0.0."""
    return float(normalised(answer) == normalised(right))


def token_f1(answer: str, right: str) -> float:
    """F1 over the words of both, normalised and counted as often as they occur; of two empty answers 1.0."""
    ours, theirs = normalised(answer).split(), normalised(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def best(measure: Callable[[str, str], float], answer: str, rights: Sequence[str]) -> float:
    """The measure against the right answer that it fits best."""
    return max(measure(answer, right) for right in rights)


def best_threshold(doubt: np.ndarray, worth: np.ndarray, unanswerable: np.ndarray) -> tuple[float, float]:
    """The best mean worth that a threshold gives, and the threshold: the lowest, where several give it.

    Args:
      doubt: float [n], finite.
      worth: float [n]: of the answer that is given where the doubt is not above the threshold.
      unanswerable: bool [n].
    """
    order = np.argsort(doubt, kind="stable")
    gain = np.cumsum(worth[order] - unanswerable[order])
    sums = unanswerable.sum() + np.concatenate([[0.0], gain])  # by how many are answered, the surest first
    levels = np.concatenate([[doubt[order[0]] - 1.0], doubt[order]])
    possible = np.append(levels[1:] != levels[:-1], True)  # those of one doubt are answered together
    best = np.flatnonzero(possible)[sums[possible].argmax()]
    return float(sums[best] / len(doubt)), float(levels[best])


def null_scores(
    doubt: np.ndarray, worth: Mapping[str, np.ndarray], unanswerable: np.ndarray, threshold: float
) -> dict[str, float]:
    """Every measure over all questions, over those with and without an answer, and at its best threshold.

    Args:
      doubt: float [n].
      worth: measure -> float [n] of the answers that are given where they are.
      unanswerable: bool [n].
      threshold: of the doubt above which nothing is answered.

    Returns:
      For a measure m: `m`, `answerable_m`, `unanswerable_m` (where there are such questions), `best_m` and
      `best_m_threshold`.
    """
    found = {}
    for name, values in worth.items():
        final = np.where(doubt > threshold, unanswerable.astype(float), values)
        found[name] = float(final.mean())
        for group, chosen in (("answerable", ~unanswerable), ("unanswerable", unanswerable)):
            if chosen.any():
                found[f"{group}_{name}"] = float(final[chosen].mean())
        found[f"best_{name}"], found[f"best_{name}_threshold"] = best_threshold(doubt, values, unanswerable)
    return found
