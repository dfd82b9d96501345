"""The layers of an encoder: embeddings, attention, feed-forward, and the dense layers that they are made of.

Statistics of LayerNorm and softmax are float32 whatever the compute dtype is. A dense layer can carry a low-rank
addition beside its kernel (models/lora.py), a LayerNorm an adapter before it (models/houlsby.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.models.config import EncoderConfig
from kinject.models.kernels.elementwise import Dropout, activate
from kinject.models.kernels.products import (
    attention_context,
    attention_probabilities,
    attention_scores,
    dot_general,
    promote,
)

PROBABILITIES, ATTENTION, FEED_FORWARD, PLUGIN = range(4)  # sites of a layer's dropout key
QKV, QUERIES, ATTENTION_OUTPUT, UP, DOWN = range(4, 9)  # and those of what is added to a dense layer

Adapter = Callable[[jax.Array], jax.Array]  # what models/houlsby.py puts before a LayerNorm; None in a plain host


class Addition(Protocol):
    """What may be put at a dense layer's `lora`."""

    def add(self, outputs: jax.Array, inputs: jax.Array, key: jax.Array | None, start: int = 0) -> jax.Array:
        """Returns the layer's outputs with what is added to them.

        Args:
          outputs: what the kernel yields: all of it, or of a fused kernel the parts from `start` on.
          inputs: what the layer reads.
          key: dropout key, None = no dropout.
          start: first of the parts.
        """

    def merged(self, kernel: jax.Array) -> jax.Array:
        """The kernel that does the same alone, in its own dtype."""


class _Extensible:
    """Mixin: `lora` is None in a plain host, and then not among the attributes of the instance."""

    lora: Addition | None = None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, promote_dtype=promote, dot_general=dot_general, **options)  # type: ignore[call-arg]  # nnx.Linear's

    def __call__(self, inputs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        outputs = super().__call__(inputs)  # type: ignore[misc]  # nnx.Linear's
        return outputs if self.lora is None else self.lora.add(outputs, inputs, key)


class Dense(_Extensible, nnx.Linear):
    """`nnx.Linear` with an optional addition."""


class JoinedProjection(_Extensible, nnx.LinearGeneral):
    """The attention's output projection, kernel [H, Dh, D], with an optional addition."""


class FusedProjection(_Extensible, nnx.LinearGeneral):
    """Queries, keys and values from one kernel [D, 3, H, Dh], whole or only some of the three."""

    def part(self, hidden: jax.Array, start: int, stop: int, key: jax.Array | None = None) -> jax.Array:
        """Projects [B, L, D] with kernels `start` to `stop` (exclusive) of the three: [B, L, stop - start, H, Dh]."""
        kernel = self.kernel[...][:, start:stop]
        bias = None if self.bias is None else self.bias[...][start:stop]
        inputs, kernel, bias = self.promote_dtype((hidden, kernel, bias), dtype=self.dtype)
        outputs = dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))
        outputs = outputs if bias is None else outputs + bias
        return outputs if self.lora is None else self.lora.add(outputs, hidden, key, start)


class Embeddings(nnx.Module):
    """Word, position and type embeddings."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Embed:
            init = nnx.initializers.normal(config.initializer_range)
            return nnx.Embed(rows, config.hidden_size, param_dtype=param_dtype, embedding_init=init, rngs=rngs)

        self.dtype = jnp.dtype(dtype)
        self.offset = config.position_offset
        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings)
        self.type = table(config.type_vocab_size)
        self.norm = _layer_norm(config, dtype, param_dtype, rngs)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def words(self, token_ids: jax.Array) -> jax.Array:
        """Returns word embeddings [B, L, D] of token ids [B, L]; an id outside of the vocabulary gives NaN."""
        return self._rows(self.word, token_ids)

    def __call__(
        self, words: jax.Array, position_ids: jax.Array, type_ids: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Adds position and type to word embeddings [B, L, D], norms, and drops."""
        if self.type.num_embeddings == 1:  # RoBERTa was pretrained with one type, whatever the text half counts
            type_ids = jnp.zeros_like(type_ids)
        total = words + self._rows(self.type, type_ids) + self._rows(self.position, position_ids + self.offset)
        return self.dropout(self.norm(total), site(key, ATTENTION))

    def _rows(self, table: nnx.Embed, ids: jax.Array) -> jax.Array:
        # nnx.Embed would cast the whole table to the compute dtype before it takes a few rows
        return jnp.take(table.embedding[...], ids, axis=0).astype(self.dtype)


class Layer(nnx.Module):
    """Attention, then feed-forward; the encoder calls them, as a seam lies between."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention inside each segment, with its residual and LayerNorm."""

    adapter: Adapter | None = None

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        size, heads, head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        options = _linear_options(config, dtype, param_dtype, rngs)
        self.dtype = jnp.dtype(dtype)
        self.qkv = FusedProjection(size, (3, heads, head_dim), **options)
        self.output = JoinedProjection((heads, head_dim), size, axis=(-2, -1), **options)
        self.norm = _layer_norm(config, dtype, param_dtype, rngs)
        self.probability_dropout = Dropout(config.attention_probs_dropout_prob)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, hidden: jax.Array, segment_ids: jax.Array, key: jax.Array | None, positions: jax.Array | None = None
    ) -> jax.Array:
        """Attends from every position of [B, L, D], or from `positions` [B, P], to those of the same segment.

        A padding position (segment 0) attends to nothing in particular: its row is finite and means nothing.
        """
        if positions is None:
            queries, keys, values = _parts(self.qkv(hidden, site(key, QKV)))
            own_segment = segment_ids
        else:
            keys, values = _parts(self.qkv.part(hidden, 1, 3, site(key, QKV)))
            hidden = gather_positions(hidden, positions)
            queries = self.qkv.part(hidden, 0, 1, site(key, QUERIES))[:, :, 0]
            own_segment = jnp.take_along_axis(segment_ids, positions, axis=1)
        visible = (own_segment[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] != 0)
        queries, keys, values = (jnp.swapaxes(each, 1, 2) for each in (queries, keys, values))  # CPUs want heads first
        scores = attention_scores(queries, keys) * (queries.shape[-1] ** -0.5)
        # the lowest finite number: a row without anything visible becomes uniform, where -inf would give NaN
        scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
        probabilities = attention_probabilities(scores, self.dtype)
        probabilities = self.probability_dropout(probabilities, site(key, PROBABILITIES))
        context = jnp.swapaxes(attention_context(probabilities, values), 1, 2)
        context = self.dropout(self.output(context, site(key, ATTENTION_OUTPUT)), site(key, ATTENTION))
        if self.adapter is not None:
            context = self.adapter(context)
        return self.norm(context + hidden)


class FeedForward(nnx.Module):
    """Two dense layers in two halves, as a plugin's seam lies before the residual."""

    adapter: Adapter | None = None

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options = _linear_options(config, dtype, param_dtype, rngs)
        self.activation = config.hidden_act
        self.up = Dense(config.hidden_size, config.intermediate_size, **options)
        self.down = Dense(config.intermediate_size, config.hidden_size, **options)
        self.norm = _layer_norm(config, dtype, param_dtype, rngs)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def inner(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns down(activation(up(hidden))), [B, L, D]."""
        inside = activate(self.activation, self.up(hidden, site(key, UP)), self.down.kernel[...])
        return self.down(inside, site(key, DOWN))

    def close(self, hidden: jax.Array, output: jax.Array, key: jax.Array | None) -> jax.Array:
        """Drops, adds the residual, and norms: [B, L, D]."""
        output = self.dropout(output, site(key, FEED_FORWARD))
        if self.adapter is not None:
            output = self.adapter(output)
        return self.norm(output + hidden)


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns [B, P, D]: of hidden [B, L, D] what stands at positions int32 [B, P]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def _parts(fused: jax.Array) -> list[jax.Array]:
    """[B, L, c, H, Dh] -> c times [B, L, H, Dh]; split, as the gradient of that is one concatenation."""
    return [jnp.squeeze(part, 2) for part in jnp.split(fused, fused.shape[2], axis=2)]


def site(key: jax.Array | None, number: int) -> jax.Array | None:
    """Returns the dropout key of one site, independent of the others'; None stays None."""
    return None if key is None else jax.random.fold_in(key, number)


def _linear_options(config: EncoderConfig, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> dict[str, Any]:
    init = nnx.initializers.normal(config.initializer_range)
    return {"kernel_init": init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}


def _layer_norm(config: EncoderConfig, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # the fast variance is a difference of squares, which loses digits where the mean is large
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
