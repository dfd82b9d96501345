"""What the triples of a relation tell about a vector, and what they do not: learned from those that are there.

That a city is small says little of where it lies, and its country nothing of its size: a vote (`space.votes`) is right
in some directions and empty in others. For each relation and direction votes are regressed on the vectors of the
entities that they are about, vote = W v + c + noise, and a new vector is the mean of what all its votes and the spread
of known vectors say together (a linear Gaussian model, in closed form). It takes any selection of relations. Of several
triples of one relation the mean vote counts once.

Votes are not independent, as that model has it: region, time zone and neighbours all repeat the country, and would
drown what one relation tells alone. So each relation's votes count by a weight of their own, with which known entities
are placed best (a composite likelihood; Varin, Reid & Firth 2011).

Learned once, from a sample of each relation, and kept beside the knowledge base in `<knowledge base>.readings/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kinject.json_file import read_object
from kinject.knowledge.derived import ensure_derived
from kinject.knowledge.space import GRAPHS, Part, describe_space, read_space, sampled, votes, write_space
from kinject.knowledge.view import View

INDEX, TOLD = "readings", "readings.json"
WIDEST, LARGEST = 128, 256 << 20  # numbers of a vector, and bytes of a reading, beyond which there is none
TOGETHER = 256  # entities whose equations are solved at once
LEAST = 1e-3  # of a standard deviation: what noise is never taken to be below
VERSION = 2  # of how they are learned; those of another are learned anew
KNOWN, MOST_VOTES = 512, 1 << 17  # entities that weights are learned from, and votes about them at the most
LEAST_KNOWN, WORK = 32, 1 << 25  # fewer where a step would take more numbers than that, but no fewer than these
STEPS, RATE = 25, 0.3  # of Adam, on the logarithms of the weights
HELD = 0.03  # strength of a decay of these logarithms, beside the error of entities relative to the variance


class VoteReading(NamedTuple):
    """How the votes of a part's relations are read, R relations and d numbers.

    Attributes:
      pull: W' S^-1 W, float32 [2, R, d, d], first of tails and then of heads; S is the covariance of the noise.
      gain: W' S^-1, float32 [2, R, d, d].
      offset: c, float32 [2, R, d].
      prior: inverse of the covariance of known vectors, float32 [d, d]; `centre` their mean [d].
    """

    pull: np.ndarray
    gain: np.ndarray
    offset: np.ndarray
    prior: np.ndarray
    centre: np.ndarray


def read_votes(
    reading: VoteReading, count: int, own: np.ndarray, relations: np.ndarray, made: np.ndarray, as_head: np.ndarray
) -> np.ndarray:
    """Places `count` entities by votes.

    Args:
      reading: of the part.
      count: n.
      own: int [E], whose vote each is.
      relations: int [E].
      made: the votes, float [E, d].
      as_head: bool [E].

    Returns:
      float64 [n, d]; the centre for who has no vote.
    """
    of, sides, which, mean = _grouped(reading.pull.shape[1], own, relations, made, as_head)
    found = np.empty((count, made.shape[1]))
    prior, start = reading.prior.astype(np.float64), reading.prior.astype(np.float64) @ reading.centre
    for low in range(0, count, TOGETHER):
        some = min(TOGETHER, count - low)
        left, right = np.repeat(prior[None], some, 0), np.repeat(start[None], some, 0)
        for at in range(*np.searchsorted(of, [low, low + some]).tolist()):
            key = sides[at], which[at]
            left[of[at] - low] += reading.pull[key]
            right[of[at] - low] += reading.gain[key] @ (mean[at] - reading.offset[key])
        found[low : low + some] = np.linalg.solve(left, right[..., None])[..., 0]
    return found


def _grouped(
    kinds: int, own: np.ndarray, relations: np.ndarray, made: np.ndarray, as_head: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean vote of each relation and side about each entity: (whose, side, relation, vote [G, d]), by entity."""
    groups, inverse = np.unique((own * 2 + as_head) * kinds + relations, return_inverse=True)
    mean = np.zeros((len(groups), made.shape[1]))
    np.add.at(mean, inverse, made)
    mean /= np.bincount(inverse)[:, None]
    return groups // kinds // 2, groups // kinds % 2, groups % kinds, mean


def learn(part: Part, vectors: np.ndarray, triples: np.ndarray) -> VoteReading | None:
    """Learns how the votes of a graph's part are read; None where that would be too large.

    Args:
      part: of the graph.
      vectors: anything whose rows [d] of the part can be read.
      triples: int [T, 3] whose ends both have a vector.
    """
    kinds, size = part.arrays["spread"].shape[1], part.stop - part.start
    triples = triples[triples[:, 1] < kinds]  # relations that came later tell the space nothing
    if size > WIDEST or 4 * kinds * size * size * 4 > LARGEST or not len(triples):
        return None
    pull, gain = (np.zeros((2, kinds, size, size), np.float32) for _ in range(2))
    offset, seen = np.zeros((2, kinds, size), np.float32), []
    floor = LEAST**2 * float(part.arrays["variance"])
    for index, some in sampled(triples, kinds):
        ends = [np.asarray(vectors[some[:, side]], np.float64)[:, part.start : part.stop] for side in (0, 2)]
        for as_head, (right, other) in enumerate(((ends[1], ends[0]), (ends[0], ends[1]))):
            made = votes(part, np.full(len(some), index), other.astype(np.float32), bool(as_head))
            parts_of = _likelihood(right, made.astype(np.float64), floor)
            pull[as_head, index], gain[as_head, index], offset[as_head, index] = parts_of
            seen.append(right)
    known = np.concatenate(seen)
    centre, covariance = known.mean(axis=0), _shrunk(np.cov(known.T).reshape(size, size), len(known))
    prior = np.linalg.inv(covariance).astype(np.float32)
    return _weighed(part, VoteReading(pull, gain, offset, prior, centre.astype(np.float32)), vectors, triples)


def _weighed(part: Part, reading: VoteReading, vectors: np.ndarray, triples: np.ndarray) -> VoteReading:
    """The reading with the votes of each relation and side weighed so that known entities are placed best.

    The squared error of a sample of heads falls by Adam; a weight of which few of them tell stays near 1.
    """
    draw = np.random.default_rng(0)
    some = np.unique(triples[draw.integers(len(triples), size=KNOWN), 0])
    true = np.asarray(vectors[some], np.float64)[:, part.start : part.stop]
    votes_of = _votes_about(part, some, vectors, triples, draw)
    of, sides, which, mean = _grouped(reading.pull.shape[1], *votes_of)
    most = max(LEAST_KNOWN, len(some) * (WORK // true.shape[1] ** 2) // len(of))
    if most < len(some):
        kept = np.sort(draw.permutation(len(some))[:most])
        here = np.isin(of, kept)
        of, sides, which, mean = np.searchsorted(kept, of[here]), sides[here], which[here], mean[here]
        some, true = some[kept], true[kept]
    keys, key = np.unique(np.stack([sides, which]), axis=1, return_inverse=True)
    members = [np.flatnonzero(key.ravel() == number) for number in range(keys.shape[1])]
    pulls = reading.pull[keys[0], keys[1]].astype(np.float64)
    shift = np.empty_like(mean)
    for (side, kind), rows in zip(keys.T, members, strict=True):
        shift[rows] = (mean[rows] - reading.offset[side, kind]) @ reading.gain[side, kind].T
    prior = reading.prior.astype(np.float64)
    scale = max(float(true.var(axis=0).sum()), 0.1 * float(np.trace(np.linalg.inv(prior))))  # heads may be all alike
    logs, first, second = (np.zeros(len(members)) for _ in range(3))
    for step in range(1, STEPS + 1):
        left, right = np.repeat(prior[None], len(some), 0), np.repeat((prior @ reading.centre)[None], len(some), 0)
        for weight, pull, rows in zip(np.exp(logs), pulls, members, strict=True):
            left[of[rows]] += weight * pull
            right[of[rows]] += weight * shift[rows]
        placed = np.linalg.solve(left, right[..., None])[..., 0]
        back = np.linalg.solve(left, (placed - true)[..., None])[..., 0]
        missed = [shift[rows] - placed[of[rows]] @ pull for pull, rows in zip(pulls, members, strict=True)]
        slopes = [(back[of[rows]] * one).sum() for rows, one in zip(members, missed, strict=True)]
        slope = 2 * (np.exp(logs) * np.array(slopes) / scale + HELD * logs)
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        rate = RATE * (1 - (step - 1) / STEPS)
        logs -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-12)
    weights = np.ones(reading.pull.shape[:2], np.float32)
    weights[keys[0], keys[1]] = np.exp(logs)
    scaled = weights[:, :, None, None]
    return reading._replace(pull=reading.pull * scaled, gain=reading.gain * scaled)


def _votes_about(
    part: Part, some: np.ndarray, vectors: np.ndarray, triples: np.ndarray, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Votes about the entities `some`, sorted rows, as `read_votes` takes them: whose, relations, votes, as head."""
    found: tuple[list[np.ndarray], ...] = ([], [], [], [])
    for as_head, (side, other) in enumerate(((2, 0), (0, 2))):
        here = np.flatnonzero(np.isin(triples[:, side], some))
        here = np.sort(draw.permutation(here)[:MOST_VOTES])
        told = triples[here]
        ends = np.asarray(vectors[told[:, other]], np.float32)[:, part.start : part.stop]
        heads = np.full(len(told), bool(as_head))
        made = votes(part, told[:, 1], ends, heads).astype(np.float64)
        for known, one in zip(found, (np.searchsorted(some, told[:, side]), told[:, 1], made, heads), strict=True):
            known.append(one)
    own, relations, made, heads = (np.concatenate(one) for one in found)
    return own, relations, made, heads


def _likelihood(true: np.ndarray, made: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W' S^-1 W, W' S^-1 and c of votes made = W true + c + noise, shrunk towards W = 1 and noise that is alike."""
    size, count = true.shape[1], len(true)
    mean, middle = true.mean(axis=0), (made - true).mean(axis=0)
    x, beyond = true - mean, made - true - middle
    penalty = size * max(float((x**2).mean()), floor, 1e-12)
    slope = np.linalg.solve(x.T @ x + penalty * np.eye(size), x.T @ beyond)
    weights = np.eye(size) + slope.T
    missed = beyond - x @ slope
    noise = _shrunk(missed.T @ missed / count, count) + floor * np.eye(size)
    gain = np.linalg.solve(noise, weights).T
    # of few triples the mean miss is noise as well
    offset = (middle - slope.T @ mean) * count / (count + size)
    return gain @ weights, gain, offset


def _shrunk(covariance: np.ndarray, count: int) -> np.ndarray:
    """A covariance [d, d] of few rows, towards one that is alike in all directions."""
    size = len(covariance)
    alike = max(float(np.trace(covariance)) / size, 1e-12) * np.eye(size)
    return (count * covariance + size * alike) / (count + size)


def readings_of(view: View, parts: Sequence[Part]) -> dict[int, VoteReading]:
    """By the number of each part of a graph how its votes are read; learned first where it is not there yet."""
    stored = view.stored
    if stored.readings is None:
        stored.readings = _opened(view, parts) if any(part.kind in GRAPHS for part in parts) else {}
    return stored.readings


def _opened(view: View, parts: Sequence[Part]) -> dict[int, VoteReading]:
    if view.stored.triples is None or not view.stored.relations:
        return {}
    made: list[Part] = []

    def make(folder: Path) -> None:
        made[:] = _learned(view, parts)
        write_space(folder, made)
        (folder / TOLD).write_text(json.dumps(describe_space(made) | {"version": VERSION}))

    try:
        folder = ensure_derived(view, INDEX, make)
        if not made and read_object(folder / TOLD).get("version") != VERSION:
            shutil.rmtree(folder)
            folder = ensure_derived(view, INDEX, make)
    except OSError:  # nothing can be written beside the base: it is learned again the next time
        made = made or _learned(view, parts)
    else:
        made = list(read_space(folder, read_object(folder / TOLD)))
    return {int(part.kind): VoteReading(**part.arrays) for part in made}


def _learned(view: View, parts: Sequence[Part]) -> list[Part]:
    """The readings of the graphs among some parts, as parts whose kind is the number of the graph's."""
    stored = view.stored
    triples = np.asarray(stored.triples)
    triples = triples[stored.present(triples[:, 0]) & stored.present(triples[:, 2])]
    graphs = [(number, part) for number, part in enumerate(parts) if part.kind in GRAPHS]
    found = [(number, part, learn(part, stored.vectors, triples)) for number, part in graphs]
    return [Part(str(number), reading._asdict(), part.start, part.stop) for number, part, reading in found if reading]
