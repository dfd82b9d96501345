"""Token classification: a tag for every word, such as the names in a sentence (BIO).

The tag of a word is read at its first piece, those of a text that came without words at all its pieces (`tag_groups`).
Entity F1 is seqeval's (exact boundaries and type, as conlleval counts).
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
from kinject.tasks.base import Answer, Extent, Shapes, pad_rows, plain_passages, register_task, slot_rows
from kinject.tasks.fields import strings, unique_ids
from kinject.tasks.labels import WHERE, LabelledTask
from kinject.tasks.tag_groups import OUTSIDE, TextPieces, checked_aggregation, names_in

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase

NO_WORD = -1
UNKNOWN = ()  # in the place of a list of tags: a text that is asked about


@register_task("token_classification")
class TokenClassification(LabelledTask):
    """Records need `tokens` and `tags`, one a token; linked mentions get slots.

    A word that is cut off by `max_length`, or of which the tokenizer keeps nothing, is not trained on, and counts as
    predicted `O`; where it is served, its tag is `O` with the score 0. What is served may be a text: its answers are
    names with their characters.

    Args:
      labels: names of the tags, `O` among them, or a file of them; see `LabelledTask`.
      aggregation: how pieces of a text become names, where it is served; see `kinject.tasks.tag_groups`.
    """

    head = "token_classification"
    required = ("tags",)
    metric = "f1"
    answer = "spans"

    def __init__(self, labels: str | Path | Sequence[str] | None = None, aggregation: str = "none"):
        super().__init__(labels)
        self.aggregation = checked_aggregation(aggregation)
        if self.labels is not None and OUTSIDE not in self.labels:
            raise InputError(WHERE, f"there is no tag {OUTSIDE!r}", "words outside of all names have it")

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        tags = [self._tags(record) for record in records]  # checked before texts are cut
        passages = plain_passages(records)
        encoded = encoder.encode_batch(passages, slot_rows(knowledge), origins=True)
        places = [_places(record, one) for record, one in zip(records, encoded, strict=True)]
        for record, found in zip(records, places, strict=True):
            if not isinstance(record.source, str) and (found < 0).all():
                raise InputError(record.where, "the tokenizer keeps nothing of its words", "drop the record")
        unread = sum(int((found < 0).sum()) for found in places)

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            shape = (len(rows), max(1, *(len(places[i]) for i in index)))
            positions, labels = np.zeros(shape, np.int32), np.full(shape, NO_WORD, np.int32)
            weights = np.zeros(shape, np.float32)
            for row, i in enumerate(index):
                count = len(places[i])
                labels[row, :count] = tags[i] if len(tags[i]) else NO_WORD
                positions[row, :count] = np.maximum(places[i], 0)
                weights[row, :count] = places[i] >= 0
            padded = pad_rows(encoder, rows, length)
            return {**padded, "positions": positions, "labels": labels, "weights": weights}

        made = make_examples([len(one) for one in encoded], arrays, buckets=buckets)
        notes = {"words (not records) are cut off or unreadable": unread} if unread else {}
        read = [_text_pieces(record, one, found) for record, one, found in zip(records, encoded, places, strict=True)]
        return replace(made, notes=notes, references={"windows": read})

    def _tags(self, record: Record) -> np.ndarray:
        if record.fields.get("tags") == UNKNOWN:
            return np.empty(0, np.int32)
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
        return {"tags": UNKNOWN if isinstance(record.source, str) else [self.names[0]] * len(record.source)}

    def found(self, outputs: jax.Array, batch: Mapping[str, jax.Array], top: int) -> dict[str, jax.Array]:
        scores = jax.nn.softmax(outputs.astype(jnp.float32), axis=-1)
        nothing = jnp.where(jnp.arange(scores.shape[-1]) == self.names.index(OUTSIDE), 0.0, -1.0)
        return {"scores": jnp.where(batch["weights"][..., None] > 0, scores, nothing)}  # O, and sure of nothing

    def spans(
        self, record: Record, rows: Sequence[tuple[Mapping[str, np.ndarray], Any]], top: int, tokenizer: HostTokenizer
    ) -> list[Answer]:
        """The names in a text; for a record of words, the tag of each and its score."""
        ((row, pieces),) = rows
        if pieces is None:
            best = row["scores"][: len(record.source)]
            return [Answer(self.names[one.argmax()], float(one.max())) for one in best]
        scores = row["scores"][: len(pieces.ids)]
        return names_in(pieces, scores, self.names, self.aggregation, tokenizer)

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


def _places(record: Record, one: Encoded) -> np.ndarray:
    """Where tags are read: at the first pieces of words, or at all pieces of a text."""
    if isinstance(record.source, str):
        return np.flatnonzero(origins_of(one)[:, 0] == 0).astype(np.int32)
    return first_pieces(record.source, one)


def _text_pieces(record: Record, one: Encoded, places: np.ndarray) -> TextPieces | None:
    if not isinstance(record.source, str):
        return None
    return TextPieces(record.source, one.token_ids[places], origins_of(one)[places, 1:])


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
