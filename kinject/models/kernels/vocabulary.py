"""The cross-entropy over a vocabulary without its scores, for GPUs.

A float32 score of each word at each place is the largest array of a masked-LM step by far. XLA writes it, reads it
three times for the loss and a fourth time for the gradient. Here the product over words and places ends in what both
need: of each tile the largest score and the sum of the others' exponentials, and these exponentials themselves, in
bfloat16, which a factor a row turns into probabilities. The gradient of a score is rounded to bfloat16 anyway before
it is multiplied (products.py); that of the label's, where the two nearly cancel, is made of float32 numbers.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from kinject.models.kernels.elementwise import cross_entropy
from kinject.models.kernels.rows import Arrays, by_rows
from kinject.models.kernels.tiled import COLUMNS, ROWS, tiled


def has_no_scores(hidden: jax.Array, table: jax.Array) -> bool:
    """Whether there is a kernel for [B, P, E] and word vectors [V, E] where there are any (`products.for_kernels`)."""
    (rows, places, size), words = hidden.shape, len(table)
    return table.dtype == hidden.dtype and rows * places >= ROWS and size % COLUMNS == 0 and words >= COLUMNS


def word_losses(hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
    """Minus the log-probability of each label by scores `hidden @ table.T + bias`: float32 [B, P].

    Args:
      hidden: bfloat16 [B, P, E].
      table: bfloat16 [V, E].
      bias: float32 [V].
      labels: int32 [B, P] in [0, V).
    """
    return lax.platform_dependent(hidden, table, bias, labels, cuda=word_losses_kernel, default=_formula)


def _formula(hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
    scores = lax.dot_general(hidden, table, (((2,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return cross_entropy(scores + bias, labels)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def word_losses_kernel(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, interpret: bool = False
) -> jax.Array:
    """`word_losses`' kernel; with `interpret` JAX computes it, on any platform."""
    return _forwards(hidden, table, bias, labels, interpret)[0]


def _forwards(
    hidden: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, interpret: bool
) -> tuple[jax.Array, Arrays]:
    words = table.shape[0]

    def finish(columns: jax.Array, total: jax.Array, bias: jax.Array, labels: jax.Array) -> Arrays:
        scores = jnp.where(columns < words, total + bias, -jnp.inf)
        top = jnp.max(scores, axis=1)
        powers = jnp.exp(scores - top[:, None])
        chosen = jnp.sum(jnp.where(columns == labels, scores, 0), axis=1)
        return powers, top, jnp.sum(powers, axis=1), chosen

    def compute(hidden: jax.Array, labels: jax.Array, table: jax.Array, bias: jax.Array) -> Arrays:
        rows, forms = hidden.reshape(-1, hidden.shape[-1]), ("whole", "reduced", "reduced", "reduced")
        asked = (labels.reshape(-1),)
        powers, *found = tiled(rows, table, (bias,), finish, forms, turned=True, of_rows=asked, interpret=interpret)
        return tuple(one.reshape(*labels.shape, -1) for one in (powers, *(each.T for each in found)))

    powers, tops, totals, chosen = by_rows(compute, whole=2)(hidden, labels, table, bias)
    top = jnp.max(tops, axis=-1, keepdims=True)
    shares = jnp.exp(tops - top)
    total = jnp.sum(totals * shares, axis=-1, keepdims=True)
    ahead = jnp.sum(chosen, axis=-1) - top[..., 0]
    right = jnp.exp(ahead) / total[..., 0]
    return jnp.log(total[..., 0]) - ahead, (hidden, table, bias, labels, powers, shares / total, right)


def _backwards(interpret: bool, kept: Arrays, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    def compute(
        powers: jax.Array, factors: jax.Array, labels: jax.Array, of_label: jax.Array, table: jax.Array
    ) -> Arrays:
        rows, parts = powers.reshape(-1, powers.shape[-1]), factors.reshape(-1, factors.shape[-1]).T
        beside = labels.reshape(-1), of_label.reshape(-1)
        (made,) = tiled(
            rows, table, (), _sums, ("whole",), of_rows=beside, prepare=_slopes, of_parts=(parts,), interpret=interpret
        )
        return (made.reshape(*labels.shape, -1),)

    hidden, table, bias, labels, powers, factors, right = kept
    factors, of_label, words = factors * gradient[..., None], (right - 1) * gradient, table.shape[0]
    (of_hidden,) = by_rows(compute, whole=1)(powers, factors, labels, of_label, table)
    # where these two are frozen, as a rule, nobody reads what follows and it is not computed
    columns = lax.broadcasted_iota(jnp.int32, powers.shape, 2)
    spread = jnp.repeat(factors, COLUMNS, axis=-1)
    slopes = _slopes(columns, powers, labels[..., None], of_label[..., None], spread)[..., :words].astype(hidden.dtype)
    leading = (((0, 1), (0, 1)), ((), ()))
    of_table = lax.dot_general(slopes, hidden, leading, preferred_element_type=jnp.float32)
    of_bias = jnp.sum(slopes, (0, 1), dtype=jnp.float32)
    return of_hidden, of_table.astype(table.dtype), of_bias.astype(bias.dtype), None


def _slopes(
    columns: jax.Array, powers: jax.Array, labels: jax.Array, of_label: jax.Array, factors: jax.Array
) -> jax.Array:
    """Gradients of scores: of a label's, and of the others."""
    return jnp.where(columns == labels, of_label, powers.astype(jnp.float32) * factors)


def _sums(columns: jax.Array, total: jax.Array, *of_rows: jax.Array) -> Arrays:
    del columns, of_rows
    return (total,)


word_losses_kernel.defvjp(_forwards, _backwards)
