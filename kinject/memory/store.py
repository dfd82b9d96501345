"""A passage memory on disk: a folder of memory-mapped arrays that is edited in place, a row a passage.

memory.json      what it is: format version, sizes, fingerprints of the host's encoder and of the passage encoder
passages.jsonl   {"text", "entity"} a line, only ever appended to
lines.npy        int64 [C, 2], where a row's line starts in passages.jsonl, and its length in bytes
about.npy        uint64 [C], a hash of the row's entity: what is edited is found without reading the text
tokens.npy       int32 [C, T], ids of the host's tokenizer, -1 beyond the end
keys.npy, values.npy   [C, d] and [C, D], float32 or float16
alive.npy        bool [C]; False = a tombstone, or capacity to spare

An edit writes a free row first and its `alive` last, so a torn edit leaves what was there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from array import array as packed
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import NO_ARRAY, InputError, first_line
from kinject.integrity import Seal, refuse_special, write_seal
from kinject.json_file import open_lock, read_object
from kinject.memory.sealing import ARRAYS, TEXTS, Editing, open_memory_seal

FORMAT_VERSION = 1
MANIFEST, AGAIN = "memory.json", "copy the memory again, or build it"
FIELDS = {"name": str, "capacity": int, "hidden_size": int, "key_size": int, "length": int, "dtype": str}
FIELDS |= {"encoder_fingerprint": str, "plugin_fingerprint": str, "tag": str}
BATCH = 256  # passages encoded at a time


@dataclass(frozen=True)
class Passage:
    """A text and the entity that it is about ("" = none); several passages may be about one."""

    text: str
    entity: str = ""


Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Texts -> (tokens int32 [n, T], keys [n, d], values [n, D])."""


def about(entity: str) -> np.uint64:
    """The hash by which a row's entity is found; 0 for no entity."""
    digest = hashlib.blake2b(entity.encode(), digest_size=8).digest()
    return np.frombuffer(digest, np.uint64)[0] if entity else np.uint64(0)


def layout(manifest: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every array file."""
    rows = manifest["capacity"]
    return {
        "lines": ("int64", (rows, 2)),
        "about": ("uint64", (rows,)),
        "tokens": ("int32", (rows, manifest["length"])),
        "keys": (manifest["dtype"], (rows, manifest["key_size"])),
        "values": (manifest["dtype"], (rows, manifest["hidden_size"])),
        "alive": ("bool", (rows,)),
    }


def build_memory(
    folder: Path | str,
    passages: Iterable[Passage],
    encode: Encode,
    *,
    name: str,
    sizes: Mapping[str, int],
    encoder_fingerprint: str,
    plugin_fingerprint: str,
    tag: str = "",
    capacity: int | None = None,
    dtype: str = "float32",
) -> PassageMemory:
    """Writes a memory folder, whole or not at all; passages are read and encoded in batches, never all at once.

    Args:
      folder: must not exist.
      passages: any number, in the order of their rows.
      encode: the passage encoder.
      name: what it is called.
      sizes: `hidden_size`, `key_size`, `length` (T) of what `encode` yields.
      encoder_fingerprint: of the host's encoder whose embedding layer reads the passages.
      plugin_fingerprint: of the passage encoder (`kinject.inference.PassageEncoder`).
      tag: what stands before every text (knowledge prompting), "" = nothing.
      capacity: rows; None = an eighth more than there are passages.
      dtype: of keys and values, "float32" or "float16".

    Raises:
      InputError: the folder exists, there are more passages than capacity, an empty text, another dtype.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise InputError(folder, "it exists already", "choose another folder; nothing was overwritten")
    if dtype not in ("float32", "float16"):
        raise InputError(folder, f"dtype is {dtype!r}", "choose float32 or float16")
    draft = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        lines, hashes = _write_texts(draft, folder, passages)
        rows = len(lines) + max(1, len(lines) // 8) if capacity is None else capacity
        if rows < max(1, len(lines)):
            raise InputError(folder, f"capacity is {rows}, there are {len(lines)} passages", "raise the capacity")
        manifest = {"format_version": FORMAT_VERSION, "name": name, "capacity": rows, "dtype": dtype, "tag": tag}
        manifest |= {"encoder_fingerprint": encoder_fingerprint, "plugin_fingerprint": plugin_fingerprint, **sizes}
        for array, (kind, shape) in layout(manifest).items():
            np.lib.format.open_memmap(draft / f"{array}.npy", "w+", kind, shape).flush()
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        with PassageMemory.open(draft, write=True) as memory:
            memory._lines[: len(lines)], memory._about[: len(lines)] = lines, hashes
            for low in range(0, len(lines), BATCH):
                some = np.arange(low, min(low + BATCH, len(lines)))
                memory._encode(some, [one.text for one in memory.texts(some)], encode)
            memory.alive[: len(lines)] = True
        write_seal(draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return PassageMemory.open(folder)


def _write_texts(draft: Path, folder: Path, passages: Iterable[Passage]) -> tuple[np.ndarray, np.ndarray]:
    """Writes passages.jsonl; returns int64 [n, 2] places of the lines and uint64 [n] hashes of the entities."""
    lines, hashes, at = packed("q"), packed("Q"), 0  # eight bytes a number, where lists take forty
    with (draft / TEXTS).open("wb") as file:
        for number, passage in enumerate(passages):
            line = _line(passage, f"{folder}: passage {number}")
            file.write(line)
            lines.extend((at, len(line)))
            hashes.append(int(about(passage.entity)))
            at += len(line)
    return np.frombuffer(lines, np.int64).reshape(-1, 2), np.frombuffer(hashes, np.uint64)


def _line(passage: Passage, where: str) -> bytes:
    if not passage.text.strip():
        raise InputError(where, "the field text is empty", "leave the passage out")
    return (json.dumps({"text": passage.text, "entity": passage.entity}, ensure_ascii=False) + "\n").encode()


class PassageMemory:
    """An open memory folder; `with PassageMemory.open(folder, write=True)` holds its lock.

    Attributes:
      folder, manifest: where and what it is.
      keys: [C, d], values: [C, D], tokens: int32 [C, T], alive: bool [C], memory-mapped.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        arrays: Mapping[str, Any],
        lock: Any = None,
        seal: Seal | None = None,
    ):
        self.folder, self.manifest, self._lock, self._seal = folder, manifest, lock, seal
        self._editing = None if lock is None else Editing(folder)
        self._lines, self._about = arrays["lines"], arrays["about"]
        self.keys, self.values = arrays["keys"], arrays["values"]
        self.tokens, self.alive = arrays["tokens"], arrays["alive"]
        self._changed: set[int] = set()

    @classmethod
    def open(cls, folder: Path | str, *, write: bool = False) -> PassageMemory:
        """Maps a memory's files; nothing of their content is read.

        Raises:
          InputError: no memory there, one of another version, a file missing or of another form, or (with `write`)
            another process edits it.
        """
        folder = Path(folder).absolute()
        manifest = read_memory_manifest(folder)
        refuse_special(folder)
        lock = _locked(folder) if write else None
        arrays: dict[str, Any] = {}
        for name, (kind, shape) in layout(manifest).items():
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r+" if write else "r")
            except NO_ARRAY as error:
                raise InputError(path, f"it cannot be read: {error}", AGAIN) from None
            if (str(arrays[name].dtype), arrays[name].shape) != (kind, shape):
                problem = f"it is {arrays[name].dtype} {arrays[name].shape}, {MANIFEST} says {kind} {shape}"
                raise InputError(path, problem, AGAIN)
        if not (folder / TEXTS).exists():
            raise InputError(folder / TEXTS, "it is missing", AGAIN)
        seal = open_memory_seal(folder, tell=not write)
        if seal is not None and not write:
            arrays = {name: seal.array(f"{name}.npy", array) for name, array in arrays.items()}
        return cls(folder, manifest, arrays, lock, seal)

    def __enter__(self) -> PassageMemory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes what was edited through to the disk and lets others edit."""
        if self._lock is not None:
            for array in (self._lines, self._about, self.tokens, self.keys, self.values, self.alive):
                _flush(array)
            if self._editing is not None:
                self._editing.end()
            self._lock.close()
            self._lock = self._editing = None

    @property
    def capacity(self) -> int:
        """C, how many rows its arrays have; tombstones and spare ones count."""
        return self.manifest["capacity"]

    @property
    def size(self) -> int:
        """How many passages there are."""
        return int(np.count_nonzero(self.alive))

    def passage(self, row: int) -> Passage:
        """The passage in a row, as it was given."""
        return self.texts([row])[0]

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[Passage]:
        """The passages in some rows, int [n].

        Raises:
          InputError: the file of texts is not what was sealed, or a row's line is no passage.
        """
        path = self.folder / TEXTS
        with path.open("rb") as file:
            found = []
            for start, length in np.asarray(self._lines[rows]).tolist():
                if self._editing is None and self._seal is not None and TEXTS in self._seal.files:
                    self._seal.check_bytes(TEXTS, start, start + length)
                file.seek(start)
                try:
                    found.append(Passage(**json.loads(file.read(length))))
                except (ValueError, TypeError) as error:
                    problem = f"the line at byte {start} is no passage: {first_line(error)}"
                    raise InputError(path, problem, AGAIN) from None
            return found

    def check_file(self, name: str) -> None:
        """Raises InputError unless a file of the memory is what was sealed, where it was."""
        if self._seal is not None and name in self._seal.files:
            self._seal.check(name)

    def passages(self) -> Iterator[tuple[int, Passage]]:
        """Every (row, passage), in the order of the rows."""
        for row in np.flatnonzero(self.alive).tolist():
            yield row, self.passage(row)

    def rows_about(self, entity: str) -> list[int]:
        """Rows of the passages about an entity."""
        rows = np.flatnonzero((self._about == about(entity)) & self.alive).tolist()
        return [row for row in rows if self.passage(row).entity == entity]

    def add(self, passages: Sequence[Passage], encode: Encode) -> list[int]:
        """Writes passages into free rows, which are reused, and returns the rows.

        Raises:
          InputError: not enough free rows (nothing was changed), an empty text, opened without `write`.
        """
        self._editable()
        written = [_line(passage, f"{self.folder}: passage {i}") for i, passage in enumerate(passages)]
        free = np.flatnonzero(~self.alive)[: len(passages)]
        if len(free) < len(passages):
            problem = f"{len(passages)} passages for {len(free)} free rows"
            raise InputError(self.folder, problem, "build it with more capacity, or put a second memory beside it")
        with (self.folder / TEXTS).open("ab") as file:
            at = file.tell()
            file.write(b"".join(written))
        for row, line, passage in zip(free, written, passages, strict=True):
            self._lines[row], self._about[row] = (at, len(line)), about(passage.entity)
            at += len(line)
        for low in range(0, len(free), BATCH):
            self._encode(free[low : low + BATCH], [one.text for one in passages[low : low + BATCH]], encode)
        for array in (self._lines, self._about, self.tokens, self.keys, self.values):
            _flush(array)
        self.alive[free] = True
        self._note(ARRAYS, free)
        return free.tolist()

    def delete(self, rows: Sequence[int]) -> None:
        """Leaves tombstones. Raises InputError for a row without a passage; then nothing is deleted."""
        self._editable()
        self._all_there(rows)
        self.alive[list(rows)] = False
        self._note(("alive",), np.asarray(rows, np.int64))

    def replace(self, rows: Sequence[int], passages: Sequence[Passage], encode: Encode) -> list[int]:
        """Writes new passages, then deletes the rows; returns the new rows. Needs as many free rows while it works."""
        self._all_there(rows)  # before new ones take free rows
        added = self.add(passages, encode)
        self.delete(rows)
        return added

    def take_changes(self) -> np.ndarray:
        """Rows edited since the last call, int64, sorted: what a copy on the devices must take over."""
        rows, self._changed = np.array(sorted(self._changed), np.int64), set()
        return rows

    def _note(self, names: Sequence[str], rows: np.ndarray) -> None:
        """Keeps in mind which rows of which arrays were changed, for a copy on the devices and for the seal."""
        self._changed.update(rows.tolist())
        arrays = dict(
            zip(ARRAYS, (self._lines, self._about, self.tokens, self.keys, self.values, self.alive), strict=True)
        )
        if self._editing is not None:
            for name in names:
                self._editing.touch(name, arrays[name], rows)

    def _encode(self, rows: np.ndarray, texts: Sequence[str], encode: Encode) -> None:
        self.tokens[rows], self.keys[rows], self.values[rows] = encode(texts)

    def _all_there(self, rows: Sequence[int]) -> None:
        for row in rows:
            if not (0 <= row < self.capacity and self.alive[row]):
                raise InputError(self.folder, f"there is no passage in row {row}", "see passages()")

    def _editable(self) -> None:
        if self._lock is None:
            raise InputError(self.folder, "it is open for reading", "open it with write=True")


def read_memory_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks `memory.json`."""
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(folder, f"there is no memory here (no {MANIFEST})", "name a memory's folder")
    manifest = read_object(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        mend = "load it with the kinject that wrote it, or a newer one"
        raise InputError(path, f"format_version is {version!r}, this kinject reads {FORMAT_VERSION}", mend)
    for field, kind in FIELDS.items():
        if not isinstance(manifest.get(field), kind):
            raise InputError(path, f"the field {field} is {manifest.get(field)!r}, not of type {kind.__name__}")
    return manifest


def _flush(array: np.ndarray) -> None:
    """Writes a memory map's changes through to the disk."""
    if isinstance(array, np.memmap):
        array.flush()


def _locked(folder: Path) -> Any:
    lock = open_lock(folder / ".lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(folder, "another process is editing this memory", "wait for it") from None
    return lock
