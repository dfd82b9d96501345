"""Houlsby adapters (Houlsby et al. 2019): a trained bottleneck with a residual, twice a layer, before each LayerNorm.

As the authors of map-tuning tuned their hosts (Zhang et al. 2023, thunlp/Knowledge-Plugin): Lin(D, 32), swish,
Lin(32, D) after the dense layer and dropout of attention output and of feed-forward, kernels drawn from N(0, 0.02).
What a knowledge plugin adds to a feed-forward comes before the adapter, as it is part of what the feed-forward yields.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from pydantic import Field, field_validator

from kinject.errors import did_you_mean
from kinject.models.heads import HostModel
from kinject.models.kernels.elementwise import ACTIVATIONS
from kinject.models.tuning_base import Rules, Tuning, chosen_layers, own_output


class Adapter(nnx.Module):
    """values + up(activation(down(values))), at [B, L, D]."""

    def __init__(self, size: int, config: Houlsby, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        drawn = nnx.initializers.normal(config.initializer_range)
        last = nnx.initializers.zeros if config.zero_init else drawn
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.activation = config.activation
        self.down = nnx.Linear(size, config.bottleneck, kernel_init=drawn, **options)
        self.up = nnx.Linear(config.bottleneck, size, kernel_init=last, **options)

    def __call__(self, values: jax.Array) -> jax.Array:
        return values + self.up(ACTIVATIONS[self.activation](self.down(values)))


class Houlsby(Tuning):
    """An adapter after attention and after feed-forward, in each layer or in some.

    Attributes:
      bottleneck: the small size.
      activation: between the two dense layers.
      initializer_range: standard deviation of fresh kernels; biases are zero.
      zero_init: start from the host as it is, with a second kernel of zeros.
      layers: which layers, from 0; None = all.
    """

    name: ClassVar[str] = "houlsby"
    adds: ClassVar[bool] = True

    bottleneck: int = Field(32, ge=1)
    activation: str = "swish"
    initializer_range: float = Field(0.02, gt=0)
    zero_init: bool = False
    layers: tuple[int, ...] | None = Field(None, min_length=1)

    @field_validator("activation")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"there is no such activation ({did_you_mean(name, ACTIVATIONS)})")
        return name

    def attach(self, host: HostModel, rngs: nnx.Rngs) -> None:
        size = host.encoder.config.hidden_size
        dtype, held = host.encoder.dtype, host.encoder.embeddings.word.embedding[...].dtype
        for layer in chosen_layers(host, self.layers):
            for block in (layer.attention, layer.feed_forward):
                block.adapter = Adapter(size, self, dtype=dtype, param_dtype=jnp.dtype(held), rngs=rngs)

    def rules(self, head: str | None) -> Rules:
        """The adapters train, and a head's own output layer; what lies below it and a masked-LM head do not."""
        return (("host/.*/adapter/.*", "train"), *own_output(head), (".*", "freeze"))
