"""Room for the states of the frozen prefix: in memory, or in a file on the run's disk that is mapped into memory."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

from kinject.errors import InputError

Room = Literal["memory", "disk"]


def choose_room(size: int, memory_mb: int, disk_mb: int) -> Room | None:
    """Where so many bytes go: into memory, else onto the disk, else nowhere.

    Settings alone decide, not how much is free: a rerun must compute what the first run computed.
    """
    if size <= memory_mb << 20:
        return "memory"
    return "disk" if size <= disk_mb << 20 else None


def make_room(shape: tuple[int, ...], dtype: np.dtype, folder: Path | None) -> np.ndarray:
    """An array of these [n, …] to be filled; with a `folder` it is a file there, which has no name.

    Such a file is gone when the process is, however that ends, and reading some rows of it brings in no others. Its
    blocks are taken at once: a full disk is an error here, not a signal later.

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
        problem = f"{size / 2**20:.0f} MiB of frozen layers' states cannot be kept here: {error.strerror or error}"
        raise InputError(folder, problem, "free space, or set fit.prefix_disk_mb to 0") from None


def _take(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
