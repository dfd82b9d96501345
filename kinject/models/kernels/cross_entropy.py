"""Cross-entropy over a vocabulary, its gradient written out.

Derived by JAX, the gradient is made by a scatter into an array of all scores, which an accelerator writes and reads
several times. Here it is one pass over the scores, which joins what follows it. No forward mode (`jax.jvp`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models.kernels import is_plain


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Minus the log-probability of each label, int32 [...] in [0, V), by float32 scores [..., V]: float32 [...]."""
    if is_plain():
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], axis=-1)[..., 0]
    return _cross_entropy(scores, labels)


@jax.custom_vjp
def _cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return _forward(scores, labels)[0]


def _forward(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    top = jnp.max(scores, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(scores - top), axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(scores, labels[..., None], axis=-1)
    # the largest score and the sum apart: one number for both would lose digits where scores are large
    return (jnp.log(total) - (chosen - top))[..., 0], (scores, labels, top, total)


def _backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None]:
    scores, labels, top, total = kept
    words = lax.broadcasted_iota(labels.dtype, scores.shape, scores.ndim - 1)
    probabilities = jnp.exp(scores - top) / total
    return gradient[..., None] * (probabilities - (words == labels[..., None])), None


_cross_entropy.defvjp(_forward, _backward)
