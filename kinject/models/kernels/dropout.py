"""Dropout whose mask is a hash of the position, computed where it is used.

A mask needs independent coins, not cryptography. JAX's generators write their bits to memory and cost more than the
layer that is dropped (on a CPU, most of a training step); here each element's coin is a mixing function of its indices
and the key, which XLA fuses into the multiplication. It depends on no device, no layout and no neighbour: a batch
sharded over n devices is dropped as on one, and a row keeps its coins when its batch is padded to another length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # a 32-bit integer mixer of low bias, found by C. Wellons' hash prospector
AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)  # a large prime (xxHash's) for each axis


class Dropout(nnx.Module):
    """Zeros a share `rate` of what it is given and scales up the rest (Srivastava et al. 2014); has no parameters."""

    def __init__(self, rate: float):
        """Raises ValueError for a rate outside of [0, 1)."""
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout is {rate}: a rate is in [0, 1)")
        self.rate = rate

    def __call__(self, values: jax.Array, key: jax.Array | None) -> jax.Array:
        """Drops values of any shape of up to five axes, in their dtype; without a key, returns them as they are."""
        if key is None or self.rate == 0.0:
            return values
        return jnp.where(kept(key, self.rate, values.shape), values / (1.0 - self.rate), 0)


def kept(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Which of `shape` to keep, bool, False with probability `rate`: a function of the key and each element's indices.

    Indices are summed modulo 2^32, each times a prime: neighbours are far apart, and hundreds of millions of elements
    go by before two may share a coin.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, prime in zip(range(len(shape)), AXES[: len(shape)], strict=True):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(prime)
    # twice, with a word of the key before each: by one word alone, two keys would permute the same coins
    return _mixed(_mixed(index ^ words[0]) + words[1]) >= jnp.uint32(round(rate * 2**32))


def _mixed(bits: jax.Array) -> jax.Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(MULTIPLIERS[0])
    bits = (bits ^ (bits >> 15)) * jnp.uint32(MULTIPLIERS[1])
    return bits ^ (bits >> 16)
