"""What the tasks that classify a text with marked mentions have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Passage
from kinject.data.pipeline import Examples, make_examples
from kinject.models.heads import PooledHead, read_hidden
from kinject.tasks.base import first_span, head_of, pad_rows
from kinject.tasks.fields import marked, unique_ids
from kinject.tasks.labels import LabelledTask
from kinject.tasks.protocol import Protocol, protocol_named

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin


class MarkedTask(LabelledTask):
    """Classifies a text with markers and slots around its mentions, by the markers of a protocol."""

    def __init__(self, labels: str | Path | Sequence[str] | None = None, protocol: str = "kinject"):
        super().__init__(labels)
        self.protocol = protocol_named(protocol)


def pooled_scores(
    host: HostModel,
    plugin: Plugin | None,
    batch: Mapping[str, jax.Array],
    key: jax.Array | None = None,
    start: int = 0,
) -> jax.Array:
    """The output layer right on the pooler's output, without the dropout between them: float32 [B, outputs].

    That is the authors' head for typing and pair scores, `Linear(pooler_output)`; only their relation classifier, which
    is Hugging Face's, drops there.
    """
    first = jnp.zeros((batch["token_ids"].shape[0], 1), jnp.int32)
    hidden = read_hidden(host, batch, first, plugin, key, start=start)
    return head_of(host, PooledHead).logits(hidden)[:, 0]


def marked_texts(
    records: Sequence[Record],
    markers: Sequence[str],
    labels: np.ndarray,
    encoder: EntityEncoder,
    knowledge: KnowledgeBase | None,
    protocol: Protocol,
    buckets: int,
    *,
    at_markers: bool = False,
) -> Examples:
    """One example a record: its text with markers and slots around its mentions.

    Args:
      records: each with one mention a marker.
      markers: what stands on both sides of the first mention, of the second, ….
      labels: the examples' labels, first axis = records.
      encoder: of the host.
      knowledge: whose entities get slots; None for none.
      protocol: how text becomes tokens.
      buckets: how many padded lengths at most.
      at_markers: whether the head reads the opening markers, in `positions` int32 [B, mentions], not the first token.

    Raises:
      InputError: another number of mentions, two records with one id.
    """
    unique_ids(records)
    passages = [Passage(protocol.text(one.source), marked(one, markers), where=one.where) for one in records]
    encoded = protocol.encode(passages, encoder, knowledge)
    return read_examples(encoded, labels, encoder, buckets, at_markers=at_markers)


def read_examples(
    encoded: Sequence[Encoded], labels: np.ndarray, encoder: EntityEncoder, buckets: int, *, at_markers: bool = False
) -> Examples:
    """One example an encoded text, with its label; see `marked_texts`."""

    def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
        rows = [encoded[i] for i in index]
        read = {"positions": np.stack([one.markers[:, 0] for one in rows])} if at_markers else {}
        return {
            **pad_rows(encoder, rows, length),
            **read,
            "labels": labels[index],
            "mention_spans": np.stack([first_span(one) for one in rows]),
        }

    return make_examples([len(one) for one in encoded], arrays, buckets=buckets)
