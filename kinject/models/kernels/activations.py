"""Activation functions by the names that a `config.json` has, their gradients made from what they read.

JAX would keep for the gradient what it met on the way: of the exact GELU two arrays more, each four times as wide as
the hidden state, which an accelerator writes and reads again for longer than it computes. Kept is the input, which the
product before has made anyway. No forward mode (`jax.jvp`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Activation = Callable[[jax.Array], jax.Array]


def from_input(exact: Activation) -> Activation:
    """An elementwise activation of any shape and floating dtype that keeps only its input for the gradient.

    It is computed in float32 at least, and rounded once.
    """

    def computed(values: jax.Array) -> jax.Array:
        wide = jnp.promote_types(values.dtype, jnp.float32)
        return exact(values.astype(wide)).astype(values.dtype)

    @jax.custom_vjp
    def activation(values: jax.Array) -> jax.Array:
        return computed(values)

    def forward(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return computed(values), values

    def backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        # without the barrier XLA finds what both passes compute, and keeps it after all
        _, slope = jax.vjp(computed, lax.optimization_barrier(values))
        return slope(gradient)

    activation.defvjp(forward, backward)
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
