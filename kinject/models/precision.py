"""In which dtypes a model computes: one word of a config, and what it means for activations and for held parameters."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Precision = Literal["float32", "bfloat16", "bfloat16_dots"]
"""`float32`; `bfloat16` for all activations and frozen parameters; or `bfloat16_dots`: activations are float32, only
products with the host's matrices are taken in bfloat16, with float32 sums (models/dense.py)."""


def activations(precision: Precision) -> DTypeLike:
    """What an encoder is built to compute in."""
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def held(precision: Precision, path: str, leaf: Any) -> DTypeLike:
    """The dtype in which a frozen parameter is kept on the devices.

    With `bfloat16_dots` the host's matrices are bfloat16. Its vectors (biases, norms), which multiply nothing by
    themselves, stay, and so does a plugin, which is then the same whether it is trained or only used.
    """
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.dtype
    if precision == "bfloat16_dots":
        return jnp.bfloat16 if leaf.ndim > 1 and path.startswith("host/") else jnp.float32
    return jnp.dtype(precision)


def multiplied(precision: Precision, path: str, leaf: jax.Array) -> jax.Array:
    """A trained parameter as a step multiplies it: of the host's kernels a rounded copy, with `bfloat16_dots`.

    Embedding tables stay float32: their gradients are sums over many tokens, which bfloat16 would swallow.
    """
    small = precision == "bfloat16_dots" and path.startswith("host/") and path.endswith("/kernel")
    return leaf.astype(jnp.bfloat16) if small else leaf
