"""The step's arithmetic: rates, rules, clipping, decay and what is logged, on numbers that one can reckon by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kinject.errors import InputError
from kinject.training.config import OptimizerConfig
from kinject.training.step import (
    TrainState,
    decay_towards_start,
    initial_state,
    make_optimizer,
    make_refresh,
    make_schedule,
    make_train_step,
    mask_frozen,
)

LABELS = {"a/kernel": "train", "a/bias": "train", "b/kernel": "freeze"}


def rates(steps, count=None, **config):
    schedule = make_schedule(OptimizerConfig(learning_rate=0.8, **config), steps)
    return [round(float(schedule(step)), 4) for step in range(count or steps + 1)]


def params():
    return {"a/kernel": jnp.array([3.0, -4.0]), "a/bias": jnp.array([1.0])}


def moved(gradients, count=1, labels=LABELS, **config):
    """What the parameters are after `count` updates with these gradients."""
    optimizer = make_optimizer(OptimizerConfig(**config), labels, 8)
    now, state = params(), initial_state(params(), optimizer, labels).optimizer
    for _ in range(count):
        updates, state = optimizer.update(mask_frozen(gradients, labels), state, mask_frozen(now, labels))
        now = {path: leaf + updates[path] for path, leaf in now.items()}
    return {path: np.asarray(leaf) for path, leaf in now.items()}


def near(found, **expected):
    for path, values in expected.items():
        np.testing.assert_allclose(found[f"a/{path}"], values, rtol=2e-5)


GRADIENTS = {"a/kernel": jnp.array([3.0, 4.0]), "a/bias": jnp.array([12.0])}  # together of norm 13


def test_rates_rise_in_the_warmup_and_fall_as_the_schedule_says():
    assert rates(4) == [0.8] * 5
    assert rates(4, schedule="linear") == [0.8, 0.6, 0.4, 0.2, 0]
    assert rates(4, 7, schedule="linear") == [0.8, 0.6, 0.4, 0.2, 0, 0, 0]
    assert rates(4, schedule="cosine") == [0.8, 0.6828, 0.4, 0.1172, 0]
    assert rates(4, 6, schedule="polynomial", power=2) == [0.8, 0.45, 0.2, 0.05, 0, 0]
    assert rates(4, warmup=2) == [0, 0.4, 0.8, 0.8, 0.8]
    assert rates(6, schedule="linear", warmup=2) == [0, 0.4, 0.8, 0.6, 0.4, 0.2, 0]
    assert rates(8, schedule="linear", warmup=0.5) == [0, 0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2, 0]
    assert rates(4, 3, warmup=1) == [0, 0.8, 0.8]  # one step, and not all of them
    assert rates(2, 5, schedule="linear", warmup=4) == [0, 0.2, 0.4, 0.6, 0.8]  # longer than the run
    assert rates(2, schedule="cosine", warmup=2) == [0, 0.4, 0.8]  # as long as the run
    assert rates(0, 2, schedule="linear") == [0.8, 0]


def test_rates_count_updates_and_not_the_steps_whose_gradients_are_gathered():
    assert rates(8, 5, schedule="linear", accumulate=2) == [0.8, 0.6, 0.4, 0.2, 0]
    assert rates(5, 3, schedule="linear", accumulate=2) == [0.8, 0.4, 0]  # the fifth step's gradients move nothing
    assert rates(8, 5, schedule="linear", accumulate=2, warmup=0.5) == [0, 0.4, 0.8, 0.4, 0]
    assert rates(1, 2, schedule="linear", accumulate=2) == [0.8, 0]


def test_adam_moves_by_its_moments():
    near(moved(GRADIENTS, name="adam", learning_rate=0.1), kernel=[2.9, -4.1], bias=[0.9])
    near(moved(GRADIENTS, 3, name="adam", learning_rate=0.1), kernel=[2.7, -4.3], bias=[0.7])
    near(moved(GRADIENTS, name="adam", learning_rate=0.1, eps=3.0), kernel=[2.95, -4.1 + 0.3 / 7], bias=[0.92])
    first = {**GRADIENTS, "a/bias": jnp.array([0.0])}
    optimizer = make_optimizer(OptimizerConfig(name="adam", learning_rate=0.1, b1=0.5, b2=0.75), LABELS, 8)
    state = initial_state(params(), optimizer, LABELS).optimizer
    _, state = optimizer.update(mask_frozen(first, LABELS), state, mask_frozen(params(), LABELS))
    updates, _ = optimizer.update(mask_frozen(GRADIENTS, LABELS), state, mask_frozen(params(), LABELS))
    # moments of the bias after 0 and 12: (0.5 * 12) / (1 - 0.5²), √(0.25 * 144 / (1 - 0.75²))
    near(updates, bias=[-0.1 * 8 / np.sqrt(36 / 0.4375)], kernel=[-0.1, -0.1])


def test_sgd_and_lamb():
    near(moved(GRADIENTS, name="sgd", learning_rate=0.1), kernel=[2.7, -4.4], bias=[-0.2])
    # LAMB: Adam's ±1 scaled by the leaf's norm over its update's
    near(
        moved(GRADIENTS, name="lamb", learning_rate=0.1), kernel=[3 - 0.5 / np.sqrt(2), -4 - 0.5 / np.sqrt(2)], bias=0.9
    )
    decayed = np.array([1.0, 1.0]) + 0.5 * np.array([3.0, -4.0])
    step = 0.1 * 5 / np.linalg.norm(decayed) * decayed
    near(
        moved(GRADIENTS, name="lamb", learning_rate=0.1, weight_decay=0.5), kernel=[3 - step[0], -4 - step[1]], bias=0.9
    )


def test_adamw_decays_what_it_should_towards_where_it_should():
    decay = {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.5}
    near(moved(GRADIENTS, **decay), kernel=[2.9 - 0.15, -4.1 + 0.2], bias=[0.9])  # not the bias
    near(moved(GRADIENTS, **decay, no_decay="a/kernel"), kernel=[2.9, -4.1], bias=[0.9 - 0.05])
    near(moved(GRADIENTS, **decay, no_decay="kernel"), kernel=[2.9 - 0.15, -4.1 + 0.2], bias=[0.9 - 0.05])
    start = {**decay, "decay_towards": "start"}
    near(moved(GRADIENTS, **start), kernel=[2.9, -4.1], bias=[0.9])  # it is there
    near(moved(GRADIENTS, 2, **start), kernel=[2.8 + 0.005, -4.2 + 0.005], bias=[0.8])
    near(moved(GRADIENTS, 2, **start, no_decay="none"), bias=[0.8 + 0.005])
    half = moved(GRADIENTS, **start, eps=3.0)
    near(half, kernel=[2.95, -4.1 + 0.3 / 7])
    with pytest.raises(InputError, match=r"optimizer\.no_decay: not a regular expression"):
        make_optimizer(OptimizerConfig(no_decay="("), LABELS, 8)


def test_decay_towards_the_start_keeps_its_own_copy_and_adds_to_the_update():
    pull, leaf = decay_towards_start(0.25), {"x": jnp.array([1.0, 2.0])}
    state = pull.init(leaf)
    assert state.start["x"] is not leaf["x"]
    updates, after = pull.update({"x": jnp.array([10.0, 10.0])}, state, {"x": jnp.array([5.0, 2.0])})
    np.testing.assert_array_equal(updates["x"], [11, 10])
    assert after is state


def test_clipping_is_of_all_trained_gradients_together_and_of_no_other():
    sgd = {"name": "sgd", "learning_rate": 1.0}
    near(moved(GRADIENTS, clip=6.5, **sgd), kernel=[1.5, -6], bias=[-5])
    near(moved(GRADIENTS, clip=13.1, **sgd), kernel=[0, -8], bias=[-11])
    frozen = {**LABELS, "a/bias": "freeze"}
    updates, _ = (optimizer := make_optimizer(OptimizerConfig(clip=2.5, **sgd), frozen, 8)).update(
        mask_frozen(GRADIENTS, frozen), initial_state(params(), optimizer, frozen).optimizer
    )
    near(updates, kernel=[-1.5, -2])  # their own norm is 5
    assert isinstance(updates["a/bias"], optax.MaskedNode)


def test_accumulated_gradients_are_averaged_and_move_once():
    sgd = {"name": "sgd", "learning_rate": 0.1, "accumulate": 2}
    near(moved(GRADIENTS, 1, **sgd), kernel=[3, -4], bias=[1])
    near(moved(GRADIENTS, 2, **sgd), kernel=[2.7, -4.4], bias=[-0.2])
    near(moved(GRADIENTS, 3, **sgd), kernel=[2.7, -4.4], bias=[-0.2])


def test_the_optimizer_sees_trainable_leaves_alone():
    seen = mask_frozen({**params(), "b/kernel": jnp.ones(1)}, LABELS)
    assert list(seen) == list(LABELS) and isinstance(seen["b/kernel"], optax.MaskedNode)
    assert len(jax.tree.leaves(seen)) == 2
    state = initial_state(params(), make_optimizer(OptimizerConfig(name="adam"), LABELS, 8), LABELS)
    assert state.step == 0 and state.step.dtype == jnp.int32
    leaves = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert len(leaves) == 4 and state.train.keys() == params().keys()  # two moments each


class Linear:
    """A program of one product: its loss is half the squared distance of `w · x` from y, times each row's weight."""

    micro_batch, row_parts, batch_rows = "whole", 1, None

    def __init__(self, **changed):
        vars(self).update(changed)

    def with_vectors(self, frozen, batch):
        return {**batch, "x": batch["x"] * frozen["scale"]}

    def losses(self, params, rows, key):
        noise = 0.0 if key is None else jax.random.normal(key, rows["y"].shape)
        return (rows["x"] @ params["w"] + noise - rows["y"]) ** 2 / 2, rows["weights"]


LINEAR = {"w": "train", "scale": "freeze"}
BATCH = {
    "token_ids": np.zeros((3, 4), np.int32),
    "x": np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]], np.float32),
    "y": np.array([1.0, -2.0, 9.0], np.float32),
    "weights": np.array([1.0, 3.0, 0.0], np.float32),
}


def linear_step(batch=BATCH, seed=0, dropout=False, start=0, dtype=jnp.float32, program=None, **config):
    optimizer = make_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1, **config), LINEAR, 4)
    state = initial_state({"w": jnp.array([2.0, 1.0], dtype)}, optimizer, LINEAR)._replace(step=jnp.int32(start))
    step = make_train_step(program or Linear(), optimizer, LINEAR, seed=seed, dropout=dropout)
    return step(state, {"scale": jnp.float32(1.0)}, batch)


def test_a_step_averages_by_weight_and_logs_loss_and_norm():
    state, logged = linear_step()
    assert isinstance(state, TrainState) and state.step == 1
    # rows miss by 1 and 4, and weigh 1 and 3: gradients (1·1·1, 3·4·2) / 4
    np.testing.assert_allclose(state.train["w"], [2 - 0.025, 1 - 0.6], rtol=1e-6)
    np.testing.assert_allclose(logged["loss"], (0.5 + 3 * 8) / 4, rtol=1e-6)
    np.testing.assert_allclose(logged["gradient_norm"], np.hypot(0.25, 6), rtol=1e-6)
    assert linear_step(start=7)[0].step == 8


def test_a_step_without_any_weight_moves_nothing():
    state, logged = linear_step({**BATCH, "weights": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(state.train["w"], [2, 1])
    assert logged["loss"] == 0 and logged["gradient_norm"] == 0
    small = linear_step({**BATCH, "weights": np.array([0, 1e-3, 0], np.float32)})[1]
    np.testing.assert_allclose(small["loss"], 8, rtol=1e-5)  # a small weight is weighed as one is


def test_noise_is_of_the_seed_and_of_the_step_and_only_where_it_is_asked_for():
    found = [float(linear_step(dropout=dropout, **at)[1]["loss"]) for dropout in (True, False) for at in ({}, {})]
    assert found[0] == found[1] != found[2] == found[3]
    assert len({float(linear_step(dropout=True, **at)[1]["loss"]) for at in ({}, {"seed": 1}, {"start": 1})}) == 3
    key = jax.random.fold_in(jax.random.key(5), 3)
    noise = jax.random.normal(key, (3,))
    misses = np.array([1, 4, 6]) + noise
    expected = (misses**2 / 2 * BATCH["weights"]).sum() / 4
    np.testing.assert_allclose(linear_step(dropout=True, seed=5, start=3)[1]["loss"], expected, rtol=1e-5)


def test_parameters_keep_their_dtype_and_the_state_is_given_away():
    assert linear_step(dtype=jnp.bfloat16)[0].train["w"].dtype == jnp.bfloat16
    optimizer = make_optimizer(OptimizerConfig(name="sgd"), LINEAR, 4)
    state = initial_state({"w": jnp.array([2.0, 1.0])}, optimizer, LINEAR)
    make_train_step(Linear(), optimizer, LINEAR, seed=0, dropout=False)(state, {"scale": jnp.float32(1.0)}, BATCH)
    assert state.train["w"].is_deleted()


def test_tables_are_made_anew_under_their_paths_and_without_a_plugin_there_are_none():
    plugin = SimpleNamespace(refresh=lambda encoder: {"rows": encoder * 2})
    made = make_refresh(Linear(merge=lambda params: (SimpleNamespace(encoder=params["x"]), plugin)))({"x": jnp.ones(2)})
    assert list(made) == ["plugin/rows"]
    np.testing.assert_array_equal(made["plugin/rows"], [2, 2])
    assert make_refresh(Linear(merge=lambda params: (None, None)))({}) == {}
