"""The head of K-Adapter's linguistic pretraining: for each word the position of the word that it depends on.

Wang et al., "K-Adapter", Findings of ACL 2021, section 3.3, as released: a self-attention block with one head, two
linear layers with dropout between, and one output for each position that a sentence can have.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.models.config import EncoderConfig
from kinject.models.encoder import Attention, site
from kinject.models.kernels.dropout import Dropout


class DependencyHead(nnx.Module):
    """Attention block of one head, Linear(D, D), dropout, Linear(D, positions)."""

    def __init__(
        self,
        config: EncoderConfig,
        num_labels: int,
        *,
        kind: str = "dependency",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        single = dataclasses.replace(config, num_attention_heads=1)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        init = nnx.initializers.normal(config.initializer_range)
        self.kind = kind
        self.num_labels = num_labels
        self.attention = Attention(single, **options)
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, kernel_init=init, **options)
        self.output = nnx.Linear(config.hidden_size, num_labels, kernel_init=init, **options)
        self.dropout = Dropout(config.head_dropout)

    def scores(
        self, hidden: jax.Array, segment_ids: jax.Array, positions: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Scores every position of the sentence as the head of each word.

        Args:
          hidden: [B, L, D] of the encoder.
          segment_ids: int32 [B, L]; each row is one sentence, and 0 where it is over.
          positions: int32 [B, P]: where the words stand.
          key: dropout key, None = no dropout.

        Returns:
          float32 [B, P, num_labels]; what lies behind the sentence has the lowest finite score.
        """
        read = self.dense(self.attention(hidden, segment_ids, site(key, 0), positions))
        scores = self.output(self.dropout(read, site(key, 1))).astype(jnp.float32)
        inside = jnp.arange(self.num_labels) < jnp.sum(segment_ids > 0, axis=1)[:, None]
        return jnp.where(inside[:, None], scores, jnp.finfo(jnp.float32).min)
