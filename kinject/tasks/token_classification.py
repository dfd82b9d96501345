"""Token classification: a tag for every word, such as the names in a sentence (BIO).

The tag of a word is read at its first piece; entity F1 is seqeval's (exact boundaries and type, as conlleval counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.encode import Encoded, EntityEncoder, origins_of
from kinject.data.pipeline import Examples, make_examples
from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, pad_rows, plain_passages, register_task, slot_rows
from kinject.tasks.fields import strings, unique_ids
from kinject.tasks.labels import WHERE, LabelledTask

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase

OUTSIDE = "O"
NO_WORD = -1


@register_task("token_classification")
class TokenClassification(LabelledTask):
    """Records need `tokens` and `tags`, one a token; linked mentions get slots.

    A word that is cut off by `max_length`, or of which the tokenizer keeps nothing, is not trained on, and counts as
    predicted `O`.

    Args:
      labels: names of the tags, `O` among them, or a file of them; see `LabelledTask`.
    """

    head = "token_classification"
    required = ("tags",)
    metric = "f1"

    def __init__(self, labels: str | Path | Sequence[str] | None = None):
        super().__init__(labels)
        if self.labels is not None and OUTSIDE not in self.labels:
            raise InputError(WHERE, f"there is no tag {OUTSIDE!r}", "words outside of all names have it")

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        tags = [self._tags(record) for record in records]
        passages = plain_passages(records)
        encoded = encoder.encode_batch(passages, slot_rows(knowledge), origins=True)
        places = [first_pieces(record.source, one) for record, one in zip(records, encoded, strict=True)]
        for record, found in zip(records, places, strict=True):
            if (found < 0).all():
                raise InputError(record.where, "the tokenizer keeps nothing of its words", "drop the record")
        unread = sum(int((found < 0).sum()) for found in places)

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            shape = (len(rows), max(len(places[i]) for i in index))
            positions, labels = np.zeros(shape, np.int32), np.full(shape, NO_WORD, np.int32)
            weights = np.zeros(shape, np.float32)
            for row, i in enumerate(index):
                count = len(places[i])
                labels[row, :count] = tags[i]
                positions[row, :count] = np.maximum(places[i], 0)
                weights[row, :count] = places[i] >= 0
            padded = pad_rows(encoder, rows, length)
            return {**padded, "positions": positions, "labels": labels, "weights": weights}

        made = make_examples([len(one) for one in encoded], arrays, buckets=buckets)
        return replace(made, notes={"words (not records) are cut off or unreadable": unread} if unread else {})

    def _tags(self, record: Record) -> np.ndarray:
        tags = strings(record, "tags")
        if isinstance(record.source, str):
            raise InputError(record.where, "it has a text, not tokens", "tags are of tokens")
        if len(tags) != len(record.source) or not tags:
            problem = f"field tags has {len(tags)} of them for {len(record.source)} tokens"
            raise InputError(record.where, problem, "there must be one a token, and a token")
        return np.array([self.index_of(tag, record, f"tags[{i}]") for i, tag in enumerate(tags)], np.int32)

    def batch_shapes(self, extent: Extent) -> Shapes:
        words = {name: extent.whole(extent.places) for name in ("positions", "labels")}
        return {**extent.tokens(), **words, "weights": extent.real(extent.places)}

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(batch["labels"], 0))
        return losses, batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        chosen = jnp.where(batch["weights"] > 0, outputs.argmax(-1), self.names.index(OUTSIDE))
        return {"chosen": chosen, "right": batch["labels"]}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"tags": [OUTSIDE] * (0 if isinstance(record.source, str) else len(record.source))}

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Entity precision, recall and F1 (micro, by seqeval), and the share of right tags."""
        from seqeval.metrics import f1_score, precision_score, recall_score

        words = predictions["right"] != NO_WORD
        right, chosen = (
            [[self.names[tag] for tag in row[kept]] for row, kept in zip(predictions[name], words, strict=True)]
            for name in ("right", "chosen")
        )
        found = {
            name: float(measure(right, chosen, zero_division=0))
            for name, measure in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score))
        }
        same = predictions["right"] == predictions["chosen"]
        return {**found, "accuracy": float(same[words].mean())}


def first_pieces(words: Sequence[str], one: Encoded) -> np.ndarray:
    """Where the first piece of each word stands, int32 [words]; -1 for a word that has none.

    Args:
      words: the text, which was encoded alone.
      one: with `origins`.
    """
    places = np.flatnonzero(origins_of(one)[:, 0] == 0).astype(np.int32)
    if not len(places):
        return np.full(len(words), -1, np.int32)
    starts, ends = origins_of(one)[places, 1], origins_of(one)[places, 2]
    begin = np.array([0, *accumulate(len(word) + 1 for word in words)])[:-1]  # one space stands between words
    stop = begin + [len(word) for word in words]
    first = np.searchsorted(ends, begin, side="left")
    before = np.minimum(first, len(places) - 1)
    # a piece that ends where a word begins is its space alone, the word's first, or reaches into it from before
    first = np.where((ends[before] == begin) & (starts[before] < begin - 1), first + 1, first)
    inside = np.minimum(first, len(places) - 1)
    return np.where((first < len(places)) & (starts[inside] < stop), places[inside], -1)
