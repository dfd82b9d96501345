"""Products with a kernel that is held in bfloat16 beside float32 activations.

It is multiplied as it is: the other factor is rounded to bfloat16, sums are float32 and so is the result, and the same
holds for the gradient of the activations. That is what a processor with matrix units for bfloat16 (AMX, TPU, tensor
cores) does fast, while LayerNorm, softmax and residuals keep their digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from kinject.models.kernels import is_plain

Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def rounded(inputs: jax.Array, kernel: jax.Array) -> bool:
    """Whether a product is taken in bfloat16 although its inputs are float32."""
    return inputs.dtype == jnp.float32 and kernel.dtype == jnp.bfloat16


def rounded_dot(inputs: jax.Array, kernel: jax.Array, dimensions: Dimensions) -> jax.Array:
    """`lax.dot_general` with a bfloat16 kernel, in bfloat16 with float32 sums; result float32.

    Args:
      inputs: float32 or bfloat16 [..., contracted].
      kernel: [contracted, ...].
      dimensions: those of `lax.dot_general`: the last axes of the inputs and the first of the kernel, no batch axes.
    """
    if not is_plain():
        return _rounded_dot(inputs, kernel, dimensions)
    # products of bfloat16 numbers are exact in float32
    rows = inputs.astype(jnp.bfloat16).astype(jnp.float32)
    return lax.dot_general(rows, kernel.astype(jnp.float32), dimensions, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_dot(inputs: jax.Array, kernel: jax.Array, dimensions: Dimensions) -> jax.Array:
    return _product(inputs.astype(jnp.bfloat16), kernel, dimensions)


def _product(rows: jax.Array, kernel: jax.Array, dimensions: Dimensions) -> jax.Array:
    """The product of two bfloat16 arrays, float32.

    A single row is taken twice: XLA multiplies one bfloat16 vector by a matrix on a CPU ten times slower than two.
    """
    leading = rows.shape[: rows.ndim - len(dimensions[0][0])]
    if not leading or math.prod(leading) != 1:
        return lax.dot_general(rows, kernel, dimensions, preferred_element_type=jnp.float32)
    twice = jnp.concatenate([rows, rows])
    return lax.dot_general(twice, kernel, dimensions, preferred_element_type=jnp.float32)[:1]


def _forward(inputs: jax.Array, kernel: jax.Array, dimensions: Dimensions) -> tuple[jax.Array, Any]:
    return _rounded_dot(inputs, kernel, dimensions), (inputs, kernel)


def _backward(dimensions: Dimensions, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple:
    inputs, kernel = kept
    rows = inputs.ndim - len(dimensions[0][0])
    outputs = tuple(range(rows, gradient.ndim))
    small = gradient.astype(jnp.bfloat16)
    of_kernel = tuple(range(kernel.ndim - len(outputs), kernel.ndim))
    to_inputs = _product(small, kernel, ((outputs, of_kernel), ((), ())))
    leading = tuple(range(rows))
    to_kernel = lax.dot_general(
        inputs.astype(jnp.bfloat16), small, ((leading, leading), ((), ())), preferred_element_type=jnp.float32
    )
    return to_inputs.astype(inputs.dtype), to_kernel.astype(kernel.dtype)


_rounded_dot.defvjp(_forward, _backward)


def promote(arrays: tuple[Any, ...], *, dtype: DTypeLike | None = None) -> tuple[Any, ...]:
    """Flax's `promote_dtype` for (inputs, kernel, bias), but a product that is rounded keeps its kernel."""
    inputs, kernel, bias = nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype)
    held = arrays[1]
    return (inputs, held if rounded(inputs, held) else kernel, bias)


def dot_general(inputs: jax.Array, kernel: jax.Array, dimensions: Dimensions, **options: Any) -> jax.Array:
    """`lax.dot_general`, rounded where the kernel is held so.

    Several contracted axes are made one: XLA would write a transposed kernel for the gradient of each step.
    """
    count = len(dimensions[0][0])
    if count > 1 and not is_plain():
        inputs, kernel = inputs.reshape(*inputs.shape[:-count], -1), kernel.reshape(-1, *kernel.shape[count:])
        dimensions = (((inputs.ndim - 1,), (0,)), ((), ()))
    if rounded(inputs, kernel):
        return rounded_dot(inputs, kernel, dimensions)
    return lax.dot_general(inputs, kernel, dimensions, **options)
