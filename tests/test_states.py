"""States of the frozen layers: computed when they are read, once, by the same neighbours whoever asks first."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from test_fit import Setting

from kinject.cli.parser import YOUNG, own_process
from kinject.data.pipeline import Examples, Feed
from kinject.inference.mesh import Placement
from kinject.inference.program import split_program
from kinject.training import states
from kinject.training.prefix import PrefixPlan
from kinject.training.states import attach_prefix

ROWS = 4


@pytest.fixture
def setting(world, tmp_path):
    """A host, its training feed, the plan of a prefix of two layers; and how often neighbours were computed."""
    made = Setting(
        world, tmp_path / "run", rules=[("host/head/.*", "train"), (".*", "freeze")], optimizer={"name": "sgd"}
    )
    program, params = split_program(made.host.loaded.host, None, made.task)
    width = made.host.loaded.config.hidden_size
    plan = PrefixPlan(2, False, np.dtype(np.float32), 0, "memory", ("prefix",), width)
    return SimpleNamespace(program=program, params=params, feed=made.feed("train"), plan=plan)


@pytest.fixture
def computed(monkeypatch):
    """The numbers of neighbours that were computed, in order."""
    seen, need = [], states._Bucket.need

    def counted(bucket, index):
        before = bucket._known.copy()
        need(bucket, index)
        seen.extend(np.flatnonzero(bucket._known & ~before))

    monkeypatch.setattr(states._Bucket, "need", counted)
    return seen


def attached(setting, **options):
    return attach_prefix(
        setting.program, setting.params, setting.feed, setting.plan, ROWS, Placement.single(), **options
    )


def prefixes(feed):
    return [bucket["prefix"] for bucket in feed.examples.buckets]


def test_only_what_is_read_is_computed(setting, computed):
    feed = attached(setting)
    assert not computed
    some = prefixes(feed)[0][np.array([0, 1, ROWS])]
    assert computed == [0, 1] and some.shape[0] == 3
    prefixes(feed)[0][:ROWS]
    assert computed == [0, 1]
    assert not prefixes(feed)[0].whole
    np.asarray(prefixes(feed)[0])
    assert prefixes(feed)[0].whole and len(computed) == -(-len(prefixes(feed)[0]) // ROWS)


def test_the_same_bits_in_whatever_order_they_are_read(setting):
    early = np.random.default_rng(0).permutation(setting.feed.examples.size)[:10]
    once, again = attached(setting, early=early), attached(setting, early=early)
    for one, other in zip(prefixes(once), prefixes(again), strict=True):
        for row in np.random.default_rng(1).permutation(len(other)):
            other[row]
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_examples_that_are_dealt_first_are_neighbours(setting, computed):
    order = setting.feed.order(ROWS, 3)
    feed = attached(setting, early=setting.feed.first_dealt(ROWS, 3))
    dealt = feed.order(ROWS, 3)
    assert np.array_equal(dealt[0]["index"], order[0]["index"])
    assert computed == [0], "a batch of as many rows as neighbours has is one computation"
    whole = attached(setting)
    for number in range(6):
        np.testing.assert_allclose(dealt[number]["prefix"], whole.order(ROWS, 3)[number]["prefix"], atol=1e-6)


def test_threads_that_ask_at_a_time_compute_it_once(setting, monkeypatch):
    calls, fetch = [], states.fetch
    monkeypatch.setattr(states, "fetch", lambda found: (calls.append(1), fetch(found))[1])
    one = prefixes(attached(setting))[0]
    expected = np.asarray(prefixes(attached(setting))[0])
    calls.clear()
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda row: one[row], [*range(len(one))] * 4))
    assert len(calls) == -(-len(one) // ROWS)
    assert np.array_equal(np.stack(parts[: len(one)]), expected)


def test_trained_parameters_may_be_gone_and_the_rest_goes_when_all_is_computed(setting):
    trained = {path: jnp.array(leaf) for path, leaf in setting.params.items() if path.startswith("host/head/")}
    expected = [np.asarray(each) for each in prefixes(attached(setting))]
    frozen = {path: np.array(leaf) for path, leaf in setting.params.items() if path not in trained}
    held, place = weakref.ref(next(iter(frozen.values()))), Placement.single()
    feed = attach_prefix(setting.program, frozen, setting.feed, setting.plan, ROWS, place, trained=trained)
    for leaf in trained.values():
        leaf.delete()  # as the first step does, which is given these buffers to write into
    del frozen
    assert held() is not None
    for one, other in zip(prefixes(feed), expected, strict=True):
        assert np.array_equal(np.asarray(one), other)
    gc.collect()
    assert held() is None


def test_several_devices_compute_everything_at_once(setting):
    place = Placement.over(2)
    program = replace(setting.program, row_parts=place.row_parts)
    feed = attach_prefix(program, setting.params, setting.feed, setting.plan, ROWS, place)
    assert all(each.whole for each in prefixes(feed))
    for one, other in zip(prefixes(feed), prefixes(attached(setting)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_order_of_the_first_batches_is_that_of_the_feed():
    buckets = tuple(
        {"index": index.astype(np.int32), "token_ids": np.zeros((len(index), 2), np.int32)}
        for index in (np.arange(0, 60, 2), np.arange(1, 21, 2))
    )
    for shuffle in (1, 2):
        feed = Feed(Examples(buckets, (2, 2)), shuffle=shuffle)
        order, early = feed.order(5, 7), feed.first_dealt(5, 7)
        assert np.array_equal(early, np.concatenate([order[number]["index"] for number in range(8)])), "of 40 examples"


@pytest.mark.parametrize(("chosen", "after"), [(700, YOUNG), (0, 0), (YOUNG + 1, YOUNG + 1)])
def test_a_command_has_cycles_looked_for_less_often_unless_told_otherwise(chosen, after):
    before = gc.get_threshold()
    try:
        gc.set_threshold(chosen, 5, 6)
        own_process()
        assert gc.get_threshold()[:2] == (after, 5)
    finally:
        gc.set_threshold(*before)
