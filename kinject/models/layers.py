"""The layers of an encoder: embeddings, attention and feed-forward, made of dense layers (dense.py).

Statistics of LayerNorm and softmax are float32 whatever the compute dtype is.
Before a LayerNorm may stand an adapter (models/houlsby.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.models.config import EncoderConfig
from kinject.models.dense import Dense, FusedProjection, JoinedProjection
from kinject.models.fresh import normal
from kinject.models.kernels.elementwise import Dropout, activate
from kinject.models.kernels.feed_forward import Sides, ends_in_tiles, feed_forward
from kinject.models.kernels.products import (
    attention_context,
    attention_probabilities,
    attention_scores,
)
from kinject.models.kernels.short_attention import attends_short, short_attention
from kinject.models.packing import Packed

PROBABILITIES, ATTENTION, FEED_FORWARD, PLUGIN = range(4)  # sites of a layer's dropout key
QKV, QUERIES, ATTENTION_OUTPUT, UP, DOWN = range(4, 9)  # and those of what is added to a dense layer
RELATIVE, INSIDE, CONVOLUTION = range(9, 12)  # and those that some families drop at beside

Adapter = Callable[[jax.Array], jax.Array]  # what models/houlsby.py puts before a LayerNorm; None in a plain host


class Embeddings(nnx.Module):
    """Word embeddings, and those of position and type in families that have them."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Embed:
            init = normal(config, rngs)
            return nnx.Embed(rows, config.word_size, param_dtype=param_dtype, embedding_init=init, rngs=rngs)

        self.dtype = jnp.dtype(dtype)
        self.offset = config.position_offset
        self.word = table(config.vocab_size)
        self.position = table(config.max_position_embeddings) if config.family.has_positions(config) else None
        self.type = table(config.type_vocab_size) if config.type_vocab_size else None
        self.norm = layer_norm(config, dtype, param_dtype, rngs, config.word_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def words(self, token_ids: jax.Array) -> jax.Array:
        """Returns word embeddings [B, L, E] of token ids [B, L]; an id outside of the vocabulary gives NaN."""
        return self._rows(self.word, token_ids)

    def __call__(
        self, words: jax.Array, position_ids: jax.Array, type_ids: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Adds type and position to word embeddings [B, L, E], norms, and drops: [B, L, D]."""
        return self.dropout(self.norm(self._placed(words, position_ids, type_ids)), site(key, ATTENTION))

    def places(self, position_ids: jax.Array, type_ids: jax.Array) -> jax.Array:
        """What type and position add to word embeddings, [B, L, E]; zeros where a family has neither."""
        return self._placed(jnp.zeros((*position_ids.shape, self.word.features), self.dtype), position_ids, type_ids)

    def _placed(self, total: jax.Array, position_ids: jax.Array, type_ids: jax.Array) -> jax.Array:
        """The words [B, L, E] with type and position."""
        if self.type is not None:
            if self.type.num_embeddings == 1:  # RoBERTa was pretrained with one type, whatever the text half counts
                type_ids = jnp.zeros_like(type_ids)
            total = total + self._rows(self.type, type_ids)
        return total if self.position is None else total + self._rows(self.position, position_ids + self.offset)

    def _rows(self, table: nnx.Embed, ids: jax.Array) -> jax.Array:
        # nnx.Embed would cast the whole table to the compute dtype before it takes a few rows
        return jnp.take(table.embedding[...], ids, axis=0).astype(self.dtype)


class Layer(nnx.Module):
    """Attention, then feed-forward; the encoder calls them, as a seam lies between.

    Attributes:
      reads_input: whether `finish` reads the hidden state that the layer began with.
    """

    reads_input: bool = False

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
        attention: Callable[..., Attention] | None = None,
        feed_forward: Callable[..., FeedForward] | None = None,
    ):
        """Builds one of a family's own attention and feed-forward, which are BERT's unless told otherwise."""
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attention = (attention or Attention)(config, **options)
        self.feed_forward = (feed_forward or FeedForward)(config, **options)

    def finish(
        self,
        hidden: jax.Array,
        entered: jax.Array,
        segment_ids: jax.Array,
        key: jax.Array | None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """What the layer yields: the stream behind its feed-forward, unless a family does more to it.

        Args:
          hidden: that stream, [B, L, D], or [B, P, D] where positions were asked for.
          entered: [B, L, D], the hidden state that the layer began with.
          segment_ids: int32 [B, L].
          key: dropout key of the layer, None = no dropout.
          positions: int32 [B, P], None = everywhere.
        """
        del entered, segment_ids, key, positions
        return hidden


class PostNorm:
    """Mixin of the two halves of a layer: each reads the stream as it is, and norms it after adding to it."""

    norm: nnx.LayerNorm | None

    def enter(self, hidden: jax.Array) -> jax.Array:
        """What this half reads of the stream [B, L, D]."""
        return hidden

    def leave(self, output: jax.Array, hidden: jax.Array) -> jax.Array:
        """The stream [B, L, D] behind this half, of what it yields and the stream before it."""
        assert self.norm is not None
        return self.norm(output + hidden)


class PreNorm(PostNorm):
    """Mixin: each half norms what it reads, and adds to the stream as it is; `norm` None reads that as it is, too."""

    def enter(self, hidden: jax.Array) -> jax.Array:
        return hidden if self.norm is None else self.norm(hidden)

    def leave(self, output: jax.Array, hidden: jax.Array) -> jax.Array:
        return output + hidden


class Attention(PostNorm, nnx.Module):
    """Multi-head self-attention inside each segment, with its residual and LayerNorm."""

    adapter: Adapter | None = None

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        size, heads, head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        options = linear_options(config, dtype, param_dtype, rngs) | {"use_bias": config.attention_bias}
        self.dtype = jnp.dtype(dtype)
        self.qkv = FusedProjection(size, (3, heads, head_dim), **options)
        self.output = JoinedProjection((heads, head_dim), size, axis=(-2, -1), **options)
        self.norm = layer_norm(config, dtype, param_dtype, rngs)
        self.probability_dropout = Dropout(config.attention_probs_dropout_prob)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        hidden: jax.Array,
        segment_ids: jax.Array,
        key: jax.Array | None,
        positions: jax.Array | None = None,
        relative: Any = None,
        packed: Packed | None = None,
    ) -> jax.Array:
        """Attends from every position of [B, L, D], or from `positions` [B, P], to those of the same segment.

        A padding position (segment 0) attends to nothing in particular: its row is finite and means nothing.

        Args:
          hidden: the stream.
          segment_ids: int32 [B, L].
          key: dropout key, None = no dropout.
          positions: int32 [B, P], None = everywhere.
          relative: what the encoder's `relative` made of the batch, None in a family without.
          packed: where the stream [1, T, D] leaves padding out; None = [B, L, D] as it is.
        """
        spread, at = (as_it_is, gather_positions) if packed is None else (packed.spread, packed.at)
        read = self.enter(hidden)
        queries = own = None
        if positions is None:
            fused = spread(self.qkv(read, site(key, QKV)))
        else:
            fused = spread(self.qkv.part(read, 1, 3, site(key, QKV)))
            here = at(hidden, positions)
            read = here if read is hidden else at(read, positions)
            hidden = here
            queries = self.qkv.part(read, 0, 1, site(key, QUERIES))[:, :, 0]
            own = jnp.take_along_axis(segment_ids, positions, axis=1)
        context = self.context(queries, fused, own, segment_ids, (positions, relative, key))
        context = context if packed is None or positions is not None else packed.gather(context)
        context = self.dropout(self.output(context, site(key, ATTENTION_OUTPUT)), site(key, ATTENTION))
        if self.adapter is not None:
            context = self.adapter(context)
        return self.leave(context, hidden)

    def context(
        self,
        queries: jax.Array | None,
        fused: jax.Array,
        own: jax.Array | None,
        segment_ids: jax.Array,
        options: tuple[jax.Array | None, Any, jax.Array | None],
    ) -> jax.Array:
        """Sums of values by what the scores make of them: [B, L or P, H, Dh].

        Args:
          queries: [B, P, H, Dh], None = they are in `fused`.
          fused: [B, L, 3, H, Dh], or keys and values only.
          own: int32 [B, P], the segments that the queries stand in; None = `segment_ids`.
          segment_ids: int32 [B, L].
          options: `positions`, `relative` and `key` as `__call__` has them.
        """

        def plain(queries: Any, fused: jax.Array, own: Any, segment_ids: jax.Array) -> jax.Array:
            queries, keys, values = parts(fused) if queries is None else (queries, *parts(fused))
            own = segment_ids if own is None else own
            return self._context(queries, keys, values, own, segment_ids, *options)

        kind, rate = type(self), self.probability_dropout.rate
        usual = kind.scores is Attention.scores and kind.narrowed is Attention.narrowed
        if usual and (options[-1] is None or rate == 0.0) and attends_short(fused):
            return short_attention(queries, fused, own, segment_ids, plain)
        return plain(queries, fused, own, segment_ids)

    def _context(
        self,
        queries: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        own: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array | None,
        relative: Any,
        key: jax.Array | None,
    ) -> jax.Array:
        visible = (own[:, :, None] == segment_ids[:, None, :]) & (segment_ids[:, None, :] != 0)
        visible = self.narrowed(visible, positions)
        queries, keys, values = (jnp.swapaxes(each, 1, 2) for each in (queries, keys, values))  # CPUs want heads first
        scores = self.scores(queries, keys, positions, relative, key)
        # the lowest finite number: a row without anything visible becomes uniform, where -inf would give NaN
        scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
        probabilities = attention_probabilities(scores, self.dtype)
        probabilities = self.probability_dropout(probabilities, site(key, PROBABILITIES))
        return jnp.swapaxes(attention_context(probabilities, values), 1, 2)

    def scores(
        self, queries: jax.Array, keys: jax.Array, positions: jax.Array | None, relative: Any, key: jax.Array | None
    ) -> jax.Array:
        """Scores float32 [B, H, L or P, L] of queries [B, H, L or P, Dh] with keys [B, H, L, Dh], before the mask."""
        del positions, relative, key
        return attention_scores(queries, keys) * (queries.shape[-1] ** -0.5)

    def narrowed(self, visible: jax.Array, positions: jax.Array | None) -> jax.Array:
        """What of bool [B, L or P, L] a position may attend to: all of it, unless a family attends locally."""
        del positions
        return visible


class FeedForward(PostNorm, nnx.Module):
    """Two dense layers in two halves, as a plugin's seam lies before the residual.

    Attributes:
      widening: how many numbers the first dense layer yields for one of the second's inputs.
    """

    adapter: Adapter | None = None
    widening: int = 1

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options = linear_options(config, dtype, param_dtype, rngs) | {"use_bias": config.mlp_bias}
        self.activation = config.hidden_act
        self.up = Dense(config.hidden_size, self.widening * config.intermediate_size, **options)
        self.down = Dense(config.intermediate_size, config.hidden_size, **options)
        self.norm = layer_norm(config, dtype, param_dtype, rngs)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def inner(self, hidden: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Returns down(activation(up(hidden))), [B, L, D], of what `enter` makes of the stream."""

        def plain(hidden: jax.Array) -> jax.Array:
            inside = activate(self.activation, self.up(hidden, site(key, UP)), self.down.kernel[...])
            return self.down(inside, site(key, DOWN))

        if self.widening == 1 and self.activation == "gelu" and self.up.is_plain and self.down.is_plain:
            sides = Sides(*self.up.promoted(hidden), *self.down.promoted(hidden))
            if ends_in_tiles(hidden, sides):
                return feed_forward(hidden, sides, lambda hidden, _: plain(hidden))
        return plain(hidden)

    def close(self, hidden: jax.Array, output: jax.Array, key: jax.Array | None) -> jax.Array:
        """Drops, and adds to the stream `hidden` as the family does: [B, L, D]."""
        output = self.dropout(output, site(key, FEED_FORWARD))
        if self.adapter is not None:
            output = self.adapter(output)
        return self.leave(output, hidden)


def as_it_is(values: jax.Array) -> jax.Array:
    """The identity."""
    return values


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns [B, P, D]: of hidden [B, L, D] what stands at positions int32 [B, P]."""
    return jnp.take_along_axis(hidden, positions[:, :, None], axis=1)


def parts(fused: jax.Array) -> list[jax.Array]:
    """[B, L, c, H, Dh] -> c times [B, L, H, Dh]; split, as the gradient of that is one concatenation."""
    return [jnp.squeeze(part, 2) for part in jnp.split(fused, fused.shape[2], axis=2)]


def site(key: jax.Array | None, number: int) -> jax.Array | None:
    """Returns the dropout key of one site, independent of the others'; None stays None."""
    return None if key is None else jax.random.fold_in(key, number)


def linear_options(config: EncoderConfig, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> dict[str, Any]:
    """What every dense layer of an encoder is made with."""
    init = normal(config, rngs)
    return {"kernel_init": init, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}


def layer_norm(
    config: EncoderConfig, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs, size: int | None = None
) -> nnx.LayerNorm:
    """A LayerNorm over the last axis, of the hidden size unless told otherwise."""
    # the fast variance is a difference of squares, which loses digits where the mean is large
    return nnx.LayerNorm(
        config.hidden_size if size is None else size,
        epsilon=config.layer_norm_eps,
        use_bias=config.norm_bias,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )
