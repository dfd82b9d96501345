"""Single-token cloze question answering: the host names the one word at the [MASK] of a question.

EntityQuestions in the paper (section 4.1): `question $ [ENTITY] / mention $ [MASK]`, cross-entropy at the mask over the
whole vocabulary, accuracy. Here the mask stands wherever the record's text has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder
from kinject.data.pipeline import Examples, make_examples
from kinject.data.tokenizer import MASK_LITERAL
from kinject.errors import InputError
from kinject.models.kernels.elementwise import cross_entropy
from kinject.tasks.base import Extent, Shapes, Task, first_span, pad_rows, plain_passages, register_task, slot_rows

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase


@register_task("cloze")
class Cloze(Task):
    """One blank, one word. Records need `label`, a word that is one piece of the host's vocabulary."""

    head = "masked_lm"
    required: ClassVar[tuple[str, ...]] = ("label",)
    start = "ridge_label"

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        encoded = encoder.encode_batch(plain_passages(records), slot_rows(knowledge))
        labels = self._labels(records, encoder)
        check_one_blank(records, encoded)
        return blank_examples(encoded, labels, encoder, buckets)

    def _labels(self, records: Sequence[Record], encoder: EntityEncoder) -> np.ndarray:
        words: dict[str, int] = {}
        for record in records:
            label = record.fields["label"]
            if not isinstance(label, str) or not label.strip():
                raise InputError(record.where, f"field label is {label!r}, not a word", "give the answer as a string")
            if label in words:
                continue
            try:
                pieces = encoder.tokenizer.word(label)
            except InputError:
                problem = f"field label: the host's vocabulary cannot spell {label!r}"
                raise InputError(record.where, problem, "drop the record") from None
            if len(pieces) != 1:
                raise InputError(
                    record.where,
                    f"field label: {label!r} is {len(pieces)} pieces of the host's vocabulary",
                    "the answer to a cloze question must be one piece; drop the record",
                )
            words[label] = pieces[0]
        return np.array([words[record.fields["label"]] for record in records], np.int32)

    def batch_shapes(self, extent: Extent) -> Shapes:
        blank = {name: extent.whole(1) for name in ("positions", "labels")}
        return {**extent.tokens(), **blank, "mention_spans": extent.whole(2)}

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        losses = cross_entropy(outputs, batch["labels"])  # [B, 1]
        return losses, jnp.broadcast_to(batch["weights"][:, None], losses.shape)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"predicted": outputs[:, 0].argmax(-1), "label": batch["labels"][:, 0]}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"label": MASK_LITERAL}  # one piece of every vocabulary

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs[:, 0]

    def choice_name(self, number: int, record: Record, tokenizer: HostTokenizer) -> str:
        return tokenizer.decode([number]).strip()

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        return {"accuracy": float((predictions["predicted"] == predictions["label"]).mean())}


def check_one_blank(records: Sequence[Record], encoded: Sequence[Encoded]) -> None:
    """Raises InputError for a text without a [MASK], or with several."""
    for record, one in zip(records, encoded, strict=True):
        if len(one.blanks) != 1:
            problem = f"field text has {len(one.blanks)} [MASK], a cloze question has one"
            raise InputError(record.where, problem, "mend the text")


def blank_examples(encoded: Sequence[Encoded], labels: np.ndarray, encoder: EntityEncoder, buckets: int) -> Examples:
    """One example an encoded question, each with one blank, whose labels are int32 [n]."""

    def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
        rows = [encoded[i] for i in index]
        return {
            **pad_rows(encoder, rows, length),
            "positions": np.stack([one.blanks for one in rows]),
            "labels": labels[index, None],
            "mention_spans": np.stack([first_span(one) for one in rows]),
        }

    return make_examples([len(one) for one in encoded], arrays, buckets=buckets)
