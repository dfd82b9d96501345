"""Cloze questions whose answers may have several pieces: one blank, and the answers that there are to choose from.

The host reads the question once, with one [MASK], as it was tuned to. An answer's score is the mean log-probability of
its pieces at that blank, so long answers are not punished for their length; the order of the pieces says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.encode import EntityEncoder
from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, plain_passages, register_task, slot_rows
from kinject.tasks.cloze import Cloze, blank_examples, check_one_blank
from kinject.tasks.fields import strings

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase

NO_CHOICE = -1e9  # the score of a choice that a record does not have


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
        labels = np.array([_label(record) for record in records], np.int32)
        pieces = _pieces(records, encoder)
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
        likely = jax.nn.log_softmax(outputs[:, 0].astype(jnp.float32))
        pieces = batch["choices"]
        there = pieces >= 0
        found = jnp.take_along_axis(likely[:, None], jnp.maximum(pieces, 0), axis=-1)
        mean = jnp.where(there, found, 0.0).sum(-1) / jnp.maximum(there.sum(-1), 1)
        return jnp.where(there.any(-1), mean, NO_CHOICE)

    def choice_name(self, number: int, record: Record, tokenizer: HostTokenizer) -> str:
        return strings(record, "choices")[number]


def _label(record: Record) -> int:
    """The number of the right choice."""
    choices, label = strings(record, "choices"), record.fields["label"]
    if len(set(choices)) < len(choices):
        raise InputError(record.where, "field choices names an answer twice", "name each once")
    if label not in choices:
        raise InputError(record.where, f"field label: {label!r} is none of the choices", "name it among them")
    return choices.index(label)


def _pieces(records: Sequence[Record], encoder: EntityEncoder) -> np.ndarray:
    """int32 [n, C, P]: the pieces of each record's choices, filled up with -1."""
    known: dict[str, tuple[int, ...]] = {}
    for record in records:
        for choice in strings(record, "choices"):
            if choice not in known:
                try:
                    known[choice] = encoder.tokenizer.word(choice)
                except InputError:
                    problem = f"field choices: the host's vocabulary cannot spell {choice!r}"
                    raise InputError(record.where, problem, "drop the record") from None
    most = max((len(strings(record, "choices")) for record in records), default=0)
    made = np.full((len(records), most, max(map(len, known.values()), default=0)), -1, np.int32)
    for row, record in enumerate(records):
        for column, choice in enumerate(strings(record, "choices")):
            made[row, column, : len(known[choice])] = known[choice]
    return made
