"""BERT and RoBERTa in Flax NNX, with the three seams where a knowledge plugin may speak.

Follows Devlin et al. 2019 and Liu et al. 2019 as Hugging Face computes them: post-LayerNorm, learned absolute
positions. Statistics of LayerNorm and softmax are float32 whatever the compute dtype is. There is no state but
parameters, and dropout happens only where a key is given, so a forward pass is a pure function of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.models.config import EncoderConfig
from kinject.models.dense import Dense, FusedProjection, JoinedProjection
from kinject.models.kernels import attention
from kinject.models.kernels.activations import activate
from kinject.models.kernels.dropout import Dropout
from kinject.models.seams import Plugin

__all__ = ["Encoder", "EncoderConfig", "EncoderOutput", "gather_positions"]

Batch = Mapping[str, jax.Array]
EMBEDDINGS, FIRST_LAYER = 0, 1  # sites of a step's dropout key: layer i is FIRST_LAYER + i, `outputs` comes after all
PROBABILITIES, ATTENTION, FEED_FORWARD, PLUGIN = range(4)  # sites within one of those
QKV, QUERIES, ATTENTION_OUTPUT, UP, DOWN = range(4, 9)  # and within a layer, those of what is added to a dense layer


Adapter = Callable[[jax.Array], jax.Array]  # what models/houlsby.py puts before a LayerNorm; None in a plain host


class EncoderOutput(NamedTuple):
    """What an encoder yields.

    Attributes:
      last: [B, L, D], or [B, P, D] where positions were asked for: what the head reads.
      hidden_states: 1 + number of layers, [B, L, D] each; index 0 is the embedding output. With positions, the last
        one may be [B, P, D].
    """

    last: jax.Array
    hidden_states: tuple[jax.Array, ...]


class Encoder(nnx.Module):
    """Embeddings and layers of a host; parameter paths are listed in docs/architecture.md."""

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Builds an encoder with fresh parameters.

        Args:
          config: its shape.
          dtype: what activations are computed in.
          param_dtype: what parameters are held in.
          remat: recompute each layer in the backward pass instead of keeping what it computed.
          rngs: where fresh parameters come from.
        """
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embeddings = Embeddings(config, **options)
        self.layers = nnx.List([Layer(config, **options) for _ in range(config.num_hidden_layers)])

    def embed(self, batch: Batch, plugin: Plugin | None = None, key: jax.Array | None = None) -> jax.Array:
        """Returns hidden state 0, [B, L, D]: word (through the plugin), position and type embeddings, normed.

        Args:
          batch: needs `token_ids`, `position_ids` and `type_ids`, each int32 [B, L].
          plugin: who may change the word embeddings.
          key: dropout key, None = no dropout.
        """
        key = site(key, EMBEDDINGS)
        words = self.embeddings.words(batch["token_ids"])
        if plugin is not None:
            words = _same_form(plugin.embed(words, batch, site(key, PLUGIN)), words, plugin, "embed")
        return self.embeddings(words, batch["position_ids"], batch["type_ids"], key)

    def run(
        self,
        hidden: jax.Array,
        batch: Batch,
        plugin: Plugin | None = None,
        key: jax.Array | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        positions: jax.Array | None = None,
        inner: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Runs layers `start` to `stop` (exclusive; None = all), and returns what each yields.

        Args:
          hidden: [B, L, D] hidden state number `start`; see `inner`.
          batch: needs `segment_ids` int32 [B, L], and what the plugin reads.
          plugin: who may change what a feed-forward yields.
          key: the same step's dropout key that `embed` got, None = no dropout.
          start: first layer, from 0.
          stop: the layer to stop before.
          positions: int32 [B, P]; the last layer is then computed only there, and yields [B, P, D].
          inner: [B, L, D], what layer `start`'s feed-forward yields before the plugin speaks, if that is known;
            `hidden` is then what its attention yields (`to_seam`).

        Returns:
          `stop - start` hidden states: number start + 1 to number stop.

        Raises:
          ValueError: a range outside of the layers, or positions without the last layer.
        """
        count = len(self.layers)
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise ValueError(f"layers {start} to {stop} of an encoder with {count}")
        if positions is not None and not start < stop == count:
            raise ValueError("positions are gathered in the last layer, which is not among those run")
        states = []
        for i in range(start, stop):
            here = positions if i == count - 1 else None
            known = inner if i == start else None
            step = self._step(i, batch, plugin, site(key, FIRST_LAYER + i), here, known)
            hidden = (jax.checkpoint(step) if self.remat else step)(hidden)
            states.append(hidden)
        return states

    def to_seam(self, i: int, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Of layer i, what attention and what feed-forward yield of hidden state i, [B, L, D] each, nothing dropped."""
        layer = self.layers[i]
        hidden = layer.attention(hidden, batch["segment_ids"], None)
        return hidden, layer.feed_forward.inner(hidden)

    def finish(
        self,
        hidden_states: list[jax.Array] | tuple[jax.Array, ...],
        batch: Batch,
        plugin: Plugin | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what the head reads, [B, L, D]: the last hidden state, through the plugin's `outputs`."""
        last = hidden_states[-1]
        if plugin is None:
            return last
        key = site(site(key, FIRST_LAYER + len(self.layers)), PLUGIN)
        return _same_form(plugin.outputs(tuple(hidden_states), batch, key), last, plugin, "outputs")

    def __call__(
        self,
        batch: Batch,
        plugin: Plugin | None = None,
        key: jax.Array | None = None,
        *,
        positions: jax.Array | None = None,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
          batch: the flat dict of docs/architecture.md.
          plugin: the knowledge plugin, None = the bare host.
          key: dropout key, None = no dropout.
          positions: int32 [B, P] where the head reads; None = everywhere. A plugin that reads the sequence in the
            last layer has it computed everywhere and gathered afterwards.
        """
        early = None if plugin is not None and plugin.reads_sequence else positions
        batch = batch if plugin is None else plugin.before(self, batch)
        embedded = self.embed(batch, plugin, key)
        states = (embedded, *self.run(embedded, batch, plugin, key, positions=early))
        last = self.finish(states, batch, plugin, key)
        if positions is not None and early is None:
            last = gather_positions(last, positions)
        return EncoderOutput(last, states)

    def _step(
        self,
        i: int,
        batch: Batch,
        plugin: Plugin | None,
        key: jax.Array | None,
        positions: jax.Array | None,
        inner: jax.Array | None,
    ) -> Callable[[jax.Array], jax.Array]:
        layer = self.layers[i]

        def step(hidden: jax.Array) -> jax.Array:
            if inner is None:
                hidden = layer.attention(hidden, batch["segment_ids"], key, positions)
                output = layer.feed_forward.inner(hidden, key)
            elif positions is None:
                output = inner
            else:
                hidden, output = gather_positions(hidden, positions), gather_positions(inner, positions)
            if plugin is not None:
                changed = plugin.feed_forward(i, hidden, output, batch, site(key, PLUGIN))
                output = _same_form(changed, output, plugin, "feed_forward")
            return layer.feed_forward.close(hidden, output, key)

        return step


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
        scores = attention.scores(queries, keys) * (queries.shape[-1] ** -0.5)
        # the lowest finite number: a row without anything visible becomes uniform, where -inf would give NaN
        scores = jnp.where(visible[:, None], scores, jnp.finfo(jnp.float32).min)
        probabilities = attention.probabilities(scores, self.dtype)
        probabilities = self.probability_dropout(probabilities, site(key, PROBABILITIES))
        context = jnp.swapaxes(attention.weighted(probabilities, values), 1, 2)
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


def _same_form(new: jax.Array, old: jax.Array, plugin: Plugin, seam: str) -> jax.Array:
    """Holds a plugin to the shape it was given, and brings its result back to the compute dtype."""
    if new.shape != old.shape:
        raise ValueError(f"plugin {plugin.name}: {seam} made {new.shape} of {old.shape}")
    return new.astype(old.dtype)


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
