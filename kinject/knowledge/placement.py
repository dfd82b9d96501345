"""Where a new entity lies in the space of a knowledge base, and how far that can be trusted.

Of triples: each says where the entity lies, given its other end (`votes`; for TransE tail - relation, or head +
relation). The vector is what all of them say together, each read by what triples of its relation tell and what not
(readings.py); where that is too large, their mean, weighed by how closely the triples of each relation fit. Of a
description: the stored TF-IDF and SVD. Of sentences: what a host put out at the mention, brought into the space by
ridge regression on known entities.

Trust is 1 - (expected squared error) / (variance of the space), from 0 to 1: of triples by how closely their relations
fit and how far the votes lie apart; of sentences by what the regression misses on entities that it did not see; of a
description the share of its words that the space knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from kinject.errors import InputError, first_line
from kinject.json_file import read_object
from kinject.knowledge.derived import derived_path, ensure_derived
from kinject.knowledge.described import Describer
from kinject.knowledge.readings import VoteReading, read_votes
from kinject.knowledge.space import GRAPHS, Part, describe_space, estimated_part, read_space, votes, write_space
from kinject.knowledge.view import View

TOLD = "space.json"
LEAST_READ = 20  # known entities that sentences must mention before those can place another


class Placed(NamedTuple):
    """How one entity was placed.

    Attributes:
      id: the entity.
      by: "triples", "description", "sentences", "given", several joined by "and"; "changed triples" where those moved
        it; or "" where it has no vector yet.
      evidence: how many triples or sentences said where it lies.
      waiting: triples of it that name entities which are not there, or have no vector.
      trust: 0 to 1; None for a vector that was given.
    """

    id: str
    by: str
    evidence: int = 0
    waiting: int = 0
    trust: float | None = None

    def __str__(self) -> str:
        if not self.by:
            return f"{self.id}: it has no vector yet; {self.waiting} of its triples wait for what they name"
        of = f" of {self.evidence}" if self.evidence else ""
        trust = "" if self.trust is None else f", trust {self.trust:.2f}"
        waiting = f", {self.waiting} of its triples wait" if self.waiting else ""
        return f"{self.id}: placed by {self.by}{of}{trust}{waiting}"


def parts_of(view: View) -> tuple[Part, ...]:
    """The parts of a base's space; those of a base that tells none are estimated once, and kept beside it.

    Raises:
      InputError: the space's file is damaged, or nothing can be written beside the folder.
    """
    if view.stored.parts is None:
        told = view.manifest.get("space") or {}
        view.stored.parts = read_space(view.stored.folder, told) if told.get("parts") else _estimated(view)
    return view.stored.parts


def _estimated(view: View) -> tuple[Part, ...]:
    """Translations out of the triples, for a base that does not say how its vectors were made."""
    stored = view.stored
    if stored.triples is None or not stored.relations:
        return ()

    def make(folder: Path) -> None:
        triples = np.asarray(stored.triples)
        triples = triples[stored.present(triples[:, 0]) & stored.present(triples[:, 2])]
        part = estimated_part(stored.vectors, triples, len(stored.relations))
        write_space(folder, [part])
        (folder / TOLD).write_text(json.dumps(describe_space([part])))

    try:
        folder = ensure_derived(view, "space", make)
    except OSError as error:
        where = derived_path(view, "space")
        raise InputError(where, f"cannot be made: {first_line(error)}", "make its parent folder writable") from None
    return read_space(folder, read_object(folder / TOLD))


class Evidence(NamedTuple):
    """Triples that say where entities lie.

    Attributes:
      own: int [E], which of the n entities.
      relations: int [E], indices.
      others: float32 [E, k], vectors of the other ends.
      as_head: bool [E], whether the entity is the head.
    """

    own: np.ndarray
    relations: np.ndarray
    others: np.ndarray
    as_head: np.ndarray


class Estimates(NamedTuple):
    """Vectors [n, k], zeros where nothing was found; how many spoke for each, int [n]; and trust float [n]."""

    vectors: np.ndarray
    counts: np.ndarray
    trust: np.ndarray


def by_triples(
    parts: Sequence[Part],
    dim: int,
    count: int,
    evidence: Evidence,
    readings: Mapping[int, VoteReading] = MappingProxyType({}),
) -> Estimates:
    """Places `count` entities by their triples; a triple of a relation that the space does not know says nothing.

    Args:
      parts: of the space.
      dim: k.
      count: n.
      evidence: the triples.
      readings: by number of a part how its votes are read; of one that has none the weighted mean of votes counts.
    """
    found = Estimates(np.zeros((count, dim), np.float32), np.zeros(count, np.int64), np.zeros(count))
    for number, part in enumerate(parts):
        if part.kind not in GRAPHS:
            continue
        spread = part.arrays["spread"]
        known = evidence.relations < spread.shape[1]
        known[known] = np.isfinite(spread[:, evidence.relations[known]]).all(axis=0)
        own, relations = evidence.own[known], evidence.relations[known]
        others = evidence.others[known, part.start : part.stop]
        as_head = evidence.as_head[known]
        made = votes(part, relations, others, as_head).astype(np.float64)
        weights = 1 / np.maximum(spread[as_head.astype(np.int64), relations].astype(np.float64), 1e-3) ** 2
        total, counts = np.bincount(own, weights, count), np.bincount(own, minlength=count)
        there = counts > 0
        mean = np.zeros((count, part.stop - part.start))
        np.add.at(mean, own, made * weights[:, None])
        mean[there] /= total[there, None]
        apart = np.bincount(own, weights * ((made - mean[own]) ** 2).mean(axis=1), count)
        several = np.maximum(counts - 1, 1) * np.maximum(total, 1e-12)
        error = np.maximum(1 / np.maximum(total, 1e-12), np.where(counts > 1, apart / several, 0))
        if number in readings and there.any():
            read = read_votes(readings[number], count, own, relations, made, as_head)
            found.vectors[there, part.start : part.stop] = read[there]
        else:
            found.vectors[there, part.start : part.stop] = mean[there]
        found.counts[:] = np.maximum(found.counts, counts)
        found.trust[there] = np.clip(1 - error[there] / max(float(part.arrays["variance"]), 1e-12), 0, 1)
    return found


def by_descriptions(parts: Sequence[Part], dim: int, texts: Sequence[str]) -> Estimates:
    """Places n entities by their descriptions; nothing is found where the space knows no such part, or no word."""
    found = Estimates(np.zeros((len(texts), dim), np.float32), np.zeros(len(texts), np.int64), np.zeros(len(texts)))
    for part in parts:
        if part.kind == "descriptions" and texts:
            made, trust = Describer(part).vectors(texts)
            found.vectors[:, part.start : part.stop] = made
            found.counts[:] = trust > 0
            found.trust[:] = trust
    return found


def by_sentences(view: View, read: Mapping[str, np.ndarray], ids: Sequence[str]) -> Estimates:
    """Places entities by what a host put out where sentences mention them.

    Args:
      view: the base; those of `read` that have a vector in it teach the regression.
      read: by id, float [n, D].
      ids: those to be placed.

    Raises:
      InputError: too few known entities are mentioned, or outputs of different sizes.
    """
    means = {one: np.asarray(some, np.float64).reshape(len(some), -1).mean(axis=0) for one, some in read.items()}
    if len({len(one) for one in means.values()}) > 1:
        raise InputError("sentences", "they were read by hosts of different sizes", "read them all with one host")
    known = [one for one, there in zip(means, view.present(view.rows(list(means))), strict=True) if there]
    if len(known) < LEAST_READ:
        problem = f"they mention {len(known)} entities that have a vector"
        raise InputError("sentences", problem, f"give sentences about {LEAST_READ} or more of them, to learn from")
    x = np.stack([means[one] for one in known])
    y = view.gather(view.rows(known))[0].astype(np.float64)
    new = np.stack([means[one] for one in ids])
    weights, start, end, error = ridge(x, y)
    made = (new - start) @ weights + end
    trust = np.full(len(ids), np.clip(1 - error / max(float(y.var(axis=0).mean()), 1e-12), 0, 1))
    return Estimates(made.astype(np.float32), np.array([len(read[one]) for one in ids]), trust)


def ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Ridge regression whose penalty has the least error on rows left out, of x [n, D] and y [n, k].

    Returns:
      (weights [D, k], where x is 0 [D], what that predicts [k], the mean squared error on rows left out): a prediction
      is (x - start) @ weights + end.
    """
    mean, y_mean, scale = x.mean(axis=0), y.mean(axis=0), x.std() + 1e-12
    left, values, right = np.linalg.svd((x - mean) / scale, full_matrices=False)
    best = (np.inf, 1.0)
    for penalty in np.geomspace(1e-3, 1e3, 13) * len(x):
        shrink = values**2 / (values**2 + penalty)
        hat = (left**2 * shrink).sum(axis=1) + 1 / len(x)  # leverage of each row, the mean's included
        missed = (y - y_mean - (left * shrink) @ (left.T @ (y - y_mean))) / np.maximum(1 - hat, 1e-6)[:, None]
        best = min(best, (float((missed**2).mean()), float(penalty)))
    error, chosen = best
    solved = right.T @ ((values / (values**2 + chosen))[:, None] * (left.T @ (y - y_mean)))
    return solved / scale, mean, y_mean, error
