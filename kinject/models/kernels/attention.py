"""The two products of attention and the softmax between them, with gradients of their own.

XLA derives the gradients of keys and values as products with a transposed first factor. On a CPU those run outside of
its fast kernels and come out transposed, which whoever reads them pays for again; the small matrix of scores turned
around beforehand costs less than either. Elsewhere turning it is folded into the product. Gradients only: there is no
forward mode (`jax.jvp`) through them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from kinject.models.kernels import is_plain


def scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Products of each query with each key: [B, H, L, Dh] and [B, H, M, Dh] -> float32 [B, H, L, M]."""
    return _product(queries, keys, 3, 3, jnp.float32) if is_plain() else _scores(queries, keys)


@jax.custom_vjp
def _scores(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return _product(queries, keys, 3, 3, jnp.float32)


def _scores_forward(queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _scores(queries, keys), (queries, keys)


def _scores_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    queries, keys = kept
    gradient = gradient.astype(queries.dtype)
    of_queries = _product(gradient, keys, 3, 2, queries.dtype)
    return of_queries, _product(_turned(gradient), queries, 3, 2, keys.dtype)


_scores.defvjp(_scores_forward, _scores_backward)


def probabilities(scores: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Softmax of float32 scores [B, H, L, M] over the last axis, computed in float32, in another dtype.

    The gradient is made of the result, which `weighted` keeps anyway where nothing is dropped; JAX would keep float32
    scores beside it.
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


def weighted(probabilities: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of values by probability: [B, H, L, M] and [B, H, M, Dh] -> [B, H, L, Dh], in their dtype."""
    return _product(probabilities, values, 3, 2, values.dtype) if is_plain() else _weighted(probabilities, values)


@jax.custom_vjp
def _weighted(probabilities: jax.Array, values: jax.Array) -> jax.Array:
    return _product(probabilities, values, 3, 2, values.dtype)


def _weighted_forward(probabilities: jax.Array, values: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _weighted(probabilities, values), (probabilities, values)


def _weighted_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    probabilities, values = kept
    of_probabilities = _product(gradient, values, 3, 3, probabilities.dtype)
    return of_probabilities, _product(_turned(probabilities), gradient, 3, 2, values.dtype)


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _product(left: jax.Array, right: jax.Array, of_left: int, of_right: int, dtype: DTypeLike) -> jax.Array:
    """Over one axis of each, head by head."""
    dimensions = (((of_left,), (of_right,)), ((0, 1), (0, 1)))
    return lax.dot_general(left, right, dimensions, preferred_element_type=dtype)


def _turned(matrices: jax.Array) -> jax.Array:
    """[B, H, L, M] -> [B, H, M, L]."""

    def before(matrices: jax.Array) -> jax.Array:
        return lax.optimization_barrier(jnp.swapaxes(matrices, 2, 3))  # or XLA would fold it back into the product

    return lax.platform_dependent(matrices, cpu=before, default=lambda matrices: jnp.swapaxes(matrices, 2, 3))
