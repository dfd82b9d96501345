"""Vectors of entities out of their triples: the graph is embedded, and held-out triples tell how well."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kinject.knowledge.graph import GraphConfig, train_graph
from kinject.knowledge.ranking import filtered_ranking

NORMALISATION = "centred, divided by the standard deviation of all numbers"


class GraphVectors(NamedTuple):
    """What an embedded graph says of its entities.

    Attributes:
      vectors: float32 [N, k], centred and divided by their standard deviation.
      seen: bool [N]: whether an entity stands in a triple; the vectors of others mean nothing.
      metrics: filtered MRR and hits of the held-out triples; empty where none were.
    """

    vectors: np.ndarray
    seen: np.ndarray
    metrics: dict[str, float]


def embed_triples(
    triples: np.ndarray,
    num_entities: int,
    num_relations: int,
    config: GraphConfig,
    *,
    seed: int,
    held_out: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> GraphVectors:
    """Embeds a graph.

    Args:
      triples: int32 [T, 3] of (head, relation, tail).
      num_entities: N.
      num_relations: R.
      config: how.
      seed: of the training, and of which triples are held out.
      held_out: at most so many triples are left out of the training and ranked.
      progress: called with the epoch and its mean loss.

    Raises:
      InputError: see `train_graph`.
    """
    apart, kept = hold_out(triples, held_out, seed)
    result = train_graph(triples[kept], num_entities, num_relations, config, seed=seed, progress=progress)
    metrics = filtered_ranking(result, triples[apart], triples) if len(apart) else {}
    return GraphVectors(result.standardised(), result.seen, metrics)


def hold_out(triples: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses triples to rank: indices (held out, kept). An entity keeps at least one triple as a head.

    Args:
      triples: int32 [T, 3].
      count: how many at most.
      seed: which.
    """
    order = np.random.default_rng(seed).permutation(len(triples))
    _, first = np.unique(triples[order, 0], return_index=True)  # one triple of each head stays
    spare = np.setdiff1d(np.arange(len(order)), first)
    held_out = order[np.sort(spare)[:count]]
    return held_out, np.setdiff1d(np.arange(len(triples)), held_out)
