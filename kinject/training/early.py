"""The step's first program, compiled while the frozen layers' states are computed.

What a batch will hold is known before its states are. Tracing and lowering are Python's, but XLA compiles and computes
without Python's lock, so a run with two cores waits for the longer of the two and not for their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grain
import jax

from kinject.data.pipeline import AHEAD, THREADS, Batch
from kinject.inference.mesh import Placement
from kinject.inference.processes import alone
from kinject.training.prefix import PrefixPlan
from kinject.training.step import TrainState
from kinject.tree import Flat


@contextmanager
def compiled_beside(
    step: Any, state: TrainState, frozen: Flat, batch: Mapping[str, Any]
) -> Iterator[Callable[[], bool]]:
    """Compiles a step for these arguments in a thread while the block runs; the step's next call finds the program.

    The block is given a function that says whether that is done.

    JAX keeps what it traced, lowered and compiled by the arguments' shapes, dtypes and places, whoever asked for it.
    Several processes compile in the step's call: theirs may exchange something, and must do so in the same order.

    Args:
      step: as `make_train_step` makes it.
      state: that it will be given, still the caller's afterwards.
      frozen: that it will be given.
      batch: that it will be given, [B, …] each, or shapes in the place of arrays.
    """
    if not alone():
        yield lambda: True
        return
    lowered = step.lower(state, frozen, batch)  # here: two threads that both trace wait for Python's lock
    with ThreadPoolExecutor(1) as beside:
        compiled = beside.submit(lowered.compile)
        yield compiled.done
        compiled.result()  # what is wrong with the step is told here, as its first call would


def with_states(batch: Batch, plan: PrefixPlan, place: Placement) -> dict[str, Any]:
    """A batch ([B, …] each) as the step is given it, with shapes in the place of the states that it will bring."""
    shape = (*batch["token_ids"].shape, plan.width)
    states = jax.ShapeDtypeStruct(shape, plan.dtype, sharding=place.rows)
    return {**place.given(batch, len(batch["index"])), **dict.fromkeys(plan.names, states)}


def read_while(batches: grain.MapDataset, going: Callable[[], bool]) -> None:
    """Reads the first batches, which computes their states: one at least, and as many as are dealt ahead at most."""
    for number in range(AHEAD * THREADS):
        batches[number]
        if not going():
            break
