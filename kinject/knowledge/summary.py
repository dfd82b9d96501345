"""What a knowledge base holds, in numbers and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.manifest import blocks


def summarise(base: KnowledgeBase, examples: int = 3, neighbours: int = 4) -> dict[str, Any]:
    """Counts, coverage and the nearest neighbours of a few entities.

    Args:
      base: the knowledge base.
      examples: how many entities' neighbours are looked up: heads of the most triples, or else any, spread evenly.
      neighbours: of each.
    """
    import pyarrow.compute as pc

    total = base.size - len(base.overlay.removed)
    counts = {"vectors": base.size if base.has_vector is None else int(base.has_vector.sum())}
    counts |= {"labels": 0, "aliases": 0, "descriptions": 0}
    aliases = 0
    if base.entities is not None:
        for counted, column in (("labels", "label"), ("descriptions", "description")):
            counts[counted] = int(pc.sum(pc.not_equal(base.entities.column(column), "")).as_py() or 0)
        lengths = pc.list_value_length(base.entities.column("aliases"))
        aliases = int(pc.sum(lengths).as_py() or 0)
        counts["aliases"] = int(pc.sum(pc.greater(lengths, 0)).as_py() or 0)
    return {
        "name": base.name,
        **({"revision": base.revision, "removed": len(base.overlay.removed)} if base.revision else {}),
        "entities": total,
        "dim": base.dim,
        "dtype": base.manifest["dtype"],
        "with": counts,
        "share": {what: round(count / max(total, 1), 4) for what, count in counts.items()},
        "aliases": aliases,
        "triples": 0 if base.triples is None else len(base.triples),
        "relations": len(base.relations),
        **{key: base.manifest[key] for key in ("source", "license", "normalisation", "metrics", "fingerprint")},
        "provenance": base.manifest.get("provenance", {}),
        "neighbours": named_neighbours(base, _examples(base, examples), neighbours),
    }


def named_neighbours(base: KnowledgeBase, rows: Sequence[int], count: int) -> list[dict[str, Any]]:
    """The nearest neighbours of some rows as {"id", "label", "near": [{"id", "label", "cosine"}]}."""
    found = []
    for row, near in zip(rows, nearest(base, rows, count), strict=True):
        one = base.entity(row)
        others = [(base.entity(other), cosine) for other, cosine in near]
        near_by = [{"id": other.id, "label": other.label, "cosine": round(cosine, 3)} for other, cosine in others]
        found.append({"id": one.id, "label": one.label, "near": near_by})
    return found


def nearest(base: KnowledgeBase, rows: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
    """The `count` entities of highest cosine to each row, itself left out; reads the table once, block by block."""
    if not len(rows):
        return []
    asked, _ = base.gather(np.asarray(rows))
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-12)
    best_rows, best = np.zeros((len(rows), 0), np.int64), np.zeros((len(rows), 0), np.float32)
    for some in blocks(base.size, base.dim * 4):
        block = np.asarray(base.vectors[some], np.float32)
        lengths = np.linalg.norm(block, axis=1)
        cosines = asked @ block.T / np.maximum(lengths, 1e-12)
        numbers = np.arange(some.start, some.stop)
        there = lengths > 0 if base.has_vector is None else np.asarray(base.has_vector[some])
        cosines[:, ~there] = -np.inf
        cosines[np.asarray(rows)[:, None] == numbers] = -np.inf
        best = np.concatenate([best, cosines], axis=1)
        best_rows = np.concatenate([best_rows, np.broadcast_to(numbers, cosines.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, best_rows = np.take_along_axis(best, order, 1), np.take_along_axis(best_rows, order, 1)
    pairs = zip(best_rows.tolist(), best.tolist(), strict=True)
    return [[(row, one) for row, one in zip(some, scores, strict=True) if np.isfinite(one)] for some, scores in pairs]


def triples_of(base: KnowledgeBase, row: int, most: int) -> tuple[list[tuple[str, str, str]], int]:
    """The first triples that an entity stands in, as names, and how many there are."""
    found: list[np.ndarray] = []
    triples = np.empty((0, 3), np.int32) if base.triples is None else base.triples
    for some in blocks(len(triples), 12):
        block = np.asarray(triples[some])
        found.append(block[(block[:, 0] == row) | (block[:, 2] == row)])
    count = sum(map(len, found))
    relations = base.relations
    shown = [triple for part in found for triple in part[:most].tolist()][:most]
    name = lambda one: base.entity(one).label or base.ids([one])[0]  # noqa: E731
    return [(name(head), relations[relation]["id"], name(tail)) for head, relation, tail in shown], count


def _examples(base: KnowledgeBase, count: int) -> list[int]:
    """Rows worth showing: with a vector, and the heads of the most triples; without triples, spread evenly."""
    there = np.arange(base.size) if base.has_vector is None else np.flatnonzero(base.has_vector)
    if base.triples is None:
        return np.unique(there[np.linspace(0, len(there) - 1, min(count, len(there))).astype(int)]).tolist()
    degrees = np.zeros(base.size, np.int64)
    for some in blocks(len(base.triples), 12):
        degrees += np.bincount(np.asarray(base.triples[some])[:, 0], minlength=base.size)
    return there[np.argsort(-degrees[there], kind="stable")[:count]].tolist()
