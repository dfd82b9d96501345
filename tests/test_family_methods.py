"""Each method and tuning on each family: two steps of real training, or a refusal in one line; parts computed once."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_host, tiny_batch
from tiny_families import FAMILIES, family_config

from kinject.errors import InputError
from kinject.inference.program import split_program
from kinject.models.tuning import make_tuning
from kinject.models.tuning_base import attach, rules_for
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import TRAIN, label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

DIM, ROWS, LENGTH = 6, 4, 14
METHODS = {
    "map_tuning": {},
    "kformer": {"layers": (1,), "start": "paper"},
    "pluglm": {"layers": (1,), "heads": 2, "key_size": 8, "top_k": 2},
    "k_adapter": {"layers": (0, 2), "width": 8, "heads": 2, "depth": 1, "feed_forward": 16},
}
TUNINGS = {
    "lora": {"rank": 2, "sites": ("query", "value", "attention_output", "up", "down")},
    "houlsby": {},
    "bitfit": {},
}
PAIRS = list(itertools.product(FAMILIES, (*METHODS, *TUNINGS)))
# what differs most between families is tried with each; the other pairs run with -m slow
QUICK = {
    (family, way) for number, (family, way) in enumerate(PAIRS) if way in ("map_tuning", "lora") or number % 4 == 0
}


def batch_of(config, method):
    """A batch of cloze with an entity a row, and what the method reads of it beside."""
    draw = np.random.default_rng(1)
    batch = tiny_batch(config, [LENGTH, 9, 12, 7], LENGTH)
    slot = np.full((ROWS, LENGTH), -1, np.int32)
    slot[:, 2] = 0
    batch |= {
        "entity_slot": slot,
        "entity_ids": np.zeros((ROWS, 1), np.int32),
        "entity_vectors": draw.standard_normal((ROWS, 1, DIM)).astype(np.float32),
        "positions": np.full((ROWS, 1), 4, np.int32),
        "labels": draw.integers(5, 80, (ROWS, 1)).astype(np.int32),
        "weights": np.ones(ROWS, np.float32),
    }
    if method == "kformer":
        batch["fact_ids"] = draw.integers(5, 80, (ROWS, 3, 4)).astype(np.int32)
    return {name: jnp.asarray(value) for name, value in batch.items()}


def trained(host, plugin, rules, batch, steps=2):
    """Losses of some steps, and how many of the trained leaves they changed, of how many."""
    program, params = split_program(host, plugin, make_task("cloze"))
    program = replace(program, micro_batch="whole")
    labels = label_parameters(params, rules, tables=program.tables)
    train, frozen = split(params, labels)
    before = {path: np.array(leaf) for path, leaf in train.items()}
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01), labels, 10)
    state = initial_state(train, optimizer, labels)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    losses = []
    for _ in range(steps):
        state, logged = step(state, frozen, batch)
        losses.append(float(logged["loss"]))
    moved = [path for path, leaf in state.train.items() if (np.asarray(leaf) != before[path]).any()]
    return losses, moved, [path for path, label in labels.items() if label == TRAIN]


@pytest.mark.parametrize(
    ("family", "way"),
    [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow]) for pair in PAIRS],
)
def test_two_steps_or_one_line(family, way):
    config = family_config(family)
    host, plugin = random_host(config, "masked_lm"), None
    if way in TUNINGS:
        tuning = make_tuning({"name": way, **TUNINGS[way]})
        if (family, way) == ("modernbert", "bitfit"):
            with pytest.raises(
                InputError, match="bitfit trains biases, and the encoder of a modernbert has none"
            ) as told:
                attach(host, tuning, nnx.Rngs(0))
            assert "\n" not in str(told.value)
            return
        attach(host, tuning, nnx.Rngs(0))
        rules = rules_for(tuning, "masked_lm")
    else:
        plugin = make_plugin({"name": way, **METHODS[way]}, **config.plugin_sizes, knowledge_dim=DIM)
        if way == "pluglm":
            draw = np.random.default_rng(2)
            keys, values = (draw.standard_normal((5, size)).astype(np.float32) for size in (8, config.hidden_size))
            plugin.set_tables(jnp.asarray(keys), jnp.asarray(values), jnp.ones(5, bool))
        rules = [("plugin/.*", "train"), (".*", "freeze")]
    losses, moved, wanted = trained(host, plugin, rules, batch_of(config, way))
    assert np.isfinite(losses).all() and losses[1] < losses[0]
    assert moved and len(moved) >= len(wanted) / 2


@pytest.mark.parametrize(
    ("family", "values"),
    [*((family, {}) for family in FAMILIES), ("deberta-v2", {"conv_kernel_size": 3, "embedding_size": 16})],
)
def test_parts_computed_once_and_packed_rows(family, values):
    config = family_config(family, **values)
    host = random_host(config)
    encoder, count = host.encoder, config.num_hidden_layers
    batch = tiny_batch(config, [11, 8], 11)
    graph, state = nnx.split(encoder)

    @jax.jit
    def ways(state, batch):
        encoder = nnx.merge(graph, state)
        whole = encoder(batch)
        positions = jnp.array([[0, 3], [5, 1]])
        few = encoder(batch, positions=positions).last
        begun = {**batch, **encoder.prefix(batch, stop=count - 1, seam=True)}
        resumed = encoder(begun, positions=positions, start=count - 1).last
        return whole.last, few, resumed

    last, few, resumed = ways(state, batch)
    expected = np.stack([np.asarray(last)[0][[0, 3]], np.asarray(last)[1][[5, 1]]])
    np.testing.assert_allclose(few, expected, atol=2e-5)
    np.testing.assert_allclose(resumed, expected, atol=2e-5)
    # both sequences in one row, the second from position 0 on
    joined = {name: jnp.concatenate([value[0, :11], value[1, :8]])[None] for name, value in batch.items()}
    joined["segment_ids"] = jnp.concatenate([jnp.ones(11, jnp.int32), jnp.full(8, 2)])[None]
    packed = jax.jit(lambda state, batch: nnx.merge(graph, state)(batch).last)(state, joined)
    np.testing.assert_allclose(packed[0, :11], last[0], atol=2e-5)
    np.testing.assert_allclose(packed[0, 11:], last[1, :8], atol=2e-5)


def test_a_layer_that_reads_its_input_again_is_not_begun_at_its_seam():
    """A layer with a convolution: the start at the seam is refused there, and runs of it plan one below the layer."""
    encoder = random_host(family_config("deberta-v2", conv_kernel_size=3)).encoder
    assert [layer.reads_input for layer in encoder.layers] == [True, False]
    with pytest.raises(ValueError, match="layer 0 reads its input again"):
        encoder.prefix(tiny_batch(encoder.config, [5], 5), stop=0, seam=True)
