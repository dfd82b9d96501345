"""The products of attention, the softmax between them, and their gradients, against those that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.models.kernels import products

SHAPE = {"left": (2, 3, 5, 8), "right": (2, 3, 7, 8)}  # [B, H, L, Dh], [B, H, M, Dh]


def drawn(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    sides = ("left", "right", "right", "left")  # queries, keys, values, the gradient of what comes out
    return [jax.random.normal(key, SHAPE[side]).astype(dtype) for key, side in zip(keys, sides, strict=True)]


def attention(scores, softmax, weighted):
    def compute(queries, keys, values):
        return weighted(softmax(scores(queries, keys), values.dtype), values)

    return compute


def derived():
    def scores(queries, keys):
        return jnp.einsum("bhqk,bhmk->bhqm", queries, keys, preferred_element_type=jnp.float32)

    return attention(scores, lambda scores, dtype: jax.nn.softmax(scores).astype(dtype), jnp.matmul)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 5e-6), (jnp.bfloat16, 3e-2)])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: jax.jit(jax.vmap(f))], ids=["plain", "vmapped"])
def test_products_and_gradients_are_those_of_the_formula(dtype, tolerance, wrap):
    *inputs, slope = drawn(dtype)
    if wrap is not jax.jit:
        inputs, slope = [jnp.stack([each, each * 0.5]) for each in inputs], jnp.stack([slope, slope])

    def pulled(compute):
        def run(*arrays):
            out, back = jax.vjp(compute, *arrays[:-1])
            return out, *back(arrays[-1])

        return wrap(run)(*inputs, slope)

    ours = pulled(attention(products.attention_scores, products.attention_probabilities, products.attention_context))
    for got, expected in zip(ours, pulled(derived()), strict=True):
        assert got.dtype == expected.dtype == dtype
        np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), atol=tolerance, rtol=tolerance)


def test_scores_are_float32_sums():
    queries, keys, _, _ = drawn(jnp.bfloat16)
    found = products.attention_scores(queries, keys)
    assert found.dtype == jnp.float32
    exact = np.einsum("bhqk,bhmk->bhqm", *(np.asarray(each, np.float64) for each in (queries, keys)))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_only_a_cpu_turns_matrices_around_in_memory():
    def gradient(queries, keys):
        return jax.grad(lambda keys: products.attention_scores(queries, keys).sum())(keys)

    arrays = drawn(jnp.float32)[:2]
    for platform, turned in (("cpu", True), ("tpu", False), ("cuda", False)):
        lowered = jax.jit(gradient).trace(*arrays).lower(lowering_platforms=(platform,))
        assert ("optimization_barrier" in lowered.as_text()) == turned
