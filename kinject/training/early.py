"""The step's first program, compiled while the frozen layers' states are computed.

What a batch will hold is known before its states are. Tracing and lowering are Python's, but XLA compiles and computes
without Python's lock, so a run with two cores waits for the longer of the two and not for their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from kinject.data.pipeline import Batch
from kinject.inference.mesh import Placement
from kinject.inference.processes import alone
from kinject.training.prefix import PrefixPlan
from kinject.training.step import TrainState
from kinject.tree import Flat


@contextmanager
def compiled_beside(step: Any, state: TrainState, frozen: Flat, batch: Mapping[str, Any]) -> Iterator:
    """Compiles a step for these arguments in a thread while the block runs; the step's next call finds the program.

    JAX keeps what it traced, lowered and compiled by the arguments' shapes, dtypes and places, whoever asked for it.
    Several processes compile in the step's call: theirs may exchange something, and must do so in the same order.

    Args:
      step: as `make_train_step` makes it.
      state: that it will be given, still the caller's afterwards.
      frozen: that it will be given.
      batch: that it will be given, [B, …] each, or shapes in the place of arrays.
    """
    if not alone():
        yield
        return
    with ThreadPoolExecutor(1) as beside:
        compiled = beside.submit(lambda: step.lower(state, frozen, batch).compile())
        yield
        compiled.result()  # what is wrong with the step is told here, as its first call would


def with_states(batch: Batch, plan: PrefixPlan, place: Placement) -> dict[str, Any]:
    """A batch ([B, …] each) as the step is given it, with shapes in the place of the states that it will bring."""
    shape = (*batch["token_ids"].shape, plan.width)
    states = jax.ShapeDtypeStruct(shape, plan.dtype, sharding=place.rows)
    return {**place.given(batch, len(batch["index"])), **dict.fromkeys(plan.names, states)}
