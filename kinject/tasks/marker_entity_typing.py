"""Entity typing by the vector of a mention's marker: K-Adapter's form of it (Wang et al. 2021, section 4.1).

`@ [ENTITY] / mention @` in the sentence, `Linear(D, D)`, dropout and one output a type on the vector of the first `@`,
binary cross-entropy. OpenEntity predicts the types whose logit is positive; FIGER those and the likeliest one, so that
no mention is left without a type. OpenEntity reports the loose micro-F1; FIGER strict accuracy and both loose F1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from kinject.errors import InputError
from kinject.tasks.base import Task, register_task
from kinject.tasks.entity_typing import EntityTyping
from kinject.tasks.fields import SUBJECT_MARKER
from kinject.tasks.pooled import marked_texts
from kinject.tasks.shapes import Extent, Shapes

if TYPE_CHECKING:
    from kinject.data.encode import EntityEncoder
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin


@register_task("marker_entity_typing")
class MarkerEntityTyping(EntityTyping):
    """Records need one mention and `labels`, a list of types, which may be empty.

    Args:
      labels: names of the types, or a file of them; see `LabelledTask`.
      never_empty: predict the likeliest type too, positive or not (FIGER).
    """

    head = "mention"
    needs_type = False

    def __init__(self, labels: str | Path | Sequence[str] | None = None, never_empty: bool = False):
        super().__init__(labels)
        if not isinstance(never_empty, bool):
            raise InputError("task_options.never_empty", f"is {never_empty!r}", "it must be true or false")
        self.never_empty = never_empty

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        labels, markers = self.type_rows(records), (SUBJECT_MARKER,)
        return marked_texts(records, markers, labels, encoder, knowledge, self.protocol, buckets, at_markers=True)

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**super().batch_shapes(extent), "positions": extent.whole(1)}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        return Task.outputs(self, host, plugin, batch, key, start)[:, 0]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        chosen = outputs > 0
        if self.never_empty:
            chosen |= outputs == outputs.max(-1, keepdims=True)
        return {"chosen": chosen, "right": batch["labels"] > 0.5}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Beside the micro average of `EntityTyping`, which is the loose micro one: the loose macro (Ling & Weld 2012).

        Loose macro precision is the mean over all mentions of the share of right ones among the predicted types, 0
        where nothing is predicted; recall likewise over the right types.
        """
        chosen, right = predictions["chosen"], predictions["right"]
        hits = (chosen & right).sum(-1)
        precision = float((hits / np.maximum(chosen.sum(-1), 1)).mean())
        recall = float((hits / np.maximum(right.sum(-1), 1)).mean())
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {**super().score(predictions), "macro_precision": precision, "macro_recall": recall, "macro_f1": f1}
