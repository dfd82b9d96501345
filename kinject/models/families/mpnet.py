"""MPNet: Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", NeurIPS 2020.

BERT without token types, and with positions that begin after id 1 as RoBERTa's do; and each head's scores have a number
added that depends on how far apart two tokens are, the same in every layer: distances up to 8 have one each, farther
ones share one, more and more of them up to 128 (Raffel et al., "Exploring the Limits of Transfer Learning", JMLR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.families.bert import EMBEDDINGS_NORM, FEED_FORWARD, POSITIONS, WORDS, Bert
from kinject.models.families.roberta import CLASSIFICATION, MASKED_LM
from kinject.models.family import FIELDS, Form, HeadForm, OwnFields
from kinject.models.layers import Attention, Layer, normal
from kinject.models.tensor_rules import Rule, attention, norm

PADDING = 1  # positions begin after it, whatever pad_token_id says
BUCKETS, FARTHEST = 32, 128  # as transformers has them, whatever the config says
LAYER = (
    *attention(
        [f"encoder.layer.{{i}}.attention.attn.{name}" for name in "qkv"],
        "encoder.layer.{i}.attention.attn.o",
        "encoder/layers/{i}/attention",
    ),
    *norm("encoder.layer.{i}.attention.LayerNorm", "encoder/layers/{i}/attention/norm"),
    *FEED_FORWARD,
)
RELATIVE = Rule("encoder.relative_attention_bias.weight", "encoder/relative/scores")


@dataclass(frozen=True)
class MPNetFields(OwnFields):
    """Rows of its table of distances."""

    relative_attention_num_buckets: int = BUCKETS


def bucket(distance: np.ndarray) -> np.ndarray:
    """Which row of the table belongs to a distance, key minus query: int of any shape -> int32 of it."""
    half = BUCKETS // 2
    exact, far = half // 2, np.abs(distance)
    with np.errstate(divide="ignore"):
        share = np.log((far / exact).astype(np.float32)) / np.float32(math.log(FARTHEST / exact))
    shared = np.minimum(exact + (np.maximum(share, 0) * (half - exact)).astype(np.int32), half - 1)
    return np.where(distance > 0, half, 0).astype(np.int32) + np.where(far < exact, far, shared).astype(np.int32)


class RelativeScores(nnx.Module):
    """What is added to the scores of all layers, by head and distance."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        del dtype  # scores are float32
        shape = (config.own.relative_attention_num_buckets, config.num_attention_heads)
        drawn = normal(config, rngs)
        self.scores = nnx.Param(drawn(rngs.params(), shape, param_dtype))

    def __call__(self, hidden: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """float32 [H, L, L], query before key: in a segment, tokens are as far apart as in the row."""
        del batch
        places = np.arange(hidden.shape[1])
        rows = self.scores[...].astype(jnp.float32)[bucket(places[None] - places[:, None])]
        return jnp.moveaxis(rows, 2, 0)


class MPNetAttention(Attention):
    """BERT's, with `RelativeScores` added."""

    def scores(
        self, queries: jax.Array, keys: jax.Array, positions: jax.Array | None, relative: Any, key: jax.Array | None
    ) -> jax.Array:
        scores = super().scores(queries, keys, positions, relative, key)
        if positions is None:
            return scores + relative
        return scores + jnp.moveaxis(relative[:, positions], 0, 1)


class MPNet(Bert):
    """MPNet."""

    model_type = "mpnet"
    prefix = "mpnet"
    class_name = "MPNet"
    fields = tuple(name for name in FIELDS if name not in ("classifier_dropout", "type_vocab_size"))
    Own = MPNetFields
    defaults = {"type_vocab_size": 0, "pad_token_id": PADDING}
    tied = {"lm_head.decoder.weight": WORDS.key, "lm_head.decoder.bias": "lm_head.bias"}

    def own(self, values: Mapping[str, Any], where: object) -> Any:
        own = super().own(values, where)
        if own.relative_attention_num_buckets < BUCKETS:
            problem = f"relative_attention_num_buckets is {own.relative_attention_num_buckets}"
            raise InputError(where, problem, f"transformers looks {BUCKETS} up")
        return own

    def position_offset(self, config: EncoderConfig) -> int:
        return PADDING + 1

    def layer(self, config: EncoderConfig, kind: Any, **options: Any) -> Layer:
        return Layer(config, **options, attention=MPNetAttention)

    def relative(self, config: EncoderConfig, **options: Any) -> RelativeScores:
        return RelativeScores(config, **options)

    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        return WORDS, POSITIONS, *EMBEDDINGS_NORM, RELATIVE

    def layer_rules(self, config: EncoderConfig, i: int) -> tuple[Rule, ...]:
        return tuple(rule.of_layer(i) for rule in LAYER)

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        if form == "masked_lm":
            return HeadForm(MASKED_LM, activation="gelu", norm=True)
        if form == "pooled":
            rate = config.head_dropout
            return HeadForm(CLASSIFICATION, input_dropout=rate, dropout=rate)
        return super().head(form, config)


FAMILY = MPNet()
