"""Relation decoding: DKPLM's training, masked LM beside the decoding of what stood in a mention's place.

Zhang et al., AAAI 2022 (see `kinject.plugins.dkplm`). Which mentions are trained on is a matter of the long tail:
entities that the texts name less often than the mean, that have enough neighbours in the graph, and without which the
sentence is another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.pipeline import Batch, Examples, make_examples
from kinject.errors import InputError
from kinject.models.heads import MaskedLMHead
from kinject.models.kernels.elementwise import cross_entropy
from kinject.plugins.dkplm import ANSWER, FOUND, NEGATIVES, Dkplm, inside
from kinject.tasks.base import Extent, Shapes, Task, first_span, head_of, pad_rows, register_task
from kinject.tasks.description_matching import mean_pooled
from kinject.tasks.masked_lm import masking

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin


@register_task("relation_decoding")
class RelationDecoding(Task):
    """Records need a text with linked mentions, each of which makes an example; for a plugin `dkplm`.

    Args:
      weight: lambda, of the decoding; masked LM has 1 - lambda. (The release adds both up: 0.5 is half of that.)
      rate: share of the other pieces that masked LM hides.
      negatives: pieces drawn for the sampled softmax ("paper").
      neighbours: (least, most) entities within `hops` of the entity in the graph; others are left out.
      hops: see above.
      important: share of the examples that is kept, those whose sentence changes most without the mention; 1 = all.
      below_mean: whether entities that are named as often as the mean, or more, are left out.
    """

    head = "masked_lm"
    metric = "negative_loss"

    def __init__(
        self,
        weight: float = 0.5,
        rate: float = 0.15,
        negatives: int = 20,
        neighbours: tuple[int, int] = (1, 1_000_000),
        hops: int = 1,
        important: float = 1.0,
        below_mean: bool = True,
    ):
        shares = {"weight": weight, "rate": rate, "important": important}
        bad = next((name for name, value in shares.items() if not 0 < value <= 1), None)
        if bad is not None or negatives < 1 or hops < 1 or len(neighbours) != 2:
            problem = (
                "weight, rate and important are shares above 0; negatives and hops 1 or more; neighbours two numbers"
            )
            raise InputError(f"task_options.{bad or 'negatives'}", problem)
        self.weight, self.rate, self.negatives, self.important = weight, rate, negatives, important
        self.neighbours, self.hops, self.below_mean = tuple(neighbours), hops, below_mean

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        raise InputError("task", "relation_decoding trains a plugin that reads a graph", "use it in a stage plugin")

    def bare_examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        if knowledge is None or knowledge.triples is None:
            raise InputError("knowledge", "relation decoding reads triples", "name a knowledge base that has some")
        kept, left_out = self._chosen(records, knowledge)
        passages = [
            Passage(record.source, record.mentions[:1], where=record.where) for record in map(records.__getitem__, kept)
        ]
        encoded = encoder.encode_batch(passages)

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            rows = [encoded[i] for i in index]
            return {**pad_rows(encoder, rows, length), "mention_spans": np.stack([first_span(one) for one in rows])}

        made = make_examples([len(one) for one in encoded], arrays, buckets=buckets)
        ones = np.ones(len(kept), np.float32)
        made = made.with_arrays(lambda bucket: {"important": ones[bucket["index"]]})
        made = made.with_redraw(self._redraw(encoder))
        return replace(made, record_index=np.array(kept), notes=left_out)

    def _chosen(self, records: Sequence[Record], knowledge: KnowledgeBase) -> tuple[list[int], dict[str, int]]:
        """Numbers of the records whose first mention is of the long tail, and why others are not."""
        entities = [record.mentions[0].entity if record.mentions else None for record in records]
        counts = Counter(one for one in entities if one is not None)
        mean = sum(counts.values()) / max(len(counts), 1)
        rows = knowledge.rows([one or "" for one in entities])
        near = neighbourhoods(np.asarray(knowledge.triples), knowledge.size, rows[rows >= 0], self.hops)
        low, high = self.neighbours
        kept, left_out = [], Counter[str]()
        for number, (entity, row) in enumerate(zip(entities, rows.tolist(), strict=True)):
            if entity is None or row < 0 or not near.get(row):
                left_out["left out: no mention with a triple"] += 1
            elif self.below_mean and len(set(counts.values())) > 1 and counts[entity] >= mean:
                left_out["left out: named as often as the mean"] += 1
            elif not low <= near[row] <= high:
                left_out["left out: too few or too many neighbours"] += 1
            else:
                kept.append(number)
        if not kept:
            raise InputError(
                "data set", f"no mention is of the long tail: {dict(left_out)}", "relax neighbours, below_mean"
            )
        return kept, dict(left_out)

    def prepare(self, examples: Examples, records: Sequence[Record], host: Any, max_length: int | None) -> Examples:
        """Keeps the share of examples whose sentence, as the host encodes it, changes most without the mention."""
        if self.important == 1 or examples.record_index is None:
            return examples
        some = [records[i] for i in examples.record_index]
        length = max_length or host.tokenizer.max_length
        whole = mean_pooled(host, [Passage(record.text, where=record.where) for record in some], length)
        less = mean_pooled(host, [Passage(_without(record), where=record.where) for record in some], length)
        alike = (whole * less).sum(1) / np.maximum(np.linalg.norm(whole, axis=1) * np.linalg.norm(less, axis=1), 1e-12)
        most = np.argsort(alike, kind="stable")[: max(1, round(self.important * len(some)))]
        chosen = np.zeros(len(some), np.float32)
        chosen[most] = 1
        return examples.with_arrays(lambda bucket: {"important": chosen[bucket["index"]]})

    def _redraw(self, encoder: EntityEncoder) -> Any:
        mask = masking(self.rate, encoder)
        size, count = encoder.tokenizer.vocab_size, self.negatives

        def redraw(batch: Batch, seeds: np.ndarray) -> Batch:
            place = np.arange(batch["token_ids"].shape[1])
            spans = batch["mention_spans"]
            held = (place >= spans[:, :1]) & (place < spans[:, 1:])
            made = mask({**batch, "entity_slot": np.where(held, 0, batch["entity_slot"])}, seeds)
            made["entity_slot"] = batch["entity_slot"]
            if ANSWER in batch:
                shape = (batch[ANSWER].shape[1], count)
                drawn = [np.random.default_rng([int(seed), 1]).integers(0, size, shape) for seed in seeds]
                made[NEGATIVES] = np.stack(drawn).astype(np.int32)
            return made

        return redraw

    def batch_shapes(self, extent: Extent) -> Shapes:
        raise InputError("relation_decoding", "this task does not tell the shapes of its batches")

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """Losses float32 [B, 2] of each example: of the decoding (0 where it has no triple), and of masked LM."""
        if not isinstance(plugin, Dkplm):
            raise InputError("method", "relation_decoding trains the method dkplm", 'name it: {"name": "dkplm"}')
        read = plugin.before(host.encoder, batch)
        hidden = host.encoder(read, plugin, key, start=start).last
        head = head_of(host, MaskedLMHead)
        words = host.encoder.embeddings.word.embedding[...]
        scores = head.logits(plugin.outputs_for_head(hidden, read), words)
        asked = jnp.take_along_axis(scores, batch["positions"][:, :, None], axis=1)
        hidden_words = _mean(cross_entropy(asked, batch["labels"]), batch["weights"])
        if plugin.config.variant == "easynlp":  # the name's own pieces, which token_ids still has
            own = inside(read) & read[FOUND][:, None]
            decoding = _mean(cross_entropy(scores, batch["token_ids"]), own)
        else:
            states = plugin.decoded(hidden, read)
            there = (read[ANSWER] >= 0) & read[FOUND][:, None]
            decoding = _mean(sampled_softmax(states, words, jnp.maximum(read[ANSWER], 0), read[NEGATIVES]), there)
        return jnp.stack([decoding, hidden_words], 1)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total = self.weight * outputs[:, 0] + (1 - self.weight) * outputs[:, 1]
        return total, batch["important"] * (batch["weights"].max(1) > 0)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        losses, weights = self.loss(outputs, batch)
        return {"decoding": outputs[:, 0], "hidden_words": outputs[:, 1], "total": losses, "kept": weights}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        kept = predictions["kept"] > 0
        means = {name: float(predictions[name][kept].mean()) for name in ("decoding", "hidden_words", "total")}
        return {"negative_loss": -means["total"], "decoding": means["decoding"], "masked_lm": means["hidden_words"]}


def sampled_softmax(states: jax.Array, words: jax.Array, right: jax.Array, drawn: jax.Array) -> jax.Array:
    """-log of exp(s_y) / (exp(s_y) + sum over the drawn of exp(s_n)), s = state . word: float32 [B, A].

    Args:
      states: [B, A, D].
      words: [V, D].
      right: int32 [B, A].
      drawn: int32 [B, A, N].
    """
    asked = jnp.concatenate([right[..., None], drawn], -1)
    scores = jnp.einsum("bad,band->ban", states, words[asked].astype(jnp.float32))
    return jax.nn.logsumexp(scores, -1) - scores[..., 0]


def neighbourhoods(triples: np.ndarray, size: int, rows: np.ndarray, hops: int) -> dict[int, int]:
    """How many other entities lie within so many hops of each row, in either direction."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(triples), bool)
    forth = csr_matrix((ones, (triples[:, 0], triples[:, 2])), (size, size))
    both = forth + forth.T
    found = {}
    for row in np.unique(rows).tolist():
        seen = {row}
        edge = seen
        for _ in range(hops):
            edge = {int(one) for each in edge for one in both.indices[both.indptr[each] : both.indptr[each + 1]]} - seen
            seen = seen | edge
        found[row] = len(seen) - 1
    return found


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean over the second axis, [B]; 0 where nothing weighs."""
    weights = weights.astype(jnp.float32)
    return (values * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def _without(record: Record) -> str:
    """The text without its first mention; a lone mention leaves a full stop."""
    mention, source = record.mentions[0], record.source
    parts = source[: mention.start], source[mention.end :]
    text = "".join(str(one) for one in parts) if isinstance(source, str) else " ".join([*parts[0], *parts[1]])
    return text if text.strip() else "."
