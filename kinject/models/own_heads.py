"""Heads that transformers has not: on marked mentions, on words and what they depend on, and on a vector a text.

transformers reads a folder with one of them as a bare encoder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kinject.models.config import EncoderConfig
from kinject.models.kernels.elementwise import Dropout
from kinject.models.layers import Attention, normal, site
from kinject.models.pooling import Pooling

LEAST_NORM = 1e-12  # torch's, of torch.nn.functional.normalize


class JoinedHead(nnx.Module):
    """Dense, dropout and output layer over the vectors of P positions, one after the other.

    K-Adapter (Wang et al. 2021) reads a mention by its opening marker so, P = 1, and a relation by both mentions'
    opening markers, P = 2: Linear(P * D, D), no activation, dropout, Linear(D, num_labels).
    """

    def __init__(self, config: EncoderConfig, num_labels: int, *, places: int, kind: str, **options: Any):
        options["kernel_init"] = normal(config, options["rngs"])
        self.kind = kind
        self.num_labels = num_labels
        self.places = places
        self.dense = nnx.Linear(places * config.hidden_size, config.hidden_size, **options)
        self.output = nnx.Linear(config.hidden_size, num_labels, **options)
        self.dropout = Dropout(config.head_dropout)

    def logits(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns float32 [..., 1, num_labels] of hidden [..., P, D]; `key` = dropout key, None = no dropout."""
        if hidden.shape[-2] != self.places:
            raise ValueError(f"head {self.kind} reads {self.places} positions, got hidden {hidden.shape}")
        joined = self.dense(hidden.reshape(*hidden.shape[:-2], 1, -1))
        dropped = self.dropout(joined, site(key, 0))
        return self.output(dropped).astype(jnp.float32)


class DependencyHead(nnx.Module):
    """For each word the position of the word that it depends on: K-Adapter's linguistic pretraining.

    Wang et al., "K-Adapter", Findings of ACL 2021, section 3.3, as released: a self-attention block with one head,
    Linear(D, D), dropout, and Linear(D, L) with one output for each position that a sentence can have.
    """

    def __init__(self, config: EncoderConfig, num_labels: int, *, kind: str = "dependency", **options: Any):
        single = dataclasses.replace(config, num_attention_heads=1)
        init = normal(config, options["rngs"])
        self.kind = kind
        self.num_labels = num_labels
        self.attention = Attention(single, **options)
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, kernel_init=init, **options)
        self.output = nnx.Linear(config.hidden_size, num_labels, kernel_init=init, **options)
        self.dropout = Dropout(config.head_dropout)

    def scores(
        self,
        hidden: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        key: jax.Array | None = None,
        *,
        beyond: bool = False,
    ) -> jax.Array:
        """Scores every position of the sentence as the head of each word.

        Args:
          hidden: [B, L, D] of the encoder.
          segment_ids: int32 [B, L]; each row is one sentence, and 0 where it is over.
          positions: int32 [B, P]: where the words stand.
          key: dropout key, None = no dropout.
          beyond: score the positions behind the sentence too, as the release does.

        Returns:
          float32 [B, P, num_labels]; without `beyond`, what lies behind the sentence has the lowest finite score.
        """
        read = self.dense(self.attention(hidden, segment_ids, site(key, 0), positions))
        scores = self.output(self.dropout(read, site(key, 1))).astype(jnp.float32)
        if beyond:
            return scores
        inside = jnp.arange(self.num_labels) < jnp.sum(segment_ids > 0, axis=1)[:, None]
        return jnp.where(inside[:, None], scores, jnp.finfo(jnp.float32).min)


class EmbeddingHead(nnx.Module):
    """One vector a text, as sentence-transformers pools and norms it, and, for classes, an output layer on it.

    Reimers and Gurevych, "Sentence-BERT", EMNLP 2019. What is read is the mean of the text's positions or its first one
    (`kinject.models.heads.read_hidden`); the only parameters are those of the output layer.
    """

    def __init__(self, config: EncoderConfig, num_labels: int | None = None, *, kind: str, **options: Any):
        pooling = config.pooling or Pooling()
        options["kernel_init"] = normal(config, options["rngs"])
        self.kind = kind
        self.num_labels = num_labels
        self.pooling = pooling.mode
        self.normalize = pooling.normalize
        self.output = None if num_labels is None else nnx.Linear(config.hidden_size, num_labels, **options)
        self.dropout = Dropout(config.head_dropout)

    def logits(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns float32 [..., num_labels] of pooled hidden [..., D], [..., D] where there is no output layer.

        Args:
          hidden: what is pooled.
          key: dropout key, None = no dropout.
        """
        vectors = hidden.astype(jnp.float32)
        if self.normalize:
            squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
            vectors = vectors / jnp.sqrt(jnp.maximum(squares, LEAST_NORM**2))  # so the slope at 0 is finite
        if self.output is None:
            return vectors
        return self.output(self.dropout(vectors.astype(hidden.dtype), site(key, 0))).astype(jnp.float32)
