"""The seal of a passage memory, which is edited in place while others read it.

An editor leaves a note in the folder before it changes a byte, and takes it away once the changed blocks are sealed
anew. While the note is there nobody believes or checks the files that edits change; a reader whose block does not fit
the seal that it opened looks whether there is a newer one. A note whose editor is gone was left by a kill: the next
editor seals the memory as it is then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kinject.errors import InputError
from kinject.integrity import BLOCK, SEAL, Seal, read_seal, refuse_special, reseal, tell_unsealed, write_seal

NOTE = ".editing"
ARRAYS = ("lines", "about", "tokens", "keys", "values", "alive")
TEXTS = "passages.jsonl"
CHANGING = (*(f"{name}.npy" for name in ARRAYS), TEXTS)
log = logging.getLogger("kinject")


class LiveSeal(Seal):
    """A seal that may be renewed by an editor while it is in use."""

    def check_blocks(self, name: str, blocks: Iterable[int]) -> bool:
        """As `Seal.check_blocks`; where an editor has changed the memory meanwhile, against the newer seal."""
        blocks = list(blocks)
        try:
            return super().check_blocks(name, blocks)
        except InputError:
            if (self.folder / NOTE).exists():
                return False
            newer = read_seal(self.folder)
            if newer is None or newer.hash == self.hash:
                raise
            self.files, self.hash = newer.files, newer.hash
            self.forget()
            return super().check_blocks(name, blocks)


def open_memory_seal(folder: Path, *, tell: bool = True) -> LiveSeal | None:
    """The seal of a memory; None where it has none, which one line says if it shall `tell`.

    Raises:
      InputError: as `integrity.read_seal`.
    """
    refuse_special(folder)
    for attempt in range(3):
        edited = (folder / NOTE).exists()
        try:
            seal = read_seal(folder, CHANGING if edited else ())
        except InputError:
            if attempt < 2 and (folder / NOTE).exists() != edited:  # an edit began or ended meanwhile
                continue
            raise
        break
    if seal is None:
        if tell:
            tell_unsealed(folder, "its passages and arrays")
        return None
    if edited:
        log.warning("%s is being edited, or an edit was cut short: its arrays could not be checked", folder)
    live = LiveSeal(folder, seal.files, seal.hash)
    live._seen = seal._seen
    return live


class Editing:
    """One session of edits, from the note to the new seal.

    Args:
      folder: the memory's, locked.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.sealed = (folder / SEAL).exists()
        self._whole = (folder / NOTE).exists()
        self._changed: dict[str, set[int]] = {}
        if self.sealed:
            (folder / NOTE).write_text("")

    def touch(self, name: str, array: np.ndarray, rows: np.ndarray) -> None:
        """Notes that rows of an array file were changed."""
        width = array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        offset = int(getattr(array, "offset", 0))
        ends = np.concatenate([offset + rows * width, offset + (rows + 1) * width - 1]) // BLOCK
        self._changed.setdefault(f"{name}.npy", set()).update(np.unique(ends).tolist())

    def end(self) -> None:
        """Seals what was changed, and takes the note away."""
        if self.sealed and self._whole:
            write_seal(self.folder)
        elif self.sealed and self._changed:
            reseal(self.folder, {**self._changed, TEXTS: ()})
        (self.folder / NOTE).unlink(missing_ok=True)
