"""Matrix products: with a kernel that is held in bfloat16, and the two of attention with the softmax between them.

A kernel in bfloat16 beside float32 activations is multiplied as it is: the other factor is rounded to bfloat16, sums
are float32 and so is the result, and the same holds for the gradient of the activations. That is what a processor with
matrix units for bfloat16 (AMX, TPU, tensor cores) does fast, while LayerNorm, softmax and residuals keep their digits.

XLA derives the gradients of attention's keys and values as products with a transposed first factor. On a CPU those run
outside of its fast kernels and come out transposed, which whoever reads them pays for again; the small matrix of scores
turned around beforehand costs less than either. Elsewhere turning it is folded into the product. Gradients only: there
is no forward mode (`jax.jvp`) through them.
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

from kinject.models.kernels import for_gpus, is_plain

Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def rounded(inputs: jax.Array, kernel: jax.Array) -> bool:
    """Whether a product is taken in bfloat16 although its inputs are float32."""
    return inputs.dtype == jnp.float32 and kernel.dtype == jnp.bfloat16


def for_kernels(values: jax.Array) -> bool:
    """Whether kernels for GPUs may take an array of any shape: they are for bfloat16, in programs for GPUs."""
    return values.dtype == jnp.bfloat16 and for_gpus()


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


def _rounded_forward(inputs: jax.Array, kernel: jax.Array, dimensions: Dimensions) -> tuple[jax.Array, Any]:
    return _rounded_dot(inputs, kernel, dimensions), (inputs, kernel)


def _rounded_backward(dimensions: Dimensions, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple:
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


_rounded_dot.defvjp(_rounded_forward, _rounded_backward)


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


def attention_scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Products of each query with each key: [B, H, L, Dh] and [B, H, M, Dh] -> float32 [B, H, L, M]."""
    return _by_head(queries, keys, 3, 3, jnp.float32) if is_plain() else _scores(queries, keys)


@jax.custom_vjp
def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return _by_head(queries, keys, 3, 3, jnp.float32)


def _scores_forward(queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _scores(queries, keys), (queries, keys)


def _scores_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    queries, keys = kept
    gradient = gradient.astype(queries.dtype)
    of_queries = _by_head(gradient, keys, 3, 2, queries.dtype)
    return of_queries, _by_head(_turned(gradient), queries, 3, 2, keys.dtype)


_scores.defvjp(_scores_forward, _scores_backward)


def attention_probabilities(scores: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Softmax of float32 scores [B, H, L, M] over the last axis, computed in float32, in another dtype.

    The gradient is made of the result, which `attention_context` keeps anyway where nothing is dropped; JAX would keep
    float32 scores beside it.
    """
    return jax.nn.softmax(scores, axis=-1).astype(dtype) if is_plain() else _probabilities(scores, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _probabilities(scores: jax.Array, dtype: DTypeLike) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1).astype(dtype)


def _probabilities_forward(scores: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    made = _probabilities(scores, dtype)
    return made, made


def _probabilities_backward(dtype: DTypeLike, made: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    made, gradient = made.astype(jnp.float32), gradient.astype(jnp.float32)
    return (made * (gradient - jnp.sum(made * gradient, axis=-1, keepdims=True)),)


_probabilities.defvjp(_probabilities_forward, _probabilities_backward)


def attention_context(probabilities: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of values by probability: [B, H, L, M] and [B, H, M, Dh] -> [B, H, L, Dh], in their dtype."""
    return _by_head(probabilities, values, 3, 2, values.dtype) if is_plain() else _weighted(probabilities, values)


@jax.custom_vjp
def _weighted(probabilities: jax.Array, values: jax.Array) -> jax.Array:
    return _by_head(probabilities, values, 3, 2, values.dtype)


def _weighted_forward(probabilities: jax.Array, values: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _weighted(probabilities, values), (probabilities, values)


def _weighted_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    probabilities, values = kept
    of_probabilities = _by_head(gradient, values, 3, 3, probabilities.dtype)
    return of_probabilities, _by_head(_turned(probabilities), gradient, 3, 2, values.dtype)


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _by_head(left: jax.Array, right: jax.Array, of_left: int, of_right: int, dtype: DTypeLike) -> jax.Array:
    """Over one axis of each, head by head."""
    dimensions = (((of_left,), (of_right,)), ((0, 1), (0, 1)))
    return lax.dot_general(left, right, dimensions, preferred_element_type=dtype)


def _turned(matrices: jax.Array) -> jax.Array:
    """[B, H, L, M] -> [B, H, M, L]."""

    def before(matrices: jax.Array) -> jax.Array:
        return lax.optimization_barrier(jnp.swapaxes(matrices, 2, 3))  # or XLA would fold it back into the product

    return lax.platform_dependent(matrices, cpu=before, default=lambda matrices: jnp.swapaxes(matrices, 2, 3))
