"""General map-tuning for an encoder without a masked-LM head: an entity must look like its description.

The frozen encoder reads `[ENTITY] / mention`; the mean of its outputs must match, among the entities of the batch, the
mean of its outputs for the entity's description (InfoNCE, van den Oord et al. 2018, over cosine similarities). No task
labels are used. Each entity gives two examples: with its mention, and with the mention masked, so that the slot must
carry the meaning by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.pipeline import Examples, Feed, make_examples
from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, Task, first_span, pad_rows, register_task, slot_rows

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin


@register_task("description_matching")
class DescriptionMatching(Task):
    """Records need one mention and `description`.

    Args:
      temperature: of the softmax over cosine similarities.
      description_length: tokens of a description that are read.
    """

    head = None
    required = ("description",)

    def __init__(self, temperature: float = 0.05, description_length: int = 34):
        self.temperature = temperature
        self.description_length = description_length

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        passages, owners = [], []
        for number, record in enumerate(records):
            if len(record.mentions) != 1:
                raise InputError(record.where, f"it has {len(record.mentions)} mentions, one is needed")
            if not isinstance(record.fields["description"], str):
                raise InputError(record.where, f"field description is {record.fields['description']!r}, not a text")
            for masked in (False, True):
                mentions = [replace(record.mentions[0], masked=masked)]
                passages.append(Passage(record.source, mentions, where=record.where))
                owners.append(number)
        encoded = encoder.encode_batch(passages, slot_rows(knowledge))

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            padded = pad_rows(encoder, rows, length)
            return {
                **padded,
                "owner": np.array([owners[i] for i in index], np.int32),
                "mention_spans": np.stack([first_span(one) for one in rows]),
            }

        made = make_examples([len(one) for one in encoded], arrays, buckets=buckets)
        return replace(made, record_index=np.array(owners))

    def prepare(self, examples: Examples, records: Sequence[Record], host: Any, max_length: int | None) -> Examples:
        """Adds `targets` float32 [B, D]: what the frozen encoder makes of each description, computed once."""
        passages = [Passage(each.fields["description"], where=each.where) for each in records]
        targets = mean_pooled(host, passages, self.description_length)
        return examples.with_arrays(lambda bucket: {"targets": targets[bucket["owner"]]})

    def batch_shapes(self, extent: Extent) -> Shapes:
        own = {"owner": extent.whole(), "targets": extent.real(extent.hidden_size), "mention_spans": extent.whole(2)}
        return {**extent.tokens(), **own}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        return pooled(host, plugin, batch, key, start)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scores = unit(outputs) @ unit(batch["targets"]).T / self.temperature
        same = batch["owner"][:, None] == batch["owner"][None, :]
        other = same & ~jnp.eye(len(same), dtype=bool)  # the same entity elsewhere in the batch is no negative
        filled = batch["weights"][None, :] == 0
        scores = jnp.where(other | filled, -1e9, scores)
        return -jnp.diagonal(jax.nn.log_softmax(scores)), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"found": unit(outputs), "target": unit(batch["targets"]), "owner": batch["owner"]}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy: how often the nearest description of the whole set is the entity's own."""
        owners, first = np.unique(predictions["owner"], return_index=True)
        nearest = (predictions["found"] @ predictions["target"][first].T).argmax(1)
        return {"accuracy": float((owners[nearest] == predictions["owner"]).mean())}


def pooled(
    host: HostModel,
    plugin: Plugin | None,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    start: int = 0,
) -> jax.Array:
    """Mean over a row's real tokens of the encoder's last hidden states: float32 [B, D]."""
    hidden = host.encoder(batch, plugin, key, start=start).last.astype(jnp.float32)
    real = (batch["segment_ids"] > 0)[:, :, None]
    return (hidden * real).sum(1) / jnp.maximum(real.sum(1), 1)


def mean_pooled(host: Any, passages: Sequence[Passage], max_length: int | None) -> np.ndarray:
    """What `pooled` makes of each passage, without any plugin: float32 [n, D].

    Args:
      host: a loaded host (kinject.inference.host.HostBundle).
      passages: n texts; entities have no slots.
      max_length: tokens of each that are read, None = as many as the host has positions.
    """
    encoder = host.encoder(max_length)
    encoded = encoder.encode_batch(passages)

    def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
        return encoder.pad([encoded[i] for i in index], length, 0)

    texts = make_examples([len(one) for one in encoded], arrays, buckets=4)
    graph, state = nnx.split(host.loaded.host)
    pool = jax.jit(lambda state, batch: pooled(nnx.merge(graph, state), None, batch))
    found = np.zeros((len(encoded), host.loaded.config.hidden_size), np.float32)
    for batch in Feed(texts).evaluation(100):
        found[batch["index"]] = pool(state, batch)
    return found


def unit(vectors: jax.Array) -> jax.Array:
    """Rows scaled to length 1."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
