"""Finding an id that stands twice among any number of records, in little memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kinject.errors import InputError


class Ids:
    """Collects ids as 64-bit hashes in a temporary file, eight bytes each, and sorts them there.

    Two ids may share a hash (for 100 million ids, once in some 4,000 data sets), so `refuse_repeated` looks at the
    ids themselves again before it blames one.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as this object)

    def add(self, one: str) -> None:
        """Notes one id."""
        self._file.write(_hash(one))

    def repeated(self) -> set[bytes]:
        """The hashes that occur more than once."""
        self._file.flush()
        if not self._file.tell():
            return set()
        hashes = np.memmap(self._file, np.uint64, mode="r+")
        hashes.sort()
        return {value.tobytes() for value in hashes[1:][hashes[1:] == hashes[:-1]]}

    def refuse_repeated(self, again: Iterable[tuple[str, str]]) -> None:
        """Raises InputError for an id that stands twice.

        Args:
          again: (id, where) of all records once more; read only if there is a suspicion.
        """
        suspects = self.repeated()
        if not suspects:
            return
        first: dict[str, str] = {}
        for one, where in again:
            if _hash(one) in suspects and first.setdefault(one, where) != where:
                raise InputError(where, f"field 'id' is {one!r}, as at {first[one]} already", "give each its own id")


def _hash(one: str) -> bytes:
    return hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=8).digest()
