"""The step that is compiled beside the frozen layers' states: its first call compiles nothing, its errors are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.training.early import compiled_beside
from kinject.training.metrics import compilations

FROZEN = {"scale": jnp.float32(2.0)}
BATCH = {"index": np.arange(3, dtype=np.int32), "prefix": np.ones((3, 4), np.float32)}
SHAPES = {**BATCH, "prefix": jax.ShapeDtypeStruct((3, 4), np.float32)}


def test_the_first_call_finds_the_program_and_the_state_is_still_the_callers():
    step = jax.jit(
        lambda state, frozen, batch: {"a": state["a"] + frozen["scale"] * batch["prefix"].sum()}, donate_argnums=0
    )
    state = {"a": jnp.zeros(5)}
    with compiled_beside(step, state, FROZEN, SHAPES):
        assert not state["a"].is_deleted()
    before = compilations()
    made = step(state, FROZEN, BATCH)
    assert compilations() == before
    assert np.array_equal(np.asarray(made["a"]), np.full(5, 24.0))


def test_what_is_wrong_with_a_step_is_raised():
    def wrong(state, frozen, batch):
        raise ValueError("no such step")

    with pytest.raises(ValueError, match="no such step"), compiled_beside(jax.jit(wrong), {}, FROZEN, SHAPES):
        pass
