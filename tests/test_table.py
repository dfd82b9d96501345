"""Arrays that a plugin reads and that are no parameters of it: arguments, frozen, of their own dtype, never saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import random_host, tiny_batch, tiny_config

from kinject.errors import InputError
from kinject.inference.mesh import place_params
from kinject.inference.program import make_evaluation_step, split_program
from kinject.models.seams import Plugin, Table, table_paths
from kinject.plugins.base import register
from kinject.plugins.store import HostIdentity, load_plugin, save_plugin
from kinject.tasks.base import make_task
from kinject.training.partition import describe, label_parameters, split
from kinject.training.step import initial_state, make_train_step


@register("test_table")
class Reader(Plugin):
    """Adds to what layer 1 yields the host's embedding of its table's words, scaled."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config=None, *, hidden_size, knowledge_dim=0, rngs=None):
        super().__init__(config, hidden_size=hidden_size)
        self.scale = nnx.Param(jnp.full((hidden_size,), 0.5))
        self.words = Table(jnp.asarray([7, 9], jnp.int32))
        self.half = Table(jnp.ones((2, hidden_size), jnp.float16))

    def before(self, encoder, batch):
        return {**batch, "word": encoder.embeddings.words(self.words[...]).mean(0) + self.half[...].mean(0)}

    def feed_forward(self, layer, hidden, output, batch, key=None):
        return output + self.scale[...] * batch["word"] if layer == 1 else output


@pytest.fixture
def made():
    config = tiny_config()
    host = random_host(config, "masked_lm")
    batch = {
        **tiny_batch(config, [7, 5], 7),
        "positions": jnp.asarray([[3], [2]], jnp.int32),
        "labels": jnp.asarray([[11], [12]], jnp.int32),
        "weights": jnp.ones(2),
    }
    return host, Reader(hidden_size=32), batch


def test_a_table_is_frozen_whatever_the_rules_say_and_counts_as_no_parameter(made):
    host, plugin, batch = made
    program, params = split_program(host, plugin, make_task("cloze"))
    assert program.tables == {"plugin/words", "plugin/half"}
    labels = label_parameters(params, [("plugin/.*", "train"), ("host/.*", "freeze")], "train", program.tables)
    assert [path for path, label in labels.items() if label == "train"] == ["plugin/scale"]
    said = describe(params, labels, program.tables)
    assert said.startswith("parameters: 32 trained, ") and "66 numbers in tables" in said and "words" not in said
    with pytest.raises(InputError, match="matches no parameter"):
        label_parameters(params, [("plugin/words", "train"), (".*", "freeze")], "train", program.tables)

    train, frozen = place_params(*split(params, labels), jnp.bfloat16, None, program.tables)
    assert frozen["plugin/half"].dtype == jnp.float16 and frozen["host/head/bias"].dtype == jnp.bfloat16
    optimizer = optax.partition({"train": optax.adam(0.1), "freeze": optax.set_to_zero()}, labels)
    state = initial_state(train, optimizer, labels)
    assert {leaf.shape for leaf in jax.tree.leaves(state.optimizer)} == {(32,), ()}
    train, frozen = place_params(*split(params, labels), jnp.float32, None, program.tables)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    before = np.asarray(train["plugin/scale"])
    state, _ = step(initial_state(train, optimizer, labels), frozen, batch)
    assert not np.array_equal(before, state.train["plugin/scale"])


def test_swapping_a_table_changes_the_answer_and_compiles_nothing(made):
    host, plugin, batch = made
    program, params = split_program(host, plugin, make_task("cloze"))
    step = make_evaluation_step(program)
    loss = step(params, batch)["loss"]
    other = step({**params, "plugin/words": jnp.asarray([8, 8], jnp.int32)}, batch)["loss"]
    assert not np.array_equal(loss, other) and step._cache_size() == 1


def test_a_folder_holds_the_parameters_alone(made, tmp_path):
    _, plugin, _ = made
    plugin.scale[...] = jnp.arange(32.0)
    plugin.words = Table(jnp.arange(5))
    identity = HostIdentity("sha256:host", ("sha256:encoder",), 32)
    knowledge = {"name": "none", "fingerprint": "none", "dim": 0}
    save_plugin(tmp_path / "plugin", plugin, host=identity, knowledge=knowledge, config={}, metrics={})
    stored = load_plugin(tmp_path / "plugin", host=identity)
    assert list(stored.manifest["parameters"]) == ["scale"]
    assert np.array_equal(stored.plugin.scale[...], plugin.scale[...])
    assert np.array_equal(stored.plugin.words[...], [7, 9])
    assert table_paths(nnx.state(stored.plugin)) == {"words", "half"}
