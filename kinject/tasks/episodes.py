"""Few-shot episodes: which sentences they draw, and the pairs of sentences that they ask about.

Episodes are drawn as the authors draw them, so that seeds name the same questions as in their tables. Their code
(Knowledge-Plugin, code/formatter/FewRel_formatter.py) seeds Python's generator with the episode's number and draws, in
this order: a sample of N of the relation names in sorted order; then, for each of these relations as they were drawn, a
sample of K + Q of its instance numbers, which is shuffled; the first K are the support, the rest are queries. A query's
class is the place of its relation among those drawn.

An episode asks every query against every support, so a sentence stands in many pairs. Keeping the pairs of thousands of
episodes would take gigabytes; in a `PairTable` a sentence is encoded once, and a pair is two numbers until its batch is
dealt.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Passage
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.tasks.base import slot_rows
from kinject.tasks.protocol import Protocol, untruncated


@dataclass(frozen=True)
class Setting:
    """N-way K-shot with Q queries a class."""

    n_way: int = 5
    k_shot: int = 1
    queries: int = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise InputError(f"task_options.{name}", f"it must be a whole number from 1, got {value!r}")


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
      seed: what it was drawn with.
      classes: names of the N relations, in the order drawn.
      supports: for each class the K instances that are shown, as places in the relation's list.
      queries: for each class the Q instances that are asked, none of them shown.
    """

    seed: int
    classes: tuple[str, ...]
    supports: tuple[tuple[int, ...], ...]
    queries: tuple[tuple[int, ...], ...]


def draw_episode(sizes: Mapping[str, int], setting: Setting, seed: int) -> Episode:
    """Draws one episode.

    Args:
      sizes: how many instances each relation has; see `check_pool`.
      setting: N, K, Q.
      seed: the episode's number.
    """
    draw = random.Random(seed)
    classes = draw.sample(sorted(sizes), setting.n_way)
    supports, queries = [], []
    for relation in classes:
        chosen = draw.sample(range(sizes[relation]), setting.k_shot + setting.queries)
        draw.shuffle(chosen)
        supports.append(tuple(chosen[: setting.k_shot]))
        queries.append(tuple(chosen[setting.k_shot :]))
    return Episode(seed, tuple(classes), tuple(supports), tuple(queries))


def check_pool(sizes: Mapping[str, int], setting: Setting, where: object) -> None:
    """Raises InputError where relations or their instances are too few for an episode."""
    if len(sizes) < setting.n_way:
        problem = f"field label: there are {len(sizes)} relations, an episode needs {setting.n_way}"
        raise InputError(where, problem, "lower task_options.n_way")
    need = setting.k_shot + setting.queries
    for relation, size in sizes.items():
        if size < need:
            problem = f"the relation {relation} has {size} sentences, an episode needs {need}"
            raise InputError(where, problem, "lower task_options.k_shot or queries, or drop the relation")


class PairTable:
    """Sentences, and the pairs that are made of them: `[CLS] query [SEP] support [SEP]`.

    Args:
      passages: the sentences, each without a pair.
      encoder: of the host; its `max_length` bounds a pair.
      knowledge: whose entities get slots; None for none.
      protocol: how text becomes tokens.
    """

    def __init__(
        self, passages: Sequence[Passage], encoder: EntityEncoder, knowledge: KnowledgeBase | None, protocol: Protocol
    ):
        self.passages, self.knowledge, self.protocol = passages, knowledge, protocol
        self.encoder = protocol.pair_encoder(encoder)
        whole = untruncated(self.encoder).encode_batch(passages, slot_rows(knowledge), bare_slots=protocol.bare_slots)
        tokenizer = self.encoder.tokenizer
        low, high = len(tokenizer.before), len(tokenizer.after)
        self.lengths = np.array([len(one) - low - high for one in whole], np.int32)
        shape = (len(whole), int(np.max(self.lengths, initial=1)))
        self.ids, self.slots = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
        self.entities = np.full((len(whole), max((len(one.entities) for one in whole), default=0)), -1, np.int32)
        for row, (one, size) in enumerate(zip(whole, self.lengths, strict=True)):
            self.ids[row, :size] = one.token_ids[low : low + size]
            self.slots[row, :size] = one.entity_slot[low : low + size]
            self.entities[row, : len(one.entities)] = one.entity_rows
        self.frame = len(tokenizer.before) + len(tokenizer.between) + len(tokenizer.after)
        self._shortened: dict[tuple[int, int], Encoded] = {}

    def lengths_of(self, queries: np.ndarray, supports: np.ndarray) -> np.ndarray:
        """Positions that pairs take once they are cut to `max_length`, int32 of the two arrays' common shape."""
        whole = self.lengths[queries] + self.lengths[supports] + self.frame
        return np.minimum(whole, self.encoder.max_length)

    def shorten(self, queries: np.ndarray, supports: np.ndarray) -> None:
        """Encodes those of the pairs that are too long, so that `compose` finds them; all pairs must have been seen.

        Raises:
          InputError: a pair of which the mentions alone do not fit, naming the query's file and line.
        """
        queries, supports = np.broadcast_arrays(queries, supports)
        over = self.lengths[queries] + self.lengths[supports] + self.frame > self.encoder.max_length
        pairs = list(dict.fromkeys(zip(queries[over].tolist(), supports[over].tolist(), strict=True)))
        passages = [
            Passage(
                self.passages[q].text,
                self.passages[q].mentions,
                self.passages[s].text,
                self.passages[s].mentions,
                where=self.passages[q].where,
            )
            for q, s in pairs
        ]
        rows = slot_rows(self.knowledge)
        encoded = self.encoder.encode_batch(passages, rows, bare_slots=self.protocol.bare_slots)
        self._shortened.update(zip(pairs, encoded, strict=True))

    def entity_ids(self, queries: np.ndarray, supports: np.ndarray) -> np.ndarray:
        """Knowledge rows of the entities of pairs, the query's first: int32 [..., M], -1 = none."""
        found = np.concatenate([self.entities[queries], self.entities[supports]], -1)
        for pair, one in self._among(queries, supports):
            found[pair] = -1
            found[pair][: len(one.entity_rows)] = one.entity_rows
        return found

    def compose(self, queries: np.ndarray, supports: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """What the encoder reads of pairs.

        Args:
          queries: numbers of sentences, int [...].
          supports: of the same shape.
          length: L.

        Returns:
          int32 `token_ids`, `segment_ids`, `position_ids`, `type_ids`, `entity_slot` [..., L].
        """
        tokenizer, place = self.encoder.tokenizer, np.arange(length, dtype=np.int32)
        first, second = self.lengths[queries][..., None], self.lengths[supports][..., None]
        at_query = place - len(tokenizer.before)
        at_support = at_query - first - len(tokenizer.between)
        in_query = (at_query >= 0) & (at_query < first)
        in_support = (at_support >= 0) & (at_support < second)
        real = place < first + second + self.frame

        def laid(table: np.ndarray, shift: int, fill: np.ndarray | np.int32) -> np.ndarray:
            query = _rows(table, queries, np.broadcast_to(at_query, in_query.shape))
            support = _rows(table, supports, at_support)
            support = np.where(support >= 0, support + shift, support)
            return np.where(in_query, query, np.where(in_support, support, fill)).astype(np.int32)

        frame = np.full(real.shape, tokenizer.pad_id, np.int32)
        for start, special in (
            (0, tokenizer.before),
            (len(tokenizer.before) + first, tokenizer.between),
            (len(tokenizer.before) + first + len(tokenizer.between) + second, tokenizer.after),
        ):
            for offset, piece in enumerate(special):
                frame = np.where(place == start + offset, piece, frame)
        arrays = {
            "token_ids": laid(self.ids, 0, frame),
            "segment_ids": real.astype(np.int32),
            "position_ids": np.where(real, place, 0).astype(np.int32),
            "type_ids": np.where(real & (at_support >= 0), tokenizer.pair_type, 0).astype(np.int32),
            "entity_slot": laid(self.slots, self.entities.shape[1], np.int32(-1)),
        }
        for pair, one in self._among(queries, supports):
            row = self.encoder.pad([one], length, len(one.entities))
            for name, values in arrays.items():
                values[pair] = row[name][0]
        return arrays

    def _among(self, queries: np.ndarray, supports: np.ndarray) -> list[tuple[tuple[int, ...], Encoded]]:
        """The pairs that had to be shortened: where they stand in the arrays, and what became of them."""
        over = np.argwhere(self.lengths[queries] + self.lengths[supports] + self.frame > self.encoder.max_length)
        places = [tuple(place) for place in over.tolist()]
        return [(place, self._shortened[int(queries[place]), int(supports[place])]) for place in places]


def _rows(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """`table[rows, columns]`, columns outside clipped: [..., L] of rows [...] and columns [..., L]."""
    return table[rows[..., None], np.clip(columns, 0, table.shape[1] - 1)]
