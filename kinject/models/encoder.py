"""Encoders in Flax NNX, with the three seams where a knowledge plugin may speak.

What differs from family to family is in `families/`, each as Hugging Face computes it; what they share is here. There
is no state but parameters, and dropout happens only where a key is given, so a forward pass is a pure function of its
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from kinject.models.config import EncoderConfig
from kinject.models.layers import PLUGIN, Attention, Layer, OneKey, gather_positions, layer_norm, site
from kinject.models.packing import CELLS, Packed
from kinject.models.seams import Plugin, check_batch, check_seam

Batch = Mapping[str, jax.Array]
EMBEDDINGS, FIRST_LAYER = 0, 1  # sites of a step's dropout key: layer i is FIRST_LAYER + i, `outputs` comes after all


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
        family = config.family
        self.embeddings = family.embeddings(config, **options)
        kinds = family.layer_kinds(config)
        self.layers = nnx.List(_built(lambda kind: family.layer(config, kind, **options), kinds, rngs))
        self.relative = family.relative(config, **options)
        self.norm = layer_norm(config, dtype, param_dtype, rngs) if family.final_norm else None

    @property
    def packs(self) -> bool:
        """Whether its layers can compute a batch without its padding: only attention may ask which row it is in."""
        plain = (type(each.attention).__call__ is Attention.__call__ for each in self.layers)
        return all(plain) and all(type(each).finish is Layer.finish for each in self.layers)

    def embed(self, batch: Batch, plugin: Plugin | None = None, key: jax.Array | None = None) -> jax.Array:
        """Returns hidden state 0, [B, L, D]: word (through the plugin), position and type embeddings, normed.

        The plugin gets word embeddings [B, L, E], before any layer that brings them to the hidden size.

        Args:
          batch: needs `token_ids`, `position_ids` and `type_ids`, each int32 [B, L].
          plugin: who may change the word embeddings.
          key: dropout key, None = no dropout.
        """
        key = site(key, EMBEDDINGS)
        words = self.embeddings.words(batch["token_ids"])
        if plugin is not None:
            words = check_seam(plugin.embed(words, batch, site(key, PLUGIN)), words, plugin, "embed")
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
          batch: needs `segment_ids` int32 [B, L], and what the plugin reads; with `cells` int32 [T] (see `Packed`)
            layers compute only those, where the family and the plugin let them (`packs`).
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
        states, relative, packed = [], self._relative(hidden, batch), None
        if CELLS in batch:
            packed = Packed.of(batch[CELLS], *hidden.shape[:2])
            hidden = packed.gather(hidden)
        for i in range(start, stop):
            here = positions if i == count - 1 else None
            known = inner if i == start else None
            step = self._step(i, batch, plugin, site(key, FIRST_LAYER + i), here, known, relative, packed)
            hidden = (jax.checkpoint(step) if self.remat else step)(hidden)
            states.append(hidden if packed is None or here is not None else packed.spread(hidden))
        return states

    def to_seam(self, i: int, hidden: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Of layer i, what attention and what feed-forward yield of hidden state i, [B, L, D] each, nothing dropped."""
        layer = self.layers[i]
        hidden = layer.attention(hidden, batch["segment_ids"], None, relative=self._relative(hidden, batch))
        return hidden, layer.feed_forward.inner(layer.feed_forward.enter(hidden))

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
        return check_seam(plugin.outputs(tuple(hidden_states), batch, key), last, plugin, "outputs")

    def __call__(
        self,
        batch: Batch,
        plugin: Plugin | None = None,
        key: jax.Array | None = None,
        *,
        positions: jax.Array | None = None,
        start: int = 0,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
          batch: the flat dict of docs/architecture.md; with `start` > 0 also what `prefix` makes.
          plugin: the knowledge plugin, None = the bare host.
          key: dropout key, None = no dropout.
          positions: int32 [B, P] where the head reads; None = everywhere. A plugin that reads the sequence in the
            last layer has it computed everywhere and gathered afterwards.
          start: the layers below are not computed; the plugin must not touch them. Hidden states that the batch does
            not bring are then None.
        """
        batch = batch if plugin is None else plugin.before(self, batch)
        check_batch(batch, self.config.hidden_size, plugin)
        hidden = batch["prefix"].astype(self.dtype) if start else self.embed(batch, plugin, key)
        everywhere = (plugin is not None and plugin.reads_sequence) or start == len(self.layers)
        early = None if everywhere else positions
        kept = [batch.get(f"state_{i}") for i in range(start)]
        below = [None if one is None else one.astype(self.dtype) for one in kept]
        inner = batch.get("prefix_inner") if start else None
        first = hidden if inner is None else None  # no one reads it then
        inner = None if inner is None else inner.astype(self.dtype)
        states: tuple[Any, ...] = (
            *below,
            first,
            *self.run(hidden, batch, plugin, key, start=start, positions=early, inner=inner),
        )
        last = self.finish(states, batch, plugin, key)
        return EncoderOutput(
            gather_positions(last, positions) if everywhere and positions is not None else last, states
        )

    def prefix(
        self, batch: Batch, plugin: Plugin | None = None, *, stop: int, seam: bool = False
    ) -> dict[str, jax.Array]:
        """What a batch needs for `start=stop`, computed without dropout.

        Returns:
          `prefix` [B, L, D], hidden state number `stop`, and `state_<i>` [B, L, D] of each below that the plugin reads.
          With `seam`, layer `stop` is computed up to the plugin's seam: `prefix` is what its attention yields, and
          `prefix_inner` [B, L, D] its feed-forward. A layer that reads its input behind the seam has no such start.
        """
        if seam and self.layers[stop].reads_input:
            raise ValueError(f"layer {stop} reads its input again behind the seam")
        batch = batch if plugin is None else plugin.before(self, batch)
        check_batch(batch, self.config.hidden_size, plugin)
        hidden = self.embed(batch, plugin)
        states = [hidden, *self.run(hidden, batch, plugin, stop=stop)]
        kept = {f"state_{i}": states[i] for i in kept_states(plugin, len(self.layers), stop)}
        if not seam:
            return {"prefix": states[-1], **kept}
        attended, inner = self.to_seam(stop, states[-1], batch)
        return {"prefix": attended, "prefix_inner": inner, **kept}

    def _step(
        self,
        i: int,
        batch: Batch,
        plugin: Plugin | None,
        key: jax.Array | None,
        positions: jax.Array | None,
        inner: jax.Array | None,
        relative: Any,
        packed: Packed | None,
    ) -> Callable[[jax.Array], jax.Array]:
        layer, last = self.layers[i], i == len(self.layers) - 1
        told = {} if packed is None else {"packed": packed}  # a family's own attention need not know of it

        def step(entered: jax.Array) -> jax.Array:
            hidden = entered
            if inner is None:
                hidden = layer.attention(hidden, batch["segment_ids"], key, positions, relative, **told)
                read = layer.feed_forward.enter(hidden)
                output = layer.feed_forward.inner(read, key)
            elif positions is None:
                read, output = layer.feed_forward.enter(hidden), inner
            else:
                hidden, output = gather_positions(hidden, positions), gather_positions(inner, positions)
                read = layer.feed_forward.enter(hidden)
            if plugin is not None:
                changed = plugin.feed_forward(i, read, output, batch, site(key, PLUGIN))
                output = check_seam(changed, output, plugin, "feed_forward")
            hidden = layer.feed_forward.close(hidden, output, key)
            hidden = layer.finish(hidden, entered, batch["segment_ids"], key, positions)
            return self.norm(hidden) if last and self.norm is not None else hidden

        return step

    def _relative(self, hidden: jax.Array, batch: Batch) -> Any:
        return None if self.relative is None else self.relative(hidden, batch)


def kept_states(plugin: Plugin | None, layers: int, stop: int) -> tuple[int, ...]:
    """The hidden states below `stop` that the plugin reads at its `outputs`."""
    return () if plugin is None else tuple(i for i in plugin.reads_states(layers) if i < stop)


def _built(make: Callable[[Any], Any], kinds: Sequence[Hashable], rngs: Any) -> list[Any]:
    """A module of each kind, in order; for a `OneKey` the first of a kind is made, and the others are its copies."""
    if not isinstance(rngs, OneKey):
        return [make(kind) for kind in kinds]
    first = {kind: nnx.split(make(kind)) for kind in dict.fromkeys(kinds)}
    return [nnx.merge(*first[kind], copy=True) for kind in kinds]
