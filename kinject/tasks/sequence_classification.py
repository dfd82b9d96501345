"""Sequence classification: which of a fixed set of labels a text, or a pair of texts, has.

`[CLS] [ENTITY] / mention … [SEP]` or `[CLS] text [SEP] pair [SEP]`, a classification head on the first token,
cross-entropy; accuracy and F1, macro or micro, as each of PlugLM's domain data sets reports one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jax
import numpy as np

from kinject.data.encode import EntityEncoder, Passage
from kinject.errors import InputError, did_you_mean
from kinject.tasks.base import Extent, Shapes, Task, register_task, slot_rows
from kinject.tasks.fields import unique_ids
from kinject.tasks.labels import SingleLabelTask
from kinject.tasks.marked_texts import read_examples

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.pretrained import LoadedHost

METRICS = ("accuracy", "macro_f1", "micro_f1")


@register_task("sequence_classification")
class SequenceClassification(SingleLabelTask):
    """Records need `label`; with `pair`, a second text stands behind the first. Linked mentions get slots.

    Args:
      labels: names of the labels, or a file of them; see `LabelledTask`.
      metric: which of `METRICS` checkpoints are compared on.
    """

    head = "classification"
    required = ("label",)

    def __init__(self, labels: str | Path | Sequence[str] | None = None, metric: str = "accuracy"):
        super().__init__(labels)
        if metric not in METRICS:
            raise InputError("task_options.metric", f"there is no {metric!r}", did_you_mean(str(metric), METRICS))
        self.metric = metric

    def for_host(self, loaded: LoadedHost, where: object) -> Task:
        """The host's labels, and its scores as transformers' text-classification makes them of its `problem_type`."""
        task = cast(SequenceClassification, super().for_host(loaded, where))
        kind = loaded.stated.get("problem_type")
        if kind == "regression":
            task.scores = "raw"
        elif kind == "multi_label_classification" or task.num_labels == 1:
            task.scores = "sigmoid"
        return task

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        if self.scores != "softmax":
            problem = "the host was not trained to give a text one label (problem_type, or a single output)"
            raise InputError("task", problem, "only `kinject predict` and Host.predict take such a host")
        return super().loss(outputs, batch)

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        labels = np.array([self.index_of(one.fields["label"], one, "label") for one in records], np.int32)
        passages = [Passage(one.source, one.mentions, _pair(one), where=one.where) for one in records]
        return read_examples(encoder.encode_batch(passages, slot_rows(knowledge)), labels, encoder, buckets)

    def passage_texts(self, record: Record) -> Sequence[str] | None:
        pair, derived = _pair(record), type(self) is not SequenceClassification
        if derived or not isinstance(record.source, str):
            return None
        return [record.source] if pair is None else [record.source, pair]

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(), "labels": extent.whole(), "mention_spans": extent.whole(2)}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy and scikit-learn's F1; the macro average is over the labels that occur, right or predicted."""
        from sklearn.metrics import f1_score

        chosen, right = predictions["chosen"], predictions["right"]
        macro, micro = (f1_score(right, chosen, average=average, zero_division=0) for average in ("macro", "micro"))
        return {"accuracy": float((chosen == right).mean()), "macro_f1": float(macro), "micro_f1": float(micro)}


def _pair(record: Record) -> str | None:
    pair = record.fields.get("pair")
    if not isinstance(pair, str | None):
        raise InputError(record.where, f"field pair is {pair!r}", "it must be a text")
    return pair
