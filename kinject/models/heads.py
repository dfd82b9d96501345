"""What reads the encoder, and the host that holds encoder and head together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.errors import InputError, did_you_mean
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.family import Form, HeadForm
from kinject.models.kernels.elementwise import ACTIVATIONS, Dropout, cross_entropy
from kinject.models.kernels.products import for_kernels, rounded, rounded_dot
from kinject.models.kernels.vocabulary import has_no_scores, word_losses
from kinject.models.layers import normal, site
from kinject.models.own_heads import DependencyHead, EmbeddingHead, JoinedHead
from kinject.models.seams import Plugin

HEAD_SITE = 1_000_003  # a head's dropout, far from the sites of the layers


def _norm(size: int, config: EncoderConfig, form: HeadForm, options: dict[str, Any]) -> nnx.LayerNorm:
    """The LayerNorm of a head."""
    return nnx.LayerNorm(
        size, epsilon=config.layer_norm_eps, use_bias=form.norm_bias, use_fast_variance=False, **options
    )


class MaskedLMHead(nnx.Module):
    """Dense, activation, LayerNorm, then the word embeddings themselves as decoder, with a bias of its own."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        form = config.family.head("masked_lm", config)
        size = config.word_size
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.kind = "masked_lm"
        self.dtype = jnp.dtype(dtype)
        self.activation = form.activation
        init = normal(config, rngs)
        self.transform = nnx.Linear(config.hidden_size, size, kernel_init=init, use_bias=form.dense_bias, **options)
        self.norm = _norm(size, config, form, options)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), param_dtype)) if form.output_bias else None

    def hidden(self, hidden: jax.Array) -> jax.Array:
        """Returns what is compared with the word embeddings, [..., E]: hidden [..., D], transformed and normed."""
        return self.norm(ACTIVATIONS[self.activation](self.transform(hidden)))

    def logits(self, hidden: jax.Array, word_embedding: jax.Array) -> jax.Array:
        """Scores every word of the vocabulary.

        Args:
          hidden: [B, P, D] of the encoder.
          word_embedding: [V, E], the encoder's own table.

        Returns:
          float32 [B, P, V].
        """
        return self._scores(self.hidden(hidden), word_embedding)

    def _scores(self, hidden: jax.Array, word_embedding: jax.Array) -> jax.Array:
        """The same of what `hidden` returns."""
        decoder = word_embedding if rounded(hidden, word_embedding) else word_embedding.astype(self.dtype)
        if decoder.dtype == jnp.bfloat16:  # so is the gradient of the scores, or its product with the table is float32
            scores = rounded_dot(hidden, decoder.T, (((hidden.ndim - 1,), (0,)), ((), ())))
        else:  # without `.T`: for a single row a CPU would write the turned table
            scores = jnp.einsum("...d,vd->...v", hidden, decoder, preferred_element_type=jnp.float32)
        return scores if self.bias is None else scores + self.bias[...].astype(jnp.float32)

    def losses(self, hidden: jax.Array, word_embedding: jax.Array, labels: jax.Array) -> jax.Array:
        """Cross-entropies of the same scores and labels int32 [B, P]: float32 [B, P]."""
        read, decoder = self.hidden(hidden), word_embedding.astype(self.dtype)
        if not (for_kernels(read) and has_no_scores(read, decoder)):
            return cross_entropy(self._scores(read, word_embedding), labels)
        bias = jnp.zeros(len(decoder)) if self.bias is None else self.bias[...].astype(jnp.float32)
        return word_losses(read, decoder, bias, labels)


class PlainHead(nnx.Module):
    """An output layer on what the encoder yields, position by position: token classes, or span start and end.

    Before it there is dropout as the family has it: in BERT for token classes and not for spans. A family may have a
    dense layer with activation and LayerNorm in between, as ModernBERT does.
    """

    def __init__(self, config: EncoderConfig, num_labels: int, *, kind: str = "token_classification", **options: Any):
        form = config.family.head(form_of(kind), config)
        init = normal(config, options["rngs"])
        size = config.hidden_size
        self.kind = kind
        self.num_labels = num_labels
        self.pooling = form.pooling
        self.activation = form.activation
        dense = {"kernel_init": init, **options}
        self.pooler = nnx.Linear(size, size, use_bias=form.dense_bias, **dense) if form.dense else None
        self.norm = _norm(size, config, form, options) if form.norm else None
        self.output = nnx.Linear(size, num_labels, **dense)
        self.input_dropout = Dropout(form.input_dropout)
        self.dropout = Dropout(form.dropout)

    def logits(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns float32 [..., num_labels] of hidden [..., D]; `key` = dropout key, None = no dropout."""
        if self.pooler is None:
            return self.output(self.dropout(hidden, site(key, 0))).astype(jnp.float32)
        hidden = ACTIVATIONS[self.activation](self.pooler(self.input_dropout(hidden, site(key, 0))))
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.output(self.dropout(hidden, site(key, 1))).astype(jnp.float32)


class PooledHead(PlainHead):
    """Dense layer, activation and output layer over one vector a sequence, usually that of the first token.

    BERT drops before the output layer; RoBERTa's classification head drops before the dense layer too. Classification,
    pair score, multi-label and multiple choice differ only in their number of outputs and in their loss.
    """

    def __init__(self, config: EncoderConfig, num_labels: int, *, kind: str = "classification", **options: Any):
        super().__init__(config, num_labels, kind=kind, **options)


Head = MaskedLMHead | PlainHead | JoinedHead | DependencyHead | EmbeddingHead


class AttachedTuning(Protocol):
    """What a host says of what was added to its encoder: `kinject.models.tuning_base.Tuning` is one."""

    @property
    def name(self) -> str:
        """What a config calls it."""

    def to_json(self) -> dict[str, Any]:
        """Its settings, as `host.json` has them."""


class HostModel(nnx.Module):
    """An encoder and the head that reads it; `head` is None for a bare encoder.

    Attributes:
      tuning: what was added to the encoder to tune it (see models/tuning.py), None in a plain host.
    """

    def __init__(self, encoder: Encoder, head: Head | None = None):
        self.encoder = encoder
        self.head = head
        self.tuning: AttachedTuning | None = None


Host = HostModel  # `kinject.models.Host`, its public name


def logits(
    host: HostModel,
    batch: Mapping[str, jax.Array],
    plugin: Plugin | None = None,
    key: jax.Array | None = None,
    *,
    start: int = 0,
) -> jax.Array:
    """A whole forward pass: the head's scores at `batch["positions"]` ([B, P]; the first token where there are none).

    Returns:
      float32 [B, P, V] of a masked-LM head, [B, P, C] of any other, [B, 1, C] of one that joins its P positions.
    """
    positions = batch.get("positions")
    if positions is None:
        positions = jnp.zeros((batch["token_ids"].shape[0], 1), jnp.int32)
    hidden = read_hidden(host, batch, positions, plugin, key, start=start)
    if isinstance(host.head, MaskedLMHead):
        return host.head.logits(hidden, host.encoder.embeddings.word.embedding[...])
    if host.head is None or isinstance(host.head, DependencyHead):
        raise ValueError("this host has no head to read the encoder with")
    return host.head.logits(hidden, site(key, HEAD_SITE))


def makes_word_losses(host: HostModel, batch: Mapping[str, jax.Array]) -> bool:
    """Whether `word_losses_at` is for them: logits are those of a masked-LM head, at places that the batch names."""
    return "positions" in batch and getattr(type(host.head), "logits", None) is MaskedLMHead.logits


def word_losses_at(
    host: HostModel,
    batch: Mapping[str, jax.Array],
    plugin: Plugin | None = None,
    key: jax.Array | None = None,
    *,
    start: int = 0,
) -> jax.Array:
    """A whole forward pass of a host with a masked-LM head: cross-entropies float32 [B, P].

    They are those of the batch's `labels` int32 [B, P] at its `positions`.
    """
    assert isinstance(host.head, MaskedLMHead)
    hidden = read_hidden(host, batch, batch["positions"], plugin, key, start=start)
    return host.head.losses(hidden, host.encoder.embeddings.word.embedding[...], batch["labels"])


def read_hidden(
    host: HostModel,
    batch: Mapping[str, jax.Array],
    positions: jax.Array,
    plugin: Plugin | None = None,
    key: jax.Array | None = None,
    *,
    start: int = 0,
) -> jax.Array:
    """What the head reads at `positions` int32 [B, P]: [B, P, D] of the encoder.

    A pooled head with `pooling` "mean" reads there the mean over all positions of the segment that a position is in.
    """
    if not (isinstance(host.head, PooledHead | EmbeddingHead) and host.head.pooling == "mean"):
        return host.encoder(batch, plugin, key, positions=positions, start=start).last
    hidden = host.encoder(batch, plugin, key, start=start).last
    segments = batch["segment_ids"]
    own = jnp.take_along_axis(segments, positions, axis=1)
    inside = ((own[:, :, None] == segments[:, None]) & (segments > 0)[:, None]).astype(jnp.float32)
    total = jnp.einsum("bpl,bld->bpd", inside, hidden.astype(jnp.float32))
    mean = total / jnp.maximum(inside.sum(-1, keepdims=True), 1)
    return mean.astype(hidden.dtype)


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
      module: its class.
      num_labels: how many outputs it has where that is no choice; None = the task's number.
      problem_type: Hugging Face's word for its loss, None where it has none.
      architecture: transformers' class for it, without the family; "Model", the bare encoder, where they have none.
      places: of a `JoinedHead`, how many positions it reads.
      form: which of transformers' heads a family computes it as, None for one that transformers has not.
      own_output: whether it ends in an output layer of its own, `head/output`; a masked-LM head ends in the word
        vectors, and an embedding is what is read.
    """

    module: type[Head] = PooledHead
    num_labels: int | None = None
    problem_type: str | None = None
    architecture: str = "ForSequenceClassification"
    places: int = 0
    form: Form | None = "pooled"
    own_output: bool = True

    @property
    def pooled(self) -> bool:
        """Whether it reads a text's one vector, which `EncoderConfig.pooling` says how to make."""
        return self.module is EmbeddingHead

    @property
    def named(self) -> bool:
        """Whether each of its outputs is one label, so that they have names."""
        unnamed = self.architecture in ("ForMultipleChoice", "ForQuestionAnswering") or self.module is DependencyHead
        return self.own_output and not unnamed


HEADS: dict[str, HeadKind] = {
    "masked_lm": HeadKind(MaskedLMHead, architecture="ForMaskedLM", form="masked_lm", own_output=False),
    "classification": HeadKind(problem_type="single_label_classification"),
    "pair_score": HeadKind(num_labels=1),
    "multi_label": HeadKind(problem_type="multi_label_classification"),
    "multiple_choice": HeadKind(num_labels=1, architecture="ForMultipleChoice", form="multiple_choice"),
    "token_classification": HeadKind(PlainHead, architecture="ForTokenClassification", form="token_classification"),
    "span": HeadKind(PlainHead, num_labels=2, architecture="ForQuestionAnswering", form="span"),
    "mention": HeadKind(JoinedHead, architecture="Model", places=1, form=None),
    "mention_pair": HeadKind(JoinedHead, architecture="Model", places=2, form=None),
    "dependency": HeadKind(DependencyHead, architecture="Model", form=None),
    "embedding": HeadKind(EmbeddingHead, architecture="Model", form=None, own_output=False),
    "embedding_classification": HeadKind(EmbeddingHead, architecture="Model", form=None),
}


def head_kind(name: str) -> HeadKind:
    """Returns the kind called `name`, or raises InputError."""
    if name not in HEADS:
        raise InputError("head", f"there is no head called {name!r}", did_you_mean(name, HEADS))
    return HEADS[name]


def form_of(name: str) -> Form:
    """Which of transformers' heads a kind is; ValueError for one that they have not."""
    form = head_kind(name).form
    if form is None:
        raise ValueError(f"a head {name} is none of transformers'")
    return form


def build_head(
    name: str,
    config: EncoderConfig,
    num_labels: int | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Head:
    """Builds a head with fresh parameters.

    Args:
      name: one of `HEADS`.
      config: the encoder's shape.
      num_labels: how many outputs; needed unless its kind fixes them, and of no concern to a head without any.
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
      rngs: where fresh parameters come from.

    Raises:
      InputError: unknown kind, or a number of labels that is missing or contradicts the kind.
    """
    kind = head_kind(name)
    options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
    if kind.module is MaskedLMHead:
        return MaskedLMHead(config, **options)
    if not kind.own_output:
        return EmbeddingHead(config, kind=name, **options)
    labels = kind.num_labels if num_labels is None else num_labels
    if labels is None or labels < 1:
        raise InputError("num_labels", f"is {labels} for head {name!r}", "give the number of labels")
    if kind.num_labels not in (None, labels):
        raise InputError("num_labels", f"is {labels}, but head {name!r} has {kind.num_labels}")
    if kind.places:
        options["places"] = kind.places
    make: Callable[..., Head] = kind.module
    return make(config, labels, kind=name, **options)
