"""The frozen prefix: layers below everything that trains are computed once an example, not once a step.

Where the lowest trainable parameter (and the lowest seam of a trainable plugin) sits above layer s and nothing is
dropped below, hidden state s of an example is the same in every epoch. It is computed before training and kept with the
examples, in memory or in a file on the run's disk, and the step starts from it. Same numbers, a fraction of the work.
Where a plugin's first seam comes after layer s's feed-forward, that layer is frozen up to there: what its two halves
yield is kept in the place of what it reads. A plugin that reads lower hidden states at its `outputs` has those of its
own kept too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.processes import alone
from kinject.inference.program import Program
from kinject.models.encoder import kept_states
from kinject.models.seams import Plugin
from kinject.training.config import FitConfig
from kinject.training.partition import TRAIN
from kinject.tree import Flat

FLOAT32 = np.dtype(np.float32)
CacheKind = Literal["memory", "disk"]


@dataclass(frozen=True)
class PrefixPlan:
    """What is frozen below everything that trains, and where its states go.

    Attributes:
      start: the hidden state that steps start from.
      seam: whether they start after the two halves of layer `start` (`stops_at_seam`), where memory holds both.
      dtype: of the kept states.
      size: what they take, in bytes.
      cache: where they are kept; None = nowhere, every step computes them.
      names: of what `Encoder.prefix` yields, [B, L, D] each.
      width: D.
    """

    start: int
    seam: bool
    dtype: np.dtype
    size: int
    cache: CacheKind | None
    names: tuple[str, ...]
    width: int

    def __str__(self) -> str:
        megabytes = f"{self.size / 2**20:.0f} MiB"
        if self.cache is None:
            more = "more than fit.prefix_cache_mb and fit.prefix_disk_mb allow"
            return f"layers below {self.start} are frozen, but computed in each step: {megabytes} are {more}"
        where = "in memory" if self.cache == "memory" else "on disk"
        layers = f"layers below {self.start}" + (f", and {self.start} up to its seam," if self.seam else "")
        return f"{layers} are frozen, computed once ({megabytes} {where})"


def plan_prefix(
    name: str, config: FitConfig, program: Program, params: Flat, labels: Mapping[str, str], feeds: Sequence[Feed]
) -> PrefixPlan | None:
    """The plan of a run, or None where every step computes all layers anyway.

    Raises:
      InputError: the config wants no dropout below what trains, which needs kept states, and they cannot be kept.
    """
    host, plugin = program.abstract(params)
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
    names = ("prefix", *(f"state_{i}" for i in kept_states(plugin, layers, start)))
    size = one * len(names)
    # with dropout, what is dropped must not depend on how much memory there is
    seam = config.dropout == "none" and stops_at_seam(labels, plugin, start, layers)
    seam = seam and not host.encoder.layers[start].reads_input
    seam = seam and choose_cache(size + one, config.prefix_cache_mb, 0) is not None
    size += one * seam
    # of several processes each has all states, and all of them one workdir
    cache = choose_cache(size, config.prefix_cache_mb, config.prefix_disk_mb if alone() else 0)
    if needed and cache is None:
        problem = f"dropout='trained' keeps the frozen layers' states, {size >> 20} MiB"
        mend = "raise it" + (" or fit.prefix_disk_mb" if alone() else "") + ", or use dropout='all'"
        raise InputError(f"{name}.fit.prefix_cache_mb", problem, mend)
    names += ("prefix_inner",) * seam
    return PrefixPlan(start, seam, dtype, size, cache, names, host.encoder.config.hidden_size)


def first_trainable_state(labels: Mapping[str, str], plugin: Plugin | None, layers: int) -> int:
    """The highest hidden state (0 = embeddings, `layers` = last) that no training can change."""
    start = layers
    for path, label in labels.items():
        if label != TRAIN:
            continue
        if layer := re.match(r"host/encoder/layers/(\d+)/", path):
            start = min(start, int(layer[1]))
        elif path.startswith("host/encoder/"):
            return 0
        elif path.startswith("plugin/"):
            start = min(start, max(0, plugin.first_seam() - 1)) if plugin is not None else 0
    return start


def stops_at_seam(labels: Mapping[str, str], plugin: Plugin | None, start: int, layers: int) -> bool:
    """Whether even of layer `start` all but what comes after a plugin's seam is frozen, and no one reads its input."""
    if plugin is None or start >= layers or plugin.first_seam() != start + 1:
        return False
    if start in plugin.reads_states(layers):
        return False
    trained = (path for path, label in labels.items() if label == TRAIN)
    return not any(path.startswith(f"host/encoder/layers/{start}/") for path in trained)


def prefix_bytes(feed: Feed, hidden_size: int, dtype: np.dtype) -> int:
    """What one hidden state of all examples takes."""
    return sum(bucket["token_ids"].size for bucket in feed.examples.buckets) * hidden_size * dtype.itemsize


def choose_cache(size: int, memory_mb: int, disk_mb: int) -> CacheKind | None:
    """Where so many bytes go: into memory, else onto the disk, else nowhere; without memory nothing is kept at all.

    Settings alone decide, not how much is free: a rerun must compute what the first run computed.
    """
    if size <= memory_mb << 20:
        return "memory"
    return "disk" if memory_mb and size <= disk_mb << 20 else None
