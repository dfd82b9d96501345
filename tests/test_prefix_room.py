"""Where the states of the frozen prefix are kept: the rule, the file on disk, and a training from each."""

import errno
import os
import re
import shutil
from types import SimpleNamespace

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from test_fit import Setting
from tiny_world import same_bits

from kinject.errors import InputError
from kinject.inference.program import split_program
from kinject.reports.console import Reporter
from kinject.training.loop import Fit
from kinject.training.metrics import compilations
from kinject.training.prefix import choose_cache
from kinject.training.states import allocate_cache

RULES = [("host/encoder/layers/2/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")]
SGD = {"name": "sgd", "learning_rate": 0.05}


@pytest.fixture
def trained(world, tmp_path):
    """Trains with these settings of the frozen prefix; returns the fit, as it was made, and its result."""

    def run(name, **settings):
        setting = Setting(world, tmp_path / name, rules=RULES, optimizer=SGD, dev=True, steps=6, **settings)
        setting.program, setting.params = split_program(setting.host.loaded.host, None, setting.task)
        fit = setting.fit()
        return fit, fit.run()

    return run


@pytest.fixture
def on_disk(monkeypatch):
    """States go to the disk, however few they are."""
    monkeypatch.setattr("kinject.training.prefix.choose_cache", lambda *_: "disk")


def test_memory_comes_first_then_the_disk_then_nothing():
    mebibyte = 1 << 20
    assert choose_cache(mebibyte, 1, 1) == choose_cache(mebibyte, 1, 0) == "memory"
    assert choose_cache(mebibyte + 1, 1, 2) == "disk"
    assert choose_cache(2 * mebibyte + 1, 1, 2) is None
    assert choose_cache(1, 0, 1) is None, "no memory: nothing is kept"


def test_a_file_without_a_name_holds_what_is_written(tmp_path):
    states = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(jnp.bfloat16)
    room = allocate_cache(states.shape, states.dtype, tmp_path / "new")
    assert isinstance(room, np.memmap) and not list((tmp_path / "new").iterdir())
    room[:3], room[3:] = states[:3], states[3:]
    some = room[np.array([4, 0, 4])]
    assert some.tobytes() == states[[4, 0, 4]].tobytes()
    assert not isinstance(allocate_cache(states.shape, states.dtype, None), np.memmap)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"kept here: No space left on device; .*fit\.prefix_disk_mb"):
        allocate_cache((1 << 20, 4), np.dtype(np.float32), tmp_path)


def test_too_small_a_disk_is_told_before_anything_is_computed(trained, on_disk, monkeypatch):
    def computed(*_, **__):
        raise AssertionError("states were computed")

    monkeypatch.setattr("kinject.training.loop.attach_prefix", computed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 10))
    with pytest.raises(InputError, match=r"states cannot be kept here: 0 MiB are free; free space, or set fit\.prefix"):
        trained("full")


def test_states_on_disk_train_as_those_in_memory_bit_for_bit(trained, request, tmp_path):
    fit, result = trained("memory")
    assert not isinstance(fit.train_feed.examples.buckets[0]["prefix"].kept, np.memmap)
    request.getfixturevalue("on_disk")
    again, other = trained("disk")
    assert isinstance(again.train_feed.examples.buckets[0]["prefix"].kept, np.memmap)
    assert isinstance(again.dev_feed.examples.buckets[0]["prefix"].kept, np.memmap)
    assert same_bits(result.train, other.train) and result.metrics == other.metrics
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"checkpoints", "metrics.jsonl"}


def test_bfloat16_halves_what_is_kept_and_rounds_it(trained):
    fit, result = trained("exact")
    small, other = trained("rounded", prefix_dtype="bfloat16")
    states, rounded = (np.asarray(one.train_feed.examples.buckets[0]["prefix"]) for one in (fit, small))
    assert rounded.nbytes * 2 == states.nbytes
    assert np.array_equal(rounded, states.astype(jnp.bfloat16)) and not np.array_equal(rounded, states)
    chex.assert_trees_all_close(result.train, other.train, rtol=0.05, atol=5e-3)
    assert not same_bits(result.train, other.train)


def test_a_host_that_computes_in_bfloat16_is_kept_so_exactly(trained):
    fit, result = trained("memory", compute_dtype="bfloat16")
    assert fit.train_feed.examples.buckets[0]["prefix"].dtype == jnp.bfloat16
    _, plain = trained("computed", compute_dtype="bfloat16", prefix_cache_mb=0)
    chex.assert_trees_all_close(result.train, plain.train, rtol=0.05, atol=5e-3)


def test_states_without_room_are_told_of(trained, monkeypatch):
    said = []
    monkeypatch.setattr(Reporter, "say", lambda _, text: said.append(text))
    monkeypatch.setattr("kinject.training.prefix.choose_cache", lambda *_: None)
    fit, _ = trained("nowhere")
    assert fit.program.start == 0 and "prefix" not in fit.train_feed.examples.buckets[0]
    settings = r"0 MiB are more than fit\.prefix_cache_mb and fit\.prefix_disk_mb allow"
    assert re.fullmatch(rf"stage: layers below 2 are frozen, but computed in each step: {settings}", said[0])


def test_the_first_step_from_kept_states_compiles_nothing(trained, monkeypatch):
    found = []

    def stepped(fit, step=Fit.train):
        inner = fit.train_step

        def counted(*given):
            before = compilations()
            made = inner(*given)
            found.append(compilations() - before)
            return made

        fit.train_step = counted
        return step(fit)

    monkeypatch.setattr(Fit, "train", stepped)
    trained("counted")
    assert found[0] == 0
