"""Fine-grained entity typing: which types a marked mention has in its sentence, any number of them. Two forms.

Wiki-ET in map-tuning (Zhang et al., ACL 2023, section 4.1): `$ [ENTITY] / mention $` in the sentence, one output a type
on the pooler's output, binary cross-entropy on each, micro-F1. A type is predicted where its logit is at least min(0,
the largest logit): those with a probability from one half on, or else the likeliest ones, so that no mention is left
without a type.

OpenEntity and FIGER in K-Adapter (Wang et al. 2021, section 4.1): `@ [ENTITY] / mention @`, `Linear(D, D)`, dropout and
one output a type on the vector of the first `@`. OpenEntity predicts the types whose logit is positive; FIGER those and
the likeliest one. OpenEntity reports the loose micro-F1; FIGER strict accuracy and both loose F1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from kinject.data.pipeline import Batch, Feed, Redraw, make_examples
from kinject.errors import InputError
from kinject.models.heads import HEAD_SITE, JoinedHead
from kinject.models.layers import site
from kinject.tasks.base import Extent, Shapes, Task, first_span, head_of, register_task
from kinject.tasks.fields import ENTITY_MARKER, SUBJECT_MARKER, strings
from kinject.tasks.marked_texts import MarkedTask, marked_texts, pooled_scores

if TYPE_CHECKING:
    from kinject.data.encode import EntityEncoder, Passage
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin


@register_task("entity_typing")
class EntityTyping(MarkedTask):
    """Records need one mention and `labels`, a list of types.

    Args:
      labels: names of the types, or a file of them such as label2id.json; see `LabelledTask`.
      protocol: "thunlp" or "kinject"; see `kinject.tasks.protocol`.
    """

    head = "multi_label"
    required = ("labels",)
    metric = "f1"
    multi_label = True
    needs_type = True

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        labels = self.type_rows(records)
        return marked_texts(records, (ENTITY_MARKER,), labels, encoder, knowledge, self.protocol, buckets)

    def type_rows(self, records: Sequence[Record]) -> np.ndarray:
        """The labels of some records, float32 [n, types]: 1 where a mention has a type.

        Raises:
          InputError: a type that is none of the labels; none at all, where a mention needs one.
        """
        return np.stack([self._types(record) for record in records]) if records else np.empty(0)

    def _types(self, record: Record) -> np.ndarray:
        names = strings(record, "labels")
        if not names and self.needs_type:
            raise InputError(record.where, "field labels is empty", "a mention has at least one type; drop the record")
        types = np.zeros(len(self.names), np.float32)
        types[[self.index_of(name, record, f"labels[{i}]") for i, name in enumerate(names)]] = 1
        return types

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(), "labels": extent.real(extent.outputs), "mention_spans": extent.whole(2)}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        return pooled_scores(host, plugin, batch, key, start)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Mean over the types, so that the weighted mean over rows is torch's BCEWithLogitsLoss."""
        return optax.sigmoid_binary_cross_entropy(outputs, batch["labels"]).mean(-1), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        threshold = jnp.minimum(0.0, outputs.max(-1, keepdims=True))
        return {"chosen": outputs >= threshold, "right": batch["labels"] > 0.5}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"labels": [self.names[0]]}

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Micro-averaged precision, recall and F1; accuracy is how often all types of a mention are right."""
        from sklearn.metrics import precision_recall_fscore_support

        chosen, right = predictions["chosen"], predictions["right"]
        # every decision counts alike, which is the micro average; sklearn's own would misread a single type
        precision, recall, f1, _ = precision_recall_fscore_support(
            right.ravel(), chosen.ravel(), average="binary", zero_division=0
        )
        exact = (chosen == right).all(-1).mean()
        return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": float(exact)}


@register_task("marker_entity_typing")
class MarkerEntityTyping(EntityTyping):
    """Entity typing by the vector of the mention's marker: K-Adapter's form.

    Records need one mention and `labels`, a list of types, which may be empty.

    Args:
      labels: names of the types, or a file of them; see `LabelledTask`.
      never_empty: predict the likeliest type too, positive or not (FIGER).
      reads: "marker", K-Adapter's, or "mention": the head reads the mean over the mention's pieces and its slot.
      hide: share of the training rows whose mention is masked, drawn anew in each epoch: a host that knows the names
        of its training data by heart leaves nothing for a plugin to learn from them.
    """

    head = "mention"
    needs_type = False

    def __init__(
        self,
        labels: str | Path | Sequence[str] | None = None,
        never_empty: bool = False,
        reads: Literal["marker", "mention"] = "marker",
        hide: float = 0.0,
    ):
        super().__init__(labels)
        if isinstance(hide, bool) or not isinstance(hide, int | float) or not 0 <= hide <= 1:
            raise InputError("task_options.hide", f"is {hide!r}", "it is a share from 0 to 1")
        self.hide = hide
        if reads not in ("marker", "mention"):
            raise InputError("task_options.reads", f"is {reads!r}", "it is marker or mention")
        self.reads = reads
        if not isinstance(never_empty, bool):
            raise InputError("task_options.never_empty", f"is {never_empty!r}", "it must be true or false")
        self.never_empty = never_empty

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        labels, markers = self.type_rows(records), (SUBJECT_MARKER,)
        made = marked_texts(records, markers, labels, encoder, knowledge, self.protocol, buckets, at_markers=True)
        return made.with_redraw(hiding(self.hide, encoder.tokenizer.mask_id)) if self.hide else made

    def for_evaluation(self) -> Task:
        """The same task with every mention in sight."""
        task = copy(self)
        task.hide = 0.0
        return task

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
        if self.reads == "marker":
            return Task.outputs(self, host, plugin, batch, key, start)[:, 0]
        hidden = host.encoder(batch, plugin, key, start=start).last
        return head_of(host, JoinedHead).logits(mention_mean(hidden, batch)[:, None], site(key, HEAD_SITE))[:, 0]

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


def hiding(share: float, mask_id: int) -> Redraw:
    """Masks the first mention's pieces in a share of the rows: (batch, a seed a row) -> the batch.

    Slots and markers stay. Reads `mention_spans` int32 [B, 2], `token_ids` and `entity_slot` int32 [B, L].
    """

    def redraw(batch: Batch, seeds: np.ndarray) -> Batch:
        hidden = np.array([np.random.default_rng(int(seed)).random() < share for seed in seeds])[:, None]
        start, end = batch["mention_spans"][:, :1], batch["mention_spans"][:, 1:]
        position = np.arange(batch["token_ids"].shape[1])
        there = hidden & (position >= start) & (position < end) & (batch["entity_slot"] < 0)
        return {**batch, "token_ids": np.where(there, np.int32(mask_id), batch["token_ids"])}

    return redraw


def mention_mean(hidden: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """What the encoder yields over a mention's pieces and the slots of its row, in the mean.

    Args:
      hidden: [B, L, D].
      batch: reads `mention_spans` int32 [B, 2] and `entity_slot` int32 [B, L]; of several mentions it is the first's.

    Returns:
      [B, D] in the dtype of `hidden`; zeros where there is neither.
    """
    position = jnp.arange(hidden.shape[1])
    start, end = batch["mention_spans"][:, :1], batch["mention_spans"][:, 1:]
    read = (((position >= start) & (position < end)) | (batch["entity_slot"] >= 0)).astype(jnp.float32)
    total = jnp.einsum("bl,bld->bd", read, hidden.astype(jnp.float32))
    return (total / jnp.maximum(read.sum(1, keepdims=True), 1)).astype(hidden.dtype)


class Read(NamedTuple):
    """What a frozen encoder yields for n texts: float32 [n, D] each."""

    sentence: np.ndarray
    mention: np.ndarray


def read_mentions(host: Any, passages: Sequence[Passage], layer: int, max_length: int | None) -> Read:
    """The mean over each text's pieces after the last layer, and over its mention's pieces after `layer` layers.

    Args:
      host: a loaded host (kinject.inference.host.HostBundle).
      passages: n texts, each with one mention; entities have no slots.
      layer: after how many layers, 0 = the embeddings.
      max_length: tokens of each that are read, None = as many as the host has positions.

    Raises:
      InputError: the encoder has fewer layers.
    """
    count = host.loaded.config.num_hidden_layers
    if layer > count:
        raise InputError("layer", f"is {layer}, the encoder has {count} layers", f"give 0 to {count}")
    encoder = host.encoder(max_length)
    encoded = encoder.encode_batch(passages)

    def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
        rows = [encoded[i] for i in index]
        return {**encoder.pad(rows, length, 0), "mention_spans": np.stack([first_span(one) for one in rows])}

    graph, state = nnx.split(host.loaded.host)

    @jax.jit
    def read(state: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states = nnx.merge(graph, state).encoder(batch).hidden_states
        real = (batch["segment_ids"] > 0).astype(jnp.float32)[:, :, None]
        mean = (states[-1].astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1)
        return mean, mention_mean(states[layer], batch)

    found = Read(*(np.zeros((len(encoded), host.loaded.config.hidden_size), np.float32) for _ in Read._fields))
    for batch in Feed(make_examples([len(one) for one in encoded], arrays, buckets=2)).evaluation(100):
        for kept, made in zip(found, read(state, batch), strict=True):
            kept[batch["index"]] = made
    return found
