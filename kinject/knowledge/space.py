"""The vector space of a knowledge base: what a plugin is pinned to, and all that is needed to place new entities in it.

A space has parts, side by side along k, each made in one way:

    transe, rotate, distmult    relation vectors, and for each relation how far its triples are from fitting exactly
    descriptions                the words and components of TF-IDF and a truncated SVD

A base that says nothing of its space (one of given vectors, or one written before there were spaces) is a space of its
own, whose name is the fingerprint of what was built. Where it has triples, its relations are estimated as translations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinject.errors import NO_ARRAY, InputError, first_line

FILE = "space.npz"
GRAPHS = ("transe", "rotate", "distmult")
SAMPLE = 4096  # triples of a relation that its spread, and an estimated vector, are taken from


class Part(NamedTuple):
    """One way in which some of the numbers of a vector were made.

    Attributes:
      kind: "transe", "rotate", "distmult" or "descriptions".
      arrays: of a graph: `relations` [R, w], `mean` [d] and `deviation` [] of vectors before they were standardised,
        `variance` [] of those that are stored, `spread` [2, R] (see `graph_part`) and, of distmult, `gain` and `offset`
        [2, R, d]. Of descriptions: `words` and `tokenizer` uint8 (UTF-8), `idf` [W], `components` [d, W], `mean`,
        `deviation`.
      start, stop: which numbers of a vector.
    """

    kind: str
    arrays: Mapping[str, np.ndarray]
    start: int
    stop: int

    def moved(self, by: int) -> Part:
        """The part where it stands further on in a vector."""
        return self._replace(start=self.start + by, stop=self.stop + by)


def describe_space(parts: Sequence[Part]) -> dict[str, Any]:
    """What a manifest says of a space: {"id", "parts"}; the id is SHA-256 over the parts and all their numbers."""
    told = [{"kind": part.kind, "start": part.start, "stop": part.stop} for part in parts]
    digest = hashlib.sha256(json.dumps(told).encode())
    for part in parts:
        for name, array in sorted(part.arrays.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return {"id": digest.hexdigest(), "parts": told}


def write_space(folder: Path, parts: Sequence[Part]) -> None:
    """Writes the arrays of a space into a folder."""
    named: dict[str, Any] = {f"{i}.{name}": a for i, part in enumerate(parts) for name, a in part.arrays.items()}
    np.savez(folder / FILE, **named)


def read_space(folder: Path, told: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of a space, whose arrays are those that its id was made of.

    Raises:
      InputError: the file is damaged, or another one.
    """
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = dict(found)
        parts = tuple(
            Part(
                str(one["kind"]),
                {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{i}.")},
                int(one["start"]),
                int(one["stop"]),
            )
            for i, one in enumerate(told["parts"])
        )
    except (*NO_ARRAY, KeyError, TypeError) as error:
        raise InputError(path, f"cannot be read: {first_line(error)}", "copy the whole folder again") from None
    if describe_space(parts)["id"] != told.get("numbers", told["id"]):
        raise InputError(path, "it is not the space that knowledge.json names", "copy the whole folder again")
    return parts


def graph_part(
    kind: str,
    relations: np.ndarray,
    vectors: Any,
    triples: np.ndarray,
    *,
    mean: np.ndarray | None = None,
    deviation: float = 1.0,
) -> Part:
    """The part of a graph embedding.

    Args:
      kind: see `Part`.
      relations: float [R, w] as they were trained.
      vectors: float [N, d] as they are stored; read at the rows of a sample of the triples.
      triples: int [T, 3].
      mean: [d] of the vectors before they were standardised; None = zeros.
      deviation: of their numbers.

    Returns:
      The part, with `spread`: for tails and for heads of each relation the root mean square of what its triples miss,
      in stored numbers; not a number where it has no triple. A score of `distmult` grows with length, so its triples
      say no more than a direction: `gain` and `offset`, the regression of vectors on votes, make vectors of those.
    """
    dim = int(vectors.shape[1])
    arrays: dict[str, np.ndarray] = {
        "relations": np.asarray(relations, np.float32),
        "mean": np.zeros(dim, np.float32) if mean is None else np.asarray(mean, np.float32),
        "deviation": np.asarray(deviation, np.float32),
    }
    kinds = len(relations)
    spread = np.full((2, kinds), np.nan, np.float32)
    gain, offset = np.ones((2, kinds, dim), np.float32), np.zeros((2, kinds, dim), np.float32)
    part, ends = Part(kind, arrays, 0, dim), [np.zeros((0, dim), np.float32)]
    for index, some in sampled(triples, kinds):
        heads, tails = (np.asarray(vectors[some[:, side]], np.float32) for side in (0, 2))
        for as_head, (right, other) in enumerate(((tails, heads), (heads, tails))):
            made = votes(part, np.full(len(some), index), other, bool(as_head))
            if kind == "distmult":
                apart = made - made.mean(axis=0)
                slope = (apart * right).mean(axis=0) / ((apart**2).mean(axis=0) + 1e-6)
                gain[as_head, index], offset[as_head, index] = slope, right.mean(axis=0) - slope * made.mean(axis=0)
                made = made * slope + offset[as_head, index]
            spread[as_head, index] = np.sqrt(np.mean((made - right) ** 2))
            ends.append(right)
    more = {"gain": gain, "offset": offset} if kind == "distmult" else {}
    variance = np.asarray(np.concatenate(ends).var(axis=0).mean() if len(ends) > 1 else 1, np.float32)
    return part._replace(arrays={**arrays, "spread": spread, "variance": variance, **more})


def estimated_part(vectors: Any, triples: np.ndarray, relations: int) -> Part:
    """A translation for each relation: the mean of tail - head. `vectors` is anything whose rows can be read."""
    found = np.zeros((relations, int(vectors.shape[1])), np.float32)
    for index, some in sampled(triples, relations):
        heads, tails = (np.asarray(vectors[some[:, side]], np.float32) for side in (0, 2))
        found[index] = (tails - heads).mean(axis=0)
    return graph_part("transe", found, vectors, triples)


def sampled(triples: np.ndarray, relations: int) -> list[tuple[int, np.ndarray]]:
    """(relation, at most `SAMPLE` of its triples, evenly spread) for each that has any."""
    order = np.argsort(np.asarray(triples[:, 1]), kind="stable")
    starts = np.searchsorted(np.asarray(triples[:, 1])[order], np.arange(relations + 1))
    found = []
    for index, (start, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        if stop > start:
            places = np.unique(np.linspace(start, stop - 1, min(SAMPLE, stop - start)).astype(np.int64))
            found.append((index, np.asarray(triples[np.sort(order[places])])))
    return found


def votes(part: Part, relations: np.ndarray, others: np.ndarray, as_head: np.ndarray | bool) -> np.ndarray:
    """Where one end of a triple lies according to the other one.

    Args:
      part: of a graph.
      relations: int [n], indices.
      others: float [n, d], the other ends as they are stored.
      as_head: whether the end that is asked for is the head, bool [n] or one for all.

    Returns:
      float32 [n, d], as stored.
    """
    arrays = part.arrays
    mean, deviation = arrays["mean"], np.float32(arrays["deviation"])
    as_head = np.broadcast_to(np.asarray(as_head, bool), len(others))
    raw, relation = others * deviation + mean, arrays["relations"][relations]
    sign = np.where(as_head, np.float32(-1), np.float32(1))[:, None]
    if part.kind == "transe":
        raw = raw + sign * relation
    elif part.kind == "rotate":
        real, imaginary = np.split(raw, 2, axis=-1)
        cosine, sine = np.cos(relation), np.sin(sign * relation)
        raw = np.concatenate([real * cosine - imaginary * sine, real * sine + imaginary * cosine], axis=-1)
    else:
        raw = raw * relation
    made = (raw - mean) / deviation
    if "gain" in arrays:
        side = as_head.astype(np.int64)
        made = made * arrays["gain"][side, relations] + arrays["offset"][side, relations]
    return made.astype(np.float32)
