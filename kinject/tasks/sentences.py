"""A text's one vector, as sentence-transformers makes it, and classes read off that vector.

How the vector is made is the host's: `modules.json` of its folder says whether the mean of the hidden states or the
first one counts, and whether the vector is normed; a plain encoder has the mean (`kinject.models.pooling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import jax
import numpy as np

from kinject.data.encode import EntityEncoder
from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, Task, plain_passages, register_task, slot_rows
from kinject.tasks.fields import unique_ids
from kinject.tasks.marked_texts import read_examples
from kinject.tasks.sequence_classification import SequenceClassification

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase


@register_task("sentence_embedding")
class SentenceEmbedding(Task):
    """Records need their text alone. Linked mentions get slots, which count in the mean as any position does.

    It is served, and neither trained nor scored: nothing says which vector would have been right.
    """

    head = "embedding"
    answer = "vector"

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        encoded = encoder.encode_batch(plain_passages(records), slot_rows(knowledge))
        return read_examples(encoded, np.zeros(len(records), np.int32), encoder, buckets)

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(), "labels": extent.whole(), "mention_spans": extent.whole(2)}

    def vector(self, outputs: jax.Array) -> jax.Array:
        return outputs[:, 0]

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, object]:
        return {}

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        raise self._unscored()

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        raise self._unscored()

    def score(self, predictions: Mapping[str, np.ndarray]) -> NoReturn:
        raise self._unscored()

    def _unscored(self) -> InputError:
        problem = "sentence_embedding makes vectors, of which none is the right one"
        return InputError("task", problem, "train and evaluate embedding_classification, or use kinject predict")


@register_task("embedding_classification")
class EmbeddingClassification(SequenceClassification):
    """As `sequence_classification`, with an output layer on the text's vector. transformers has no such head."""

    head = "embedding_classification"
