"""Several processes as one run, all from launch/local.py: the same numbers, and the same after SIGTERM and SIGKILL."""

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cluster import Launched, disturbed, launch, metrics_of, plugin_of, resumed_at, write_config

from kinject.errors import InputError
from kinject.inference.processes import EXIT_AGAIN, Cluster, lost_peer

# Adam would blow up the rounding of gradients that are zero
SGD = {"timings": True, "optimizer": {"name": "sgd", "learning_rate": 0.05, "clip": 1.0}}


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("processes") / "config.py"
    return write_config(world, path, fit=SGD, keep_encoded=True)  # which process 0 makes and all read


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Two processes, undisturbed."""
    workdir = tmp_path_factory.mktemp("processes") / "whole"
    launch(2, 1, config, workdir)
    return workdir


def same_numbers(one, other):
    for line, ours in zip(metrics_of(one), metrics_of(other), strict=True):
        assert ours["step"] == line["step"]
        assert ours["loss"] == pytest.approx(line["loss"], rel=1e-5)
    for path, leaf in plugin_of(one).items():
        np.testing.assert_allclose(plugin_of(other)[path], leaf, rtol=1e-4, atol=1e-6)


def test_two_processes_are_one_run(config, whole, tmp_path):
    launch(1, 1, config, tmp_path / "one")
    assert len(metrics_of(whole)) == 20, "more than one process wrote"
    same_numbers(tmp_path / "one", whole)
    one, two = (
        [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "one", whole)
    )
    assert [line["step"] for line in one] == [line["step"] for line in two] == list(range(1, 21))
    assert all(line["step_seconds_min"] == line["step_seconds_max"] > 0 for line in one)
    assert all(line["step_seconds_min"] <= line["step_seconds_mean"] <= line["step_seconds_max"] for line in two)
    assert any(line["step_seconds_min"] < line["step_seconds_max"] for line in two), "two processes, one clock"


def test_preempted_and_killed_run_ends_as_if_nothing_had_happened(config, whole, tmp_path):
    workdir = tmp_path / "cut"
    code, output = disturbed(2, config, workdir, lambda run: run.signal(signal.SIGTERM, process=1), step=7)
    assert code == EXIT_AGAIN and "kinject: preempted; the same command goes on" in output, output
    stopped = max(int(step.name) for step in (workdir / "checkpoints" / "plugin" / "last").iterdir())
    code, output = disturbed(2, config, workdir, lambda run: run.signal(signal.SIGKILL, process=1), step=stopped + 2)
    assert code not in (0, 2), output
    assert resumed_at(output) == stopped >= 7
    last = launch(2, 1, config, workdir)
    assert resumed_at(last) >= stopped
    assert metrics_of(workdir) == metrics_of(whole)
    ours, theirs = plugin_of(workdir), plugin_of(whole)
    assert all(ours[path].tobytes() == theirs[path].tobytes() for path in theirs)


def test_ctrl_c_and_sigterm_of_one_process(world, tmp_path):
    config = write_config(world, tmp_path / "config.py", fit={**SGD, "steps": 1000, "checkpoint_every": 50})
    workdir = tmp_path / "cut"
    code, output = disturbed(1, config, workdir, lambda run: run.signal(signal.SIGINT), step=110)
    assert code == 130 and "kinject: interrupted; the same command goes on" in output, output
    assert "Traceback" not in output
    seen = metrics_of(workdir)[-1]["step"]
    code, output = disturbed(1, config, workdir, lambda run: run.signal(signal.SIGTERM), step=seen + 5)
    assert code == EXIT_AGAIN and resumed_at(output) >= 110, "the first Ctrl-C saves, as SIGTERM does: " + output
    assert "kinject: preempted" in output and "Traceback" not in output
    steps = [line["step"] for line in metrics_of(workdir)]
    assert seen < steps[-1] < 1000 and steps == list(range(1, steps[-1] + 1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_launcher_leaves_no_process_behind(world, tmp_path):
    config = write_config(world, tmp_path / "config.py", fit={**SGD, "steps": 100_000})
    launched = Launched(2, 1, config, tmp_path / "cut")
    launched.wait_for_step(2)
    processes = launched.children()
    launched.signal(signal.SIGKILL)
    assert launched.process.wait() == -signal.SIGKILL and len(processes) == 2
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes):
        assert time.monotonic() < deadline, "they are at work"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("mesh", [{}, {"model": 2, "shard_frozen": True}], ids=["data", "data x model, sharded"])
def test_every_arrangement_is_one_run(config, whole, world, tmp_path, processes, devices, mesh):
    ours = write_config(world, tmp_path / "config.py", mesh=mesh, fit=SGD)
    launch(processes, devices, ours, tmp_path / "run")
    same_numbers(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (2, 2)])
def test_vectors_on_the_devices_of_all_processes(config, whole, world, tmp_path, processes, devices):
    """Each process loads its devices' rows; what is looked up is what process 0 alone would have gathered."""
    ours = write_config(world, tmp_path / "config.py", fit=SGD, vectors="device")
    output = launch(processes, devices, ours, tmp_path / "run")
    assert output.count("entity vectors on the devices: 60 x 8 float32") == 1, output
    assert f"{60 * 8 * 4 // processes // devices} B of each of {processes * devices}" in output, output
    same_numbers(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, None), "--processes, --process-id"),
        (("a:1", 2, 2), "2 of 2 processes"),
        (("a", 2, 0), "has no port"),
    ],
)
def test_half_a_cluster_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Cluster.read(*given, "given")


def test_cluster_of_flags_and_of_the_environment(monkeypatch):
    assert Cluster.read(None, None, None, "given") is None
    assert Cluster.read(None, None, None, "auto").automatic
    monkeypatch.setenv("KINJECT_COORDINATOR", "host:1234")
    monkeypatch.setenv("KINJECT_PROCESSES", "4")
    assert Cluster.read(None, None, 3, "given") == Cluster("host:1234", 4, 3)
    monkeypatch.setenv("KINJECT_PROCESS_ID", "two")
    with pytest.raises(InputError, match="whole numbers"):
        Cluster.read(None, None, None, "given")


def test_a_lost_peer_is_known_by_what_jax_said_however_it_was_wrapped(monkeypatch):
    import jax

    closed = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")

    def wrapped(cause):
        try:
            raise ValueError("could not save") from cause
        except ValueError as error:
            return error

    assert not lost_peer(closed), "a process alone has no peer"
    monkeypatch.setattr("kinject.inference.processes.joined", lambda: True)
    assert lost_peer(closed) and lost_peer(wrapped(closed))
    assert not lost_peer(wrapped(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")))
    assert not lost_peer(wrapped(OSError("connection closed")))
