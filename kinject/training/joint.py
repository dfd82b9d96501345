"""Several trainings on one frozen host at the same time: one program a step, one copy of the host on the devices.

Each keeps its own examples and their order, its optimizer with its own clipping, its checkpoints and its evaluations,
so that what is trained is what would have been trained alone, up to the rounding of another compilation. The loss of
the joint step is the sum of theirs; as they share nothing that trains, each one's gradient is that of its own.
Plugins of one shape can be stacked and mapped over instead: see domains.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from kinject.training.loop import Fit, FitResult, train_to_end
from kinject.training.step import Logged, TrainState
from kinject.tree import Flat


def fit_jointly(fits: Sequence[Fit]) -> list[FitResult]:
    """Runs all to their ends, each from its newest whole checkpoint; one that is done drops out.

    Args:
      fits: their names differ. Frozen parameters that are one array in several are held and passed once.

    Raises:
      Preempted: after SIGTERM; each has finished its step, and a checkpoint is made.
    """
    compiled: dict[tuple[str, ...], JointStep] = {}

    def step(active: Sequence[Fit]) -> list[tuple[TrainState, Logged]]:
        names = tuple(fit.name for fit in active)
        if names not in compiled:
            compiled.clear()  # the step of more members is not needed again
            compiled[names] = JointStep(active)
        return compiled[names]()

    train_to_end(fits, step)
    return [fit.end() for fit in fits]


class JointStep:
    """The compiled step of some trainings."""

    def __init__(self, fits: Sequence[Fit]):
        self.fits = fits
        self.shared, self.own = split_shared([fit.frozen for fit in fits])

        def step(
            states: Sequence[TrainState], shared: Flat, own: Sequence[Flat], batches: Sequence[Mapping[str, jax.Array]]
        ) -> list[tuple[TrainState, Logged]]:
            return [
                fit.train_step(state, {**shared, **frozen}, batch)
                for fit, state, frozen, batch in zip(fits, states, own, batches, strict=True)
            ]

        self.step = jax.jit(step, donate_argnums=0)

    def __call__(self) -> list[tuple[TrainState, Logged]]:
        """One step of each, on its own next batch."""
        batches = [fit.next_batch() for fit in self.fits]
        own = [{path: fit.frozen[path] for path in paths} for fit, paths in zip(self.fits, self.own, strict=True)]
        return self.step([fit.state for fit in self.fits], self.shared, own, batches)


def hold_once(fits: Sequence[Fit], sources: Sequence[Flat]) -> None:
    """Has trainings whose frozen leaves were made of the same arrays hold them once.

    Args:
      fits: the trainings.
      sources: of each the parameters that it was given; what it holds beside them stays as it is.
    """
    first, ours = fits[0], sources[0]
    for fit, theirs in zip(fits[1:], sources[1:], strict=True):
        for path, leaf in fit.frozen.items():
            held = first.frozen.get(path)
            if held is not None and path in theirs and theirs[path] is ours[path] and held.dtype == leaf.dtype:
                fit.frozen[path] = held


def split_shared(frozen: Sequence[Flat]) -> tuple[Flat, list[list[str]]]:
    """Frozen parameters of several trainings -> (those that are one array in all, the paths that each has beside)."""
    first = frozen[0]
    shared = {path: leaf for path, leaf in first.items() if all(each.get(path) is leaf for each in frozen)}
    return shared, [[path for path in each if path not in shared] for each in frozen]
