"""Masked language modelling (Devlin et al. 2019, section 3.1): how a model learns to predict words in the first place.

A share of a text's pieces is chosen, anew each time the text is dealt; of those 80% become the mask token, 10% another
piece of the vocabulary, 10% stay, and the head must say what stood there. What a general map is tuned through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.pipeline import Batch, Examples, make_examples
from kinject.errors import InputError
from kinject.tasks.base import register_task
from kinject.tasks.masked_pieces import MaskedPieces, per_piece
from kinject.tasks.shapes import Extent, Shapes
from kinject.tasks.slots import entity_count, slot_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase

MASKED, REPLACED = 0.8, 0.9  # shares of the chosen pieces: masked below the first, another piece below the second


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
        passages = [Passage(record.source, record.mentions, where=record.where) for record in records]
        encoded = encoder.encode_batch(passages, slot_rows(knowledge))

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            return encoder.pad(rows, length, entity_count(rows))

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
