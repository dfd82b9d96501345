"""What a training records as it goes: metrics, its progress, how long steps take, and traces of JAX's profiler.

TensorBoard's files are written by tensorboardX, without TensorFlow. Whether Weights & Biases talks to its server is its
user's business (`wandb login`, or WANDB_MODE=offline). Both libraries are extras and imported when they are asked for.

Numbers that are not finite stop a training before they reach a metric, a checkpoint or a plugin (`check_losses`, …).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.processes import alone, first
from kinject.training.config import ProfileConfig, TrackerName

LIBRARIES: dict[TrackerName, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # the extra -> what it installs
Batch = TypeVar("Batch")
KINDS: dict[str, Callable[[np.ndarray], Any]] = {"min": np.min, "mean": np.mean, "max": np.max}


DAMAGED = "the workdir is damaged: copy it again"


class MetricsFile:
    """`metrics.jsonl`: one object a line with `stage` and `step`. It holds no clock, so reruns are equal.

    Of several processes one writes it; on the others it is not `kept`. What is written goes to the `trackers` too,
    which are opened for a stage when it is rewound.
    """

    def __init__(self, path: Path, kept: bool = True, trackers: Sequence[TrackerName] = ()):
        self.path, self.kept, self.trackers = Path(path), kept, trackers
        self.opened: list[Tracker] = []
        self._logged = hashlib.sha256()

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Adds one line: the stage, the step and its values."""
        if not self.kept:
            return
        line = json.dumps({"stage": stage, "step": step, **values}) + "\n"
        with self.path.open("a") as file:
            file.write(line)
        self._logged.update(line.encode())
        for tracker in self.opened:
            tracker.write(step, values)

    @property
    def logged(self) -> str:
        """SHA-256 of the lines of the stage that was rewound, which a checkpoint keeps."""
        return self._logged.hexdigest()

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self.opened:
            tracker.close()
        self.opened = []

    def rewind(self, stage: str, step: int, logged: str | None = None) -> None:
        """Drops what `stage` wrote after `step`: those steps are about to run again. A torn last line goes too.

        Args:
          stage: whose lines follow.
          step: from which it goes on.
          logged: what its lines until then must come to; None where no checkpoint says so.

        Raises:
          InputError: a file that was damaged, or has other lines of the stage than the checkpoint knows.
        """
        if not self.kept:
            return
        if (self.path.is_symlink() or self.path.exists()) and not self.path.is_file():
            raise InputError(self.path, "it is no plain file", DAMAGED)
        self._logged = hashlib.sha256()
        kept = []
        for record, line in self._lines() if self.path.exists() else ():
            if record["stage"] == stage:
                if record["step"] > step:
                    continue
                self._logged.update(line.encode())
            kept.append(line)
        if logged not in (None, self.logged):
            problem = f"has not the lines that {stage} wrote until step {step}"
            mend = f"copy it again; or take checkpoints/{stage} away as well, and the stage is trained anew"
            raise InputError(self.path, problem, mend)
        if self.path.exists():
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_text("".join(kept))
            partial.replace(self.path)
        self.opened = open_trackers(self.trackers, self.path.parent, stage, step)  # which drop steps too

    def _lines(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Each line, parsed and as it is; one that a kill tore is left out."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except UnicodeDecodeError as error:
            raise InputError(self.path, f"is no text ({error.reason})", DAMAGED) from None
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                whole = isinstance(record["stage"], str) and isinstance(record["step"], int)
            except (ValueError, KeyError, TypeError):
                whole = False
            if whole:
                yield record, line.rstrip("\n") + "\n"
            elif line.endswith("\n"):
                raise InputError(f"{self.path}:{number}", "it is no line of metrics", DAMAGED)


class Tracker(Protocol):
    """What gets the lines of one stage."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was logged at a step."""

    def close(self) -> None:
        """Writes what is still in memory."""


def check_trackers(names: Sequence[TrackerName], where: str) -> None:
    """Raises InputError, which names the extra, for a tracker whose library is not installed."""
    for name in names:
        if find_spec(LIBRARIES[name]) is None:
            raise InputError(where, f"{name} needs {LIBRARIES[name]}", f"pip install 'kinject[{name}]'")


def open_trackers(names: Sequence[TrackerName], workdir: Path, stage: str, after: int) -> list[Tracker]:
    """The trackers of one stage, whose steps beyond `after` are about to run, perhaps again."""
    makers: dict[str, Callable[[Path, str, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [makers[name](workdir, stage, after) for name in names]


class TensorBoard:
    """Event files in `<workdir>/tensorboard/<stage>`: `tensorboard --logdir <workdir>/tensorboard`."""

    def __init__(self, workdir: Path, stage: str, after: int):
        from tensorboardX import SummaryWriter

        # TensorBoard hides what a killed run wrote from the purged step on; files are named by the second alone
        folder, suffix = workdir / "tensorboard" / stage, f".{time.time_ns()}"
        self.writer = SummaryWriter(str(folder), purge_step=after + 1, filename_suffix=suffix)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is waiting and lets the files go."""
        self.writer.close()


class WeightsAndBiases:
    """One run a stage, grouped by workdir, in the project `kinject` or that of WANDB_PROJECT; a rerun goes on in it.

    Lines carry their `step`, which charts are drawn over: Weights & Biases' own counter cannot be set back.
    """

    def __init__(self, workdir: Path, stage: str, after: int):
        import wandb

        del after
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kinject"),
            group=workdir.name,
            name=f"{workdir.name}/{stage}",
            id=hashlib.sha256(f"{workdir}/{stage}".encode()).hexdigest()[:16],
            resume="allow",
            dir=str(workdir),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step."""
        self.run.log({"step": step, **values})

    def close(self) -> None:
        """Ends the run there."""
        self.run.finish()


@dataclass
class Progress:
    """What the loop has learned so far besides the state; goes into each checkpoint as JSON."""

    best_step: int = -1
    best_metric: float = -math.inf
    stale: int = 0
    last_loss: float = math.nan
    seconds: float = 0.0
    finished: bool = False
    unlogged: list[dict[str, float]] = field(default_factory=list)  # of the steps since the last line of metrics

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {**vars(self), "best_metric": None if self.best_step < 0 else self.best_metric}

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> Progress:
        """What `to_json` wrote."""
        fields = {name: meta[name] for name in vars(cls())}
        return cls(**{**fields, "best_metric": -math.inf if meta["best_metric"] is None else meta["best_metric"]})

    def note(self, means: Mapping[str, float]) -> None:
        """Takes in what was logged last."""
        self.last_loss = means["loss"]

    def log_later(self, losses: list[Any]) -> None:
        """Takes in what steps computed; as Python numbers, which hold a float32 exactly."""
        self.unlogged += [{name: float(value) for name, value in each.items()} for each in jax.device_get(losses)]

    def log(self) -> dict[str, float]:
        """Means over the steps since the last line, in float32."""
        lines, self.unlogged = self.unlogged, []
        return {name: float(np.mean([np.float32(each[name]) for each in lines])) for name in lines[0]}


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


_compiled: list[str] = []


@cache
def _count_compilations() -> None:
    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event.endswith("backend_compile_duration"):
            _compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)


def compilations() -> int:
    """How many programs this process has compiled, or found compiled, since it was first asked."""
    _count_compilations()
    return len(_compiled)


LARGEST = 1e18  # of a parameter: the square of a larger one is no number in float32
SHOWN = 8  # examples named
HINT = "lower the learning rate, or set a clip; the last checkpoint is whole"


def check_losses(
    name: str, step: int, losses: Sequence[Mapping[str, Any]], feed: Feed, batch_size: int, seed: int
) -> None:
    """Raises InputError, with the step and its examples, for the first loss that is not finite.

    Args:
      name: of the training.
      step: the last one of `losses`.
      losses: what the steps before it and it logged, `loss` among it: scalars, or one a domain.
      feed: the training data.
      batch_size: examples a step.
      seed: of their order.
    """
    for number, one in enumerate(losses, step - len(losses) + 1):
        if not np.isfinite(np.asarray(one["loss"])).all():
            shown = _examples(feed, number, batch_size, seed)
            problem = f"the loss is not finite ({float(np.asarray(one['loss']).ravel()[0])}), on {shown}"
            raise InputError(f"{name}, step {number}", problem, HINT)


def check_arrays(name: str, step: int, leaves: Mapping[str, Any], largest: float = math.inf) -> None:
    """Raises InputError for an array that is not finite, or not below `largest`."""
    for path, leaf in leaves.items():
        array = np.asarray(leaf)
        if array.size and not (array.dtype.kind in "iub" or float(np.abs(array.astype(np.float32)).max()) < largest):
            what = "finite" if math.isinf(largest) else f"finite and below {largest:g}"
            raise InputError(f"{name}, step {step}", f"{path} is not {what}", HINT)


def check_metrics(name: str, step: int, metrics: Mapping[str, float]) -> None:
    """Raises InputError for a loss of an evaluation that is not finite."""
    if not math.isfinite(metrics.get("loss", 0.0)):
        problem = f"the loss on the development data is not finite ({metrics['loss']})"
        raise InputError(f"{name}, step {step}", problem, HINT)


def _examples(feed: Feed, step: int, batch_size: int, seed: int) -> str:
    """The examples of a step, by their numbers in the training data, counted from 0."""
    index = np.asarray(feed.order(batch_size, seed)[step - 1]["index"]).ravel()
    if feed.examples.record_index is not None:
        index = feed.examples.record_index[index]
    rest = f" and {len(index) - SHOWN} more" if len(index) > SHOWN else ""
    return f"the training data's examples {', '.join(map(str, index[:SHOWN].tolist()))}{rest}"
