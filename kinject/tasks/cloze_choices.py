"""Cloze questions whose answers may have several pieces: one blank, and the answers that there are to choose from.

The host reads the question once, with one [MASK], as it was tuned to; `pseudo_likelihood.at_one_blank` scores answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
import optax

from kinject.data.encode import EntityEncoder
from kinject.tasks.base import Extent, Shapes, plain_passages, register_task, slot_rows
from kinject.tasks.cloze import Cloze, blank_examples, check_one_blank
from kinject.tasks.fields import strings
from kinject.tasks.pseudo_likelihood import answers_of, at_one_blank, choice_pieces

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase


@register_task("cloze_choices")
class ClozeChoices(Cloze):
    """Records need `choices`, a list of different answers, and `label`, the right one of them; one `[MASK]` a text."""

    required: ClassVar[tuple[str, ...]] = ("choices", "label")

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        encoded = encoder.encode_batch(plain_passages(records), slot_rows(knowledge))
        check_one_blank(records, encoded)
        labels = np.array([answers_of(record).index(record.fields["label"]) for record in records], np.int32)
        pieces = choice_pieces(records, encoder)
        made = blank_examples(encoded, labels, encoder, buckets)
        return made.with_arrays(lambda bucket: {"choices": pieces[bucket["index"]]})

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**super().batch_shapes(extent), "choices": extent.whole(extent.choices, extent.places)}

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = self.choices(outputs, batch)
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"][:, 0]), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"predicted": self.choices(outputs, batch).argmax(-1), "label": batch["labels"][:, 0]}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"label": next(iter(strings(record, "choices")))}

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Scores float32 [B, C] of the choices int32 [B, C, P], their pieces, -1 behind each one's last."""
        return at_one_blank(outputs[:, 0], batch["choices"])

    def choice_name(self, number: int, record: Record, tokenizer: HostTokenizer) -> str:
        return strings(record, "choices")[number]
