"""LoRA (Hu et al. 2021): a trained matrix of low rank beside a frozen kernel, W + (alpha / r) A B.

As the authors of map-tuning tuned their hosts (Zhang et al. 2023, thunlp/Knowledge-Plugin): alpha = 1, A drawn by
Kaiming's uniform rule, B zero; but the host's own biases stay, where theirs were lost. Flax's `nnx.LoRALinear` has
neither the scale nor dropout, and cannot add to one part of a fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, field_validator

from kinject.errors import InputError
from kinject.models.heads import HostModel
from kinject.models.kernels.elementwise import Dropout
from kinject.models.layers import Dense, FusedProjection, JoinedProjection
from kinject.models.tuning_base import Rules, Tuning, chosen_layers, own_output

Site = Literal["query", "key", "value", "attention_output", "up", "down"]
PARTS: tuple[Site, ...] = ("query", "key", "value")  # in the order of the fused kernel
EXACT = jax.lax.Precision.HIGHEST  # an accelerator's default would merge in tf32 or bfloat16


class LowRank(nnx.Module):
    """What is added to a dense layer with kernel [*in, *out]: `a` [*in, r] and `b` [r, *out], scaled."""

    def __init__(self, dense: Dense | JoinedProjection, inputs: int, lora: Lora, rngs: nnx.Rngs):
        kernel = dense.kernel[...]
        self.scale = lora.scale
        self.dtype = dense.dtype
        self.a = nnx.Param(_kaiming(rngs, (*kernel.shape[:inputs], lora.rank), kernel.shape[:inputs], kernel.dtype))
        self.b = nnx.Param(jnp.zeros((lora.rank, *kernel.shape[inputs:]), kernel.dtype))
        self.dropout = Dropout(lora.dropout)

    def add(self, outputs: jax.Array, inputs: jax.Array, key: jax.Array | None, start: int = 0) -> jax.Array:
        """Adds to outputs [B, L, *out] what stands beside the kernel, of inputs [B, L, *in]."""
        del start
        inputs = self.dropout(inputs, key)
        inputs, a, b = (values.astype(self.dtype) for values in (inputs, self.a[...], self.b[...]))
        low = jnp.tensordot(inputs, a, axes=a.ndim - 1) * self.scale
        return outputs + jnp.tensordot(low, b, axes=1)

    def merged(self, kernel: jax.Array) -> jax.Array:
        """The kernel that does the same alone, in its own dtype."""
        a, b = self.a[...].astype(jnp.float32), self.b[...].astype(jnp.float32)
        return (kernel + self.scale * jnp.tensordot(a, b, axes=1, precision=EXACT)).astype(kernel.dtype)


class LowRankParts(nnx.Module):
    """The same for n of queries, keys and values: `a` [D, n, r] and `b` [n, r, H, Dh] beside the kernel [D, 3, H, Dh].

    With dropout, the parts that are computed in one call read the same dropped inputs.
    """

    def __init__(self, dense: FusedProjection, parts: tuple[int, ...], lora: Lora, rngs: nnx.Rngs):
        kernel = dense.kernel[...]
        size, _, *out = kernel.shape
        self.parts = parts
        self.scale = lora.scale
        self.dtype = dense.dtype
        self.a = nnx.Param(_kaiming(rngs, (size, len(parts), lora.rank), (size,), kernel.dtype))
        self.b = nnx.Param(jnp.zeros((len(parts), lora.rank, *out), kernel.dtype))
        self.dropout = Dropout(lora.dropout)

    def add(self, outputs: jax.Array, inputs: jax.Array, key: jax.Array | None, start: int = 0) -> jax.Array:
        """Adds to outputs [B, L, c, H, Dh], which are parts `start` to `start + c` of the three."""
        chosen = {part - start: n for n, part in enumerate(self.parts) if start <= part < start + outputs.shape[2]}
        if not chosen:
            return outputs
        rows = slice(min(chosen.values()), max(chosen.values()) + 1)  # parts ascend, so those in a range are a range
        inputs = self.dropout(inputs, key)
        inputs, a, b = (v.astype(self.dtype) for v in (inputs, self.a[...][:, rows], self.b[...][rows]))
        low = jnp.einsum("bld,dnr->blnr", inputs, a) * self.scale
        added = jnp.einsum("blnr,nrhk->blnhk", low, b)
        # part by part, and not by a scatter: XLA folds the stack into the slices that the attention takes
        parts = [
            outputs[:, :, i] + added[:, :, chosen[i] - rows.start] if i in chosen else outputs[:, :, i]
            for i in range(outputs.shape[2])
        ]
        return jnp.stack(parts, axis=2)

    def merged(self, kernel: jax.Array) -> jax.Array:
        """The kernel that does the same alone, in its own dtype."""
        a, b = self.a[...].astype(jnp.float32), self.b[...].astype(jnp.float32)
        delta = self.scale * jnp.einsum("dnr,nrhk->dnhk", a, b, precision=EXACT)
        parts = np.array(self.parts)
        return kernel.at[:, parts].set((kernel[:, parts] + delta).astype(kernel.dtype))


class Lora(Tuning):
    """LoRA at the same sites of each layer, or of some.

    Paper: rank 32 at query, key and up (FewRel, Wiki80), 4 at query and key (Wiki-ET), 4 at query, key and up
    (EntityQuestions).

    Attributes:
      rank: r.
      alpha: the scale is alpha / r.
      sites: which dense layers; "up" is the first of the feed-forward, "down" the second.
      dropout: rate at the input of A, in training.
      layers: which layers, from 0; None = all.
    """

    name: ClassVar[str] = "lora"
    adds: ClassVar[bool] = True

    rank: int = Field(4, ge=1)
    alpha: float = Field(1.0, gt=0)
    sites: tuple[Site, ...] = Field(("query", "key"), min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: tuple[int, ...] | None = Field(None, min_length=1)

    @field_validator("sites", "layers")
    @classmethod
    def _once(cls, given: tuple | None) -> tuple | None:
        if given is not None and len(set(given)) != len(given):
            raise ValueError("each may be named once")
        return given

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / self.rank

    def attach(self, host: HostModel, rngs: nnx.Rngs) -> None:
        parts = tuple(i for i, site in enumerate(PARTS) if site in self.sites)
        for layer in chosen_layers(host, self.layers):
            attention, feed_forward = layer.attention, layer.feed_forward
            if parts:
                attention.qkv.lora = LowRankParts(attention.qkv, parts, self, rngs)
            if "attention_output" in self.sites:
                attention.output.lora = LowRank(attention.output, 2, self, rngs)
            if "up" in self.sites:
                feed_forward.up.lora = LowRank(feed_forward.up, 1, self, rngs)
            if "down" in self.sites:
                feed_forward.down.lora = LowRank(feed_forward.down, 1, self, rngs)

    def rules(self, head: str | None) -> Rules:
        """A and B train, and a head's own output layer; what lies below it and a masked-LM head do not."""
        return (("host/.*/lora/.*", "train"), *own_output(head), (".*", "freeze"))


def merge_lora(host: HostModel) -> HostModel:
    """Returns the plain host that computes the same; `host` stays as it is, and shares all other arrays with it.

    Raises:
      InputError: the host has no LoRA.
    """
    if not isinstance(host.tuning, Lora):
        found = "none" if host.tuning is None else host.tuning.name
        raise InputError("merge", f"only LoRA can be merged into a host, and its tuning is {found}")
    graph, state = nnx.split(host)
    merged = nnx.merge(graph, nnx.to_pure_dict(state))  # from arrays: of a State it would take over the variables
    for dense in _dense_layers(merged):
        if dense.lora is not None:
            dense.kernel[...] = dense.lora.merged(dense.kernel[...])
            del dense.lora
    merged.tuning = None
    return merged


def _dense_layers(host: HostModel) -> Iterator[Dense | JoinedProjection | FusedProjection]:
    for layer in host.encoder.layers:
        yield from (layer.attention.qkv, layer.attention.output, layer.feed_forward.up, layer.feed_forward.down)


def _kaiming(rngs: nnx.Rngs, shape: tuple[int, ...], inputs: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    bound = float(np.prod(inputs)) ** -0.5  # torch's kaiming_uniform_(a=sqrt(5)), as Hu et al. draw A
    return jax.random.uniform(rngs.params(), shape, dtype, -bound, bound)
