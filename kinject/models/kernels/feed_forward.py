"""A feed-forward whose GELU is made where its first product ends, and whose gradient where the second one's does.

GELU and its slope leave the first product together, in the place of what they are made of. Backwards the slope
multiplies the second product's gradient before that is written. XLA does either in a pass of its own, over arrays four
times as wide as the hidden state: of a layer of BERT and 8,192 tokens the two are 252 MB of 522, and then 101 of 371.

A slope is rounded to bfloat16, as activations are, and what goes into GELU is not rounded any more. Where no gradient
is asked for, all is left to XLA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models.kernels.elementwise import ACTIVATIONS
from kinject.models.kernels.rows import Arrays, by_rows
from kinject.models.kernels.tiled import COLUMNS, ROWS, tiled

# erfc(x) = t (A1 + t (A2 + …)) exp(-x^2), t = 1 / (1 + P x), to 1.5e-7: Abramowitz and Stegun, 7.1.26
P, TERMS = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


class Sides(NamedTuple):
    """The parameters of both dense layers.

    Attributes:
      up: [D, F].
      up_bias: [F].
      down: [F, D].
      down_bias: [D].
    """

    up: jax.Array
    up_bias: jax.Array
    down: jax.Array
    down_bias: jax.Array


def ends_in_tiles(hidden: jax.Array, sides: Sides) -> bool:
    """Whether there is a kernel for a stream [B, L, D] where there are any (`products.for_kernels`)."""
    small = all(each.dtype == jnp.bfloat16 for each in (hidden, *sides))
    full = hidden.shape[0] * hidden.shape[1] >= ROWS and all(side % COLUMNS == 0 for side in sides.up.shape)
    return small and full


def feed_forward(hidden: jax.Array, sides: Sides, plain: Callable[[jax.Array, Sides], jax.Array]) -> jax.Array:
    """The second dense layer of GELU of the first: [B, L, D].

    Args:
      hidden: bfloat16 [B, L, D].
      sides: bfloat16.
      plain: the same of the stream and of the parameters as a formula, for any other platform.
    """
    return lax.platform_dependent(hidden, sides, cuda=feed_forward_kernel, default=plain)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def feed_forward_kernel(hidden: jax.Array, sides: Sides, interpret: bool = False) -> jax.Array:
    """`feed_forward`'s kernels; with `interpret` JAX computes them, on any platform."""
    del interpret
    wide = _dot(hidden, sides.up, 0) + sides.up_bias
    return _dot(ACTIVATIONS["gelu"](wide), sides.down, 0) + sides.down_bias


def _forwards(hidden: jax.Array, sides: Sides, interpret: bool) -> tuple[jax.Array, tuple[jax.Array, Sides, Arrays]]:
    def compute(hidden: jax.Array, kernel: jax.Array, bias: jax.Array) -> Arrays:
        made = tiled(_flat(hidden), kernel, (bias,), _gelu, ("whole", "whole"), interpret=interpret)
        return tuple(one.reshape(*hidden.shape[:-1], -1) for one in made)

    wide, slope = by_rows(compute, whole=2)(hidden, sides.up, sides.up_bias)
    return _dot(wide, sides.down, 0) + sides.down_bias, (hidden, sides, (wide, slope))


def _backwards(interpret: bool, kept: tuple[jax.Array, Sides, Arrays], gradient: jax.Array) -> tuple[jax.Array, Sides]:
    def compute(gradient: jax.Array, slope: jax.Array, kernel: jax.Array) -> Arrays:
        beside = (_flat(slope),)
        (made,) = tiled(_flat(gradient), kernel, beside, _multiply, ("whole",), turned=True, interpret=interpret)
        return (made.reshape(slope.shape),)

    hidden, sides, (wide, slope) = kept
    (of_up,) = by_rows(compute, whole=1)(gradient, slope, sides.down)
    of_sides = Sides(*_of_layer(hidden, of_up), *_of_layer(wide, gradient))  # of what is frozen nobody reads them
    return _dot(of_up, sides.up, 1), of_sides


feed_forward_kernel.defvjp(_forwards, _backwards)


def _gelu(columns: jax.Array, total: jax.Array, bias: jax.Array) -> Arrays:
    """GELU of sums and a bias, and its slope, by an erf of exponentials: Pallas knows of none in Triton."""
    del columns
    values = total + bias
    factor = 1 / (1 + P * math.sqrt(0.5) * jnp.abs(values))
    bell, tail = jnp.exp(-0.5 * values * values), jnp.zeros_like(values)
    for term in reversed(TERMS):
        tail = factor * (tail + term)
    tail = 0.5 * tail * bell  # of the normal distribution, beyond the value's magnitude
    share = jnp.where(values < 0, tail, 1 - tail)
    return values * share, share + values * bell / math.sqrt(2 * math.pi)


def _multiply(columns: jax.Array, total: jax.Array, slope: jax.Array) -> Arrays:
    del columns
    return (total * slope,)


def _of_layer(inputs: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of a dense layer's kernel and bias."""
    leading = ((0, 1), (0, 1)), ((), ())
    kernel = lax.dot_general(inputs, gradient, leading, preferred_element_type=jnp.float32)
    return kernel.astype(inputs.dtype), jnp.sum(gradient, (0, 1), dtype=jnp.float32).astype(inputs.dtype)


def _dot(values: jax.Array, kernel: jax.Array, axis: int) -> jax.Array:
    return lax.dot_general(values, kernel, (((values.ndim - 1,), (axis,)), ((), ())))


def _flat(values: jax.Array) -> jax.Array:
    return values.reshape(-1, values.shape[-1])
