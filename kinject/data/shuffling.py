"""The order in which examples are dealt, version 2: a permutation an epoch, drawn whole.

Version 1 is grain's: it finds the i-th row of an epoch by itself, without a list, by walking through at least 65,536
places until one is a row. That costs 12 microseconds a row of 5,000 and 900 of 30. A list of an epoch's rows is drawn
in less than the time of a step, and read at once for a whole batch. Both are functions of seed and place alone, so the
position of a run stays one number.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Shuffle = Literal[1, 2]
KEPT = 2  # epochs: a batch may reach from one into the next
WEYL, FIRST, SECOND = (np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Permutations:
    """An endless stream of the numbers below `count`, each once an epoch, in an order of its own in each.

    Threads may read it: two that draw one epoch draw the same.

    Args:
      count: of examples.
      seed: of all orders.
      ordered: whether all epochs are in the given order.
    """

    def __init__(self, count: int, seed: int, *, ordered: bool = False):
        self.count, self.seed, self.ordered = count, seed, ordered
        self._known: dict[int, np.ndarray] = {}

    def rows(self, places: np.ndarray) -> np.ndarray:
        """What stands at places int64 [n] of the stream, int64 [n]."""
        epochs, within = np.divmod(places, self.count)
        if self.ordered:
            return within
        first, last = int(epochs.min(initial=1 << 62)), int(epochs.max(initial=0))
        if first == last:
            return self._epoch(first)[within].astype(np.int64)
        made = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            made[here] = self._epoch(epoch)[within[here]]
        return made

    def _epoch(self, number: int) -> np.ndarray:
        found = self._known.get(number)
        if found is None:
            kind = np.int32 if self.count <= np.iinfo(np.int32).max else np.int64
            found = np.random.default_rng([self.seed, number]).permutation(np.arange(self.count, dtype=kind))
            kept = sorted(self._known)[1 - KEPT :]
            self._known = {**{one: self._known[one] for one in kept if one in self._known}, number: found}
        return found


def place_seeds(seed: int, places: np.ndarray) -> np.ndarray:
    """A seed for each place of a stream, int64 [n] of places int64 [n], 0 to 2^62 - 1 (Steele et al.'s SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = (places.astype(np.uint64) + np.uint64(1)) * WEYL + np.uint64(seed) * FIRST
        mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
        mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(2)).astype(np.int64)
