"""A masked-LM step with all kernels for GPUs, computed by JAX: the same as without; and which GPUs get them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_host, tiny_batch, tiny_config

from kinject.models import heads, kernels, layers
from kinject.models.heads import HostModel, build_head, word_losses_at
from kinject.models.kernels.feed_forward import feed_forward_kernel
from kinject.models.kernels.short_attention import attention_kernel
from kinject.models.kernels.tiled import COLUMNS
from kinject.models.kernels.vocabulary import word_losses_kernel

ROWS, LENGTH = 8, 16


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels are chosen as for a GPU, and JAX computes them; counts calls."""
    calls = {"attention": 0, "feed_forward": 0, "losses": 0}

    def counted(name, run):
        def wrapped(*arguments):
            calls[name] += 1
            return run(*arguments)

        return wrapped

    def attention(queries, fused, own, segment_ids, plain):
        return attention_kernel(queries, fused, own, segment_ids, True)

    monkeypatch.setattr(layers, "short_attention", counted("attention", attention))
    monkeypatch.setattr(
        layers, "feed_forward", counted("feed_forward", lambda one, sides, plain: feed_forward_kernel(one, sides, True))
    )
    monkeypatch.setattr(heads, "word_losses", counted("losses", lambda *arrays: word_losses_kernel(*arrays, True)))
    return calls


@pytest.mark.parametrize("remat", [False, True], ids=["kept", "recomputed"])
def test_a_step_is_the_same_with_them(interpreted, remat):
    """In bfloat16, to the rounding of activations on the way through two layers."""
    config = tiny_config(hidden_size=COLUMNS, intermediate_size=2 * COLUMNS, vocab_size=300)
    host = random_host(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, scale=0.08, remat=remat)
    head = build_head("masked_lm", config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    host = HostModel(host.encoder, head)
    generator = np.random.default_rng(0)
    batch = tiny_batch(config, generator.integers(3, LENGTH, ROWS).tolist(), LENGTH)
    for name, limit in (("positions", LENGTH), ("labels", 300)):
        batch[name] = jnp.asarray(generator.integers(0, limit, (ROWS, LENGTH)), jnp.int32)
    graph, state = nnx.split(host)

    @jax.value_and_grad
    def step(state):
        return jnp.mean(word_losses_at(nnx.merge(graph, state), batch))

    expected, plain_slopes = jax.jit(step)(state)
    assert not any(interpreted.values())
    with kernels.ahead("cuda"):
        loss, slopes = jax.jit(lambda state: step(state))(state)
    assert interpreted == {"attention": 2, "feed_forward": 2, "losses": 1}
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    for (path, got), one in zip(jax.tree.leaves_with_path(slopes), jax.tree.leaves(plain_slopes), strict=True):
        got, one = got.astype(jnp.float32), one.astype(jnp.float32)
        if "qkv" in str(path) and "bias" in str(path):  # that of keys is 0 but for rounding
            got, one = got[::2], one[::2]
        distance = float(jnp.linalg.norm(got - one) / jnp.linalg.norm(one))
        assert distance < 3e-2, (path, distance)


@pytest.mark.parametrize(
    ("capability", "taken"), [("9.0", True), ("8.0", True), ("12.0", True), ("7.5", False), ("gfx942", False)]
)
def test_gpus_that_multiply_bfloat16_get_them(monkeypatch, capability, taken):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert kernels.for_gpus() is taken
