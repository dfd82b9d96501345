"""What a training loop knows besides its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np


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
