"""The `fit` section of a stage: how long a training runs, its optimizer, and when it logs, evaluates and saves."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kinject.config import Section
from kinject.data.shuffling import Shuffle
from kinject.inference.program import MicroBatch
from kinject.models.precision import Precision

TrackerName = Literal["tensorboard", "wandb"]


class OptimizerConfig(Section):
    """How the trainable leaves move.

    `warmup` and the decay count optimizer steps; a warmup below 1 is a fraction of all steps. `power` is that of the
    polynomial schedule. `weight_decay` is for adamw and lamb, `no_decay` a regex of parameter paths without it. `clip`
    is a global norm over the trainable gradients only. `accumulate` steps' gradients are averaged for one update.
    `decay_towards` says where adamw's decay pulls: to zero, or to where training started, which holds a plugin near
    its closed form (L2-SP of Li et al. 2018, "Explicit Inductive Bias for Transfer Learning", decoupled as in AdamW).
    """

    name: Literal["adam", "adamw", "lamb", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine", "polynomial"] = "constant"
    warmup: float = Field(0, ge=0)
    power: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay_towards: Literal["zero", "start"] = "zero"
    no_decay: str = r".*/(bias|scale)"
    clip: float | None = Field(None, gt=0)
    accumulate: int = Field(1, ge=1)
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)

    @model_validator(mode="after")
    def _decays(self) -> OptimizerConfig:
        if self.decay_towards == "start" and (self.name != "adamw" or not self.weight_decay):
            raise ValueError("decay_towards start needs the optimizer adamw and a weight_decay")
        return self


class ProfileConfig(Section):
    """Which steps are profiled, counted from where this process begins: the first ones compile."""

    start: int = Field(10, ge=0)
    steps: int = Field(5, ge=1)


class FitConfig(Section):
    """How long to train, on how much at a time, and when to log, evaluate and save.

    Give `epochs` or `steps`. Logged values are means since the line before. Several processes ask each other at logged
    steps whether one of them was told to stop. `evaluate_every` is in steps, or "epoch"; 0 evaluates only at the end.
    With development data the best evaluation's parameters are kept, without it the last step's. `patience` counts
    evaluations without improvement.
    `micro_batch` is how many tokens of a batch are computed at a time, on all devices together: "auto" is all of them
    except on a CPU (inference/program.py); what is dropped depends on it.
    `dropout` is at the host's own rates: nowhere, from the first layer that training can change ("trained": the layers
    below are then computed once, without it), or everywhere. What frozen layers compute is kept in memory, up to
    `prefix_cache_mb` (0: nowhere), else, by one process, in the workdir, up to `prefix_disk_mb`;
    `prefix_dtype="bfloat16"` halves it and rounds.
    `shuffle` is the version of the order in which examples are dealt (data/shuffling.py); 2 is the faster one.
    `profile` writes a trace of some steps to `<workdir>/profile/<stage>`, `timings` what steps take, of all processes,
    to `<workdir>/timings.jsonl`.
    `trackers` get what `metrics.jsonl` gets (metrics.py). A run may go on with or without these two.
    """

    batch_size: int = Field(32, ge=1, le=1 << 20)
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig.model_validate({})
    dropout: Literal["none", "trained", "all"] = "none"
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(50, ge=1)
    evaluate_every: Annotated[int, Field(ge=0)] | Literal["epoch"] = 0
    evaluation_batch_size: int = Field(100, ge=1, le=1 << 20)
    patience: int | None = Field(None, ge=1)
    buckets: int = Field(2, ge=1, le=16)
    prefix_cache_mb: int = Field(2048, ge=0)
    prefix_disk_mb: int = Field(16384, ge=0)
    prefix_dtype: Literal["exact", "bfloat16"] = "exact"
    compute_dtype: Precision = "float32"
    micro_batch: MicroBatch = "auto"
    shuffle: Shuffle = 1
    profile: ProfileConfig | None = None
    timings: bool = Field(False, exclude=True)
    trackers: tuple[TrackerName, ...] = Field((), exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.checkpoint_every % self.log_every:
            raise ValueError("checkpoint_every must be a multiple of log_every")
        if self.patience is not None and not self.evaluate_every:
            raise ValueError("patience needs evaluate_every")
        return self

    def total_steps(self, examples: int) -> int:
        """How many steps that makes with so many examples."""
        return self.steps or max(1, math.ceil((self.epochs or 0) * examples / self.batch_size))

    def evaluation_steps(self, examples: int) -> int:
        """Steps from one evaluation to the next, 0 = only at the end."""
        return math.ceil(examples / self.batch_size) if self.evaluate_every == "epoch" else self.evaluate_every


LEARNING_RATES = {"map_tuning": 1e-3, "kformer": 1e-2, "k_adapter": 3e-4, "k_adapter_combination": 3e-4, "dkplm": 3e-3}
"""By method, chosen by a sweep on development questions (configs/rates.py, docs/tuning.md)."""


def ready_fit(method: str) -> dict[str, Any]:
    """The `fit` section of a training of some hundred records, where nothing else is said.

    Args:
      method: a registered name; for one that is not in `LEARNING_RATES` the rate is `OptimizerConfig`'s default.
    """
    rate = LEARNING_RATES.get(method)
    optimizer = {"name": "adamw", "schedule": "linear", "warmup": 0.1, "clip": 1.0}
    return {"batch_size": 20, "epochs": 8, "optimizer": {**optimizer, **({"learning_rate": rate} if rate else {})}}
