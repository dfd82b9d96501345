"""A whole run killed with SIGKILL, again and again, and rerun by the same command, ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_world import evaluate_stage, plugin_stage

CONFIG = """
import json
def get_config():
    return json.loads({text!r})
"""


def command(config, workdir):
    return [
        sys.executable,
        "-m",
        "kinject.train",
        "--config",
        str(config),
        "--workdir",
        str(workdir),
        "--devices",
        "1",
    ]


def write_config(world, path):
    plugin = plugin_stage(
        world, dev_data=(str(world / "dev.jsonl"),), fit={"steps": 60, "evaluate_every": 4, "dropout": "all"}
    )
    stages = {"plugin": plugin, "evaluate": evaluate_stage(world, {"plugin": "@plugin"})}
    path.write_text(CONFIG.format(text=json.dumps({"seed": 5, "stages": stages})))
    return path


def plugin_bytes(workdir):
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(workdir / "plugin" / "params")
    return {path: np.asarray(leaf).tobytes() for path, leaf in params.items()}


def without_clocks(workdir):
    results = json.loads((workdir / "results.json").read_text())
    return {stage: found for stage, found in results.items() if stage != "seconds"}


def run_and_kill(config, workdir, condition, delay):
    """Starts the run, waits until `condition` holds, a little longer, and kills it. Says whether it was still alive."""
    process = subprocess.Popen(command(config, workdir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not condition():
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    return write_config(world, tmp_path_factory.mktemp("resume") / "config.py")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("resume") / "whole"
    subprocess.run(command(config, workdir), check=True, capture_output=True)
    return workdir


def logged(workdir, step):
    path = workdir / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def saved(workdir, step):
    """Whether this step's checkpoint is there, or a later one: only the newest are kept."""
    kept = (workdir / "checkpoints" / "plugin" / "last").glob("*")
    return any(one.name.isdigit() and int(one.name) >= step for one in kept)


@pytest.mark.parametrize(
    "conditions",
    [
        [lambda workdir: logged(workdir, 2)],
        pytest.param([lambda workdir: saved(workdir, 8), lambda workdir: saved(workdir, 40)], marks=pytest.mark.slow),
        [lambda workdir: logged(workdir, 30), lambda workdir: (workdir / "plugin").exists()],
    ],
    ids=["before the first checkpoint", "twice after checkpoints", "in training, then after it"],
)
def test_killed_runs_end_as_uninterrupted_ones(config, whole, tmp_path, conditions):
    draw, workdir = random.Random(0), tmp_path / "cut"
    for number, condition in enumerate(conditions):
        assert run_and_kill(config, workdir, lambda: condition(workdir), draw.uniform(0, 0.02))  # noqa: B023
        assert not (workdir / "results.json").exists() or number == len(conditions) - 1
    done = subprocess.run(command(config, workdir), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert plugin_bytes(whole) == plugin_bytes(workdir)
    assert (whole / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
    assert without_clocks(whole) == without_clocks(workdir)
