"""ModernBERT: Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder", ACL 2025.

Each sublayer norms what it reads and adds to the stream as it is, and the stream is normed once more after the last
layer; no biases; the feed-forward is gated (GeGLU); queries and keys are turned by their positions (RoPE), so there is
no table of positions; in two of three layers a token attends to those near it only.

The seams: `embed` lies before the embedding layer's LayerNorm, which is all that follows there. `feed_forward` gets the
normed stream as `hidden`, what the gated layer read, and as `output` what is added to the stream. `outputs` gets the
stream as hidden states, the last of them normed, and yields what the head reads.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.errors import InputError, did_you_mean
from kinject.models.config import EncoderConfig
from kinject.models.family import FIELDS, Family, Form, HeadForm, OwnFields
from kinject.models.kernels.elementwise import ACTIVATIONS, Dropout, activate
from kinject.models.layers import (
    DOWN,
    INSIDE,
    UP,
    Attention,
    Embeddings,
    FeedForward,
    Layer,
    PreNorm,
    gather_positions,
    site,
)
from kinject.models.tensor_rules import FUSED_BIAS, FUSED_OUT, HEADS_IN, Rule, dense, norm

FULL, LOCAL = "full_attention", "sliding_attention"
THETAS = {FULL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}


@dataclass(frozen=True)
class ModernBertFields(OwnFields):
    """Which layers attend how far, the bases of their positions, and the head.

    Attributes:
      layer_types: of each layer, `full_attention` or `sliding_attention`.
      thetas: base of the angles of full and of local layers.
    """

    local_attention: int = 128
    layer_types: tuple[str, ...] = ()
    thetas: tuple[float, ...] = (160_000.0, 10_000.0)
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_bias: bool = False
    classifier_activation: str = "gelu"

    def to_hf(self) -> dict[str, Any]:
        values = super().to_hf()
        thetas = values.pop("thetas")
        ropes = {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(THETAS, thetas, strict=True)
        }
        return values | {"rope_parameters": ropes}


class Rotary(nnx.Module):
    """The angles by which queries and keys are turned."""

    def __init__(self, config: EncoderConfig, **options: Any):
        del options  # it has no parameters, and angles are float32
        self.thetas, self.size = config.own.thetas, config.head_dim

    def __call__(self, hidden: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """For each kind of layer cosines and sines, float32 [B, L, Dh / 2]."""
        del hidden
        places = batch["position_ids"].astype(jnp.float32)[:, :, None]
        made = {}
        for kind, theta in zip(THETAS, self.thetas, strict=True):
            steps = np.arange(0, self.size, 2, dtype=np.float32) / np.float32(self.size)
            angles = places * (1.0 / np.float32(theta) ** steps).astype(np.float32)
            made[kind] = (jnp.cos(angles), jnp.sin(angles))
        return made


def turned(vectors: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Vectors [B, H, L, Dh], each pair (i, i + Dh / 2) turned by its angle, [B, L, Dh / 2]; in their dtype."""
    first, second = jnp.split(vectors.astype(jnp.float32), 2, axis=-1)
    cosines, sines = cosines[:, None], sines[:, None]
    made = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
    return made.astype(vectors.dtype)


class ModernBertAttention(PreNorm, Attention):
    """Of turned queries and keys, everywhere or near by; the first layer reads the embeddings as they are."""

    def __init__(self, config: EncoderConfig, *, first: bool, layer_type: str, **options: Any):
        super().__init__(config, **options)
        if first:
            self.norm = None
        self.layer_type = layer_type
        self.reach = config.own.local_attention // 2
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def scores(
        self, queries: jax.Array, keys: jax.Array, positions: jax.Array | None, relative: Any, key: jax.Array | None
    ) -> jax.Array:
        cosines, sines = relative[self.layer_type]
        keys = turned(keys, cosines, sines)
        if positions is not None:
            cosines, sines = gather_positions(cosines, positions), gather_positions(sines, positions)
        return super().scores(turned(queries, cosines, sines), keys, positions, None, key)

    def narrowed(self, visible: jax.Array, positions: jax.Array | None) -> jax.Array:
        if self.layer_type == FULL:
            return visible
        places = jnp.arange(visible.shape[2])
        own = places[None] if positions is None else positions
        return visible & (jnp.abs(own[:, :, None] - places) <= self.reach)


class GatedFeedForward(PreNorm, FeedForward):
    """down(activation(a) * b) of the two halves a, b that the first dense layer yields."""

    widening = 2

    def __init__(self, config: EncoderConfig, **options: Any):
        super().__init__(config, **options)
        self.dropout, self.inner_dropout = Dropout(0.0), Dropout(config.own.mlp_dropout)

    def inner(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        active, gate = jnp.split(self.up(hidden, site(key, UP)), 2, axis=-1)
        inside = activate(self.activation, active, self.down.kernel[...]) * gate
        return self.down(self.inner_dropout(inside, site(key, INSIDE)), site(key, DOWN))


class ModernBertEmbeddings(Embeddings):
    """Words alone, normed."""

    def __init__(self, config: EncoderConfig, **options: Any):
        super().__init__(config, **options)
        self.dropout = Dropout(config.own.embedding_dropout)


class ModernBert(Family):
    """ModernBERT."""

    model_type = "modernbert"
    prefix = "model"
    class_name = "ModernBert"
    fields = (
        *(name for name in FIELDS if name not in ("type_vocab_size", "hidden_dropout_prob")),
        "attention_bias",
        "mlp_bias",
        "norm_bias",
    )
    renamed = {
        "hidden_act": "hidden_activation",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "norm_eps",
    }
    Own = ModernBertFields
    defaults = {
        "type_vocab_size": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 50283,
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
    }
    final_norm = True
    tied = {"decoder.weight": "embeddings.tok_embeddings.weight"}
    other_heads = r"head\.(dense|norm)\.(weight|bias)|(decoder|classifier)\.(weight|bias)"

    def own(self, values: Mapping[str, Any], where: object) -> Any:
        """Reads the present form of the config and the one that hub files have (`global_attn_every_n_layers`, …)."""
        every = values.get("global_attn_every_n_layers") or 3
        count = values.get("num_hidden_layers") or 0
        types = values.get("layer_types") or [LOCAL if i % every else FULL for i in range(count)]
        if len(types) != count or not set(types) <= set(THETAS):
            raise InputError(where, f"layer_types is {types!r}", f"it names {FULL} or {LOCAL} for each layer")
        ropes, thetas = values.get("rope_parameters") or {}, []
        if values.get("rope_scaling"):
            raise InputError(
                where, f"rope_scaling is {values['rope_scaling']!r}", "only plain angles are computed here"
            )
        for kind, (former, default) in THETAS.items():
            rope = ropes.get(kind) or {}
            if rope.get("rope_type", "default") != "default":
                problem = f"rope_parameters.{kind}.rope_type is {rope['rope_type']!r}"
                raise InputError(where, problem, "only plain angles are computed here")
            thetas.append(float(rope.get("rope_theta") or values.get(former) or default))
        own = super().own({**values, "layer_types": tuple(types), "thetas": tuple(thetas)}, where)
        if own.classifier_pooling not in ("cls", "mean"):
            raise InputError(where, f"classifier_pooling is {own.classifier_pooling!r}", "it is cls or mean")
        if own.classifier_activation not in ACTIVATIONS:
            hint = did_you_mean(own.classifier_activation, ACTIVATIONS)
            raise InputError(where, f"classifier_activation is {own.classifier_activation!r}", hint)
        return own

    def has_positions(self, config: EncoderConfig) -> bool:
        return False

    def embeddings(self, config: EncoderConfig, **options: Any) -> Embeddings:
        return ModernBertEmbeddings(config, **options)

    def layer_kinds(self, config: EncoderConfig) -> tuple[Hashable, ...]:
        return tuple((i == 0, config.own.layer_types[i]) for i in range(config.num_hidden_layers))

    def layer(self, config: EncoderConfig, kind: Any, **options: Any) -> Layer:
        first, layer_type = kind
        own = partial(ModernBertAttention, first=first, layer_type=layer_type)
        return Layer(config, **options, attention=own, feed_forward=GatedFeedForward)

    def relative(self, config: EncoderConfig, **options: Any) -> Rotary:
        return Rotary(config, **options)

    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        return (
            Rule("embeddings.tok_embeddings.weight", "encoder/embeddings/word/embedding"),
            *norm("embeddings.norm", "encoder/embeddings/norm", bias=config.norm_bias),
            *norm("final_norm", "encoder/norm", bias=config.norm_bias),
        )

    def layer_rules(self, config: EncoderConfig, i: int) -> tuple[Rule, ...]:
        theirs, ours = f"layers.{i}", f"encoder/layers/{i}"
        attention = [
            Rule(f"{theirs}.attn.Wqkv.weight", f"{ours}/attention/qkv/kernel", FUSED_OUT),
            Rule(f"{theirs}.attn.Wo.weight", f"{ours}/attention/output/kernel", HEADS_IN),
        ]
        if config.attention_bias:
            attention.append(Rule(f"{theirs}.attn.Wqkv.bias", f"{ours}/attention/qkv/bias", FUSED_BIAS))
            attention.append(Rule(f"{theirs}.attn.Wo.bias", f"{ours}/attention/output/bias"))
        if i:
            attention.extend(norm(f"{theirs}.attn_norm", f"{ours}/attention/norm", bias=config.norm_bias))
        return (
            *attention,
            *norm(f"{theirs}.mlp_norm", f"{ours}/feed_forward/norm", bias=config.norm_bias),
            *dense(f"{theirs}.mlp.Wi", f"{ours}/feed_forward/up", bias=config.mlp_bias),
            *dense(f"{theirs}.mlp.Wo", f"{ours}/feed_forward/down", bias=config.mlp_bias),
        )

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        own, masked_lm = config.own, form == "masked_lm"
        layer = "head/transform" if masked_lm else "head/pooler"
        rules = [
            *dense("head.dense", layer, bias=own.classifier_bias),
            *norm("head.norm", "head/norm", bias=config.norm_bias),
        ]
        if not masked_lm:
            rules.extend(dense("classifier", "head/output"))
        elif own.decoder_bias:
            rules.append(Rule("decoder.bias", "head/bias"))
        return HeadForm(
            tuple(rules),
            dense_bias=own.classifier_bias,
            activation=own.classifier_activation,
            norm=True,
            norm_bias=config.norm_bias,
            dropout=0.0 if masked_lm else config.head_dropout,
            output_bias=own.decoder_bias,
            pooling=own.classifier_pooling,
        )


FAMILY = ModernBert()
