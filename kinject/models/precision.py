"""In which dtypes a model computes: one word of a config, and what it means for activations and for held parameters.

Matrices in 8 bits have one scale an output channel, by qwix (Google's quantization library for JAX). Round to nearest,
symmetric: a channel's largest magnitude is 127.5 steps, where the outermost step ends. Only weights are small: before a
product a matrix becomes bfloat16 (kernels/products.py), inside the compiled step, and no gradient passes through a
rounding. qwix is an extra and imported when it is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kinject.errors import InputError

if TYPE_CHECKING:
    from qwix import QArray

Precision = Literal["float32", "bfloat16", "bfloat16_dots", "int8"]
"""`float32`; `bfloat16` for all activations and frozen parameters; `bfloat16_dots`: activations are float32, only
products with the host's matrices are taken in bfloat16, with float32 sums (kernels/products.py); or `int8`: the same,
and the frozen ones of these matrices are held in 8 bits."""

MATRICES = ("/kernel", "/embedding")  # of a host, adapters among them; what LoRA puts beside a kernel is small
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
        return _cast(leaf, precision)
    matrix = leaf.ndim > 1 and path.startswith("host/")
    if matrix and precision == "int8" and path.endswith(MATRICES):
        return quantised(path, jnp.asarray(leaf))
    return _cast(leaf, jnp.bfloat16 if matrix else jnp.float32)


def _cast(leaf: Any, dtype: DTypeLike) -> jax.Array:
    """An array on the device; numpy rounds float32 in memory as XLA would, which compiles no program a shape."""
    if leaf.dtype == jnp.float32 and jnp.dtype(dtype) != jnp.float32 and _in_memory(leaf):
        with np.errstate(invalid="ignore"):  # of NaNs that signal
            leaf = np.asarray(leaf).astype(dtype)
    return jnp.asarray(leaf, dtype)


def _in_memory(leaf: Any) -> bool:
    """Whether an array is one that numpy can read where it is, and that JAX would put there again."""
    if not isinstance(leaf, jax.Array):
        return isinstance(leaf, np.ndarray)
    if isinstance(leaf, jax.core.Tracer) or leaf.committed:
        return False
    return all(device.platform == "cpu" for device in leaf.devices())


def multiplied(precision: Precision, path: str, leaf: jax.Array | QArray) -> jax.Array:
    """A parameter as a step multiplies it: what is held in 8 bits as bfloat16, and so are trained kernels of the host.

    The latter with `bfloat16_dots` and `int8` only. Trained embedding tables stay float32: their gradients are sums
    over many tokens, which bfloat16 would swallow.
    """
    if is_quantised(leaf):
        return dequantised(leaf)
    small = precision in ROUNDED and path.startswith("host/") and path.endswith("/kernel")
    return leaf.astype(jnp.bfloat16) if small else leaf


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
