"""K-Adapter: a stack of small transformers beside a frozen host, reading some of its hidden states.

Wang et al., "K-Adapter: Infusing Knowledge into Pre-Trained Models with Adapters", Findings of ACL 2021, section 3.
Unit i reads u_i = h[l_i] + a_(i-1) (a_0 = 0) and yields a_i = u_i + Up(Transformer(Down(u_i))); the last a is joined
with the host's last hidden state. The knowledge is what the adapter was trained on (relations between entities, heads
of dependencies), not a table that it reads.

Seam: hidden-state outputs. Trained: units and join, 47.25 M parameters in the units of the paper's shape. Needs of the
knowledge base: nothing.

Departures from the release: its adapters attend to padding; here attention stays inside a segment, as in the host. And
the join starts at zero, on top of the host's hidden state, so that an untrained plugin is the host, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.layers import Layer, site
from kinject.models.seams import Plugin
from kinject.plugins.base import register

PROJECTION_STD = 2e-4  # of Down and Up, as released
DEFAULT_UNITS = 3
Joining = Literal["concat", "add"]


def spread(layers: int, units: int = DEFAULT_UNITS) -> tuple[int, ...]:
    """Hidden states for `units` units over a host of any depth: evenly from the embeddings to the last layer but one.

    24 layers give the paper's 0, 11, 22. A host too shallow for that is read up to its last layer, and one with fewer
    states than units has some of them read twice.
    """
    top = max(layers - 2, min(layers, units - 1))
    return tuple(top * i // max(units - 1, 1) for i in range(units))


class Join(nnx.Module):
    """The host's last hidden state plus what is made of some vectors; it starts at zero.

    "concat" adds Linear([v_1; …; v_n]). With the host's own state among the vectors (or in one of them) this is the
    paper's Linear([h; a]) up to the identity matrix in its first block. "add" adds s_1 * v_1 + … + s_n * v_n with
    one trained factor a feature; the paper's sum is s = 1.
    """

    def __init__(self, how: Joining, count: int, hidden_size: int, rngs: nnx.Rngs):
        if how == "concat":
            zeros = nnx.initializers.zeros
            self.linear = nnx.Linear(count * hidden_size, hidden_size, kernel_init=zeros, bias_init=zeros, rngs=rngs)
        else:
            self.scale = nnx.Param(jnp.zeros((count, hidden_size), jnp.float32))

    def __call__(self, last: jax.Array, vectors: Sequence[jax.Array]) -> jax.Array:
        """Joins `count` vectors [..., D] to `last` [..., D]: float32 [..., D]."""
        last = last.astype(jnp.float32)
        if hasattr(self, "linear"):
            return last + self.linear(jnp.concatenate(vectors, -1).astype(jnp.float32))
        return last + sum(scale * vector for scale, vector in zip(self.scale[...], vectors, strict=True))


class Unit(nnx.Module):
    """u + Up(layers(Down(u)))."""

    def __init__(self, hidden_size: int, shape: EncoderConfig, dtype: Any, rngs: nnx.Rngs):
        options = {"kernel_init": nnx.initializers.normal(PROJECTION_STD), "dtype": dtype, "rngs": rngs}
        self.down = nnx.Linear(hidden_size, shape.hidden_size, **options)
        self.layers = nnx.List(
            [Layer(shape, dtype=dtype, param_dtype=jnp.float32, rngs=rngs) for _ in range(shape.num_hidden_layers)]
        )
        self.up = nnx.Linear(shape.hidden_size, hidden_size, **options)

    def __call__(self, inputs: jax.Array, segment_ids: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, L, D] -> float32 [B, L, D]; attention stays inside the segments of `segment_ids` int32 [B, L]."""
        hidden = self.down(inputs)
        for number, layer in enumerate(self.layers):
            own = site(key, number)
            hidden = layer.attention(hidden, segment_ids, own)
            hidden = layer.feed_forward.close(hidden, layer.feed_forward.inner(hidden, own), own)
        return inputs + self.up(hidden).astype(jnp.float32)


@register("k_adapter")
class KAdapter(Plugin):
    """K-Adapter: small transformers beside the host that read some of its hidden states, and their join."""

    @dataclass(frozen=True)
    class Config:
        """The adapter's shape; defaults are the paper's.

        Attributes:
          layers: the hidden states read, ascending; 0 = embeddings. None = three of them, see `spread`.
          width: hidden size inside a unit.
          depth: transformer layers a unit.
          heads: attention heads of each.
          feed_forward: size of its feed-forward.
          dropout: inside the units, in training.
          join: how the adapter's output meets the host's; see `Join`.
          dtype: what the units compute in; parameters are float32.
        """

        layers: tuple[int, ...] | None = None
        width: int = 768
        depth: int = 2
        heads: int = 12
        feed_forward: int = 3072
        dropout: float = 0.1
        join: Joining = "concat"
        dtype: Literal["float32", "bfloat16"] = "float32"

        def __post_init__(self) -> None:
            if self.layers is not None and (not self.layers or min(self.layers) < 0):
                raise ValueError(f"layers are {self.layers}: name hidden states from 0, at least one")
            if self.layers is not None and list(self.layers) != sorted(self.layers):
                raise ValueError(f"layers are {self.layers}: name them from the lowest to the highest")
            if min(self.width, self.depth, self.heads, self.feed_forward) < 1 or self.width % self.heads:
                raise ValueError(f"width {self.width} is no multiple of heads {self.heads}, or a size is below 1")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout is {self.dropout}: a rate is in [0, 1)")

    def __init__(self, config: Any = None, *, hidden_size: int, knowledge_dim: int = 0, rngs: nnx.Rngs | None = None):
        super().__init__(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim)
        rngs, config = rngs or nnx.Rngs(0), self.config
        shape = EncoderConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.feed_forward,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            layer_norm_eps=1e-5,
        )
        count = DEFAULT_UNITS if config.layers is None else len(config.layers)
        dtype = jnp.dtype(config.dtype)
        self.units = nnx.List([Unit(hidden_size, shape, dtype, rngs) for _ in range(count)])
        self.join = Join(config.join, 2 if config.join == "concat" else 1, hidden_size, rngs)

    def states(self, layers: int) -> tuple[int, ...]:
        """Which hidden state each unit reads, in a host of so many layers.

        Raises:
          InputError: the host is too shallow.
        """
        if self.config.layers is None:
            return spread(layers, len(self.units))
        if self.config.layers[-1] > layers:
            problem = f"names hidden state {self.config.layers[-1]}, the host's last is {layers}"
            raise InputError("method.layers", problem, "leave layers out, or train an adapter for this depth")
        return self.config.layers

    def reads_states(self, layers: int) -> tuple[int, ...]:
        return tuple(sorted({state for state in self.states(layers) if state < layers}))

    def adapt(
        self, hidden_states: Sequence[jax.Array], batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> jax.Array:
        """What the last unit yields, float32 [B, L, D]."""
        adapted = jnp.zeros((), jnp.float32)
        read = self.states(len(hidden_states) - 1)
        for number, (unit, state) in enumerate(zip(self.units, read, strict=True)):
            inputs = hidden_states[state].astype(jnp.float32) + adapted
            adapted = unit(inputs, batch["segment_ids"], site(key, number))
        return adapted

    def outputs(
        self, hidden_states: Sequence[jax.Array], batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> jax.Array:
        """The last hidden state, joined with the adapter's: float32 [B, L, D].

        Args:
          hidden_states: all of the host's, [B, L, D] each.
          batch: reads `segment_ids` int32 [B, L].
          key: dropout key or None.
        """
        last, adapted = hidden_states[-1], self.adapt(hidden_states, batch, key)
        return self.join(last, [last, adapted] if self.config.join == "concat" else [adapted])
