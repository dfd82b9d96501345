"""In which dtypes a model computes: one word of a config, and what it means for activations and for held parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from kinject.models import int8

if TYPE_CHECKING:
    from qwix import QArray

Precision = Literal["float32", "bfloat16", "bfloat16_dots", "int8"]
"""`float32`; `bfloat16` for all activations and frozen parameters; `bfloat16_dots`: activations are float32, only
products with the host's matrices are taken in bfloat16, with float32 sums (kernels/dense.py); or `int8`: the same, and
the frozen ones of these matrices are held in 8 bits (models/int8.py)."""

ROUNDED = ("bfloat16_dots", "int8")  # precisions whose products are taken in bfloat16 between float32 activations


def activations(precision: Precision) -> DTypeLike:
    """What an encoder is built to compute in."""
    return jnp.bfloat16 if precision == "bfloat16" else jnp.float32


def held(precision: Precision, path: str, leaf: Any) -> jax.Array | QArray:
    """A frozen parameter as it is kept on the devices.

    With `bfloat16_dots` the host's matrices are bfloat16, with `int8` they are 8 bits and scales. Its vectors (biases,
    norms), which multiply nothing by themselves, stay, and so does a plugin, which is then the same whether it is
    trained or only used.

    Raises:
      InputError: `int8` without qwix.
    """
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(leaf)
    if precision not in ROUNDED:
        return jnp.asarray(leaf, precision)
    matrix = leaf.ndim > 1 and path.startswith("host/")
    if matrix and precision == "int8" and path.endswith(int8.MATRICES):
        return int8.quantised(path, jnp.asarray(leaf))
    return jnp.asarray(leaf, jnp.bfloat16 if matrix else jnp.float32)


def multiplied(precision: Precision, path: str, leaf: jax.Array | QArray) -> jax.Array:
    """A parameter as a step multiplies it: what is held in 8 bits as bfloat16, and so are trained kernels of the host.

    The latter with `bfloat16_dots` and `int8` only. Trained embedding tables stay float32: their gradients are sums
    over many tokens, which bfloat16 would swallow.
    """
    if int8.is_quantised(leaf):
        return int8.dequantised(leaf)
    small = precision in ROUNDED and path.startswith("host/") and path.endswith("/kernel")
    return leaf.astype(jnp.bfloat16) if small else leaf
