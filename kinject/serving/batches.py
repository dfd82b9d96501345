"""Examples of one window -> batches of few shapes: sorted by length, padded to the rungs of a ladder.

Each shape is one compilation, so lengths, rows and the other axes that vary are rounded up. The ladder's rungs lie an
eighth to a quarter apart (a half at its foot), so sorted rows pad little: 19 of them reach 512 positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kinject.data.pipeline import NOWHERE, TOKENS, Batch, Examples, Feed, Gather

LEAST_LENGTH, FULL_LENGTH, LEAST_ENTITIES = 16, 64, 8
ENTITIES = ("entity_ids", "entity_vectors")


def ladder(longest: int) -> tuple[int, ...]:
    """The padded lengths: 16, 24, 32, …, 64, 80, 96, 112, 128, 160, … and `longest` at the end."""
    rungs, rung = [], LEAST_LENGTH
    while rung < longest:
        rungs.append(rung)
        rung += max(8, (1 << rung.bit_length() - 1) // 4)  # steps of 8, then of a quarter of the power of two below
    return (*rungs, longest)


def power_of_two(number: int) -> int:
    """The next power of two, 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


class Shapes:
    """Deals batches, and remembers how wide each array has been, so that shapes seldom change.

    Args:
      longest: positions that the host has.
      rows: B of a batch of short texts; see `rows_of`.
      parts: rows are a multiple of this (devices that share them).
    """

    def __init__(self, longest: int, rows: int, parts: int = 1):
        self.lengths, self.rows, self.parts = ladder(longest), rows, parts
        self._widths: dict[str, tuple[int, ...]] = {}

    def batches(self, examples: Examples, gather: Gather | None, pad_id: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields (numbers of the examples int [n], batch of B >= n rows), longest examples first."""
        feed = Feed(examples.with_arrays(_with_entities), gather)
        for number, bucket in enumerate(feed.examples.buckets):
            real = (bucket["segment_ids"] > 0).sum(-1)
            sizes = real.reshape(len(real), -1).max(1)
            order = np.argsort(sizes, kind="stable")
            stop = len(order)
            while stop:
                length = next(one for one in self.lengths if one >= sizes[order[stop - 1]])
                rows = self.rows_of(length, len(order))
                chosen = order[max(0, stop - rows) : stop]
                batch = feed.batch(number, np.pad(chosen, (0, rows - len(chosen)), mode="edge"))
                batch["weights"] = np.copy(batch["weights"])
                batch["weights"][len(chosen) :] = 0
                yield bucket["index"][chosen], self._fit(batch, length, pad_id)
                stop -= len(chosen)

    def rows_of(self, length: int, count: int) -> int:
        """B of a batch of this length: fewer rows the longer it is beyond `FULL_LENGTH`, and no more than are there."""
        most = self.rows
        if length > FULL_LENGTH:
            most = 1 << max(1, self.rows * FULL_LENGTH // length).bit_length() - 1
        rows = min(most, power_of_two(count))
        return -(-rows // self.parts) * self.parts

    def _fit(self, batch: Batch, length: int, pad_id: int) -> Batch:
        several = self._width("several", batch["token_ids"].shape[1:-1])  # such as the choices of a question
        fitted = {}
        for name, values in batch.items():
            if name in TOKENS:
                shape = (*several, length)
            elif name in ENTITIES:
                shape = (*several, *values.shape[1 + len(several) :])
            else:
                shape = self._width(name, values.shape[1:])
            fitted[name] = _fitted(values, shape, pad_id if name == "token_ids" else NOWHERE.get(name, 0))
        return fitted

    def _width(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape an array gets: what it had before where that is enough, else rounded up and remembered."""
        known = self._widths.get(name)
        if known is None:
            self._widths[name] = shape
        elif any(new > old for new, old in zip(shape, known, strict=True)):
            grown = (old if new <= old else power_of_two(new) for new, old in zip(shape, known, strict=True))
            self._widths[name] = tuple(grown)
        return self._widths[name]


def _with_entities(bucket: Batch) -> Batch:
    """`entity_ids` [..., M] with M one of few numbers, also where no example has an entity."""
    ids = bucket["entity_ids"]
    most = max(LEAST_ENTITIES, power_of_two(ids.shape[-1]))
    return {"entity_ids": _fitted(ids, (*ids.shape[1:-1], most), -1)}


def _fitted(values: np.ndarray, shape: tuple[int, ...], fill: int) -> np.ndarray:
    """The array, cut or widened behind its first axis."""
    if values.shape[1:] == shape:
        return values
    made = np.full((len(values), *shape), fill, values.dtype)
    inside = tuple(slice(0, min(one, other)) for one, other in zip(values.shape[1:], shape, strict=True))
    made[(slice(None), *inside)] = values[(slice(None), *inside)]
    return made
