"""Ends one of two processes at a random step, again and again, and looks whether the rerun ends as if nothing had been.

    nice -n 10 python benchmarks/preemption.py --rounds 10 --table docs/fault_tolerance.md

Each round: a run of two processes (one CPU device each), SIGTERM or SIGKILL to one of them at a random step of 20, then
the same command again, on the same arrangement (the plugin must be the same bit for bit) or on another (to tolerance).
`--table` puts the table between the marks of a Markdown file. A tiny host, as in the tests.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
START, END = "<!-- rounds -->", "<!-- end of rounds -->"
HEAD = (
    "| round | signal | to process | after step | exit code | seconds to the end | rerun | went on at | same plugin |"
)
ARRANGEMENTS = [(2, 1), (2, 1), (1, 1), (2, 1), (1, 4)]  # of the reruns, in turn: processes, devices of each
SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.05, "clip": 1.0}}  # Adam would blow up rounding
HANG_SECONDS = 60
EXPECTED = (75, 134, 137)  # docs/fault_tolerance.md; any other is told with what the processes printed


@dataclass
class Round:
    """What one round is and what it came to."""

    number: int
    name: str
    process: int
    step: int
    processes: int
    devices: int
    code: int = 0
    seconds: float = 0.0
    resumed: int | None = None
    same: str = ""

    def line(self) -> str:
        rerun = f"{self.processes} x {self.devices}"
        seen = [self.number, self.name, self.process, self.step, self.code, f"{self.seconds:.1f}", rerun]
        return "| " + " | ".join(map(str, [*seen, self.resumed or 0, self.same])) + " |"


def compare(ours: dict[str, np.ndarray], whole: dict[str, np.ndarray], exactly: bool) -> str:
    """In words; raises where they differ."""
    if all(ours[path].tobytes() == whole[path].tobytes() for path in whole):
        return "bit for bit"
    worst = max(float(np.abs(ours[path] - whole[path]).max() / np.abs(whole[path]).max()) for path in whole)
    if exactly or worst > 1e-4:
        raise SystemExit(f"the plugins differ by {worst:.1e} of the largest entry")
    return f"to {worst:.0e} of the largest entry"


def run_round(this: Round, config: Path, workdir: Path, whole: dict[str, np.ndarray]) -> None:
    from cluster import Launched, disturbed, launch, plugin_of, resumed_at

    number = getattr(signal, this.name)
    run = Launched(2, 1, config, workdir)
    this.code, text, this.seconds = disturbed(run, lambda run: run.signal(number, this.process), this.step)
    if this.seconds > HANG_SECONDS:
        raise SystemExit(f"round {this.number} took {this.seconds:.0f} s to end")
    if this.code == 0:
        raise SystemExit(f"round {this.number} was not disturbed:\n{text}")
    if this.code not in EXPECTED:
        print(f"round {this.number} ended with {this.code}:\n{text}", flush=True)
    this.resumed = resumed_at(launch(this.processes, this.devices, config, workdir))
    this.same = compare(plugin_of(workdir), whole, (this.processes, this.devices) == (2, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kinject-preemption-") as folder:
        prepare(Path(folder))
        rows = [HEAD, "|---" * HEAD.count(" | ") + "|---|", *rounds(given.rounds, given.seed, Path(folder))]
    if given.table is not None:
        text = given.table.read_text()
        before, after = text.split(START)[0], text.split(END)[1]
        given.table.write_text("\n".join([before + START, *rows, END + after]))


def prepare(folder: Path) -> None:
    """One cache of compiled programs for all that is started, and no time for LLVM to make tiny ones fast."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"


def rounds(count: int, seed: int, folder: Path) -> list[str]:
    """Runs them and returns the table's lines."""
    from cluster import launch, plugin_of, write_config
    from tiny_world import write_world

    config = write_config(write_world(folder / "world"), folder / "config.py", fit=SGD)
    launch(2, 1, config, folder / "whole")
    draw, whole, lines = random.Random(seed), plugin_of(folder / "whole"), []
    for number in range(count):
        name = ("SIGTERM", "SIGKILL")[number % 2]
        arrangement = ARRANGEMENTS[number % len(ARRANGEMENTS)]
        this = Round(number + 1, name, draw.randrange(2), draw.randrange(1, 16), *arrangement)
        started = time.monotonic()
        run_round(this, config, folder / f"round{number}", whole)
        lines.append(this.line())
        print(lines[-1], f"{time.monotonic() - started:.0f} s", flush=True)
    return lines


if __name__ == "__main__":
    main()
