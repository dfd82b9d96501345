"""The cross-entropy over a vocabulary without its scores, for GPUs: the formula's numbers, and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_host, tiny_batch, tiny_config

from kinject.models.heads import HostModel, build_head, logits, word_losses_at
from kinject.models.kernels import ahead, plain
from kinject.models.kernels.elementwise import cross_entropy
from kinject.models.kernels.tiled import COLUMNS
from kinject.models.kernels.vocabulary import word_losses_kernel
from kinject.tasks.masked_lm import MaskedLM

# Largest difference of losses, and of gradients as a share of the largest of each array. In bfloat16 inputs are exact
# and so are products; powers and gradients are rounded to 2^-9 of them.
BOUNDS = {"float32": (2e-5, 2e-6), "bfloat16": (2e-5, 8e-3)}
WORDS = 2 * COLUMNS + 37


def drawn(dtype, rows=3, places=50, sure=0.0):
    """What no whole number of tiles takes; with `sure`, scores that leave little doubt about most labels."""
    generator = np.random.default_rng(0)
    hidden, table = (generator.normal(size=(*shape, COLUMNS)) for shape in ((rows, places), (WORDS,)))
    labels = generator.integers(0, WORDS, (rows, places))
    labels[0, :2] = 0, WORDS - 1
    hidden = jnp.asarray(0.3 * hidden + sure * table[labels], dtype)
    bias, weights = (jnp.asarray(generator.random(shape), jnp.float32) for shape in (WORDS, (rows, places)))
    return (hidden, jnp.asarray(table, dtype), bias), jnp.asarray(labels, jnp.int32), weights


def formula(hidden, table, bias, labels):
    hidden, table = (each.astype(jnp.float32) for each in (hidden, table))
    scores = jnp.einsum("bpe,ve->bpv", hidden, table, precision="highest") + bias
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("sure", [0.0, 0.1])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_it_is_the_formula_with_the_formulas_gradients(dtype, sure):
    inputs, labels, weights = drawn(dtype, sure=sure)
    ours, back = jax.vjp(lambda *arrays: word_losses_kernel(*arrays, labels, True), *inputs)
    wide = [each.astype(jnp.float32) for each in inputs]
    expected, exact = jax.vjp(lambda *arrays: formula(*arrays, labels), *wide)
    losses, share = BOUNDS[dtype]
    np.testing.assert_allclose(ours, expected, atol=losses, rtol=losses)
    for got, one, given in zip(back(weights), exact(weights), inputs, strict=True):
        assert got.dtype == given.dtype
        np.testing.assert_allclose(got.astype(jnp.float32), one, rtol=0, atol=share * float(jnp.abs(one).max()))


def test_large_scores_lose_no_digits():
    """Scores of 10,000 that differ by 1: the largest of each tile is taken off first."""
    inputs, labels, _ = drawn("float32")
    hidden, table, bias = (jnp.zeros_like(each) for each in inputs)
    bias = bias.at[:].set(1e4).at[7].set(1e4 + 1)
    found = word_losses_kernel(hidden, table, bias, jnp.full_like(labels, 7), True)
    np.testing.assert_allclose(found, np.log(np.e + WORDS - 1) - 1, rtol=1e-5)


def test_mapped_rows_join_and_devices_share_them():
    (hidden, table, bias), labels, weights = drawn("float32", rows=4, places=20)

    def gradient(hidden, labels, weights):
        losses, back = jax.vjp(lambda hidden: word_losses_kernel(hidden, table, bias, labels, True), hidden)
        return losses, back(weights)[0]

    arrays = hidden, labels, weights
    expected = gradient(*arrays)
    mapped = jax.vmap(gradient)(*(one.reshape(2, 2, *one.shape[1:]) for one in arrays))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    split = [jax.device_put(each, place) for each in arrays]
    compiled = jax.jit(gradient).lower(*split).compile()
    assert "all-gather" not in compiled.as_text()
    for got, shared, one in zip(mapped, compiled(*split), expected, strict=True):
        np.testing.assert_allclose(got.reshape(one.shape), one, atol=1e-5)
        np.testing.assert_allclose(shared, one, atol=1e-5)


def lowered(losses, platform, places=16, **values):
    config = tiny_config(hidden_size=COLUMNS, num_hidden_layers=1, vocab_size=WORDS, **values)
    head = build_head("masked_lm", config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    host = HostModel(random_host(config, dtype=jnp.bfloat16).encoder, head)
    batch = tiny_batch(config, [places] * 8, places)
    batch["positions"] = jnp.tile(jnp.arange(places, dtype=jnp.int32), (8, 1))
    batch["labels"] = jnp.ones((8, places), jnp.int32)
    batch = {name: jnp.asarray(each) for name, each in batch.items()}
    text = jax.jit(lambda batch: losses(host, batch)).trace(batch).lower(lowering_platforms=(platform,)).as_text()
    return text.count('"tiled_product"')


def test_only_a_program_for_a_gpu_has_it_and_only_where_tiles_are_full():
    assert lowered(word_losses_at, "cpu") == 0, "no one asked for a GPU"
    with ahead("cuda"):
        assert lowered(word_losses_at, "cuda") == 1
        assert lowered(word_losses_at, "cpu") == lowered(word_losses_at, "cuda", places=12) == 0
        assert lowered(logits, "cuda") == 0, "whoever wants scores gets them"
        with plain():
            assert lowered(word_losses_at, "cuda") == 0


@pytest.mark.parametrize("dtype", BOUNDS)
def test_losses_are_those_of_the_scores(dtype):
    config = tiny_config()
    host = random_host(config, "masked_lm", dtype=dtype)
    batch = tiny_batch(config, [12, 9], 12)
    batch["positions"], batch["labels"] = jnp.asarray([[1, 3], [2, 0]]), jnp.asarray([[7, 11], [3, 0]])
    np.testing.assert_array_equal(word_losses_at(host, batch), cross_entropy(logits(host, batch), batch["labels"]))


class Higher(MaskedLM):
    def loss(self, outputs, batch):
        losses, weights = super().loss(outputs, batch)
        return losses + 1.0, weights


class Cooler(MaskedLM):
    def outputs(self, host, plugin, batch, key=None, start=0):
        return super().outputs(host, plugin, batch, key, start) / 10


@pytest.mark.parametrize("kind", [MaskedLM, Higher, Cooler])
@pytest.mark.parametrize("places", [True, False])
def test_a_task_is_trained_on_the_losses_that_it_is_evaluated_by(kind, places):
    """Also one that overrides either half, and where no places are named: the first is read."""
    host, task = random_host(tiny_config(), "masked_lm"), kind()
    batch = tiny_batch(host.encoder.config, [12, 9], 12)
    batch |= {"labels": jnp.asarray([[7], [3]]), "weights": jnp.ones((2, 1))}
    batch |= {"positions": jnp.asarray([[1], [2]])} if places else {}
    expected = task.loss(task.outputs(host, None, batch), batch)
    for one, other in zip(task.losses(host, None, batch), expected, strict=True):
        np.testing.assert_array_equal(one, other)
