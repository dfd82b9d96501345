"""Filtered link prediction: how far up the right answer stands among all entities (Bordes et al. 2013, section 4.1)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kinject.errors import InputError
from kinject.knowledge.graph import METHODS, GraphConfig, GraphResult
from kinject.knowledge.triples import check_triples


def filtered_ranking(
    result: GraphResult, test_triples: np.ndarray, known_triples: np.ndarray, batch: int = 64
) -> dict[str, float]:
    """Ranks the tail and the head of every test triple among all entities.

    Other answers that are known to be right are left out of the ranking; the test triples count as known. Entities that
    score exactly the same share their mean rank, so that a model which says the same of all is not rewarded.

    Args:
      result: from `train_graph`.
      test_triples: integer [T, 3].
      known_triples: integer [S, 3], all that is known to be right: train, validation and test.
      batch: triples scored at once, against all N entities: batch x N float32 in memory.

    Returns:
      "mrr", "hits@1", "hits@3" and "hits@10", between 0 and 1, over 2 T rankings.

    Raises:
      InputError: triples of another shape or pointing outside; vectors that are not finite.
    """
    ranks = filtered_ranks(result, test_triples, known_triples, batch)
    hits = {f"hits@{n}": float((ranks <= n).mean()) for n in (1, 3, 10)}
    return {"mrr": float((1 / ranks).mean()), **hits}


def filtered_ranks(
    result: GraphResult, test_triples: np.ndarray, known_triples: np.ndarray, batch: int = 64
) -> np.ndarray:
    """Ranks behind `filtered_ranking`, from 1, float64 [T, 2]: of the tail, of the head."""
    size, kinds = len(result.vectors), len(result.relations)
    if not (np.isfinite(result.vectors).all() and np.isfinite(result.relations).all()):
        raise InputError("filtered_ranking", "the vectors are not all finite", "train again with a lower learning rate")
    if batch < 1:
        raise InputError("filtered_ranking", f"batch is {batch}", "it must be above 0")
    test = check_triples("test_triples", test_triples, size, kinds)
    known = np.concatenate([check_triples("known_triples", known_triples, size, kinds), test])
    vectors, relations = jnp.asarray(result.vectors), jnp.asarray(result.relations)
    ranks = np.empty((len(test), 2))
    for side, (asked, given) in enumerate(((2, 0), (0, 2))):
        answers = _Answers(known[:, given], known[:, 1], known[:, asked], kinds)
        for start in range(0, len(test), batch):
            some = test[start : start + batch]
            padded = np.resize(some, (batch, 3))  # one shape, one compilation
            rows, entities = answers.of(some[:, given], some[:, 1], batch)
            greater, equal = _count(
                vectors,
                relations,
                padded[:, given],
                padded[:, 1],
                padded[:, asked],
                rows,
                entities,
                side,
                result.config,
            )
            better, ties = np.asarray(greater, np.float64), np.asarray(equal, np.float64)
            ranks[start : start + batch, side] = (1 + better + ties / 2)[: len(some)]
    return ranks


class _Answers:
    """Known answers by question, sorted once, so that a batch of questions costs two binary searches each."""

    def __init__(self, given: np.ndarray, relation: np.ndarray, answer: np.ndarray, kinds: int):
        self._kinds = kinds
        questions = self._question(given, relation)
        order = np.argsort(questions, kind="stable")
        self._questions, self._answers = questions[order], answer[order]

    def _question(self, given: np.ndarray, relation: np.ndarray) -> np.ndarray:
        return given.astype(np.int64) * self._kinds + relation

    def of(self, given: np.ndarray, relation: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (question of the batch, answer) pairs, padded to a power of two with questions beyond the batch."""
        question = self._question(given, relation)
        start = np.searchsorted(self._questions, question, side="left")
        stop = np.searchsorted(self._questions, question, side="right")
        lengths = stop - start
        rows = np.repeat(np.arange(len(question)), lengths)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        answers = self._answers[np.repeat(start, lengths) + offsets]
        width = 1 << max(8, int(len(rows) - 1).bit_length())
        pad = width - len(rows)
        return np.pad(rows, (0, pad), constant_values=batch).astype(np.int32), np.pad(answers, (0, pad))


@partial(jax.jit, static_argnames=("side", "config"))
def _count(
    vectors: jax.Array,
    relations: jax.Array,
    given: jax.Array,
    relation: jax.Array,
    target: jax.Array,
    known_rows: jax.Array,
    known_entities: jax.Array,
    side: int,
    config: GraphConfig,
) -> tuple[jax.Array, jax.Array]:
    """Counts, for each of B questions, the entities that score above the target, and the others that score the same."""
    method = METHODS[config.method]
    ask = method.ask_head if side else method.ask_tail
    scores = method.score(ask(vectors[given], relations[relation]), vectors, config.gamma)
    right = jnp.take_along_axis(scores, target[:, None], axis=1)
    scores = scores.at[known_rows, known_entities].set(-jnp.inf, mode="drop")  # takes the target out as well
    return (scores > right).sum(1), (scores == right).sum(1)
