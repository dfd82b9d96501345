"""Several K-Adapters on one host: each joined with the host's last hidden state, then their joined states together.

Wang et al., "K-Adapter", Findings of ACL 2021, section 3.4. Two levels of Linear: f_k = Linear([h; a_k]) of each
adapter, then Linear([f_1; …; f_n]); or, with join "add", the host's state plus what each adapter adds to it.

Seam: hidden-state outputs. Trained: by rules; the paper freezes the adapters (`plugin/adapters/<name>/units/.*`) and
trains what joins them. Needs of the knowledge base: nothing. Made of the folders of single adapters, whose arrays and
first-level joins it takes over; as these it is the host, bit for bit, until its own join has been trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kinject.errors import InputError
from kinject.models.seams import Plugin
from kinject.plugins.base import register
from kinject.plugins.k_adapter import Join, Joining, KAdapter


@register("k_adapter_combination")
class KAdapterCombination(Plugin):
    """Several K-Adapters by name, and what joins them."""

    @dataclass(frozen=True)
    class Config:
        """Which adapters.

        Attributes:
          join: of the second level; see `kinject.plugins.k_adapter.Join`.
          names, adapters: of the adapters, in one order; set when the combination is made of their folders.
        """

        join: Joining = "concat"
        names: tuple[str, ...] = ()
        adapters: tuple[KAdapter.Config, ...] = ()

        def __post_init__(self) -> None:
            if len(set(self.names)) != len(self.adapters) or not all(name.isidentifier() for name in self.names):
                raise ValueError(f"names are {self.names}: give each adapter a word of its own")

    def __init__(self, config: Any = None, *, hidden_size: int, knowledge_dim: int = 0, rngs: nnx.Rngs | None = None):
        super().__init__(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim)
        rngs = rngs or nnx.Rngs(0)
        if not self.config.adapters:
            raise InputError("method", f"{self.name} is made of saved adapters", "name their folders as parts")
        members = {
            name: KAdapter(one, hidden_size=hidden_size, rngs=rngs)
            for name, one in zip(self.config.names, self.config.adapters, strict=True)
        }
        self.adapters = nnx.Dict(members)
        self.join = Join(self.config.join, len(members), hidden_size, rngs)

    @classmethod
    def from_parts(
        cls, config: Any, parts: Mapping[str, Plugin], *, hidden_size: int, knowledge_dim: int = 0, rngs: nnx.Rngs
    ) -> KAdapterCombination:
        for name, part in parts.items():
            if not isinstance(part, KAdapter):
                raise InputError(f"parts.{name}", f"is a plugin of {part.name}, not of {KAdapter.name}")
            if not name.isidentifier():
                raise InputError(f"parts.{name}", "cannot be a name here", "use a word of letters, digits and _")
        config = replace(config, names=tuple(parts), adapters=tuple(part.config for part in parts.values()))
        made = cls(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim, rngs=rngs)
        for name, part in parts.items():
            nnx.update(made.adapters[name], nnx.state(part))
        return made

    def reads_states(self, layers: int) -> tuple[int, ...]:
        return tuple(sorted({state for one in self.adapters.values() for state in one.reads_states(layers)}))

    def outputs(
        self, hidden_states: Sequence[jax.Array], batch: Mapping[str, jax.Array], key: jax.Array | None = None
    ) -> jax.Array:
        """The last hidden state, joined with all adapters': float32 [B, L, D]. See `KAdapter.outputs`."""
        last = hidden_states[-1].astype(jnp.float32)
        keys = [None if key is None else jax.random.fold_in(key, number) for number in range(len(self.config.names))]
        joined = [
            self.adapters[name].outputs(hidden_states, batch, own)
            for name, own in zip(self.config.names, keys, strict=True)
        ]
        return self.join(last, joined if self.config.join == "concat" else [one - last for one in joined])
