"""What reads the encoder: a masked-LM head or a pooled head, and the host that holds encoder and head together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.errors import InputError, did_you_mean
from kinject.models.config import ACTIVATIONS
from kinject.models.encoder import Encoder, EncoderConfig, site

if TYPE_CHECKING:
    from kinject.models.tuning_base import Tuning


class MaskedLMHead(nnx.Module):
    """Dense, activation, LayerNorm, then the word embeddings themselves as decoder, with a bias of its own."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        size = config.hidden_size
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.kind = "masked_lm"
        self.dtype = jnp.dtype(dtype)
        # RoBERTa's is the exact gelu whatever the layers use
        self.activation = config.hidden_act if config.model_type == "bert" else "gelu"
        init = nnx.initializers.normal(config.initializer_range)
        self.transform = nnx.Linear(size, size, kernel_init=init, **options)
        self.norm = nnx.LayerNorm(size, epsilon=config.layer_norm_eps, use_fast_variance=False, **options)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,), param_dtype))

    def hidden(self, hidden: jax.Array) -> jax.Array:
        """Returns what is compared with the word embeddings: hidden [..., D], transformed and normed."""
        return self.norm(ACTIVATIONS[self.activation](self.transform(hidden)))

    def logits(self, hidden: jax.Array, word_embedding: jax.Array) -> jax.Array:
        """Scores every word of the vocabulary.

        Args:
          hidden: [B, P, D] of the encoder.
          word_embedding: [V, D], the encoder's own table.

        Returns:
          float32 [B, P, V].
        """
        decoder = word_embedding.astype(self.dtype)
        scores = jnp.einsum("...d,vd->...v", self.hidden(hidden), decoder, preferred_element_type=jnp.float32)
        return scores + self.bias[...].astype(jnp.float32)


class PooledHead(nnx.Module):
    """Dense, tanh and output layer over one vector a sequence, usually that of the first token.

    BERT drops before the output layer; RoBERTa's classification head drops before the dense layer too. Classification,
    pair score, multi-label and multiple choice differ only in their number of outputs and in their loss.
    """

    def __init__(
        self,
        config: EncoderConfig,
        num_labels: int,
        *,
        kind: str = "classification",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.normal(config.initializer_range)
        options = {"kernel_init": init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.kind = kind
        self.num_labels = num_labels
        self.drops_input = config.model_type == "roberta" and kind != "multiple_choice"
        self.pooler = nnx.Linear(config.hidden_size, config.hidden_size, **options)
        self.output = nnx.Linear(config.hidden_size, num_labels, **options)
        self.dropout = nnx.Dropout(config.head_dropout)

    def logits(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns float32 [..., num_labels] of hidden [..., D]; `key` = dropout key, None = no dropout."""
        if self.drops_input:
            hidden = self._drop(hidden, key, 0)
        pooled = self._drop(jnp.tanh(self.pooler(hidden)), key, 1)
        return self.output(pooled).astype(jnp.float32)

    def _drop(self, values: jax.Array, key: jax.Array | None, number: int) -> jax.Array:
        return self.dropout(values, deterministic=key is None, rngs=site(key, number))


Head = MaskedLMHead | PooledHead


class Host(nnx.Module):
    """An encoder and the head that reads it; `head` is None for a bare encoder.

    Attributes:
      tuning: what was added to the encoder to tune it (see models/tuning.py), None in a plain host.
    """

    def __init__(self, encoder: Encoder, head: Head | None = None):
        self.encoder = encoder
        self.head = head
        self.tuning: Tuning | None = None


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
      pooled: whether it is a `PooledHead`, else a `MaskedLMHead`.
      num_labels: how many outputs it has where that is no choice; None = the task's number.
      problem_type: Hugging Face's word for its loss, None where it has none.
    """

    pooled: bool = True
    num_labels: int | None = None
    problem_type: str | None = None


HEADS: dict[str, HeadKind] = {
    "masked_lm": HeadKind(pooled=False),
    "classification": HeadKind(problem_type="single_label_classification"),
    "pair_score": HeadKind(num_labels=1),
    "multi_label": HeadKind(problem_type="multi_label_classification"),
    "multiple_choice": HeadKind(num_labels=1),
}


def head_kind(name: str) -> HeadKind:
    """Returns the kind called `name`, or raises InputError."""
    if name not in HEADS:
        raise InputError("head", f"there is no head called {name!r}", did_you_mean(name, HEADS))
    return HEADS[name]


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
      num_labels: outputs of a pooled head; needed unless its kind fixes them.
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
      rngs: where fresh parameters come from.

    Raises:
      InputError: unknown kind, or a number of labels that is missing or contradicts the kind.
    """
    kind = head_kind(name)
    if not kind.pooled:
        return MaskedLMHead(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    labels = kind.num_labels if num_labels is None else num_labels
    if labels is None or labels < 1:
        raise InputError("num_labels", f"is {labels} for head {name!r}", "give the number of labels")
    if kind.num_labels not in (None, labels):
        raise InputError("num_labels", f"is {labels}, but head {name!r} has {kind.num_labels}")
    return PooledHead(config, labels, kind=name, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
