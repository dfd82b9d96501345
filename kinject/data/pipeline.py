"""Encoded examples in length buckets, and the Grain pipeline that deals batches from them.

Rows of one bucket share a padded length, so a run compiles one step a bucket and computes little padding. The order
of batches is a function of the seed alone and random access: Grain's iterator state is one index, and a rerun sees
exactly the batches that an uninterrupted run would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kinject.data.shuffling import Permutations, Shuffle, place_seeds
from kinject.errors import InputError

if TYPE_CHECKING:
    import grain  # itself only where batches are dealt: it brings orbax, a third of a second that no answer needs

THREADS, AHEAD = 2, 2  # that make batches, and how many each makes before it is asked
ENDLESS = 1 << 60  # examples, which no run comes to the end of
Batch = dict[str, np.ndarray]
Gather = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Knowledge rows int32 [...] -> (vectors float32 [..., k], found bool [...])."""
Complete = Callable[[Batch, int], Batch]
"""(the rows of a batch, padded length of their bucket) -> the batch with what is only made when it is dealt."""
Redraw = Callable[[Batch, np.ndarray], Batch]
"""(a batch, int64 [B], a seed a row) -> the batch with what is drawn anew each time an example is dealt."""


def choose_buckets(lengths: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """At most `count` padded lengths that together pad the fewest tokens (exact, by dynamic programming).

    Args:
      lengths: the examples' lengths in tokens.
      count: how many buckets at most; each costs one compilation of the step.

    Returns:
      Ascending bucket lengths; the last one is the longest example's.
    """
    if count == 1:
        return [int(np.max(lengths))]
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    best = values * total[1:]  # padded tokens when the first i+1 distinct lengths share one bucket
    cuts: list[list[int]] = [[i] for i in range(len(values))]
    for _ in range(count - 1):
        wider, wider_cuts = best.copy(), list(cuts)
        for i in range(1, len(values)):
            cost = best[:i] + values[i] * (total[i + 1] - total[1 : i + 1])
            j = int(cost.argmin())
            if cost[j] < wider[i]:
                wider[i], wider_cuts[i] = cost[j], [*cuts[j], i]
        best, cuts = wider, wider_cuts
    return [int(values[i]) for i in cuts[-1]]


@dataclass(frozen=True)
class Parts:
    """How examples of several texts are evaluated text by text, so that texts of like lengths share a batch.

    Attributes:
      each: how many parts an example has.
      make: (examples, rows of a batch) -> their parts as examples: those of the first example, of the second, ….
      join: (arrays [n, …] that the step predicted of the parts, in their order; the examples) -> (mean loss, what is
        predicted of the examples).
    """

    each: int
    make: Callable[[Examples, int], Examples]
    join: Callable[[Mapping[str, np.ndarray], Examples], tuple[float, dict[str, np.ndarray]]]


def even(lengths: np.ndarray, rows: int) -> np.ndarray:
    """Lengths int [n], each raised to that of the longest of the `rows` of like length that will share its batch.

    Buckets of these lengths hold whole batches, so that evaluating them fills up one batch and not one a bucket.
    """
    order = np.argsort(lengths, kind="stable")
    last = np.minimum((np.arange(len(order)) // rows + 1) * rows, len(order)) - 1
    raised = np.empty_like(lengths)
    raised[order] = lengths[order[last]]
    return raised


@dataclass(frozen=True)
class Examples:
    """Examples ready for the device, one dict of arrays a bucket; every array's first axis counts examples.

    `index` in each bucket is the example's position in the order in which it was given, so that results computed
    bucket by bucket find their way back.

    Attributes:
      lengths: padded length of each bucket.
      complete: makes the arrays that are too large to be kept for all examples at once.
      parts: how an evaluation takes the examples apart; None = it computes them as they are.
      redraw: draws what is random in an example, such as which words are masked, from a seed a row.
      ordered: train in the given order, not in a shuffled one.
      record_index: int [n], of which of the records each example was made; None = the i-th of the i-th, or of several.
      notes: what became of the records, such as how many were dropped and why.
      references: what scoring reads beside predictions and no device sees, such as texts: one item an example, in the
        given order. `Task.score` finds it under its name.
    """

    buckets: tuple[Batch, ...]
    lengths: tuple[int, ...] = ()
    complete: Complete | None = None
    parts: Parts | None = None
    redraw: Redraw | None = None
    ordered: bool = False
    record_index: np.ndarray | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    references: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many examples there are, over all buckets."""
        return sum(len(bucket["index"]) for bucket in self.buckets)

    @property
    def fixed(self) -> bool:
        """Whether an example is the same each time it is dealt, so that what a host makes of it can be kept."""
        return self.complete is None and self.redraw is None

    def with_redraw(self, redraw: Redraw) -> Examples:
        """The same examples, whose arrays are drawn anew as they are dealt."""
        return replace(self, redraw=redraw)

    def with_arrays(self, make: Callable[[Batch], Mapping[str, np.ndarray]]) -> Examples:
        """The same examples with arrays added or replaced, bucket by bucket."""
        return replace(self, buckets=tuple({**bucket, **make(bucket)} for bucket in self.buckets))

    def in_order(self, key: str) -> np.ndarray:
        """The array `key` of all examples in their given order; its shape behind the first axis must not vary."""
        values = np.concatenate([bucket[key] for bucket in self.buckets])
        index = np.concatenate([bucket["index"] for bucket in self.buckets])
        ordered = np.empty_like(values)
        ordered[index] = values
        return ordered


def make_examples(
    lengths: Sequence[int] | np.ndarray,
    arrays: Callable[[Sequence[int], int], Mapping[str, np.ndarray]],
    *,
    buckets: int = 3,
) -> Examples:
    """Sorts examples into buckets.

    Args:
      lengths: tokens of each example.
      arrays: (indices of the examples of one bucket, padded length) -> dict of arrays [n, …], one row an example.
      buckets: how many bucket lengths at most.

    Raises:
      InputError: there is no example.
    """
    if not len(lengths):
        raise InputError("data set", "it holds no example that can be used")
    sizes = np.asarray(lengths)
    made, low = [], 0
    chosen = choose_buckets(sizes, buckets)
    for high in chosen:
        index = np.flatnonzero((sizes > low) & (sizes <= high))
        made.append({**arrays([int(i) for i in index], high), "index": index.astype(np.int32)})
        low = high
    return Examples(tuple(made), tuple(chosen))


def deal(batches: grain.MapDataset, threads: int = THREADS) -> grain.IterDataset:
    """Batches by number -> batches one after the other, made by some threads ahead of time."""
    import grain

    return batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * threads))


@dataclass(frozen=True)
class Feed:
    """Deals batches from examples; entity vectors are gathered as the batch is made, only those it needs.

    Attributes:
      examples: that are dealt.
      gather: their knowledge; None = they have none.
      shuffle: which version of the order of training batches, see shuffling.py.
    """

    examples: Examples
    gather: Gather | None = None
    shuffle: Shuffle = 1

    def batch(self, bucket: int, rows: np.ndarray, seeds: np.ndarray | None = None) -> Batch:
        """The batch of these rows (int [B]) of a bucket, weight 1 each; without seeds [B] a row's is its own index."""
        batch = {key: values[rows] for key, values in self.examples.buckets[bucket].items()}
        if self.examples.complete is not None:
            batch = self.examples.complete(batch, self.examples.lengths[bucket])
        if self.examples.redraw is not None:
            batch = self.examples.redraw(batch, batch["index"].astype(np.int64) if seeds is None else seeds)
        if self.gather is not None and batch.get("entity_ids", np.empty(0)).size:
            batch["entity_vectors"], _ = self.gather(batch["entity_ids"])
        batch.setdefault("weights", np.ones(len(rows), np.float32))
        return batch

    def training(
        self,
        batch_size: int,
        seed: int,
        threads: int = THREADS,
        share: np.ndarray | None = None,
        rows: int | None = None,
    ) -> grain.IterDataset:
        """The batches of `order`, dealt by some threads ahead of time; `share` int [n]: which rows of each to make."""
        return deal(self.order(batch_size, seed, share, rows), threads)

    def order(
        self, batch_size: int, seed: int, share: np.ndarray | None = None, rows: int | None = None
    ) -> grain.MapDataset:
        """Endless batches of `batch_size` examples by number, buckets mixed in proportion to their sizes.

        Examples are shuffled in each epoch, unless they are `ordered`. Which of them make up a batch depends on the
        seed and the batch's number alone, so the position is one number, whoever reads.

        Args:
          batch_size: examples of a batch.
          seed: of the order.
          share: int [n], which rows of each batch are made; None = all. The rest are other processes'.
          rows: of a batch; those beyond `batch_size` repeat its last example with weight 0, so that devices can share
            what does not divide by them. None = `batch_size`.

        Raises:
          InputError: ordered examples in several buckets, which have no common order.
        """
        import grain

        if self.examples.ordered and len(self.examples.buckets) > 1:
            raise InputError("fit.buckets", "examples are dealt in their own order, so they share one length", "set 1")
        extra = 0 if rows is None else rows - batch_size
        parts = [self._part(number, batch_size, seed, share, extra) for number in range(len(self.examples.buckets))]
        weights = [len(bucket["index"]) for bucket in self.examples.buckets]
        return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights=weights)

    def first_dealt(self, batch_size: int, seed: int) -> np.ndarray:
        """The `index` of the examples in the order in which `order` first deals them, int [n]; they must be fixed."""
        buckets = tuple({"index": bucket["index"]} for bucket in self.examples.buckets)
        order = Feed(replace(self.examples, buckets=buckets), shuffle=self.shuffle).order(batch_size, seed)
        batches = -(-self.examples.size // batch_size)  # an epoch of them; buckets may be a batch apart
        return np.concatenate([order[number]["index"] for number in range(batches)])

    def _part(self, number: int, batch_size: int, seed: int, share: np.ndarray | None, extra: int) -> grain.MapDataset:
        import grain

        count = len(self.examples.buckets[number]["index"])

        def mine(batch: np.ndarray) -> np.ndarray:
            filled = np.pad(batch, [(0, extra), *[(0, 0)] * (batch.ndim - 1)], mode="edge") if extra else batch
            return filled if share is None else filled[share]

        def weighed(batch: Batch) -> Batch:
            if not extra:
                return batch
            numbers = np.arange(batch_size + extra) if share is None else share
            return _weighed(batch, numbers < batch_size)

        if self.shuffle == 2:
            stream = Permutations(count, seed + number, ordered=self.examples.ordered)

            def dealt(batch: int) -> Batch:
                places = mine(np.arange(batch * batch_size, (batch + 1) * batch_size, dtype=np.int64))
                seeds = None if self.examples.redraw is None else place_seeds(seed + number, places)
                return weighed(self.batch(number, stream.rows(places), seeds))

            return grain.MapDataset.range(ENDLESS // batch_size).map(lambda batch: dealt(int(batch)))
        rows = grain.MapDataset.range(count).seed(seed + number)
        rows = rows if self.examples.ordered else rows.shuffle()
        # endless is a little more than `len` can tell of batches of one
        rows = rows.repeat() if batch_size > 1 else rows.repeat(ENDLESS // count)
        if self.examples.redraw is None:
            return rows.batch(batch_size).map(lambda rows: weighed(self.batch(number, mine(rows))))
        drawn = rows.random_map(lambda row, generator: np.array([row, generator.integers(2**62)]))
        return drawn.batch(batch_size).map(lambda pairs: weighed(self.batch(number, *mine(pairs).T)))

    def evaluation(self, batch_size: int, share: np.ndarray | None = None) -> Iterator[Batch]:
        """Every example once, in a fixed order; the last batch of a bucket is filled up with rows of weight 0.

        With `share` (int [n]), only those rows of each batch.
        """
        for number, bucket in enumerate(self.examples.buckets):
            size = len(bucket["index"])
            for start in range(0, size, batch_size):
                rows = np.arange(start, start + batch_size)
                rows = rows if share is None else rows[share]
                yield _weighed(self.batch(number, np.minimum(rows, size - 1)), rows < size)

    def with_examples(self, examples: Examples) -> Feed:
        """The same feed of other examples."""
        return replace(self, examples=examples)


def _weighed(batch: Batch, real: np.ndarray) -> Batch:
    """The batch [B, …], whose rows that are not `real` (bool [B]) count for nothing."""
    weights = batch["weights"]
    return {**batch, "weights": weights * real.astype(np.float32).reshape(-1, *[1] * (weights.ndim - 1))}


TOKENS = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")  # what each batch has of its positions
PER_POSITION = (*TOKENS, "answerable")  # their last axis is L


NOWHERE = {"entity_slot": -1, "entity_ids": -1, "fact_ids": -1}  # what stands where a batch was made wider; elsewhere 0
