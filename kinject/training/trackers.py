"""Where metrics go besides `metrics.jsonl`: TensorBoard and Weights & Biases, by their own libraries.

TensorBoard's files are written by tensorboardX, without TensorFlow. Whether Weights & Biases talks to its server is its
user's business (`wandb login`, or WANDB_MODE=offline). Both libraries are extras and imported when they are asked for.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from kinject.errors import InputError

Name = Literal["tensorboard", "wandb"]
LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # the extra's name -> what it installs


class Tracker(Protocol):
    """What gets the lines of one stage."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes what was logged at a step."""

    def close(self) -> None:
        """Writes what is still in memory."""


def check_trackers(names: Sequence[str], where: str) -> None:
    """Raises InputError, which names the extra, for a tracker whose library is not installed."""
    for name in names:
        if find_spec(LIBRARIES[name]) is None:
            raise InputError(where, f"{name} needs {LIBRARIES[name]}", f"pip install 'kinject[{name}]'")


def open_trackers(names: Sequence[str], workdir: Path, stage: str, after: int) -> list[Tracker]:
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
