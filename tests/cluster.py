"""A run of several local processes, and how to disturb it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from tiny_world import plugin_stage

LAUNCHER = Path(__file__).parents[1] / "launch" / "local.py"
CONFIG = "import json\ndef get_config():\n    return json.loads({text!r})\n"
# a process stops after a step while there is a file of that number: what disturbs it there comes neither early nor late
HOLDING = """
import pathlib, time
from kinject.training.loop import Fit

advance = Fit.advance

def held(fit, *arguments):
    shown, file = advance(fit, *arguments), pathlib.Path({folder!r}, str(fit.step))
    while file.exists():
        time.sleep(0.01)
    return shown

Fit.advance = held
"""


def write_config(world: Path, path: Path, *, mesh: dict | None = None, fit: dict | None = None, **changes) -> Path:
    """A plugin stage of 20 steps, each logged."""
    fit = {"steps": 20, "log_every": 1, "checkpoint_every": 5, "buckets": 1, "dropout": "all", **(fit or {})}
    config = {"seed": 5, "mesh": mesh or {}, "stages": {"plugin": plugin_stage(world, fit=fit, **changes)}}
    path.write_text(HOLDING.format(folder=str(path.parent / "held")) + CONFIG.format(text=json.dumps(config)))
    return path


class Launched:
    """`launch/local.py` at work: `processes` with `devices` each."""

    def __init__(self, processes: int, devices: int, config: Path, workdir: Path):
        command = [sys.executable, str(LAUNCHER), "--processes", str(processes), "--devices", str(devices), "--"]
        command += ["--config", str(config), "--workdir", str(workdir)]
        environment = {**os.environ, "PYTHONPATH": str(LAUNCHER.parents[1])}
        self.workdir = workdir
        self.output = workdir.with_suffix(".txt").open("w+")
        self.process = subprocess.Popen(command, env=environment, stdout=self.output, stderr=subprocess.STDOUT)

    def children(self) -> list[int]:
        """Process ids, process 0 first."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sorted(map(int, found.split()))

    def wait_for_step(self, step: int) -> None:
        """Returns when `step` is in the metrics; an error where the run ends before."""
        path = self.workdir / "metrics.jsonl"
        while not (path.exists() and f'"step": {step},' in path.read_text()):
            assert self.process.poll() is None, self.end()
            time.sleep(0.01)

    def signal(self, number: signal.Signals, process: int | None = None) -> None:
        """Sends a signal to one process; None = to the launcher."""
        os.kill(self.process.pid if process is None else self.children()[process], number)

    def end(self, limit: float = 1800) -> tuple[int, str]:
        """(exit code, all output) once it has ended; killed, and an error, after `limit` seconds: it hangs."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            raise
        self.output.seek(0)
        text = self.output.read()
        self.output.close()
        return code, text


def launch(processes: int, devices: int, config: Path, workdir: Path) -> str:
    """Runs to the end and returns the output."""
    code, text = Launched(processes, devices, config, workdir).end()
    assert code == 0, text
    return text


def disturbed(
    processes: int, config: Path, workdir: Path, disturb: Callable[[Launched], None], step: int
) -> tuple[int, str]:
    """Holds a run of `write_config` after `step`, disturbs it, lets it go on, and returns (exit code, output)."""
    hold = config.parent / "held" / str(step)
    hold.parent.mkdir(exist_ok=True)
    hold.touch()
    run = Launched(processes, 1, config, workdir)
    try:
        run.wait_for_step(step)
        disturb(run)
    finally:
        hold.unlink()
    return run.end()


def plugin_of(workdir: Path) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        return {path: np.asarray(leaf) for path, leaf in checkpointer.restore(workdir / "plugin" / "params").items()}


def metrics_of(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def resumed_at(output: str) -> int | None:
    found = re.search(r"resuming at step (\d+)", output)
    return int(found.group(1)) if found else None
