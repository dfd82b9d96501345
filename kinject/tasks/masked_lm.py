"""Masked language modelling: pieces of the text itself are hidden, and the head must say what stood there.

Masked LM (Devlin et al. 2019, section 3.1) is how a model learns to predict words in the first place: a share of a
text's pieces is chosen, anew each time the text is dealt; of those 80% become the mask token, 10% another piece of the
vocabulary, 10% stay.

Mention-masked LM is general map-tuning's objective (Zhang et al., ACL 2023, section 3.2): every piece of a masked
mention becomes [MASK]; its slot and slash stay, so the map must carry what the vector knows of the mention. Two
mentions give three examples: both masked, the tail masked, the head masked. A sentence in which no mention has a vector
says nothing about the map and is skipped, as is one that does not fit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Mention, Passage
from kinject.data.pipeline import Batch, Examples, make_examples
from kinject.errors import InputError
from kinject.models.heads import makes_word_losses, word_losses_at
from kinject.models.kernels.elementwise import cross_entropy
from kinject.tasks.base import Extent, Shapes, Task, first_span, pad_rows, plain_passages, register_task, slot_rows
from kinject.tasks.protocol import protocol_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin

MASKED, REPLACED = 0.8, 0.9  # shares of the chosen pieces: masked below the first, another piece below the second


class MaskedPieces(Task):
    """A task whose batch asks for pieces: `positions`, `labels` int32 [B, P], `weights` float32 [B, P]."""

    head = "masked_lm"

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return cross_entropy(outputs, batch["labels"]), batch["weights"]

    def losses(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        own = type(self).loss is MaskedPieces.loss and type(self).outputs is Task.outputs
        if own and makes_word_losses(host, batch):
            return word_losses_at(host, batch, plugin, key, start=start), batch["weights"]
        return super().losses(host, plugin, batch, key, start)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        losses, weights = self.loss(outputs, batch)
        right = (outputs.argmax(-1) == batch["labels"]) * weights
        return {"lost": (losses * weights).sum(1), "right": right.sum(1), "pieces": weights.sum(1)}


def per_piece(predictions: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """(accuracy, loss) of an evaluation set, both means over its pieces."""
    pieces = max(float(predictions["pieces"].sum()), 1.0)
    return float(predictions["right"].sum()) / pieces, float(predictions["lost"].sum()) / pieces


@register_task("masked_lm")
class MaskedLM(MaskedPieces):
    """Records need a text only. Evaluation masks the same pieces each time.

    Args:
      rate: share of a text's pieces that are predicted, at least one of each text.
    """

    metric = "accuracy"

    def __init__(self, rate: float = 0.15):
        if not 0 < rate < 1:
            raise InputError("task_options.rate", f"it must lie between 0 and 1, got {rate!r}")
        self.rate = rate

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        passages = plain_passages(records)
        encoded = encoder.encode_batch(passages, slot_rows(knowledge))

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            return pad_rows(encoder, rows, length)

        examples = make_examples([len(one) for one in encoded], arrays, buckets=buckets)
        return examples.with_redraw(masking(self.rate, encoder))

    def batch_shapes(self, extent: Extent) -> Shapes:
        places = max(1, round(self.rate * extent.length))
        read = {name: extent.whole(places) for name in ("positions", "labels")}
        return {**extent.tokens(), **read, "weights": extent.real(places)}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        accuracy, loss = per_piece(predictions)
        return {"accuracy": accuracy, "perplexity": float(np.exp(loss))}


def masking(rate: float, encoder: EntityEncoder) -> Callable[[Batch, np.ndarray], Batch]:
    """Chooses and replaces pieces: (batch, a seed a row) -> the batch with positions, labels, weights [B, P].

    Special tokens, padding and slots are never chosen. P is what a full row of the bucket needs, so shapes are fixed.
    """
    tokenizer = encoder.tokenizer
    special = np.array(sorted({*tokenizer.before, *tokenizer.between, *tokenizer.after, tokenizer.mask_id}), np.int32)

    def redraw(batch: Batch, seeds: np.ndarray) -> Batch:
        ids = batch["token_ids"]
        length = ids.shape[1]
        places = max(1, round(rate * length))
        draws = np.stack([np.random.default_rng(int(seed)).random(length + 2 * places) for seed in seeds])
        free = (batch["segment_ids"] > 0) & (batch["entity_slot"] < 0) & ~np.isin(ids, special)
        order = np.argsort(np.where(free, draws[:, :length], 2.0), axis=1)[:, :places]
        wanted = np.clip(np.round(rate * free.sum(1)), 1, places)[:, None]
        chosen = (np.arange(places) < wanted) & np.take_along_axis(free, order, axis=1)
        positions = np.where(chosen, order, 0).astype(np.int32)
        labels = np.where(chosen, np.take_along_axis(ids, positions, axis=1), 0).astype(np.int32)
        fate, other = draws[:, length : length + places], draws[:, length + places :]
        new = np.where(fate < MASKED, tokenizer.mask_id, labels)
        new = np.where((fate >= MASKED) & (fate < REPLACED), (other * tokenizer.vocab_size).astype(np.int32), new)
        masked = ids.copy()
        row, place = np.nonzero(chosen)
        masked[row, positions[row, place]] = new[row, place]
        return {
            **batch,
            "token_ids": masked,
            "positions": positions,
            "labels": labels,
            "weights": chosen.astype(np.float32),
        }

    return redraw


def masking_variants(mentions: Sequence[Mention]) -> Iterator[tuple[Mention, ...]]:
    """All ways to mask that the objective trains on: all mentions; then, of several, each one alone.

    For two mentions these are the paper's three. (With more, subsets would be exponential.)
    """
    yield tuple(replace(mention, masked=True) for mention in mentions)
    if len(mentions) > 1:
        for hidden in reversed(range(len(mentions))):
            yield tuple(replace(mention, masked=number == hidden) for number, mention in enumerate(mentions))


def never(sides: object, excess: int, mask_id: int) -> None:
    """Of a passage that is too long nothing may go (see data/passage.py)."""
    del sides, excess, mask_id


@register_task("mention_masked_lm")
class MentionMaskedLM(MaskedPieces):
    """Predict the pieces of masked mentions.

    Args:
      slots: False trains and measures without slots, on the very same sentences: the control.
      bare_slots: a linked mention without a vector has a slot too, of a zero vector, and its sentence is kept; the
        authors train so on the questions of EntityQuestions and the sentences of Wiki-ET, and nowhere else.
      protocol: "thunlp" or "kinject": case and spelling as `kinject.tasks.protocol` says; slots are by the two above.
    """

    metric = "negative_loss"  # of an evaluation: larger is better

    def __init__(self, slots: bool = True, bare_slots: bool = False, protocol: str = "kinject"):
        self.slots, self.bare_slots = slots, bare_slots
        self.protocol = protocol_named(protocol)

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
            padded = pad_rows(encoder, rows, length)
            spans = np.stack([first_span(one) for one in rows])
            return {**padded, "positions": positions, "labels": labels, "weights": weights, "mention_spans": spans}

        return replace(
            make_examples([len(one) for one in encoded], arrays, buckets=buckets), record_index=np.array(owners)
        )

    def _encode(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, slots: bool
    ) -> tuple[list[Encoded], list[int]]:
        """The sentences that can be used, masked in all ways, and of which record each was made."""
        encoder = copy.copy(self.protocol.spelled(encoder))
        encoder.truncate = never  # a shortened sentence may have lost what tells the mention
        variants = [
            (Passage(self.protocol.text(record.source), mentions, where=record.where), number)
            for number, record in enumerate(records)
            if record.mentions
            for mentions in masking_variants(record.mentions)
        ]
        passages = [passage for passage, _ in variants]
        rows = slot_rows(knowledge)
        encoded = encoder.encode_batch(passages, rows, skip_overlong=True, bare_slots=self.bare_slots)
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
