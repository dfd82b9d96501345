"""Element by element: activation functions and dropout, and the cross-entropy over a vocabulary.

Activation functions go by the names that a `config.json` has, their gradients made from what they read. JAX would keep
for the gradient what it met on the way: of the exact GELU two arrays more, each four times as wide as the hidden state,
which an accelerator writes and reads again for longer than it computes. Kept is the input, which the product before has
made anyway. Before a product in bfloat16 (products.py) GELU is no finer than the rounding that follows: the error
function costs as much on a CPU as the matrix product before it once that runs on matrix units; an odd polynomial is
three times as fast.

Dropout's mask is a hash of the position, computed where it is used. A mask needs independent coins, not cryptography.
JAX's generators write their bits to memory and cost more than the layer that is dropped (on a CPU, most of a training
step); here each element's coin is a mixing function of its indices and the key, which XLA fuses into the
multiplication. It depends on no device, no layout and no neighbour: a batch sharded over n devices is dropped as on
one, and a row keeps its coins when its batch is padded to another length.

The cross-entropy has its gradient written out. Derived by JAX, it is made by a scatter into an array of all scores,
which an accelerator writes and reads several times. Here it is one pass over the scores, which joins what follows it.

No forward mode (`jax.jvp`) through activations and cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
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


def _error_gelu(values: jax.Array) -> jax.Array:
    """BERT's exact GELU, by erf as torch has it: erfc, as jax.nn.gelu has it, costs a CPU three times as much."""
    return 0.5 * values * (1 + lax.erf(values * math.sqrt(0.5)))


_tanh_gelu = from_input(partial(jax.nn.gelu, approximate=True))
_silu = from_input(jax.nn.silu)
ACTIVATIONS: dict[str, Activation] = {
    "gelu": from_input(_error_gelu),
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
    return _gelu_value(values, _erf(values)[0])


def _erf(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """erf(x / sqrt(2)), and its derivative."""
    near = jnp.clip(values, -REACH, REACH)
    square, factor, slope = near * near, jnp.float32(0), jnp.float32(0)
    for coefficient in reversed(COEFFICIENTS):
        slope = slope * square + factor
        factor = factor * square + jnp.float32(coefficient)
    return jnp.clip(near * factor, -1, 1), jnp.where(jnp.abs(values) < REACH, factor + 2 * square * slope, 0)


def _gelu_value(values: jax.Array, erf: jax.Array) -> jax.Array:
    return 0.5 * values * (1 + erf)


def _gelu_forward(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _coarse_gelu(values), values


def _gelu_backward(values: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    erf, slope = _erf(values)
    return (0.5 * gradient * (1 + erf + values * slope),)


_coarse_gelu.defvjp(_gelu_forward, _gelu_backward)


MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # a 32-bit integer mixer of low bias, found by C. Wellons' hash prospector
AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1)  # a large prime (xxHash's) for each axis


class Dropout(nnx.Module):
    """Zeros a share `rate` of what it is given and scales up the rest (Srivastava et al. 2014); has no parameters."""

    def __init__(self, rate: float):
        """Raises ValueError for a rate outside of [0, 1)."""
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout is {rate}: a rate is in [0, 1)")
        self.rate = rate

    def __call__(self, values: jax.Array, key: jax.Array | None) -> jax.Array:
        """Drops values of any shape of up to five axes, in their dtype; without a key, returns them as they are."""
        if key is None or self.rate == 0.0:
            return values
        return jnp.where(kept(key, self.rate, values.shape), values / (1.0 - self.rate), 0)


def kept(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Which of `shape` to keep, bool, False with probability `rate`: a function of the key and each element's indices.

    Indices are summed modulo 2^32, each times a prime: neighbours are far apart, and hundreds of millions of elements
    go by before two may share a coin.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.zeros(shape, jnp.uint32)
    for axis, prime in zip(range(len(shape)), AXES[: len(shape)], strict=True):
        index = index + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(prime)
    # twice, with a word of the key before each: by one word alone, two keys would permute the same coins
    return _mixed(_mixed(index ^ words[0]) + words[1]) >= jnp.uint32(round(rate * 2**32))


def _mixed(bits: jax.Array) -> jax.Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(MULTIPLIERS[0])
    bits = (bits ^ (bits >> 15)) * jnp.uint32(MULTIPLIERS[1])
    return bits ^ (bits >> 16)


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Minus the log-probability of each label, int32 [...] in [0, V), by float32 scores [..., V]: float32 [...]."""
    if is_plain():
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], axis=-1)[..., 0]
    return _cross_entropy(scores, labels)


@jax.custom_vjp
def _cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return _entropy_forward(scores, labels)[0]


def _entropy_forward(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    top = jnp.max(scores, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(scores - top), axis=-1, keepdims=True)
    chosen = jnp.take_along_axis(scores, labels[..., None], axis=-1)
    # the largest score and the sum apart: one number for both would lose digits where scores are large
    return (jnp.log(total) - (chosen - top))[..., 0], (scores, labels, top, total)


def _entropy_backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None]:
    scores, labels, top, total = kept
    words = lax.broadcasted_iota(labels.dtype, scores.shape, scores.ndim - 1)
    probabilities = jnp.exp(scores - top) / total
    return gradient[..., None] * (probabilities - (words == labels[..., None])), None


_cross_entropy.defvjp(_entropy_forward, _entropy_backward)
