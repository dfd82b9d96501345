"""Dropout's coins: their rate, their independence, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.models.kernels.elementwise import Dropout, kept


def coins(seed, shape=(16, 32, 64), rate=0.5):
    return np.asarray(kept(jax.random.key(seed), rate, shape))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_rate_holds_along_every_axis(rate):
    mask = coins(0, (64, 64, 128), rate)
    assert mask.mean() == pytest.approx(1 - rate, abs=4 * 0.5 / mask.size**0.5)
    for axis in range(3):
        along = mask.mean(tuple(other for other in range(3) if other != axis))
        assert np.abs(along - (1 - rate)).max() < 5 * (rate * (1 - rate) * len(along) / mask.size) ** 0.5


def test_neighbours_and_keys_are_independent():
    """Correlations of 2^20 fair coins with themselves shifted, and with those of other keys: within five sigma."""
    mask = coins(0, (64, 128, 128)) * 2.0 - 1
    limit = 5 / mask.size**0.5
    shifted = [np.roll(mask, step, axis) for axis in range(3) for step in (1, 2, 7, 16, 32)]
    others = [coins(seed, (64, 128, 128)) * 2.0 - 1 for seed in (1, 2, 3)]
    step = jax.random.fold_in(jax.random.key(0), 1)
    others.append(np.asarray(kept(step, 0.5, (64, 128, 128))) * 2.0 - 1)
    assert max(abs((mask * other).mean()) for other in (*shifted, *others)) < limit


def test_pairs_of_neighbours_take_all_four_forms_alike():
    mask = coins(3, (32, 64, 128), 0.5).astype(int)
    pairs = np.bincount((mask[..., :-1] * 2 + mask[..., 1:]).ravel(), minlength=4) / mask[..., :-1].size
    assert np.abs(pairs - 0.25).max() < 5e-3


def test_a_row_keeps_its_coins_when_its_batch_is_made_longer_or_wider():
    np.testing.assert_array_equal(coins(5, (4, 8, 16)), coins(5, (9, 13, 16))[:4, :8])


def test_values_are_scaled_to_keep_their_mean_and_gradients_follow_the_mask():
    values, key = jnp.ones((64, 64, 8)), jax.random.key(1)
    dropped = Dropout(0.25)(values, key)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    gradient = jax.grad(lambda values: Dropout(0.25)(values, key).sum())(values)
    np.testing.assert_array_equal(gradient, dropped)


def test_no_key_or_no_rate_changes_nothing():
    values = jnp.arange(6.0).reshape(2, 3)
    assert Dropout(0.5)(values, None) is values
    assert Dropout(0.0)(values, jax.random.key(0)) is values


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_a_rate_outside_is_refused(rate):
    with pytest.raises(ValueError, match="a rate is in"):
        Dropout(rate)
