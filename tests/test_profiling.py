"""The profiler's window, what steps take, and compiled programs that are kept."""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from kinject.training.config import ProfileConfig
from kinject.training.metrics import Profiler, Timing


def test_a_window_of_steps_is_traced(tmp_path):
    profiler = Profiler(ProfileConfig(start=2, steps=3), tmp_path / "profile")
    step, open_after = profiler.watch(jax.jit(lambda x: x + 1)), []
    value = jnp.zeros(3)
    for _ in range(7):
        value = step(value)
        open_after.append(profiler.tracing)
    assert open_after == [False, False, True, True, False, False, False]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert value.tolist() == [7, 7, 7]


def test_a_run_shorter_than_its_window_still_leaves_a_trace(tmp_path):
    profiler = Profiler(ProfileConfig(start=0, steps=30), tmp_path / "profile")
    profiler.watch(jax.jit(lambda x: x * 2))(jnp.ones(2))
    profiler.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_without_a_window_the_step_is_itself(tmp_path):
    step = jax.jit(lambda x: x)
    assert Profiler(None, tmp_path).watch(step) is step


def slowly(count):
    for number in range(count):
        time.sleep(0.02)
        yield number


def test_steps_and_their_input_are_timed(tmp_path):
    path = tmp_path / "timings.jsonl"
    path.write_text('{"stage": "other", "step": 9}\n{"stage": "plugin", "step": 3}\n')
    timing, batches = Timing(path), slowly(5)
    timing.begin("plugin", 0)
    for step in range(1, 6):
        assert timing.next(batches) == step - 1
        time.sleep(0.01)
        if step in (2, 5):
            timing.log("plugin", step)
    other, *lines = (json.loads(line) for line in path.read_text().splitlines())
    assert other["stage"] == "other", "what this stage's steps took before they run again is dropped"
    assert [(line["step"], line["steps"]) for line in lines] == [(2, 2), (5, 3)]
    for line in lines:
        assert 0.02 <= line["input_seconds_min"] == line["input_seconds_mean"] == line["input_seconds_max"]
        assert line["input_seconds_max"] + 0.01 <= line["step_seconds_min"] == line["step_seconds_max"]


def test_times_that_nobody_asked_for_are_not_written(tmp_path):
    timing, batches = Timing(None), iter("ab")
    timing.begin("plugin", 0)
    assert [timing.next(batches), timing.next(batches)] == ["a", "b"]
    timing.log("plugin", 2)
    assert not list(tmp_path.iterdir())


KEPT = """
import sys
import jax
from kinject.inference.xla import keep_compiled
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
print(keep_compiled())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))))
print(len(hits))
"""


def test_compiled_programs_are_kept(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environment["KINJECT_COMPILATION_CACHE"] = str(tmp_path / "kept")

    def run(**more):
        command = [sys.executable, "-c", KEPT]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True, timeout=1800)
        return done.stdout.split()

    folder, first, hits = run()
    assert folder.startswith(str(tmp_path / "kept")) and hits == "0"
    folder, second, hits = run()
    assert second == first and int(hits) > 0
    assert run(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == "None", "JAX's own variable comes first"
