"""Activation functions by the names that a `config.json` has, their gradients made from what they read.

JAX would keep for the gradient what it met on the way: of the exact GELU two arrays more, each four times as wide as
the hidden state, which an accelerator writes and reads again for longer than it computes. Kept is the input, which the
product before has made anyway. No forward mode (`jax.jvp`).

Before a product in bfloat16 (products.py) GELU is no finer than the rounding that follows: the error function costs as
much on a CPU as the matrix product before it once that runs on matrix units; an odd polynomial is three times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models.kernels import is_plain
from kinject.models.kernels.products import rounded

Activation = Callable[[jax.Array], jax.Array]


def from_input(exact: Activation) -> Activation:
    """An elementwise activation of any shape and floating dtype that keeps only its input for the gradient.

    It is computed in float32 at least, and rounded once.
    """

    def computed(values: jax.Array) -> jax.Array:
        wide = jnp.promote_types(values.dtype, jnp.float32)
        return exact(values.astype(wide)).astype(values.dtype)

    @jax.custom_vjp
    def own(values: jax.Array) -> jax.Array:
        return computed(values)

    def forward(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return computed(values), values

    def backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        # without the barrier XLA finds what both passes compute, and keeps it after all
        _, slope = jax.vjp(computed, lax.optimization_barrier(values))
        return slope(gradient)

    own.defvjp(forward, backward)

    def activation(values: jax.Array) -> jax.Array:
        return computed(values) if is_plain() else own(values)

    return activation


_tanh_gelu = from_input(partial(jax.nn.gelu, approximate=True))
_silu = from_input(jax.nn.silu)
ACTIVATIONS: dict[str, Activation] = {
    "gelu": from_input(partial(jax.nn.gelu, approximate=False)),  # BERT's is the exact one; jax's default is not
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": _silu,
    "swish": _silu,
    "mish": from_input(jax.nn.mish),
    "tanh": jnp.tanh,  # whose gradient is made of its result
}


def activate(name: str, values: jax.Array, kernel: jax.Array) -> jax.Array:
    """The activation called `name`, of values that are multiplied by `kernel` next."""
    return coarse_gelu(values) if name == "gelu" and rounded(values, kernel) else ACTIVATIONS[name](values)


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


def coarse_gelu(values: jax.Array) -> jax.Array:
    """GELU of float32 values of any shape, to 2e-4; float32. Half a unit of bfloat16 is that much at 0.05 and more.

    Its slope is written out: derived from the value's program it would cost a CPU half as much again.
    """
    return ACTIVATIONS["gelu"](values) if is_plain() else _coarse_gelu(values)


@jax.custom_vjp
def _coarse_gelu(values: jax.Array) -> jax.Array:
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
    return _coarse_gelu(values), values


def _backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    erf, slope = _erf(values)
    return (0.5 * gradient * (1 + erf + values * slope),)


_coarse_gelu.defvjp(_forward, _backward)
