"""Whether the frozen prefix of a run is computed once, from which layer on, and where it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.processes import alone
from kinject.inference.program import Program
from kinject.models.forward import kept_states
from kinject.training.prefix import first_trainable_state, prefix_bytes, stops_at_seam
from kinject.training.prefix_room import Room, choose_room
from kinject.tree import Flat

if TYPE_CHECKING:
    from kinject.training.config import FitConfig


@dataclass(frozen=True)
class PrefixPlan:
    """What is frozen below everything that trains, and where its states go.

    Attributes:
      start: the hidden state that steps start from.
      seam: whether they start after the two halves of layer `start` (`stops_at_seam`), where memory holds both.
      dtype: of the kept states.
      size: what they take, in bytes.
      room: where they are kept; None = nowhere, every step computes them.
    """

    start: int
    seam: bool
    dtype: np.dtype
    size: int
    room: Room | None

    def __str__(self) -> str:
        megabytes = f"{self.size / 2**20:.0f} MiB"
        if self.room is None:
            more = "more than fit.prefix_cache_mb and fit.prefix_disk_mb allow"
            return f"layers below {self.start} are frozen, but computed in each step: {megabytes} are {more}"
        where = "in memory" if self.room == "memory" else "on disk"
        layers = f"layers below {self.start}" + (f", and {self.start} up to its seam," if self.seam else "")
        return f"{layers} are frozen, computed once ({megabytes} {where})"


def plan_prefix(
    name: str, config: FitConfig, program: Program, params: Flat, labels: Mapping[str, str], feeds: Sequence[Feed]
) -> PrefixPlan | None:
    """The plan of a run, or None where every step computes all layers anyway.

    Raises:
      InputError: the config wants no dropout below what trains, which needs kept states, and they cannot be kept.
    """
    host, plugin = program.outline(params)
    layers, needed = len(host.encoder.layers), config.dropout == "trained"
    start = first_trainable_state(labels, plugin, layers)
    if start == 0 or config.dropout == "all":
        return None
    if not all(feed.examples.fixed for feed in feeds):  # their tokens are not kept either
        if needed:
            problem = "dropout='trained' keeps the frozen layers' states, and this task's examples are too many"
            raise InputError(f"{name}.fit.dropout", problem, "use dropout='all'")
        return None
    dtype = np.dtype(jnp.bfloat16 if config.prefix_dtype == "bfloat16" else host.encoder.dtype)
    one = sum(prefix_bytes(feed, host.encoder.config.hidden_size, dtype) for feed in feeds)
    size = one * (1 + len(kept_states(plugin, layers, start)))
    # with dropout, what is dropped must not depend on how much memory there is
    seam = config.dropout == "none" and stops_at_seam(labels, plugin, start, layers)
    seam = seam and choose_room(size + one, config.prefix_cache_mb, 0) is not None
    size += one * seam
    # of several processes each has all states, and all of them one workdir
    room = choose_room(size, config.prefix_cache_mb, config.prefix_disk_mb if alone() else 0)
    if needed and room is None:
        problem = f"dropout='trained' keeps the frozen layers' states, {size >> 20} MiB"
        mend = "raise it" + (" or fit.prefix_disk_mb" if alone() else "") + ", or use dropout='all'"
        raise InputError(f"{name}.fit.prefix_cache_mb", problem, mend)
    return PrefixPlan(start, seam, dtype, size, room)
