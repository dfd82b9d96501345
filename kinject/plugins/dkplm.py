"""DKPLM: what a graph says of an entity stands in the place of its name, and must be told apart again from the output.

Zhang et al., "DKPLM: Decomposable Knowledge-enhanced Pre-trained Language Model", AAAI 2022; code: alibaba/EasyNLP. A
mention whose entity h has a triple (h, r, t) loses its word embeddings; at each of its positions stands a pseudo token
made of r and t. Training (task `relation_decoding`) decodes the knowledge from the mention's outputs, beside masked LM.

`variant="easynlp"`, as released: p = know(e_t + e_r), one Linear(k, D) of graph vectors, without position and type; at
the output h * know(e_r) at the mention, h * know(1) elsewhere, goes to the masked-LM head, which must say the name's
pieces.

`variant="paper"`: r, t and the entity's description are encoded as texts by the host itself, each pooled, projected and
normed; p = Linear([r + t; d]), with the position's embedding. Decoding: h_0 pools the mention's outputs,
h_i = tanh(scale * r * (h_(i-1) W)) says piece i of t, by sampled softmax over N drawn pieces.

Seam: input embeddings. Trained: `easynlp` k * D + D parameters, `paper` 6 * D^2 + 8 * D + 1. On a frozen host they are
an adapter that is plugged in with its graph; with rules that name `host/` the host itself takes up the knowledge, and
is used without the plugin afterwards, as in the paper. Needs of the knowledge base: triples; vectors (`easynlp`);
labels (`paper`).

Departures and doubts: the release's mask zeroes what is not the mention, which is taken for a slip: here the mention
is replaced. Its loss ignores -1 where labels are -100. A relation's vector is the mean of tail minus head over its
triples, as bases hold none. The paper was at hand as a summary only: how p is joined and the form of h_i are read from
that, not verified, and losses are means over an example, then over examples.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.errors import InputError
from kinject.models.seams import Plugin
from kinject.plugins.base import register
from kinject.plugins.pluglm import AttentivePool

if TYPE_CHECKING:
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.seams import FrozenHost

FOUND, OTHER, RELATION = "dkplm_found", "dkplm_other", "dkplm_relation"
ANSWER, NEGATIVES, PSEUDO, READ = "dkplm_answer", "dkplm_negatives", "dkplm_pseudo", "dkplm_read"
TEXTS = ("dkplm_relation_text", "dkplm_other_text", "dkplm_description")


@register("dkplm")
class Dkplm(Plugin):
    """DKPLM: a pseudo token of relation and tail in the mention's place, and what decodes them."""

    reads_slots = False

    @dataclass(frozen=True)
    class Config:
        """Which form.

        Attributes:
          variant: "paper" or "easynlp".
          text_length: pieces of a relation, a tail or a description that are read, special ones included ("paper").
          answer_length: pieces of the other entity that are decoded ("paper").
          seed: of which triple an example gets, where its entity has several.
        """

        variant: Literal["paper", "easynlp"] = "paper"
        text_length: int = 32
        answer_length: int = 8
        seed: int = 0

        def __post_init__(self) -> None:
            if self.text_length < 3 or self.answer_length < 1:
                raise ValueError("text_length must be 3 or more, answer_length 1 or more")

    def __init__(self, config: Any = None, *, hidden_size: int, knowledge_dim: int = 0, rngs: nnx.Rngs | None = None):
        super().__init__(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim)
        rngs, size = rngs or nnx.Rngs(0), hidden_size
        if self.config.variant == "easynlp":
            if not knowledge_dim:
                raise InputError("method", "dkplm easynlp reads entity vectors", "name a knowledge base that has some")
            self.know = nnx.Linear(knowledge_dim, size, rngs=rngs)
            return
        self.pool = AttentivePool(size, rngs)
        self.project, self.norm = nnx.Linear(size, size, rngs=rngs), nnx.LayerNorm(size, rngs=rngs)
        self.mix = nnx.Linear(2 * size, size, rngs=rngs)
        self.span_pool = AttentivePool(size, rngs)
        self.step = nnx.Linear(size, size, use_bias=False, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))

    def prepare(
        self, examples: Examples, records: Sequence[Record], host: FrozenHost, knowledge: KnowledgeBase | None
    ) -> Examples:
        """Adds each example's triple: `dkplm_found` bool [n], vectors or texts, `dkplm_answer` int32 [n, A], -1 = none.

        Raises:
          InputError: a knowledge base without triples or labels.
        """
        if knowledge is None or knowledge.triples is None:
            raise InputError("knowledge", "dkplm reads triples, and there are none", "name a base that has some")
        chosen = choose_triples(records, knowledge, self.config.seed)
        arrays = {FOUND: chosen.other >= 0, ANSWER: np.full((len(records), self.config.answer_length), -1, np.int32)}
        names = [knowledge.entity(int(row)).label if row >= 0 else "" for row in chosen.other]
        for row, piece in enumerate(host.tokenizer.pieces([f" {name}" for name in names])):
            kept = piece.ids[: self.config.answer_length]
            arrays[ANSWER][row, : len(kept)] = kept
        if self.config.variant == "easynlp":
            arrays |= _vectors(chosen, knowledge)
        else:
            relations = [one["label"] or one["id"] for one in knowledge.relations]
            spoken = [relations[one] if one >= 0 else "" for one in chosen.relation]
            said = [knowledge.entity(int(row)).description if row >= 0 else "" for row in chosen.own]
            for name, texts in zip(TEXTS, (spoken, names, said), strict=True):
                arrays[name] = framed(host.tokenizer, texts, self.config.text_length)
        return examples.with_arrays(lambda bucket: {name: one[bucket["index"]] for name, one in arrays.items()})

    def before(self, encoder: Any, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Makes the pseudo token of each row, once a forward pass: `dkplm_pseudo` [B, D], `dkplm_read` [B, D]."""
        if FOUND not in batch or PSEUDO in batch:
            return batch
        if self.config.variant == "easynlp":
            pseudo = self.know(batch[OTHER] + batch[RELATION])
            beside = encoder.embeddings.places(batch["position_ids"], batch["type_ids"])
            return {**batch, PSEUDO: pseudo[:, None] - beside, READ: self.know(batch[RELATION])}
        relation, other, said = (self.read(encoder, batch[name]) for name in TEXTS)
        pseudo = self.mix(jnp.concatenate([relation + other, said], -1))
        return {**batch, PSEUDO: pseudo[:, None], READ: relation}

    def read(self, encoder: Any, ids: jax.Array) -> jax.Array:
        """Texts int32 [B, T] (-1 = over) as the host itself encodes them, pooled, projected, normed: [B, D]."""
        there = ids >= 0
        places = jnp.where(there, jnp.arange(ids.shape[1]), 0)
        nothing = jnp.zeros_like(ids)
        batch = {"token_ids": jnp.maximum(ids, 0), "segment_ids": there.astype(jnp.int32), "position_ids": places}
        last = encoder({**batch, "type_ids": nothing, "entity_slot": nothing - 1}).last
        return self.norm(self.project(self.pool(last.astype(jnp.float32), there[:, None])[:, 0]))

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Puts the pseudo token [B, 1 or L, D] at every position of the mention, `mention_spans` int32 [B, 2]."""
        del key
        if PSEUDO not in batch:
            return embeddings
        here = inside(batch) & batch[FOUND][:, None]
        return jnp.where(here[:, :, None], batch[PSEUDO].astype(embeddings.dtype), embeddings)

    def outputs_for_head(self, hidden: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What the masked-LM head reads in training, [B, L, D]: by the release multiplied by what `know` makes."""
        if self.config.variant == "paper":
            return hidden
        ones = self.know(jnp.ones((self.knowledge_dim,)))
        here = inside(batch) & batch[FOUND][:, None]
        return hidden * jnp.where(here[:, :, None], batch[READ][:, None], ones)

    def decoded(self, hidden: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """States [B, A, D] of which each says a piece of the other entity ("paper")."""
        state = self.span_pool(hidden.astype(jnp.float32), inside(batch)[:, None])[:, 0]
        states = []
        for _ in range(self.config.answer_length):
            state = jnp.tanh(self.scale[...] * batch[READ] * self.step(state))
            states.append(state)
        return jnp.stack(states, 1)


class Drawn(NamedTuple):
    """Of each record its entity's row, the relation and the other entity's row, int [n]; -1 = it has no triple."""

    own: np.ndarray
    relation: np.ndarray
    other: np.ndarray


def choose_triples(records: Sequence[Record], knowledge: KnowledgeBase, seed: int) -> Drawn:
    """Draws a triple of the first mention's entity, as head or as tail; the same for the same text."""
    asked = [record.mentions[0].entity or "" if record.mentions else "" for record in records]
    own = knowledge.rows(asked)
    triples = np.asarray(knowledge.triples)
    order = np.argsort(np.concatenate([triples[:, 0], triples[:, 2]]), kind="stable")
    ends = np.concatenate([triples[:, 0], triples[:, 2]])[order]
    relation, other = np.full((2, len(records)), -1, np.int64)
    for number, (row, record) in enumerate(zip(own.tolist(), records, strict=True)):
        low, high = np.searchsorted(ends, [row, row + 1])
        if row < 0 or low == high:
            continue
        draw = zlib.crc32(f"{seed} {record.text}".encode()) % (high - low)
        place = int(order[low + draw])
        triple = triples[place % len(triples)]
        relation[number], other[number] = triple[1], triple[2 if place < len(triples) else 0]
    return Drawn(np.asarray(own, np.int64), relation, other)


def relation_vectors(knowledge: KnowledgeBase) -> np.ndarray:
    """Mean of tail minus head over each relation's triples of which both have a vector, float32 [R, k]; else zeros."""
    triples = np.asarray(knowledge.triples)
    (heads, head_there), (tails, tail_there) = (knowledge.gather(triples[:, column]) for column in (0, 2))
    there = head_there & tail_there
    total = np.zeros((len(knowledge.relations), knowledge.dim), np.float64)
    np.add.at(total, triples[there, 1], (tails - heads)[there])
    counts = np.bincount(triples[there, 1], minlength=len(total))
    return (total / np.maximum(counts, 1)[:, None]).astype(np.float32)


def inside(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Bool [B, L]: the positions of each row's mention."""
    place = jnp.arange(batch["token_ids"].shape[1])
    start, end = batch["mention_spans"][:, :1], batch["mention_spans"][:, 1:]
    return (place >= start) & (place < end)


def framed(tokenizer: HostTokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """Texts as pieces between the special tokens of a text, int32 [n, length], -1 behind the end."""
    room = length - len(tokenizer.before) - len(tokenizer.after)
    ids = np.full((len(texts), length), -1, np.int32)
    for row, pieces in enumerate(tokenizer.pieces(list(texts))):
        one = [*tokenizer.before, *pieces.ids[:room], *tokenizer.after]
        ids[row, : len(one)] = one
    return ids


def _vectors(chosen: Drawn, knowledge: KnowledgeBase) -> dict[str, np.ndarray]:
    """Vectors of the other entities and of the relations; an entity without one is not found."""
    vectors, there = knowledge.gather(chosen.other)
    relations = relation_vectors(knowledge)[np.maximum(chosen.relation, 0)]
    return {FOUND: there & (chosen.other >= 0), OTHER: vectors, RELATION: relations}
