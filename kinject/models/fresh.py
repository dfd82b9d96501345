"""Fresh parameters: drawn by `nnx.Rngs`; where only shapes are asked for, a `OneKey` stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from flax import nnx

from kinject.models.config import EncoderConfig


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


def built(make: Callable[[Any], Any], kinds: Sequence[Hashable], rngs: Any) -> list[Any]:
    """A module of each kind, in order; for a `OneKey` the first of a kind is made, and the others are its copies."""
    if not isinstance(rngs, OneKey):
        return [make(kind) for kind in kinds]
    first = {kind: nnx.split(make(kind)) for kind in dict.fromkeys(kinds)}
    return [nnx.merge(*first[kind], copy=True) for kind in kinds]
