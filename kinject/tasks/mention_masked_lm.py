"""Mention-masked language modelling: general map-tuning's objective (Zhang et al., ACL 2023, section 3.2).

Every piece of a masked mention becomes [MASK]; its slot and slash stay, so the map must carry what the vector knows of
the mention. Two mentions give three examples: both masked, the tail masked, the head masked. A sentence in which no
mention has a vector says nothing about the map and is skipped, as is one that does not fit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Mention, Passage
from kinject.data.pipeline import Examples, make_examples
from kinject.errors import InputError
from kinject.tasks.base import register_task
from kinject.tasks.masked_pieces import MaskedPieces, per_piece
from kinject.tasks.shapes import Extent, Shapes
from kinject.tasks.slots import entity_count, first_span, slot_rows

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase


def masking_variants(mentions: Sequence[Mention]) -> Iterator[tuple[Mention, ...]]:
    """All ways to mask that the objective trains on: all mentions; then, of several, each one alone.

    For two mentions these are the paper's three. (With more, subsets would be exponential.)
    """
    yield tuple(replace(mention, masked=True) for mention in mentions)
    if len(mentions) > 1:
        for hidden in reversed(range(len(mentions))):
            yield tuple(replace(mention, masked=number == hidden) for number, mention in enumerate(mentions))


def never(sides: object, excess: int, mask_id: int) -> None:
    """Of a passage that is too long nothing may go (see data/truncate.py)."""
    del sides, excess, mask_id


@register_task("mention_masked_lm")
class MentionMaskedLM(MaskedPieces):
    """Predict the pieces of masked mentions.

    Args:
      slots: False trains and measures without slots, on the very same sentences: the control.
      metric: of an evaluation: the negative loss, so that larger is better.
    """

    metric = "negative_loss"

    def __init__(self, slots: bool = True):
        self.slots = slots

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        return self._examples(*self._encode(records, encoder, knowledge, self.slots), encoder, buckets)

    def bare_examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """Without slots, but of the very sentences that have them with `knowledge`."""
        return self._examples(*self._encode(records, encoder, knowledge, slots=False), encoder, buckets)

    def _examples(self, encoded: list[Encoded], owners: list[int], encoder: EntityEncoder, buckets: int) -> Examples:
        if not encoded:
            raise InputError("data set", "no sentence has a mention with a vector that fits into max_length")

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            places = max(len(one.mask_positions) for one in rows)
            positions, labels = np.zeros((2, len(rows), places), np.int32)
            weights = np.zeros((len(rows), places), np.float32)
            for row, one in enumerate(rows):
                count = len(one.mask_positions)
                positions[row, :count], labels[row, :count] = one.mask_positions, one.label_ids
                weights[row, :count] = 1
            padded = encoder.pad(rows, length, entity_count(rows))
            spans = np.stack([first_span(one) for one in rows])
            return {**padded, "positions": positions, "labels": labels, "weights": weights, "mention_spans": spans}

        return replace(
            make_examples([len(one) for one in encoded], arrays, buckets=buckets), record_index=np.array(owners)
        )

    def _encode(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, slots: bool
    ) -> tuple[list[Encoded], list[int]]:
        """The sentences that can be used, masked in all ways, and of which record each was made."""
        encoder = copy.copy(encoder)
        encoder.truncate = never  # a shortened sentence may have lost what tells the mention
        variants = [
            (Passage(record.source, mentions, where=record.where), number)
            for number, record in enumerate(records)
            if record.mentions
            for mentions in masking_variants(record.mentions)
        ]
        passages = [passage for passage, _ in variants]
        rows = slot_rows(knowledge)
        encoded = encoder.encode_batch(passages, rows, skip_overlong=True)
        kept = [
            (passage, number, one)
            for (passage, number), one in zip(variants, encoded, strict=True)
            if one is not None and (knowledge is None or len(one.entities)) and len(one.mask_positions)
        ]
        owners = [number for _, number, _ in kept]
        if slots or knowledge is None:
            return [one for _, _, one in kept], owners
        return encoder.encode_batch([passage for passage, _, _ in kept]), owners

    def batch_shapes(self, extent: Extent) -> Shapes:
        places = {name: extent.whole(extent.places) for name in ("positions", "labels")}
        spans = extent.whole(2)
        return {**extent.tokens(), **places, "weights": extent.real(extent.places), "mention_spans": spans}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        accuracy, loss = per_piece(predictions)
        return {"accuracy": accuracy, "negative_loss": -loss}
