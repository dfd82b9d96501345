"""DeBERTa v2 and v3: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", ICLR 2021, and
"DeBERTaV3: Improving DeBERTa using ELECTRA-Style Pre-Training with Gradient-Disentangled Embedding Sharing", ICLR 2023.

BERT, but a score is a sum of up to three: what a query's content says to a key's content, to how far the key is away,
and what the distance says to the key's content. Distances have embeddings, one table for all layers, near ones one each
and far ones in buckets that grow as their logarithm does. A layer projects them by its own queries and keys (v3), or by
kernels of their own. Heads for classes pool with a GELU, and stand beside the base model. The largest of v2 add to what
the first layer yields a convolution of what it read, over a few neighbours. Word embeddings may be narrower than the
layers: a product brings the sum of word, type and position to the hidden size before its LayerNorm, ELECTRA's after it.

Inside a segment two tokens are as far apart as in the row, so all rows share one set of distances: products are taken
with each distance once, and moved into place by reshaping, without a gather of [B, H, L, L].
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from kinject.errors import InputError, did_you_mean
from kinject.models.config import EncoderConfig
from kinject.models.families.bert import (
    CLASSIFIER,
    EMBEDDINGS_NORM,
    FEED_FORWARD,
    MASKED_LM,
    POSITIONS,
    TYPES,
    WORDS,
    Bert,
)
from kinject.models.family import FIELDS, Form, HeadForm, OwnFields
from kinject.models.kernels.elementwise import ACTIVATIONS, Dropout
from kinject.models.kernels.products import attention_scores
from kinject.models.layers import (
    ATTENTION,
    CONVOLUTION,
    QUERIES,
    RELATIVE,
    Attention,
    Dense,
    Embeddings,
    Layer,
    gather_positions,
    layer_norm,
    linear_options,
    normal,
    parts,
    site,
)
from kinject.models.tensor_rules import Rule, Transform, attention, dense, norm

LAYER = (
    *attention(
        [f"encoder.layer.{{i}}.attention.self.{name}_proj" for name in ("query", "key", "value")],
        "encoder.layer.{i}.attention.output.dense",
        "encoder/layers/{i}/attention",
    ),
    *norm("encoder.layer.{i}.attention.output.LayerNorm", "encoder/layers/{i}/attention/norm"),
    *FEED_FORWARD,
)
DISTANCES = {  # kernels of their own for distances, by the part of the score
    "c2p": dense("encoder.layer.{i}.attention.self.pos_key_proj", "encoder/layers/{i}/attention/distance_key"),
    "p2c": dense("encoder.layer.{i}.attention.self.pos_query_proj", "encoder/layers/{i}/attention/distance_query"),
}
NEIGHBOURS = Transform(  # kernel of a convolution over k positions: [D, D, k] there, [k * D, D] here
    lambda t, _: t.transpose(2, 1, 0).reshape(-1, t.shape[0]),
    lambda t, c: t.reshape(-1, c.hidden_size, c.hidden_size).transpose(2, 1, 0),
)
PROJECTION = dense("embeddings.embed_proj", "encoder/embeddings/project", bias=False)
CONVOLVED = (
    Rule("encoder.conv.conv.weight", "encoder/layers/0/convolution/kernel", NEIGHBOURS),
    Rule("encoder.conv.conv.bias", "encoder/layers/0/convolution/bias"),
    *norm("encoder.conv.LayerNorm", "encoder/layers/0/norm"),
)
POOLED = (*dense("pooler.dense", "head/pooler"), *CLASSIFIER)
MASKED_LM_V3 = (
    *dense("lm_predictions.lm_head.dense", "head/transform"),
    *norm("lm_predictions.lm_head.LayerNorm", "head/norm"),
    Rule("lm_predictions.lm_head.bias", "head/bias"),
)


@dataclass(frozen=True)
class DebertaFields(OwnFields):
    """How distances count, and the heads."""

    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    position_biased_input: bool = True
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float = -1.0
    legacy: bool = True
    conv_kernel_size: int = 0
    conv_act: str = "tanh"

    def to_hf(self) -> dict[str, Any]:
        unset = [] if self.cls_dropout >= 0 else ["cls_dropout"]
        unset += [] if self.conv_kernel_size else ["conv_kernel_size", "conv_act"]
        return {name: value for name, value in super().to_hf().items() if name not in unset}


def span(config: EncoderConfig) -> int:
    """Half the rows of the table of distances."""
    own = config.own
    if own.position_buckets > 0:
        return own.position_buckets
    return own.max_relative_positions if own.max_relative_positions > 0 else config.max_position_embeddings


def rows_of(distance: np.ndarray, config: EncoderConfig) -> np.ndarray:
    """Rows of the table, int32, of distances, query minus key, int of any shape."""
    half, buckets = span(config), config.own.position_buckets
    if buckets > 0:
        farthest = config.own.max_relative_positions
        farthest = farthest if farthest > 0 else config.max_position_embeddings
        middle = buckets // 2
        far = np.maximum(np.abs(distance), middle).astype(np.float32)
        share = np.log(far / np.float32(middle)) / np.log(np.float32((farthest - 1) / middle))
        logarithmic = np.ceil(share * np.float32(middle - 1)) + middle
        distance = np.where(np.abs(distance) <= middle, distance, logarithmic * np.sign(distance)).astype(np.int64)
    return np.clip(distance + half, 0, 2 * half - 1).astype(np.int32)


class DebertaEmbeddings(Embeddings):
    """BERT's, with a product that brings narrower ones to the hidden size before they are normed."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = linear_options(config, dtype, param_dtype, rngs)
        self.project = Dense(config.word_size, config.hidden_size, **options, use_bias=False)
        self.norm = layer_norm(config, dtype, param_dtype, rngs)

    def __call__(
        self, words: jax.Array, position_ids: jax.Array, type_ids: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        projected = self.project(self._placed(words, position_ids, type_ids))
        return self.dropout(self.norm(projected), site(key, ATTENTION))


class Distances(nnx.Module):
    """The embeddings of distances, which all layers share."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        drawn = normal(config, rngs)
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.embedding = nnx.Param(drawn(rngs.params(), (2 * span(config), config.hidden_size), param_dtype))
        normed = "layer_norm" in config.own.norm_rel_ebd.lower()
        self.norm = layer_norm(config, dtype, param_dtype, rngs) if normed else None

    def __call__(self, hidden: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """[1, 2 * L - 1, D]: of the distances, query minus key, from L - 1 down to 1 - L."""
        del batch
        length = hidden.shape[1]
        rows = rows_of(np.arange(length - 1, -length, -1), self.config)
        made = jnp.take(self.embedding[...], rows, axis=0).astype(self.dtype)[None]
        return made if self.norm is None else self.norm(made)


def placed(scores: jax.Array) -> jax.Array:
    """[..., L, 2 * L - 1] -> [..., L, L]: entry (i, j) is the one of distance i - j, which is at j - i + L - 1."""
    length = scores.shape[-2]
    leading = scores.shape[:-2]
    rows = jnp.pad(scores, [(0, 0)] * len(leading) + [(0, 0), (0, 1)]).reshape(*leading, 2 * length * length)
    # rows are one too wide now, so that each further one begins one entry earlier
    rows = rows[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return rows.reshape(*leading, length, 2 * length - 1)[..., :length]


class DisentangledAttention(Attention):
    """BERT's, with what distances add to the scores."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.kinds, shared = config.own.pos_att_type, config.own.share_att_key
        options = linear_options(config, dtype, param_dtype, rngs)
        size = config.hidden_size
        self.distance_key = Dense(size, size, **options) if "c2p" in self.kinds and not shared else None
        self.distance_query = Dense(size, size, **options) if "p2c" in self.kinds and not shared else None
        self.distance_dropout = Dropout(config.hidden_dropout_prob)

    def scores(
        self, queries: jax.Array, keys: jax.Array, positions: jax.Array | None, relative: Any, key: jax.Array | None
    ) -> jax.Array:
        scores = attention_scores(queries, keys)
        of_queries, of_keys = self._distances(self.distance_dropout(relative, site(key, RELATIVE)), key, keys.dtype)
        if of_keys is not None:  # content to position
            scores = scores + self._from_content(attention_scores(queries, _for_all(of_keys, queries)), positions)
        if of_queries is not None:  # position to content
            found = attention_scores(keys, _for_all(of_queries, keys))
            found = jnp.swapaxes(placed(found[..., ::-1]), 2, 3)
            if positions is not None:
                found = jnp.take_along_axis(found, positions[:, None, :, None], axis=2)
            scores = scores + found
        return scores * ((1 + len(self.kinds)) * queries.shape[-1]) ** -0.5

    def _from_content(self, found: jax.Array, positions: jax.Array | None) -> jax.Array:
        """[B, H, L or P, 2 * L - 1] -> [B, H, L or P, L]."""
        if positions is None:
            return placed(found)
        length = (found.shape[-1] + 1) // 2
        at = jnp.arange(length) - positions[:, :, None] + length - 1
        return jnp.take_along_axis(found, at[:, None], axis=3)

    def _distances(
        self, embeddings: jax.Array, key: jax.Array | None, dtype: DTypeLike
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """Queries and keys [B, H, 2 * L - 1, Dh] of distances [1, 2 * L - 1, D]; None where a part does not count."""
        heads = self.qkv.kernel[...].shape[2]

        def made(kind: str, part: int, own: Dense | None) -> jax.Array | None:
            if kind not in self.kinds:
                return None
            if own is None:
                (found,) = parts(self.qkv.part(embeddings, part, part + 1, site(key, QUERIES)))
            else:
                found = own(embeddings)
            return jnp.swapaxes(found.reshape(*found.shape[:2], heads, -1), 1, 2).astype(dtype)

        return made("p2c", 0, self.distance_query), made("c2p", 1, self.distance_key)


class ConvolvedLayer(Layer):
    """A layer that adds to what it yields a convolution of what it read, and norms the sum.

    A position's neighbours are those of its own segment; zeros stand in for others.
    """

    reads_input = True

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, **options, attention=DisentangledAttention)
        self.width, self.activation = config.own.conv_kernel_size, config.own.conv_act
        linear = linear_options(config, dtype, param_dtype, rngs)
        self.convolution = Dense(self.width * config.hidden_size, config.hidden_size, **linear)
        self.norm = layer_norm(config, dtype, param_dtype, rngs)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def finish(
        self,
        hidden: jax.Array,
        entered: jax.Array,
        segment_ids: jax.Array,
        key: jax.Array | None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        around, length = self.width // 2, segment_ids.shape[1]
        states = jnp.pad(entered, ((0, 0), (around, around), (0, 0)))
        segments = jnp.pad(segment_ids, ((0, 0), (around, around)))
        near = [
            jnp.where((segments[:, i : i + length] == segment_ids)[..., None], states[:, i : i + length], 0)
            for i in range(self.width)
        ]
        read = jnp.concatenate(near, axis=-1)
        read = read if positions is None else gather_positions(read, positions)
        convolved = self.dropout(self.convolution(read), site(key, CONVOLUTION))
        return self.norm(hidden + ACTIVATIONS[self.activation](convolved))


def _for_all(vectors: jax.Array, rows: jax.Array) -> jax.Array:
    """[1, H, n, Dh] -> [B, H, n, Dh], the same for each of the B rows."""
    return jnp.broadcast_to(vectors, (len(rows), *vectors.shape[1:]))


class DebertaV2(Bert):
    """DeBERTa v2 and v3."""

    model_type = "deberta-v2"
    prefix = "deberta"
    class_name = "DebertaV2"
    fields = (*(name for name in FIELDS if name != "classifier_dropout"), "embedding_size")
    Own = DebertaFields
    defaults = {"type_vocab_size": 0, "layer_norm_eps": 1e-7}
    zero = ("type_vocab_size",)
    other_heads = (
        r"(cls\.predictions|lm_predictions|mask_predictions|deberta\.pooler|pooler|classifier|qa_outputs)\..*"
        r"|embeddings\.position_embeddings\.weight"
    )

    def own(self, values: Mapping[str, Any], where: object) -> Any:
        kinds = values.get("pos_att_type") or ()
        kinds = [one.strip() for one in kinds.lower().split("|")] if isinstance(kinds, str) else list(kinds)
        own = super().own({**values, "pos_att_type": tuple(kinds)}, where)
        only = "only disentangled attention is computed here"
        if not own.relative_attention:
            raise InputError(where, "relative_attention is false", only)
        if not kinds or not set(kinds) <= set(DISTANCES):
            raise InputError(where, f"pos_att_type is {kinds!r}", f"{only}: p2c, c2p or both")
        if own.conv_kernel_size and (own.conv_kernel_size < 1 or own.conv_kernel_size % 2 == 0):
            raise InputError(where, f"conv_kernel_size is {own.conv_kernel_size}", "it must be odd, or 0 for none")
        if values.get("conv_groups") not in (None, 1):
            raise InputError(where, f"conv_groups is {values['conv_groups']!r}", "only one group is computed")
        for name, value in (("pooler_hidden_act", own.pooler_hidden_act), ("conv_act", own.conv_act)):
            if value not in ACTIVATIONS:
                raise InputError(where, f"{name} is {value!r}", did_you_mean(value, ACTIVATIONS))
        return own

    def to_hf(self, config: EncoderConfig) -> dict[str, Any]:
        values = super().to_hf(config)
        return values if config.word_size != config.hidden_size else {**values, "embedding_size": config.hidden_size}

    def embeddings(self, config: EncoderConfig, **options: Any) -> Embeddings:
        return (Embeddings if config.word_size == config.hidden_size else DebertaEmbeddings)(config, **options)

    def has_positions(self, config: EncoderConfig) -> bool:
        return config.own.position_biased_input

    def layer_kinds(self, config: EncoderConfig) -> tuple[Hashable, ...]:
        return tuple(i == 0 and bool(config.own.conv_kernel_size) for i in range(config.num_hidden_layers))

    def layer(self, config: EncoderConfig, kind: Any, **options: Any) -> Layer:
        if kind:  # the first, where there is a convolution
            return ConvolvedLayer(config, **options)
        return Layer(config, **options, attention=DisentangledAttention)

    def relative(self, config: EncoderConfig, **options: Any) -> Distances:
        return Distances(config, **options)

    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        normed = "layer_norm" in config.own.norm_rel_ebd.lower()
        return (
            WORDS,
            *([POSITIONS] if config.own.position_biased_input else []),
            *([TYPES] if config.type_vocab_size else []),
            *(PROJECTION if config.word_size != config.hidden_size else ()),
            *EMBEDDINGS_NORM,
            Rule("encoder.rel_embeddings.weight", "encoder/relative/embedding"),
            *(norm("encoder.LayerNorm", "encoder/relative/norm") if normed else ()),
        )

    def layer_rules(self, config: EncoderConfig, i: int) -> tuple[Rule, ...]:
        own = [] if config.own.share_att_key else [rule for kind in config.own.pos_att_type for rule in DISTANCES[kind]]
        convolved = CONVOLVED if i == 0 and config.own.conv_kernel_size else ()
        return *(rule.of_layer(i) for rule in (*LAYER, *own)), *convolved

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        own = config.own
        if form == "masked_lm":
            if not own.legacy and config.word_size != config.hidden_size:
                problem = f"embedding_size {config.word_size} is not hidden_size, and legacy is false"
                raise InputError("config.json", problem, "transformers has no head for masked words then")
            return HeadForm(MASKED_LM if own.legacy else MASKED_LM_V3, activation=config.hidden_act, norm=True)
        if form in ("pooled", "multiple_choice"):
            rate = own.cls_dropout if own.cls_dropout >= 0 else config.hidden_dropout_prob
            return HeadForm(POOLED, activation=own.pooler_hidden_act, input_dropout=own.pooler_dropout, dropout=rate)
        return super().head(form, config)


FAMILY = DebertaV2()
