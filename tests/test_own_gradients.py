"""Activations and cross-entropy over a vocabulary: values and gradients beside JAX's and optax's, and what is kept."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.test_util import check_grads

from kinject.models.heads import MaskedLMHead
from kinject.models.kernels.elementwise import ACTIVATIONS, cross_entropy
from kinject.models.kernels.products import rounded_dot

PLAIN = {
    "gelu": lambda values: 0.5 * values * (1 + jax.lax.erf(values * math.sqrt(0.5))),
    "gelu_new": lambda values: jax.nn.gelu(values, approximate=True),
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
}
VALUES = jnp.concatenate([jnp.linspace(-12, 12, 481), jnp.array([-0.0, 1e-20, -1e-20, 300.0, -300.0])])


def pulled(function, *inputs):
    """What a function yields, the gradient of its sum, and what it kept for that."""
    made, pull = jax.vjp(function, *inputs)
    return made, pull(jnp.ones_like(made))[0], [leaf for leaf in jax.tree.leaves(pull) if leaf.size > 1]


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, jax.checkpoint])
@pytest.mark.parametrize("name", PLAIN)
def test_an_activation_is_the_plain_one_bit_for_bit_and_has_its_slope(name, wrap):
    made, slope, _ = pulled(jax.jit(wrap(ACTIVATIONS[name])), VALUES)
    _, expected_slope, _ = pulled(jax.jit(PLAIN[name]), VALUES)
    # beside its derivative XLA may round the plain one otherwise than alone
    np.testing.assert_array_equal(made, jax.jit(PLAIN[name])(VALUES))
    # tanh and its like are approximations of XLA's
    np.testing.assert_allclose(slope, expected_slope, rtol=2e-6, atol=5e-6)


def test_gelu_is_torch_s_and_jax_s():
    made, theirs = np.asarray(ACTIVATIONS["gelu"](VALUES)), torch.nn.functional.gelu(torch.from_numpy(np.array(VALUES)))
    np.testing.assert_allclose(made, theirs.numpy(), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(made, jax.nn.gelu(VALUES, approximate=False), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_in_bfloat16_it_is_rounded_once_and_keeps_its_input_only(name):
    values = VALUES.astype(jnp.bfloat16)
    made, slope, kept = pulled(ACTIVATIONS[name], values)
    exact, exact_slope, _ = pulled(PLAIN[name], values.astype(jnp.float32))
    np.testing.assert_array_equal(made, exact.astype(jnp.bfloat16))
    np.testing.assert_array_equal(slope, exact_slope.astype(jnp.bfloat16))
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(values.shape, jnp.bfloat16)]


def scored():
    keys = jax.random.split(jax.random.key(0))
    scores = 5 * jax.random.normal(keys[0], (4, 3, 50)) + 100 * jnp.arange(4.0)[:, None, None]
    return scores, jax.random.randint(keys[1], (4, 3), 0, 50)


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: jax.jit(jax.vmap(f))], ids=["plain", "vmapped"])
def test_cross_entropy_and_its_gradient_are_optax_s(wrap):
    scores, labels = scored()
    weights = jnp.linspace(0, 2, labels.size).reshape(labels.shape)

    def run(loss):
        def weighted(scores, labels, weights):
            return jax.value_and_grad(lambda scores: jnp.sum(weights * loss(scores, labels)))(scores)

        return wrap(weighted)(scores, labels, weights)

    ours, theirs = run(cross_entropy), run(optax.softmax_cross_entropy_with_integer_labels)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(ours[1]).reshape(-1, 50)[0]), "its weight is 0"
    check_grads(lambda scores: cross_entropy(scores, labels), (scores % 7,), order=1, modes=["rev"], rtol=1e-2)


def test_cross_entropy_scatters_nothing():
    scores, labels = scored()

    def text(loss):
        return jax.jit(jax.grad(lambda scores: loss(scores, labels).sum())).lower(scores).as_text()

    assert "scatter" in text(optax.softmax_cross_entropy_with_integer_labels)
    assert "scatter" not in text(cross_entropy)


def test_a_bfloat16_vocabulary_is_multiplied_in_bfloat16_both_ways():
    keys = jax.random.split(jax.random.key(1), 3)
    hidden, table = (jax.random.normal(key, (6, 16)).astype(jnp.bfloat16) for key in keys[:2])
    slope = jax.random.normal(keys[2], (6, 6))
    over_last = (((1,), (0,)), ((), ()))
    made, pull = jax.vjp(lambda hidden, table: rounded_dot(hidden, table.T, over_last), hidden, table)
    of_hidden, of_table = pull(slope)
    assert made.dtype == jnp.float32 and of_hidden.dtype == of_table.dtype == jnp.bfloat16
    wide, wide_table = hidden.astype(jnp.float32), table.astype(jnp.float32)
    np.testing.assert_allclose(made, wide @ wide_table.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_hidden.astype(jnp.float32), slope @ wide_table, rtol=2e-2, atol=5e-2)
    np.testing.assert_allclose(of_table.astype(jnp.float32), slope.T @ wide, rtol=2e-2, atol=5e-2)


def test_the_head_of_a_bfloat16_host_has_no_float32_product():
    from flax import nnx
    from tiny import tiny_config

    config = tiny_config(vocab_size=101)
    head = MaskedLMHead(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    hidden = jnp.ones((2, 3, config.hidden_size), jnp.bfloat16)
    table = jnp.ones((101, config.hidden_size), jnp.bfloat16)

    def loss(hidden):
        return cross_entropy(head.logits(hidden, table), jnp.zeros((2, 3), jnp.int32)).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(hidden)
    products = [
        tuple(var.aval.dtype for var in equation.invars)
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    assert len(products) >= 4 and set(products) == {(jnp.dtype(jnp.bfloat16),) * 2}


def equations(jaxpr):
    """All of a jaxpr, those of inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from equations(inner.jaxpr)
