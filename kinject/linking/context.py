"""Which of several entities a mention means, by the company it keeps.

Each mention expects a vector: the mean of its candidates' unit vectors, weighed by how likely they are beforehand. The
context of a mention is the direction of the sum of what the others with another name expect. A candidate's logit is the
logarithm of its prior share plus `strength` times the cosine of its vector and the context: one step of mean-field
inference of a model in which linked entities attract each other. Candidates without a vector have the cosine 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kinject.knowledge.base import KnowledgeBase

MOST = 32  # candidates of a mention that are looked at: the likeliest beforehand


class Candidates(NamedTuple):
    """The entities that one mention may mean.

    Attributes:
      name: what stands in the text, folded; a name is no context of itself.
      rows: rows of the knowledge base, the likeliest first.
      shares: how likely each is beforehand; they sum to 1.
    """

    name: str
    rows: Sequence[int]
    shares: Sequence[float]


def choose(base: KnowledgeBase, mentions: Sequence[Candidates], strength: float) -> list[tuple[int, float]]:
    """Chooses an entity for each mention of a text; returns their rows, and how likely they are with the context."""
    if len(mentions) < 2 or all(len(one.rows) == 1 for one in mentions):
        return [(one.rows[0], one.shares[0]) for one in mentions]
    kept = [one._replace(rows=one.rows[:MOST], shares=one.shares[:MOST]) for one in mentions]
    ends = np.cumsum([len(one.rows) for one in kept])
    units = _unit_vectors(base, np.concatenate([one.rows for one in kept]))
    shares = np.concatenate([one.shares for one in kept]).astype(np.float32)
    expected = np.add.reduceat(units * shares[:, None], np.concatenate([[0], ends[:-1]]))
    names = {one.name: number for number, one in enumerate(kept)}  # of several mentions with one name the last
    total = expected[list(names.values())].sum(0)
    chosen = []
    for one, end in zip(kept, ends.tolist(), strict=True):
        context = total - expected[names[one.name]]
        length = float(np.linalg.norm(context))
        if len(one.rows) == 1 or length < 1e-6:
            chosen.append((one.rows[0], one.shares[0]))
            continue
        first = end - len(one.rows)
        logits = np.log(shares[first:end]) + strength * (units[first:end] @ context) / length
        odds = np.exp(logits - logits.max())
        best = int(odds.argmax())
        chosen.append((one.rows[best], float(odds[best] / odds.sum())))
    return chosen


def _unit_vectors(base: KnowledgeBase, rows: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32 [n, k]; zeros where there is none."""
    vectors, _ = base.gather(rows)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
