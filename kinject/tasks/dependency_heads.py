"""Dependency heads: which word each word of a sentence depends on. K-Adapter's linguistic pretraining.

Wang et al., "K-Adapter", Findings of ACL 2021, section 3.3. Records are those of the data set `treebank`: `tokens`, and
`heads` counted from 1, 0 = root. A word is read at its first piece, and its label is the position of its head's first
piece, the sentence's first position (the host's [CLS] or <s>) standing for the root. (The release numbers words and
reads pieces, so that labels slip as soon as a word has two.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.encode import Encoded, EntityEncoder, Passage
from kinject.data.pipeline import Examples, make_examples
from kinject.data.records import Mention
from kinject.errors import InputError
from kinject.models.heads import HEAD_SITE
from kinject.models.layers import site
from kinject.models.own_heads import DependencyHead
from kinject.tasks.base import Extent, Shapes, Task, head_of, pad_rows, register_task

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin


@register_task("dependency_heads")
class DependencyHeads(Task):
    """Records need `tokens` and `heads`.

    Args:
      positions: outputs of the head, and so the longest sentence in pieces, special ones included; longer ones are left
        out, as is a sentence with a word of which the tokenizer keeps nothing. The paper's is 64.
      beyond: positions behind the sentence may be heads too, as in the release, whose softmax is over all outputs.
    """

    head = "dependency"
    required = ("heads",)
    metric = "uas"

    def __init__(self, positions: int = 64, beyond: bool = False):
        if type(positions) is not int or positions < 4:
            raise InputError("task_options.positions", f"is {positions!r}", "give a whole number from 4")
        self.positions, self.beyond = positions, beyond

    @property
    def num_labels(self) -> int:
        return self.positions

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """See `Task.examples`; no entity has a slot, whatever `knowledge` is."""
        del knowledge
        whole, empty = _whole(records, encoder)
        passages = [
            Passage(one.source, [Mention(i, i + 1) for i in range(len(one.source))], where=one.where) for one in whole
        ]
        encoded = encoder.encode_batch(passages, skip_overlong=True)
        pairs = [
            (record, one)
            for record, one in zip(whole, encoded, strict=True)
            if one is not None and len(one) <= self.positions
        ]
        if not pairs:
            raise InputError("data set", f"no sentence fits into {self.positions} pieces", "raise positions")
        heads = [_heads(record) for record, _ in pairs]

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [pairs[i][1] for i in index]
            padded = pad_rows(encoder, rows, length)
            return {**padded, **_words(rows, [heads[i] for i in index])}

        made = make_examples([len(one) for _, one in pairs], arrays, buckets=buckets)
        notes = {"left out: longer than the head has positions": len(whole) - len(pairs)}
        notes["left out: a word of which the tokenizer keeps nothing"] = empty
        kept = {id(record) for record, _ in pairs}
        owners = np.array([number for number, record in enumerate(records) if id(record) in kept])
        return replace(made, notes={note: count for note, count in notes.items() if count}, record_index=owners)

    def batch_shapes(self, extent: Extent) -> Shapes:
        words = {name: extent.whole(extent.places) for name in ("positions", "labels")}
        return {**extent.tokens(), **words, "weights": extent.real(extent.places)}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """Scores float32 [B, P, positions] of P words a sentence."""
        hidden = host.encoder(batch, plugin, key, start=start).last
        segments, places, own = batch["segment_ids"], batch["positions"], site(key, HEAD_SITE)
        return head_of(host, DependencyHead).scores(hidden, segments, places, own, beyond=self.beyond)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Counts a sentence: words, and those whose head is right."""
        right = (outputs.argmax(-1) == batch["labels"]) * batch["weights"]
        return {"right": jnp.sum(right, -1), "words": jnp.sum(batch["weights"], -1)}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Unlabelled attachment score over all words, punctuation included."""
        return {"uas": float(np.sum(predictions["right"])) / max(float(np.sum(predictions["words"])), 1.0)}


def _whole(records: Sequence[Record], encoder: EntityEncoder) -> tuple[list[Record], int]:
    """The records of whose words the tokenizer keeps something, and how many others there are."""
    for record in records:
        if isinstance(record.source, str):
            raise InputError(record.where, "has text, not tokens", "heads are of tokens: prepare it as treebank")
    words = list(dict.fromkeys(word for record in records for word in record.source))
    kept = {word for word, pieces in zip(words, encoder.tokenizer.pieces(words), strict=True) if pieces.ids}
    whole = [record for record in records if kept.issuperset(record.source)]
    return whole, len(records) - len(whole)


def _heads(record: Record) -> list[int]:
    """The heads of a record, checked."""
    heads, count = record.fields["heads"], len(record.source)
    if not isinstance(heads, list) or len(heads) != count:
        raise InputError(record.where, f"field heads is not a list of {count} numbers", "give each token one")
    for number, head in enumerate(heads, start=1):
        if type(head) is not int or not 0 <= head <= count or head == number:
            hint = f"a head is another token, 1 to {count}, or 0 for the root"
            raise InputError(record.where, f"field heads[{number - 1}] is {head!r}", hint)
    return heads


def _words(rows: Sequence[Encoded], heads: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """`positions`, `labels` int32 [B, P] and `weights` float32 [B, P]: first pieces of words and of their heads."""
    most = max(len(one) for one in heads)
    positions, labels = np.zeros((2, len(rows), most), np.int32)
    weights = np.zeros((len(rows), most), np.float32)
    for row, (one, words) in enumerate(zip(rows, heads, strict=True)):
        firsts = np.concatenate([[0], one.spans[:, 0]])
        positions[row, : len(words)], labels[row, : len(words)] = firsts[1:], firsts[words]
        weights[row, : len(words)] = 1
    return {"positions": positions, "labels": labels, "weights": weights}
