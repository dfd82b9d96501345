"""Relation classification: which of a fixed set of relations holds between two marked mentions. Two forms.

Wiki80 in map-tuning (Zhang et al., ACL 2023, section 4.1): `# [ENTITY] / head #` and `$ [ENTITY] / tail $` in the
sentence, a classification head on the first token, cross-entropy, accuracy.

TACRED and T-REx-rc in K-Adapter (Wang et al. 2021, sections 3.2 and 4.3): `@ [ENTITY] / subject @` and `# [ENTITY] /
object #`; the head reads the opening markers' vectors, one after the other. TACRED's metric is the micro-F1 over the
relations, `no_relation` not counted as one; T-REx-rc has no such label, and accuracy and the macro-F1 are for it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, Task, register_task
from kinject.tasks.fields import HEAD_MARKER, OBJECT_MARKER, SUBJECT_MARKER, TAIL_MARKER
from kinject.tasks.labels import SingleLabelTask
from kinject.tasks.marked_texts import MarkedTask, marked_texts

if TYPE_CHECKING:
    from kinject.data.encode import EntityEncoder
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase


@register_task("relation_classification")
class RelationClassification(MarkedTask, SingleLabelTask):
    """Records need two mentions, head and tail, and `label`.

    Args:
      labels: names of the relations, or a file of them such as rel2id.json; see `LabelledTask`.
      protocol: "thunlp" or "kinject"; see `kinject.tasks.protocol`.
    """

    head = "classification"
    required = ("label",)

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


@register_task("marker_relations")
class MarkerRelations(RelationClassification):
    """Relation classification by the vectors of two markers: K-Adapter's form.

    Records need two mentions, subject and object, and `label`.

    Args:
      labels: names of the relations, or a file of them; see `LabelledTask`.
      ignored: the label that is no relation; none is ignored where the labels do not have it.
      most_ignored: how many training records of that label are used, the first ones; None = all. K-Adapter uses 45,000
        of TACRED's.
    """

    head = "mention_pair"
    metric = "f1"

    def __init__(
        self,
        labels: str | Path | Sequence[str] | None = None,
        ignored: str = "no_relation",
        most_ignored: int | None = None,
    ):
        super().__init__(labels)
        if most_ignored is not None and (type(most_ignored) is not int or most_ignored < 0):
            raise InputError("task_options.most_ignored", f"is {most_ignored!r}", "it must be a whole number from 0")
        self.ignored, self.most_ignored = ignored, most_ignored

    def for_evaluation(self) -> Task:
        task = copy.copy(self)
        task.most_ignored = None
        return task

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        used = self._used(records)
        kept = [records[i] for i in used]
        labels = np.array([self.index_of(one.fields["label"], one, "label") for one in kept], np.int32)
        markers = (SUBJECT_MARKER, OBJECT_MARKER)
        made = marked_texts(kept, markers, labels, encoder, knowledge, self.protocol, buckets, at_markers=True)
        if len(kept) == len(records):
            return made
        note = f"dropped: more than {self.most_ignored} {self.ignored}"
        return replace(made, record_index=np.array(used), notes={note: len(records) - len(kept)})

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**super().batch_shapes(extent), "positions": extent.whole(2)}

    def _used(self, records: Sequence[Record]) -> list[int]:
        """The numbers of the records that are used, in order."""
        used, seen = [], 0
        for number, record in enumerate(records):
            seen += record.fields["label"] == self.ignored
            if self.most_ignored is None or record.fields["label"] != self.ignored or seen <= self.most_ignored:
                used.append(number)
        return used

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Micro precision, recall and F1 over the relations; their macro-F1; accuracy over all labels.

        The macro-F1 is the mean over the relations that occur among right or predicted ones.
        """
        from sklearn.metrics import precision_recall_fscore_support

        chosen, right = predictions["chosen"], predictions["right"]
        counted = [i for i, label in enumerate(self.names) if label != self.ignored]
        options = {"labels": counted, "zero_division": 0}
        precision, recall, f1, _ = precision_recall_fscore_support(right, chosen, average="micro", **options)
        options["labels"] = sorted(set(counted) & (set(right.tolist()) | set(chosen.tolist()))) or counted
        *_, macro, _ = precision_recall_fscore_support(right, chosen, average="macro", **options)
        accuracy = float((chosen == right).mean())
        micro = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
        return {**micro, "macro_f1": float(macro), "accuracy": accuracy}
