"""Matrices of a frozen host in 8 bits, one scale an output channel, by qwix (Google's quantization library for JAX).

Round to nearest, symmetric: a channel's largest magnitude is 127.5 steps, where the outermost step ends. Only weights
are small: before a product a matrix becomes bfloat16 (kernels/dense.py), inside the compiled step, and no gradient
passes through a rounding. qwix is an extra and imported when it is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kinject.errors import InputError

if TYPE_CHECKING:
    from qwix import QArray

MATRICES = ("/kernel", "/embedding")  # of a host, adapters among them; what LoRA puts beside a kernel is small


def check_installed(precision: str, where: object) -> None:
    """Raises InputError, which names the extra, for a precision whose library is not installed."""
    if precision == "int8" and find_spec("qwix") is None:
        raise InputError(where, "int8 needs qwix", "pip install 'kinject[int8]'")


def quantised(path: str, matrix: jax.Array) -> QArray:
    """A matrix of a host as int8 of its shape (`qvalue`) and float32 scales, 1 along the axes that share one (`scale`).

    Raises:
      InputError: qwix is not installed.
    """
    return _quantiser(channels(path, matrix.ndim))(matrix)


def channels(path: str, dims: int) -> tuple[int, ...]:
    """The axes along which a matrix has scales: of a kernel those that a product leaves, of an embedding its rows."""
    if path.endswith("/embedding"):
        return (0,)  # which are the channels of a tied decoder
    contracted = 2 if path.endswith("/attention/output/kernel") else 1  # [H, Dh, D]
    return tuple(range(contracted, dims))


@cache
def _quantiser(axes: tuple[int, ...]) -> Any:
    check_installed("int8", "precision")
    import qwix

    def quantise(matrix: jax.Array) -> QArray:
        return qwix.quantize(matrix.astype(jnp.float32), jnp.int8, channelwise_axes=axes)

    return jax.jit(quantise)


def is_quantised(leaf: Any) -> bool:
    """Whether a parameter is held as `quantised` makes it; asks no library, which may not be there."""
    return hasattr(leaf, "qvalue")


def dequantised(leaf: QArray) -> jax.Array:
    """The bfloat16 matrix: rounded once more, after the scales were multiplied in float32."""
    import qwix

    return qwix.dequantize(leaf).astype(jnp.bfloat16)
