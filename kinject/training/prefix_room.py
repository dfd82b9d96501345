"""Room for the states of the frozen prefix: in memory, or in a file on the run's disk that is mapped into memory."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from kinject.errors import InputError

Room = Literal["memory", "disk"]


def choose_room(size: int, memory_mb: int, disk_mb: int) -> Room | None:
    """Where so many bytes go: into memory, else onto the disk, else nowhere; without memory nothing is kept at all.

    Settings alone decide, not how much is free: a rerun must compute what the first run computed.
    """
    if size <= memory_mb << 20:
        return "memory"
    return "disk" if memory_mb and size <= disk_mb << 20 else None


def check_room(folder: Path, size: int) -> None:
    """Raises InputError where the folder's disk has not so many bytes free: before hours are spent to fill it."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise _no_room(folder, size, f"{free / 2**20:.0f} MiB are free")


def make_room(shape: tuple[int, ...], dtype: np.dtype, folder: Path | None) -> np.ndarray:
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
