"""Files of vectors and ids: places in them, for messages; arrays; vectors on their way out of a text file; tries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import marisa_trie
import numpy as np

from kinject.errors import NO_ARRAY, InputError
from kinject.knowledge.manifest import refuse_existing


def at(path: Path, number: int) -> str:
    """Names a line for an error message."""
    return f"{path}, line {number}"


def whole_number(where: str, text: str, what: str) -> int:
    """Parses a non-negative integer, or says where it is not one."""
    if not (text.isascii() and text.isdigit()):
        raise InputError(where, f"{what} is {text!r}, not a number")
    return int(text)


def save_trie(trie: marisa_trie.Trie, path: Path) -> None:
    """Writes a trie; a full disk is then an OSError that says so, which the library's own writing does not raise."""
    path.write_bytes(trie.tobytes())


def map_array(path: Path) -> np.ndarray:
    """Memory-maps a .npy file of vectors, float [N, k]; its content is never executed.

    Raises:
      InputError: no such file, not an array of that kind.
    """
    if not path.is_file():
        raise InputError(path, "is no plain file" if path.exists() else "is not there", "check the path")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except NO_ARRAY as error:
        raise InputError(path, f"is not a plain .npy array: {error}", "save it with numpy.save") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        what = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "an archive"
        raise InputError(path, f"holds {what}, not floating vectors [entities, dimensions]")
    return vectors


class VectorSpool:
    """Collects ids and vectors, in order: vectors in a file, so that memory holds only ids.

    A context manager that leaves no file behind.

    Attributes:
      dim: numbers in a vector; 0 while there was none.
      ids: those taken so far.
      row_of: their places.
    """

    def __init__(self, folder_out: Path):
        refuse_existing(folder_out)  # before an hour of reading, not after
        folder_out.parent.mkdir(parents=True, exist_ok=True)
        self._path = folder_out.with_name(f".{folder_out.name}.vectors-{os.getpid()}")
        self._file = self._path.open("wb")
        self.row_of: dict[str, int] = {}
        self._vectorless: list[int] = []
        self._waiting = 0  # rows without a vector before the first with one tells how wide a row is
        self.dim = 0
        self.ids: list[str] = []

    def __enter__(self) -> VectorSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, where: str, one: str, numbers: Sequence[Any] | np.ndarray | None) -> None:
        """Takes an entity from the line `where`; without numbers it is known but has no vector.

        Raises:
          InputError: an id that came before, numbers that are not, or too few or many of them.
        """
        if not one:
            raise InputError(where, "the id is empty", "every entity needs an id")
        if one in self.row_of:
            raise InputError(where, f"id {one!r} stands in an earlier line too", "give every entity its own id")
        self.row_of[one] = len(self.ids)
        if numbers is None:
            self._vectorless.append(len(self.ids))
            if self.dim:
                self._file.write(np.zeros(self.dim, "<f4").data)
            else:
                self._waiting += 1
        else:
            self._write(self._parse(where, one, numbers))
        self.ids.append(one)

    def _parse(self, where: str, one: str, numbers: Sequence[Any] | np.ndarray) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):  # becomes an infinity, refused below
                vector = np.array(numbers, dtype="<f4")
        except (ValueError, TypeError) as error:
            raise InputError(where, f"the vector of {one!r} is not made of numbers: {error}") from None
        if vector.ndim != 1 or len(vector) == 0 or (self.dim and len(vector) != self.dim):
            wanted = f"{self.dim} as in the lines before" if self.dim else "one or more"
            raise InputError(where, f"the vector of {one!r} has {len(vector)} numbers, not {wanted}")
        if not np.isfinite(vector).all():
            raise InputError(where, f"the vector of {one!r} holds a number that is not finite in float32")
        return vector

    def _write(self, vector: np.ndarray) -> None:
        if not self.dim:
            self.dim = len(vector)
            for _ in range(self._waiting):
                self._file.write(np.zeros(self.dim, "<f4").data)
        self._file.write(vector.data)

    def finish(self, path: Path) -> tuple[list[str], np.ndarray, np.ndarray | None]:
        """Returns ids, vectors as a memory map float32 [N, k], and which rows have one, bool [N] (None = all).

        Raises:
          InputError: nothing came from the file at `path`.
        """
        if not self.dim:
            raise InputError(path, "holds no entity with a vector", "check the format and the file")
        self._file.flush()
        vectors = np.memmap(self._path, "<f4", "r", shape=(len(self.ids), self.dim))
        if not self._vectorless:
            return self.ids, vectors, None
        has_vector = np.ones(len(self.ids), bool)
        has_vector[self._vectorless] = False
        return self.ids, vectors, has_vector
