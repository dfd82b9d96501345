"""GELU for a product that is taken in bfloat16: no finer than the rounding that follows.

The error function costs as much on a CPU as the matrix product before it once that runs on matrix units. Where the
result is rounded to bfloat16 anyway (models/kernels/dense.py), an odd polynomial in its place is three times as fast.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

REACH = 4.0  # beyond it, erf(x / sqrt(2)) is 1
# erf(x / sqrt(2)) / x as a polynomial in x^2 on [0, REACH], fitted by us to the least largest error of gelu itself
# (iteratively reweighted least squares), held to 1 / REACH at its end
COEFFICIENTS = (
    0.795766529,
    -0.129145981,
    0.0175446647,
    -0.00162800742,
    9.59085682e-05,
    -3.19707827e-06,
    4.55603731e-08,
)


@jax.custom_vjp
def coarse_gelu(values: jax.Array) -> jax.Array:
    """GELU of float32 values of any shape, to 2e-4; float32. Half a unit of bfloat16 is that much at 0.05 and more.

    Its slope is written out: derived from the value's program it would cost a CPU half as much again.
    """
    return _value(values, _erf(values)[0])


def _erf(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """erf(x / sqrt(2)), and its derivative."""
    near = jnp.clip(values, -REACH, REACH)
    square, factor, slope = near * near, jnp.float32(0), jnp.float32(0)
    for coefficient in reversed(COEFFICIENTS):
        slope = slope * square + factor
        factor = factor * square + jnp.float32(coefficient)
    return jnp.clip(near * factor, -1, 1), jnp.where(jnp.abs(values) < REACH, factor + 2 * square * slope, 0)


def _value(values: jax.Array, erf: jax.Array) -> jax.Array:
    return 0.5 * values * (1 + erf)


def _forward(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return coarse_gelu(values), values


def _backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    erf, slope = _erf(values)
    return (0.5 * gradient * (1 + erf + values * slope),)


coarse_gelu.defvjp(_forward, _backward)
