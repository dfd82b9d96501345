"""Relation classification: which of a fixed set of relations holds between two marked mentions.

Wiki80 in the paper (section 4.1): `# [ENTITY] / head #` and `$ [ENTITY] / tail $` in the sentence, a classification
head on the first token, cross-entropy, accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinject.tasks.base import register_task
from kinject.tasks.fields import HEAD_MARKER, TAIL_MARKER
from kinject.tasks.labels import SingleLabelTask
from kinject.tasks.pooled import marked_texts
from kinject.tasks.protocol import protocol_named
from kinject.tasks.shapes import Extent, Shapes

if TYPE_CHECKING:
    from kinject.data.encode import EntityEncoder
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase


@register_task("relation_classification")
class RelationClassification(SingleLabelTask):
    """Records need two mentions, head and tail, and `label`.

    Args:
      labels: names of the relations, or a file of them such as rel2id.json; see `LabelledTask`.
      protocol: "thunlp" or "kinject"; see `kinject.tasks.protocol`.
    """

    head = "classification"
    required = ("label",)

    def __init__(self, labels: str | Path | Sequence[str] | None = None, protocol: str = "kinject"):
        super().__init__(labels)
        self.protocol = protocol_named(protocol)

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        labels = np.array([self.index_of(one.fields["label"], one, "label") for one in records], np.int32)
        markers = (HEAD_MARKER, TAIL_MARKER)
        return marked_texts(records, markers, labels, encoder, knowledge, self.protocol, buckets)

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(), "labels": extent.whole(), "mention_spans": extent.whole(2)}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy, which is the micro-F1 that the authors report."""
        return {"accuracy": float((predictions["chosen"] == predictions["right"]).mean())}
