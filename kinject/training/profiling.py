"""A window of steps in which JAX's profiler watches, for TensorBoard or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from pydantic import Field

from kinject.config import Section


class ProfileConfig(Section):
    """Which steps are profiled, counted from where this process begins: the first ones compile."""

    start: int = Field(10, ge=0)
    steps: int = Field(5, ge=1)


class Profiler:
    """Wraps a step; from the `start`-th call on it writes a trace of `steps` calls to a folder."""

    def __init__(self, config: ProfileConfig | None, folder: Path):
        self.config, self.folder, self.calls, self.tracing = config, folder, 0, False

    def watch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step, watched; the step itself where no window is asked for."""
        if self.config is None:
            return step

        def watched(*arguments: Any) -> Any:
            if self.calls == self.config.start:
                jax.profiler.start_trace(str(self.folder))
                self.tracing = True
            found = step(*arguments)
            self.calls += 1
            if self.tracing and self.calls == self.config.start + self.config.steps:
                jax.block_until_ready(found)
                self.close()
            return found

        return watched

    def close(self) -> None:
        """Ends a trace that is still open: the run was shorter than its window."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing = False
