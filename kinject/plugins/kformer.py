"""Kformer: knowledge texts as extra neurons of the upper feed-forwards.

Yao et al., "Kformer: Knowledge Injection in Transformer Feed-Forward Layers", NLPCC 2022 (zjunlp/Kformer). A fact is
the mean kappa of its pieces' word embeddings; of an example's facts the N with the largest dot product with its mean
input word embedding are kept. In some layers

  out = FFN(x) + dropout(act(x K^T)) V,  K = Lin_k(kappa), V = Lin_v(kappa),

without softmax or gate: N feed-forward neurons that depend on the input. x comes after the attention's LayerNorm, and
the sum before the residual.

Seam: feed-forward of the layers named. Trained: Lin_k and Lin_v of each, n * 2 * (d^2 + d) parameters. Needs of the
knowledge base: labels, and descriptions or triples; or records that carry `facts`.

Departures: the host is frozen, its word table included (the release trains everything, and a copy of the table). Lin_v
starts at zero, so that an untrained plugin is the host, bit for bit; `start="paper"` draws it. Padding enters no mean,
and an example may have any number of facts, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.data.facts import FactReader
from kinject.errors import InputError
from kinject.knowledge.facts import Form
from kinject.models.kernels.elementwise import ACTIVATIONS, Dropout
from kinject.models.seams import Plugin, PluginSizes
from kinject.plugins.base import register

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.seams import FrozenHost, HostEncoder

NOTHING = -1  # where `fact_ids` has no piece
KEYS, VALUES, KEPT = "kformer_keys", "kformer_values", "kformer_kept"


@register("kformer")
class Kformer(Plugin):
    """Kformer: facts as extra neurons of the upper feed-forwards, two projections a layer."""

    reads_sequence = False  # what it adds at a position depends on that position alone

    @dataclass(frozen=True)
    class Config:
        """The paper's values, but for the start.

        Attributes:
          layers: whose feed-forward reads the facts, from 0; the paper's are the last three of twelve.
          facts: how many are kept, N.
          activation: of the host's feed-forwards.
          dropout: on the activations, in training; 0 in the paper's runs (fairseq's `activation_dropout`).
          start: of Lin_v's kernel: at zero, or drawn as torch draws a Linear's.
          form: facts of an entity: its description, its triples, or both.
          entities: whose facts are ranked, linked ones first.
          candidates: at most so many facts are ranked.
          fact_length: tokens of a fact that are read.
          retrieve: whether BM25 finds entities where an example links fewer.
          drop_answers: leave out facts that hold the gold answer.
        """

        layers: tuple[int, ...] = (9, 10, 11)
        facts: int = 5
        activation: Literal["gelu", "gelu_new", "relu"] = "gelu"
        dropout: float = 0.0
        start: Literal["zero", "paper"] = "zero"
        form: Form = "all"
        entities: int = 1
        candidates: int = 16
        fact_length: int = 32
        retrieve: bool = True
        drop_answers: bool = False

        def __post_init__(self) -> None:
            if not self.layers or min(self.layers) < 0 or len(set(self.layers)) < len(self.layers):
                raise ValueError(f"layers are {self.layers}: name different ones from 0, at least one")
            if min(self.facts, self.entities, self.candidates, self.fact_length) < 1 or not 0 <= self.dropout < 1:
                raise ValueError("facts, entities, candidates, fact_length must be 1 or more, dropout in [0, 1)")

    def __init__(self, config: Any = None, *, rngs: nnx.Rngs | None = None, **sizes: Unpack[PluginSizes]):
        super().__init__(config, **sizes)
        size = self.embedding_size
        rngs = rngs or nnx.Rngs(0)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        zero = nnx.initializers.zeros
        drawn: dict[str, Any] = {"kernel_init": uniform, "bias_init": zero, "rngs": rngs}
        value = drawn if self.config.start == "paper" else {**drawn, "kernel_init": zero}
        count = len(self.config.layers)
        self.keys = nnx.List([nnx.Linear(size, self.hidden_size, **drawn) for _ in range(count)])
        self.values = nnx.List([nnx.Linear(size, self.hidden_size, **value) for _ in range(count)])
        self.dropout = Dropout(self.config.dropout)

    def prepare(
        self, examples: Examples, records: Sequence[Record], host: FrozenHost, knowledge: KnowledgeBase | None
    ) -> Examples:
        """Adds `fact_ids` int32 [n, F, T] ([n, C, F, T] where an example has choices): pieces, -1 = nothing.

        Raises:
          InputError: a layer that the host does not have; see `FactReader.read`.
        """
        config, depth = self.config, host.loaded.config.num_hidden_layers
        if max(config.layers) >= depth:
            raise InputError("method.layers", f"names layer {max(config.layers)}, the host has 0 to {depth - 1}")
        reader = FactReader.of(config, knowledge)
        facts = [
            [[fact for group in groups for fact in group][: config.candidates] for groups in choices]
            for choices in reader.read(records)
        ]
        distinct = list(dict.fromkeys(fact for choices in facts for some in choices for fact in some))
        pieces = [one.ids[: config.fact_length] for one in host.tokenizer.pieces(distinct)]
        ids = dict(zip(distinct, pieces, strict=True))
        several = examples.buckets[0]["token_ids"].shape[1:-1]
        count = max((len(some) for choices in facts for some in choices), default=0)
        length = max(map(len, pieces), default=0)
        table = np.full((len(facts), *several, count, length), NOTHING, np.int32)
        for row, choices in enumerate(facts):
            for choice, some in enumerate(choices):
                for place, fact in enumerate(some):
                    here: tuple[Any, ...] = (row, *([choice] if several else []), place, slice(0, len(ids[fact])))
                    table[here] = ids[fact]
        return examples.with_arrays(lambda bucket: {"fact_ids": table[bucket["index"]]})

    def before(self, encoder: HostEncoder, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ranks the facts and projects them, once a batch.

        Args:
          encoder: the host's, whose word embeddings are read.
          batch: reads `fact_ids` int32 [B, F, T], `token_ids` and `segment_ids` int32 [B, L].

        Returns:
          The batch with keys and values float32 [n, B, N, D] of the n layers, and which of the N are facts.
        """
        facts = batch.get("fact_ids")
        if facts is None or not facts.shape[1] * facts.shape[2]:
            return batch
        words = encoder.embeddings.words
        means, real = _mean(words(jnp.maximum(facts, 0)), facts != NOTHING)
        inputs, _ = _mean(words(batch["token_ids"]), batch["segment_ids"] > 0)
        scores = jnp.where(real, jnp.einsum("bfd,bd->bf", means, inputs), -jnp.inf)
        _, chosen = jax.lax.top_k(jax.lax.stop_gradient(scores), min(self.config.facts, facts.shape[1]))
        means = jnp.take_along_axis(means, chosen[:, :, None], axis=1)
        return {
            **batch,
            KEYS: jnp.stack([linear(means) for linear in self.keys]),
            VALUES: jnp.stack([linear(means) for linear in self.values]),
            KEPT: jnp.take_along_axis(real, chosen, axis=1),
        }

    def feed_forward(
        self, layer: int, hidden: jax.Array, output: jax.Array, batch: Mapping[str, Any], key: jax.Array | None = None
    ) -> jax.Array:
        """Adds what the facts answer to `hidden` [B, L, D]: float32 [B, L, D]."""
        if layer not in self.config.layers or KEYS not in batch:
            return output
        place = self.config.layers.index(layer)
        scores = jnp.einsum("bld,bnd->bln", hidden.astype(jnp.float32), batch[KEYS][place])
        active = jnp.where(batch[KEPT][:, None], ACTIVATIONS[self.config.activation](scores), 0)
        active = self.dropout(active, key)
        return output.astype(jnp.float32) + jnp.einsum("bln,bnd->bld", active, batch[VALUES][place])

    def first_seam(self) -> int:
        """Layers below the lowest one named are never touched."""
        return min(self.config.layers) + 1


def _mean(vectors: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean of [..., T, D] over the places of bool [..., T], float32 [..., D]; zeros, and False, where there is none."""
    count = real.sum(-1, keepdims=True)
    total = jnp.where(real[..., None], vectors.astype(jnp.float32), 0).sum(-2)
    return total / jnp.maximum(count, 1), count[..., 0] > 0
