"""The frozen prefix: layers below everything that trains are computed once an example, not once a step.

Where the lowest trainable parameter (and the lowest seam of a trainable plugin) sits above layer s and nothing is
dropped below, hidden state s of an example is the same in every epoch. It is computed before training and kept with the
examples, in memory or in a file on the run's disk, and the step starts from it. Same numbers, a fraction of the work.
Where a plugin's first seam comes after layer s's feed-forward, that layer is frozen up to there: what its two halves
yield is kept in the place of what it reads. A plugin that reads lower hidden states at its `outputs` has those of its
own kept too.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.pipeline import Batch, Feed
from kinject.errors import InputError
from kinject.inference.mesh import Placement, fetch
from kinject.inference.processes import alone
from kinject.inference.program import Program, map_microbatches
from kinject.inference.xla import options
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


def attach_prefix(
    program: Program,
    params: Flat,
    feed: Feed,
    start: int,
    batch_size: int,
    place: Placement,
    *,
    seam: bool = False,
    dtype: np.dtype = FLOAT32,
    folder: Path | None = None,
) -> Feed:
    """The feed with what `Encoder.prefix` computes for `start` and `seam` in every batch.

    `dtype` [B, L, D] each, or [B, …, L, D] of examples of several texts; kept in memory, or in files in `folder`.

    Raises:
      InputError: the folder's disk has no room.
    """

    def compute(params: Flat, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        host, plugin = program.merge(params)

        def of(rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            found = host.encoder.prefix(program.task.rows(rows), plugin, stop=start, seam=seam)
            shape = (*rows["token_ids"].shape, -1)
            return {name: states.reshape(shape).astype(dtype) for name, states in found.items()}

        return map_microbatches(of, program.with_vectors(params, batch), program.micro_batch, program.row_parts)

    compute = jax.jit(compute, compiler_options=options(program.row_parts))
    batch_size = place.round_up(batch_size)

    def batch_of(number: int, low: int) -> dict[str, jax.Array]:
        size, share = len(feed.examples.buckets[number]["index"]), place.share(batch_size)
        rows = np.minimum(np.arange(low, low + batch_size), size - 1)
        return place.batch(feed.batch(number, rows if share is None else rows[share]), batch_size)

    def rows_of(number: int, bucket: Batch) -> dict[str, np.ndarray]:
        size = len(bucket["index"])
        kept: dict[str, np.ndarray] = {}
        for low in range(0, size, batch_size):
            for name, states in fetch(compute(params, batch_of(number, low))).items():
                if name not in kept:
                    kept[name] = allocate_cache((size, *states.shape[1:]), dtype, folder)
                kept[name][low : low + batch_size] = states[: size - low]
        return kept

    for number in range(len(feed.examples.buckets)):  # first of all: one would wait for a step compiled beside
        compute.lower(params, batch_of(number, 0)).compile()
    buckets = tuple({**bucket, **rows_of(number, bucket)} for number, bucket in enumerate(feed.examples.buckets))
    return feed.with_examples(replace(feed.examples, buckets=buckets))


def choose_cache(size: int, memory_mb: int, disk_mb: int) -> CacheKind | None:
    """Where so many bytes go: into memory, else onto the disk, else nowhere; without memory nothing is kept at all.

    Settings alone decide, not how much is free: a rerun must compute what the first run computed.
    """
    if size <= memory_mb << 20:
        return "memory"
    return "disk" if memory_mb and size <= disk_mb << 20 else None


def check_disk(folder: Path, size: int) -> None:
    """Raises InputError where the folder's disk has not so many bytes free: before hours are spent to fill it."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise _no_room(folder, size, f"{free / 2**20:.0f} MiB are free")


def allocate_cache(shape: tuple[int, ...], dtype: np.dtype, folder: Path | None) -> np.ndarray:
    """An array of these [n, …] to be filled; with a `folder` it is a file there, which has no name.

    Reading some rows of such a file brings in no others, and on a local disk it is gone when the process is, however
    that ends. Its blocks are taken at once, where the system can: a disk that is full by then is an error here, not a
    signal later.

    Raises:
      InputError: the disk has no room.
    """
    if folder is None:
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _take(file.fileno(), size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise _no_room(folder, size, error.strerror or str(error)) from None


def _no_room(folder: Path, size: int, why: str) -> InputError:
    problem = f"{size / 2**20:.0f} MiB of frozen layers' states cannot be kept here: {why}"
    return InputError(folder, problem, "free space, or set fit.prefix_disk_mb to 0")


def _take(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)  # macOS has no other way in Python: blocks come as they are written
