"""The seal of an artefact: `seal.json`, the size and the hashes of every file in a folder, checked before it is read.

A file of at most a megabyte has one SHA-256 and is checked whenever the folder is opened. A larger one has the first
half of a SHA-256 a block of one megabyte, and a block is checked when something in it is first read (`CheckedArray`),
or all of them by `Seal.verify`. A folder that holds a file that the seal does not list, lacks one that it does, or
holds something that is no plain file is refused. What is outside of a seal, because it changes, is named in it.

Every kind of artefact is sealed alike: hosts, knowledge bases and their revisions, plugins, memories, indices and the
checkpoints of a run. Hidden files belong to nobody's seal, and a folder with a seal of its own to that one alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError, first_line

SEAL = "seal.json"
FORMAT = 1
BLOCK = 1 << 20  # bytes; a file of at most one block has one hash
BLOCK_HASH = 16  # bytes kept of a block's SHA-256
READ_WHOLE = 64 << 20  # bytes; of a larger file of a folder without a seal nothing is checked but its size
DAMAGED = "the folder is damaged: copy or make it again; if you changed it yourself: kinject seal FOLDER"

log = logging.getLogger("kinject")
_told: set[str] = set()


class Seal:
    """What a folder's files were when they were sealed; make one with `read_seal`.

    Attributes:
      folder: the folder.
      files: {name relative to the folder: {"size": bytes, "sha256": hex} or {"size": bytes, "blocks": hex}}.
      hash: SHA-256 of `seal.json` in hexadecimal digits, "" for hashes that are from elsewhere.
    """

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]], hash: str = ""):
        self.folder, self.files, self.hash = folder, files, hash
        self._seen: dict[str, np.ndarray] = {}  # bool [blocks] a file: which were checked
        self._held: dict[str, Any] = {}

    def hold(self, names: Iterable[str]) -> None:
        """Opens files now, so that they can be checked later even if somebody takes their names away meanwhile."""
        for name in names:
            path = self.folder / name
            try:
                if name in self.files:
                    self._held[name] = path.open("rb")
            except OSError as error:
                raise InputError(path, f"it cannot be read: {error.strerror or error}", DAMAGED) from None

    def check(self, name: str) -> None:
        """Raises InputError unless the whole file is what was sealed. What was checked once is not read again."""
        self.check_bytes(name, 0, self.files[name]["size"] if name in self.files else 0)

    def check_bytes(self, name: str, start: int, stop: int) -> None:
        """Raises InputError unless every block that holds some of the bytes [start, stop) is what was sealed."""
        seen = self._blocks(name)
        low, high = start // BLOCK, -(-stop // BLOCK)
        self.check_blocks(name, low + np.flatnonzero(~seen[low:high]))

    def check_blocks(self, name: str, blocks: Iterable[int]) -> bool:
        """Raises InputError unless these blocks of a file, counted from 0, are what was sealed.

        Returns:
          Whether all blocks of the file have been checked by now.
        """
        seen, facts = self._blocks(name), self.files[name]
        todo = [int(block) for block in blocks if not seen[block]]
        if not todo:
            return bool(seen.all())
        path = self.folder / name
        try:
            held = self._held.get(name)
            with (path if held is None else Path(f"/dev/fd/{held.fileno()}")).open("rb") as file:
                if "sha256" in facts:
                    good = hashlib.file_digest(file, "sha256").hexdigest() == str(facts["sha256"]).lower()
                    bad = None if good else 0
                    seen[:] = good
                else:
                    bad = next((block for block in todo if not self._same(file, facts["blocks"], block, seen)), None)
        except OSError as error:
            raise InputError(path, f"it cannot be read: {error.strerror or error}", DAMAGED) from None
        if bad is not None:
            place = "" if "sha256" in facts else f" (from byte {bad * BLOCK})"
            raise InputError(path, f"its content is not what was sealed{place}", DAMAGED)
        return bool(seen.all())

    @staticmethod
    def _same(file: Any, hashes: str, block: int, seen: np.ndarray) -> bool:
        file.seek(block * BLOCK)
        wanted = hashes[block * 2 * BLOCK_HASH : (block + 1) * 2 * BLOCK_HASH].lower()
        seen[block] = _block_hash(file.read(BLOCK)) == wanted
        return bool(seen[block])

    def _blocks(self, name: str) -> np.ndarray:
        """Which blocks of a file were checked, bool."""
        if name not in self._seen:
            if name not in self.files:
                raise InputError(self.folder / name, "it is not in the folder's seal", DAMAGED)
            self._seen[name] = np.zeros(-(-self.files[name]["size"] // BLOCK), bool)
        return self._seen[name]

    def forget(self) -> None:
        """Lets everything be checked again."""
        self._seen.clear()

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Raises InputError unless every byte of these files, all by default, is what was sealed."""
        for name in self.files if names is None else names:
            self.check(name)

    def array(self, name: str, array: np.ndarray) -> np.ndarray | CheckedArray:
        """A memory map of a .npy file, whose blocks are checked when they are first read unless they all have been."""
        if name not in self.files or self._blocks(name).all():
            return array
        return CheckedArray(self, name, array)


class CheckedArray(np.lib.mixins.NDArrayOperatorsMixin):
    """A memory-mapped array whose rows are checked against a seal when they are first read.

    It has what an array has that is read along its first axis: shape, dtype, length, indexing, and `np.asarray`, which
    checks all of it. Args are the seal, the file's name in it and the memory map.
    """

    def __init__(self, seal: Seal, name: str, array: np.ndarray):
        self._seal, self._name, self._array = seal, name, array
        self._offset = int(getattr(array, "offset", 0))
        self._row = array.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        self._all = False  # whether all of it was checked
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.itemsize, self.nbytes, self.size, self.flags = array.itemsize, array.nbytes, array.size, array.flags

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> Any:
        if not self._all:
            self._touch(index[0] if isinstance(index, tuple) and index else index)
        return self._array[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self._all:
            self._touch(slice(None))
        return np.asarray(self._array, dtype) if not copy else np.array(self._array, dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(one) if isinstance(one, CheckedArray) else one for one in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_array":
            raise AttributeError(name)
        return getattr(np.asarray(self), name)  # sum, ravel, tolist: whatever reads all of it

    def _touch(self, index: Any) -> None:
        """Checks the blocks that hold the rows of an index along the first axis."""
        count = len(self._array)
        if isinstance(index, int | np.integer):
            index = slice(int(index) % count, int(index) % count + 1) if -count <= index < count else slice(0)
        if isinstance(index, slice):
            start, stop, step = index.indices(count)
            low, high = (start, stop) if step > 0 else (stop + 1, start + 1)
            if high > low:
                self._seal.check_bytes(self._name, self._offset + low * self._row, self._offset + high * self._row)
            self._all = self._all or (low == 0 and high == count)
            return
        rows = np.asarray(index) if isinstance(index, np.ndarray | Sequence) else np.zeros(0)
        if rows.dtype == bool and rows.ndim == 1:
            rows = np.flatnonzero(rows)
        if not np.issubdtype(rows.dtype, np.integer):
            return self._touch(slice(None))
        rows = rows.ravel() % max(count, 1)
        first = (self._offset + rows * self._row) // BLOCK
        last = (self._offset + (rows + 1) * self._row - 1) // BLOCK
        blocks = np.unique(first if np.array_equal(first, last) else np.concatenate([first, last]))
        self._all = self._seal.check_blocks(self._name, blocks.tolist())
        return None


def write_seal(folder: Path | str, outside: Sequence[str] = ()) -> str:
    """Seals a folder as it is, in one step; a seal that it had is replaced.

    Args:
      folder: the artefact.
      outside: names of files and folders in it that change and are left out, at the top of the folder.

    Returns:
      The hash of the seal, SHA-256 in hexadecimal digits.

    Raises:
      InputError: something in the folder is no plain file, or the seal cannot be written.
    """
    folder = Path(folder)
    return _write(folder, {name: _described(folder / name) for name in _listed(folder, outside)}, outside)


def reseal(folder: Path | str, changed: Mapping[str, Iterable[int] | None]) -> str:
    """Seals a folder again of which some files were changed on purpose; what it says of the others stays.

    Args:
      folder: with a seal.
      changed: {name: which blocks of it, from 0, None = all}; what was appended to a file need not be named.

    Returns:
      The hash of the new seal.
    """
    folder = Path(folder)
    files, outside = _read_fields(folder / SEAL)[1:]
    for name, blocks in changed.items():
        old, path = files.get(name, {}), folder / name
        size = path.stat().st_size
        if blocks is None or size <= BLOCK or "blocks" not in old:
            files[name] = _described(path)
            continue
        kept = old["size"] // BLOCK  # whole blocks before anything was appended
        hashes = bytearray(bytes.fromhex(old["blocks"])[: kept * BLOCK_HASH].ljust(-(-size // BLOCK) * BLOCK_HASH))
        with path.open("rb") as file:
            for block in sorted({*blocks, *range(kept, -(-size // BLOCK))}):
                file.seek(block * BLOCK)
                made = bytes.fromhex(_block_hash(file.read(BLOCK)))
                hashes[block * BLOCK_HASH : (block + 1) * BLOCK_HASH] = made
        files[name] = {"size": size, "blocks": hashes.hex()}
    return _write(folder, files, outside)


def _write(folder: Path, files: Mapping[str, Any], outside: Sequence[str]) -> str:
    sealed = {"format": FORMAT, **({"outside": sorted(outside)} if outside else {}), "files": files}
    written = (json.dumps(sealed, indent=0, ensure_ascii=False) + "\n").encode()
    partial = folder / f".{SEAL}.partial"
    try:
        with partial.open("wb") as file:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / SEAL)
    except OSError as error:
        raise InputError(folder / SEAL, f"it cannot be written: {error.strerror or error}") from None
    return hashlib.sha256(written).hexdigest()


def read_seal(folder: Path | str, changing: Container[str] = ()) -> Seal | None:
    """Reads a folder's seal and checks all that is small, the sizes of the rest, and that nothing else is there.

    Args:
      folder: the artefact.
      changing: names of files that somebody edits just now: of them nothing is checked but that they are there.

    Returns:
      The seal, or None where the folder has none.

    Raises:
      InputError: a seal that cannot be read, or a file that is missing, not listed, no plain file, of another size or
        (up to a megabyte) of other content.
    """
    folder = Path(folder)
    path = folder / SEAL
    if not path.exists() and not path.is_symlink():
        return None
    written, files, outside = _read_fields(path)
    found = _listed(folder, outside)
    for name in sorted(files.keys() | set(found)):
        if name not in files:
            raise InputError(folder / name, "the folder's seal does not list it", DAMAGED)
        if name not in found:
            raise InputError(folder / name, "it is missing", DAMAGED)
        if found[name] != files[name]["size"] and name not in changing:
            problem = f"it has {found[name]} bytes, {SEAL} says {files[name]['size']}"
            raise InputError(folder / name, problem, DAMAGED)
    files = {name: facts for name, facts in files.items() if name not in changing}
    seal = Seal(folder, files, hashlib.sha256(written).hexdigest())
    seal.verify(name for name, facts in files.items() if facts["size"] <= BLOCK)
    return seal


def open_sealed(folder: Path | str, unchecked: str) -> Seal | None:
    """`read_seal`; a folder without a seal may hold plain files alone, and one line says what could not be checked.

    Args:
      folder: the artefact.
      unchecked: what nothing checks where there is no seal, in words: "its tokenizer and config".
    """
    seal = read_seal(folder)
    if seal is None:
        _listed(Path(folder), ())
        tell_unsealed(folder, unchecked)
    return seal


def tell_unsealed(folder: Path | str, unchecked: str) -> None:
    """Says once a process what of a folder without a seal could not be checked, as a warning of the logger kinject."""
    where = str(Path(folder).absolute())
    if where not in _told:
        _told.add(where)
        log.warning("%s has no %s: %s could not be checked; kinject seal writes one", folder, SEAL, unchecked)


def of_hashes(folder: Path, hashes: Mapping[str, tuple[int, str]]) -> Seal:
    """A seal out of {name: (size, SHA-256 of the whole file)} for a folder that has none of its own.

    Files of more than 64 MiB are left out: to check a byte of one, all of it would have to be read.
    """
    kept = {name: {"size": size, "sha256": told} for name, (size, told) in hashes.items() if size <= READ_WHOLE}
    return Seal(folder, kept)


def refuse_special(folder: Path | str) -> None:
    """Raises InputError for something in a folder that is no plain file: reading it might never end."""
    _listed(Path(folder), ())


def _listed(folder: Path, outside: Sequence[str]) -> dict[str, int]:
    """{name: size} of the plain files in a folder; hidden ones, `outside` and sealed folders inside are left out."""
    found: dict[str, int] = {}
    pending = [(folder, "")]
    while pending:
        place, prefix = pending.pop()
        try:
            with os.scandir(place) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(place, f"it cannot be read: {error.strerror or error}", "name a folder") from None
        for entry in listed:
            if not prefix and (entry.name in outside or entry.name == SEAL):
                continue
            if entry.name.startswith(".") and not prefix:
                continue
            try:
                about = entry.stat()
            except OSError as error:
                raise InputError(entry.path, f"it cannot be read: {error.strerror or error}", DAMAGED) from None
            if stat.S_ISDIR(about.st_mode):
                if not (Path(entry.path) / SEAL).is_file():
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif stat.S_ISREG(about.st_mode):
                found[prefix + entry.name] = about.st_size
            else:
                raise InputError(entry.path, "it is no plain file", "take it out of the folder")
    return found


def _described(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= BLOCK:
            return {"size": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        hashes = [_block_hash(block) for block in iter(lambda: file.read(BLOCK), b"")]
    return {"size": size, "blocks": "".join(hashes)}


def _block_hash(block: bytes) -> str:
    return hashlib.sha256(block).hexdigest()[: 2 * BLOCK_HASH]


def _read_fields(path: Path) -> tuple[bytes, dict[str, Any], list[str]]:
    """The bytes of a seal.json, its `files`, checked, and its `outside`."""
    if not path.is_file():
        raise InputError(path, "it is no plain file", DAMAGED)
    try:
        written = path.read_bytes()
        sealed = json.loads(written)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, f"it is no seal: {first_line(error)}", DAMAGED) from None
    if not isinstance(sealed, dict) or sealed.get("format") != FORMAT:
        said = sealed.get("format") if isinstance(sealed, dict) else "missing"
        raise InputError(path, f"format is {said!r}, this kinject reads {FORMAT}", "upgrade kinject, or " + DAMAGED)
    files, outside = sealed.get("files"), sealed.get("outside", [])
    if not isinstance(files, dict) or not isinstance(outside, list):
        raise InputError(path, "field 'files' or 'outside' is missing or malformed", DAMAGED)
    for name, facts in files.items():
        size = facts.get("size") if isinstance(facts, dict) else None
        if type(size) is not int or size < 0 or not _hashed(facts, size):
            raise InputError(path, f"field 'files' has a bad entry for {name!r}", DAMAGED)
    return written, files, outside


def _hashed(facts: Mapping[str, Any], size: int) -> bool:
    if size <= BLOCK:
        return isinstance(facts.get("sha256"), str)
    blocks = facts.get("blocks")
    return isinstance(blocks, str) and len(blocks) == -(-size // BLOCK) * 2 * BLOCK_HASH and "sha256" not in facts
