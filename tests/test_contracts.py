"""Where arrays meet: what breaks a contract is told by the name of the seam, the method and the array."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_host, tiny_batch, tiny_config

from kinject.models.seams import Plugin, check_rows
from kinject.training.domains import stack_plugins


class Wrong(Plugin):
    """Breaks one contract, as its author might."""

    name = "wrong"
    where = ""

    def before(self, encoder, batch):
        return {**batch, "type_ids": batch["type_ids"][:, 1:]} if self.where == "before" else batch

    def embed(self, embeddings, batch, key=None):
        return embeddings[:, :-1] if self.where == "embed" else embeddings

    def feed_forward(self, layer, hidden, output, batch, key=None):
        return output.astype(jnp.int32) if self.where == "feed_forward" else output

    def outputs(self, hidden_states, batch, key=None):
        return hidden_states[-1][..., None] if self.where == "outputs" else hidden_states[-1]


@pytest.fixture(scope="module")
def encoder():
    return random_host(tiny_config()).encoder


def traced(encoder, plugin, batch):
    graph, state = nnx.split(encoder)
    return jax.eval_shape(lambda state, batch: nnx.merge(graph, state)(batch, plugin).last, state, batch)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("embed", r"plugin wrong: embed must return floating point numbers in the shape that it got, \(2, 9, 32\)"),
        ("feed_forward", r"plugin wrong: feed_forward must return floating point numbers"),
        ("outputs", r"plugin wrong: outputs must return .* shape that it got, \(2, 9, 32\)"),
        ("before", r"the batch that plugin wrong got, or that its `before` returned: token_ids, .* whole numbers"),
        ("", ""),
    ],
)
def test_a_seam_says_what_it_was_given(where, message, encoder):
    plugin = Wrong(hidden_size=32)
    plugin.where = where
    batch = tiny_batch(encoder.config, [9, 5], 9)
    if not where:
        assert traced(encoder, plugin, batch).shape == (2, 9, 32)
        return
    with pytest.raises(AssertionError, match=message):
        traced(encoder, plugin, batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_ids": np.ones((2, 9), np.float32)}, "must be whole numbers"),
        ({"token_ids": np.ones((2, 8), np.int32)}, "must be whole numbers"),
        ({"entity_ids": np.zeros((3, 1), np.int32)}, r"entity_ids must be \[B, M\]"),
        ({"entity_vectors": np.zeros((2, 1, 5), np.float32)}, r"entity_vectors must be .* k 4"),
        ({"entity_vectors": np.zeros((2, 1, 4), np.int32)}, r"entity_vectors must be floating point"),
        ({"state_0": np.zeros((2, 9, 31), np.float32)}, r"state_0 must be a hidden state"),
    ],
)
def test_a_batch_is_held_to_its_form(change, message, encoder):
    batch = tiny_batch(encoder.config, [9, 5], 9) | {name: jnp.asarray(value) for name, value in change.items()}
    with pytest.raises(AssertionError, match=message):
        traced(encoder, Wrong(hidden_size=32, knowledge_dim=4), batch)


def test_tables_have_the_same_rows_and_domains_the_same_frozen_host():
    check_rows({"keys": np.zeros((3, 2)), "alive": np.ones(3, bool)}, "the memory")
    with pytest.raises(AssertionError, match="the memory: tables keys, alive must have a row each"):
        check_rows({"keys": np.zeros((3, 2)), "alive": np.ones(4, bool)}, "the memory")
    one = {"host/a": jnp.ones((2, 2)), "plugin/b": jnp.ones(3)}
    made = stack_plugins([one, {**one, "plugin/b": jnp.zeros(3)}])
    chex.assert_trees_all_equal({"host/a": made["host/a"]}, {"host/a": one["host/a"]})
    with pytest.raises(AssertionError, match="domains share a host and a method"):
        stack_plugins([one, {**one, "host/a": jnp.ones((2, 3))}])
