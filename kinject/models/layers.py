"""The layers of an encoder: embeddings, attention, feed-forward, and the dense layers that they are made of.

Statistics of LayerNorm and softmax are float32 whatever the compute dtype is. A dense layer can carry a low-rank
addition beside its kernel (models/lora.py), a LayerNorm an adapter before it (models/houlsby.py). Fresh parameters are
drawn by `nnx.Rngs`; where only shapes are asked for, a `OneKey` stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.models.config import EncoderConfig
from kinject.models.kernels.elementwise import Dropout, activate
from kinject.models.kernels.feed_forward import Sides, ends_in_tiles, feed_forward
from kinject.models.kernels.products import (
    attention_context,
    attention_probabilities,
    attention_scores,
    dot_general,
    for_kernels,
    promote,
)
from kinject.models.kernels.short_attention import attends_short, short_attention
from kinject.models.packing import Packed

PROBABILITIES, ATTENTION, FEED_FORWARD, PLUGIN = range(4)  # sites of a layer's dropout key
QKV, QUERIES, ATTENTION_OUTPUT, UP, DOWN = range(4, 9)  # and those of what is added to a dense layer
RELATIVE, INSIDE, CONVOLUTION = range(9, 12)  # and those that some families drop at beside

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

    def sides(self, hidden: jax.Array) -> tuple[jax.Array, ...] | None:
        """Kernel and bias, in the dtype in which they meet a stream; None where it is not these two alone."""
        if self.lora is not None or self.bias is None:
            return None
        return self.promote_dtype((hidden, self.kernel[...], self.bias[...]), dtype=self.dtype)[1:]


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
        spread, at = (lambda values: values, gather_positions) if packed is None else (packed.spread, packed.at)
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
        attend = partial(self.context, positions=positions, relative=relative, key=key)
        places = 0 if positions is None else positions.shape[1]
        if for_kernels(fused) and self.is_usual(key) and attends_short(fused, places):
            context = short_attention(queries, fused, own, segment_ids, attend)
        else:
            context = attend(queries, fused, own, segment_ids)
        context = context if packed is None or positions is not None else packed.gather(context)
        context = self.dropout(self.output(context, site(key, ATTENTION_OUTPUT)), site(key, ATTENTION))
        if self.adapter is not None:
            context = self.adapter(context)
        return self.leave(context, hidden)

    def is_usual(self, key: jax.Array | None) -> bool:
        """Whether scores are products, a segment is seen whole, and no probability is dropped."""
        kind, kept = type(self), key is None or self.probability_dropout.rate == 0.0
        return kept and kind.scores is Attention.scores and kind.narrowed is Attention.narrowed

    def context(
        self, queries: Any, fused: jax.Array, own: Any, segment_ids: jax.Array, positions: Any, relative: Any, key: Any
    ) -> jax.Array:
        """Sums of values by the softmax of scores, [B, L or P, H, Dh], of what `short_attention` takes."""
        queries, keys, values = parts(fused) if queries is None else (queries, *parts(fused))
        own = segment_ids if own is None else own
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

        def plain(hidden: jax.Array, *_: Any) -> jax.Array:
            inside = activate(self.activation, self.up(hidden, site(key, UP)), self.down.kernel[...])
            return self.down(inside, site(key, DOWN))

        if for_kernels(hidden) and self.activation == "gelu" and self.widening == 1:
            up, down = self.up.sides(hidden), self.down.sides(hidden)
            if up and down and ends_in_tiles(hidden, Sides(*up, *down)):
                return feed_forward(hidden, Sides(*up, *down), plain)
        return plain(hidden)

    def close(self, hidden: jax.Array, output: jax.Array, key: jax.Array | None) -> jax.Array:
        """Drops, and adds to the stream `hidden` as the family does: [B, L, D]."""
        output = self.dropout(output, site(key, FEED_FORWARD))
        if self.adapter is not None:
            output = self.adapter(output)
        return self.leave(output, hidden)


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


class OneKey:
    """Stands in for `nnx.Rngs` where only shapes are asked for: its counters would be most of the time of loading."""

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def __call__(self) -> jax.Array:
        return self.key

    def __getattr__(self, stream: str) -> Callable[[], jax.Array]:
        return self


def normal(config: EncoderConfig, rngs: Any) -> nnx.Initializer:
    """Draws from a normal distribution of the config's deviation; zeros for a `OneKey`, which trace faster."""
    if isinstance(rngs, OneKey):
        return nnx.initializers.zeros_init()
    return nnx.initializers.normal(config.initializer_range)
