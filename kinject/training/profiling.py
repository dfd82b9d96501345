"""Where the time of a training goes: traces of JAX's profiler, and how long steps take and wait for input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from kinject.inference.processes import alone, first
from kinject.training.config import ProfileConfig
from kinject.training.metrics import MetricsFile

Batch = TypeVar("Batch")
KINDS: dict[str, Callable[[np.ndarray], Any]] = {"min": np.min, "mean": np.mean, "max": np.max}


class Profiler:
    """Wraps a step; from the `start`-th call on it writes a trace of `steps` calls to a folder."""

    def __init__(self, config: ProfileConfig | None, folder: Path):
        self.config, self.folder, self.calls, self.tracing = config, folder, 0, False

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, watched; the step itself where no window is asked for."""
        config = self.config
        if config is None:
            return step

        def watched(*arguments: Any) -> Any:
            if self.calls == config.start:
                jax.profiler.start_trace(str(self.folder))
                self.tracing = True
            found = step(*arguments)
            self.calls += 1
            if self.tracing and self.calls == config.start + config.steps:
                jax.block_until_ready(found)
                self.close()
            return found

        return watched

    def close(self) -> None:
        """Ends a trace that is still open: the run was shorter than its window."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False


class Timing:
    """Times the steps of one training: one line in `timings.jsonl` a logged step; without a path it times nothing.

    Not in `metrics.jsonl`, which holds no clock, so that reruns are equal. The slowest process sets the pace of all of
    them, so that its wait for input, not the mean, is what more threads or a faster disk would shorten. All processes
    must ask for it, and log, at the same steps.
    """

    def __init__(self, path: Path | None):
        self.file = None if path is None else MetricsFile(path, kept=first())
        self._start_over()

    def begin(self, stage: str, step: int) -> None:
        """Counts from here; steps after `step` are about to run again."""
        if self.file is not None:
            self.file.rewind(stage, step)
        self._start_over()

    def _start_over(self) -> None:
        self.began, self.waited, self.steps = time.monotonic(), 0.0, 0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, timed."""
        began = time.monotonic()
        batch = next(batches)
        self.waited, self.steps = self.waited + time.monotonic() - began, self.steps + 1
        return batch

    def log(self, stage: str, step: int) -> None:
        """Writes the means of the steps since the last line, where they were computed to their ends: at a logged step.

        A line holds how many `steps`, and of `step_seconds` and `input_seconds`, both a step's, `_min`, `_mean` and
        `_max` over processes. What else is done between two lines is in `step_seconds`: compilation, evaluations.
        """
        if self.file is None:
            return
        mine = np.array([time.monotonic() - self.began, self.waited]) / max(self.steps, 1)
        found: dict[str, float] = {"steps": self.steps}
        for name, values in zip(("step_seconds", "input_seconds"), gathered(mine).T, strict=True):
            found |= {f"{name}_{kind}": round(float(of(values)), 6) for kind, of in KINDS.items()}
        self.file.write(stage, step, found)
        self._start_over()


def gathered(mine: np.ndarray) -> np.ndarray:
    """Each process's numbers, float [k] -> [processes, k]; all must call it."""
    if alone():
        return mine[None]
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(mine.astype(np.float32)))
