"""The frozen layers' states of examples, computed when they are first read and kept: see prefix.py for which those are.

A batch of neighbours is computed at a time, always the same ones, whoever asks for one of them: a rerun that begins
elsewhere computes the same bits. So a run waits for what its first batches read, not for what all of them will.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.mesh import Placement, fetch
from kinject.inference.processes import alone
from kinject.inference.program import Program, map_microbatches
from kinject.inference.xla import options
from kinject.training.prefix import PrefixPlan
from kinject.tree import Flat

Compute = Callable[[np.ndarray], Mapping[str, jax.Array]]
"""(rows int [n]) -> their states by name, [B, …] each, of which the first n are theirs."""


def attach_prefix(
    program: Program,
    params: Flat,
    feed: Feed,
    plan: PrefixPlan,
    batch_size: int,
    place: Placement,
    *,
    workdir: Path | None = None,
    trained: Mapping[str, Any] | None = None,
    early: np.ndarray | None = None,
) -> Feed:
    """The feed with what `Encoder.prefix` computes in every batch, [B, L, D] each, or [B, …, L, D] of several texts.

    One device computes them as they are read; several do so at once and here, as two programs of theirs must not cross.

    Args:
      program: whose encoder it is.
      params: its flat parameters but those of `trained`; held, and read as they then are, until all is computed.
      feed: the examples.
      plan: what is computed, and where it is kept.
      batch_size: how many examples are computed at a time.
      place: where arrays live.
      workdir: gets the files of states that are kept on disk.
      trained: parameters (or their shapes) that no such state depends on, as they are about to change.
      early: int [m], `index` of examples in the order in which they will be read first; neighbours are made by it.

    Raises:
      InputError: the folder's disk has no room.
    """
    step = _prefix_step(program, plan, trained or {})
    batch_size, at_once = place.round_up(batch_size), place.devices > 1 or not alone()
    folder = workdir if plan.cache == "disk" else None

    def batch_of(number: int, rows: np.ndarray) -> dict[str, jax.Array]:
        filled, share = np.pad(rows, (0, batch_size - len(rows)), mode="edge"), place.share(batch_size)
        return place.batch(feed.batch(number, filled if share is None else filled[share]), batch_size)

    def states_of(number: int) -> dict[str, Any]:
        bucket = feed.examples.buckets[number]
        shape = (*bucket["token_ids"].shape, plan.width)
        kept = {name: allocate_cache(shape, plan.dtype, folder) for name in plan.names}
        neighbours = _neighbours(bucket["index"], early, batch_size)
        of = _Bucket(kept, neighbours, lambda rows: step(params, batch_of(number, rows)))
        return {name: States(of, name) for name in kept}

    if at_once:
        for number in range(len(feed.examples.buckets)):  # first of all: one would wait for a step compiled beside
            step.lower(params, batch_of(number, np.zeros(1, np.int64))).compile()
    states = [states_of(number) for number in range(len(feed.examples.buckets))]
    if at_once:
        for each in states:
            each["prefix"].fill()
    buckets = tuple({**bucket, **each} for bucket, each in zip(feed.examples.buckets, states, strict=True))
    return feed.with_examples(replace(feed.examples, buckets=buckets))


def _prefix_step(program: Program, plan: PrefixPlan, trained: Mapping[str, Any]) -> jax.stages.Wrapped:
    """The jitted step (params, batch) -> the states by name, [B, …] each, for which zeros stand in what is trained."""
    above = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in trained.items()}

    def compute(params: Flat, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        whole = {**params, **{path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in above.items()}}
        host, plugin = program.merge(whole)

        def of(rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            found = host.encoder.prefix(program.task.rows(rows), plugin, stop=plan.start, seam=plan.seam)
            shape = (*rows["token_ids"].shape, -1)
            return {name: states.reshape(shape).astype(plan.dtype) for name, states in found.items()}

        return map_microbatches(of, program.with_vectors(whole, batch), program.micro_batch, program.row_parts)

    return jax.jit(compute, compiler_options=options(program.row_parts))


def _neighbours(index: np.ndarray, early: np.ndarray | None, count: int) -> list[np.ndarray]:
    """The rows of a bucket whose `index` int [n] is given, `count` at a time: first those of `early`, as they come."""
    if early is None or not len(early):
        order = np.arange(len(index))
    else:
        place = np.full(max(index.max(), early.max()) + 1, -1)
        place[index] = np.arange(len(index))
        rows = np.concatenate([place[early], np.arange(len(index))])
        found, first = np.unique(rows[rows >= 0], return_index=True)
        order = found[np.argsort(first)]
    return np.split(order, range(count, len(order), count))


class _Bucket:
    """The states of one bucket's examples.

    Args:
      kept: where they go by name, [n, …] each.
      neighbours: rows that are computed together; each is among one's.
      compute: computes them.
    """

    def __init__(self, kept: dict[str, np.ndarray], neighbours: list[np.ndarray], compute: Compute):
        self.kept, self._neighbours, self._compute = kept, neighbours, compute
        self._number = np.empty(sum(map(len, neighbours)), np.int64)
        for number, rows in enumerate(neighbours):
            self._number[rows] = number
        self._known = np.zeros(len(neighbours), bool)
        self._lock, self.whole = Lock(), False

    def need(self, index: Any) -> None:
        """Computes what is not known of the rows of an index into the first axis; threads may ask at a time."""
        if self.whole:
            return
        wanted = np.unique(self._number[index])
        if self._known[wanted].all():
            return
        with self._lock:
            if self.whole:
                return
            for number in wanted[~self._known[wanted]]:
                rows = self._neighbours[number]
                for name, states in fetch(self._compute(rows)).items():
                    self.kept[name][rows] = states[: len(rows)]
                self._known[number] = True
            if self._known.all():
                self.whole = True
                del self._compute  # and the parameters that it holds


class States:
    """One kind of a bucket's states, [n, …]: what an array has that is read along its first axis."""

    def __init__(self, of: _Bucket, name: str):
        self._of, self.kept = of, of.kept[name]
        self.shape, self.dtype, self.ndim = self.kept.shape, self.kept.dtype, self.kept.ndim
        self.size, self.nbytes = self.kept.size, self.kept.nbytes

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: Any) -> np.ndarray:
        self._of.need(index[0] if isinstance(index, tuple) else index)
        return self.kept[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.fill()
        return np.array(self.kept, dtype) if copy else np.asarray(self.kept, dtype)

    @property
    def whole(self) -> bool:
        """Whether all are computed."""
        return self._of.whole

    def fill(self) -> None:
        """Computes all that are not."""
        self._of.need(slice(None))


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
