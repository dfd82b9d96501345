"""Revisions on disk: append-only records, one pointer that moves, and a chain of hashes between them.

    HEAD.json               {"format", "revision", "hash", "base"}: the newest revision, SHA-256 of its record, and the
                            folder of the files that never change ("." or "base/NNNNNN"); replaced by one rename
    revisions/NNNNNN.json   what a revision changed, by ids; "parent" is the hash of the record before it, and of the
                            first one the fingerprint of the base
    revisions/NNNNNN.npy    its vectors, where they are many; the record holds the hash
    revisions/LOCK          held by a writer, with flock: whoever dies lets go of it

A record is on the disk before the pointer names it, so that a reader sees a whole revision or the one before. What a
killed writer left behind the pointer is nobody's, and the next writer writes over it.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinject.errors import NO_ARRAY, InputError
from kinject.json_file import open_lock, read_object

FORMAT_VERSION = 1
HEAD, REVISIONS, LOCK = "HEAD.json", "revisions", "LOCK"
INLINE = 1 << 16  # bytes of vectors that stand in the record itself; more are in a file of their own
_COPY = "copy the whole folder again, or restore it from a backup"
_LISTS = ("entities", "removed", "triples", "dropped", "relations")


class Head(NamedTuple):
    """What the pointer says.

    Attributes:
      revision: the newest one's number.
      hash: SHA-256 of its record, in hexadecimal digits.
      base: folder of the files that never change, relative to the knowledge base's.
    """

    revision: int
    hash: str
    base: str = "."


class Revision(NamedTuple):
    """One revision as it was read.

    Attributes:
      facts: the record: revision, parent, space, time, kind, and the lists of what changed (docs/formats.md).
      vectors: [n, k], what `vector` of an entity in `facts` is an index of.
      hash: SHA-256 of the record's file.
    """

    facts: dict[str, Any]
    vectors: np.ndarray
    hash: str


def read_head(folder: Path) -> Head | None:
    """Reads the pointer; None where nothing was ever added or changed.

    Raises:
      InputError: it is damaged or of a later format.
    """
    path = folder / HEAD
    if not path.exists() and not path.is_symlink():
        if any((folder / REVISIONS).glob("[0-9]*.json")):
            raise InputError(path, "it is missing, and there are revisions", _COPY)
        return None
    found = read_object(path, _COPY)
    if found.get("format") != FORMAT_VERSION:
        raise InputError(path, f"format is {found.get('format')!r}, this kinject reads {FORMAT_VERSION}", "upgrade it")
    kinds = {"revision": int, "hash": str, "base": str}
    for field, kind in kinds.items():
        if not isinstance(found.get(field), kind) or isinstance(found.get(field), bool):
            raise InputError(path, f"field {field!r} is {found.get(field)!r}, not {kind.__name__}", _COPY)
    parts = Path(found["base"]).parts
    if parts and (len(parts) != 2 or parts[0] != "base" or not parts[1].isdigit()):
        raise InputError(path, f"field 'base' is {found['base']!r}, not . or base/NNNNNN", _COPY)
    return Head(found["revision"], found["hash"], found["base"])


def read_chain(folder: Path, start: Head, end: Head) -> list[Revision]:
    """Reads the records behind `start` up to `end`, oldest first, each checked against the hash that names it.

    Raises:
      InputError: one is missing, damaged, or no successor of the one before.
    """
    found: list[Revision] = []
    expected = end.hash
    for number in range(end.revision, start.revision, -1):
        record = _read_record(folder, number, expected)
        found.append(record)
        expected = record.facts["parent"]
    if expected != start.hash:
        where = record_path(folder, start.revision + 1)
        problem = f"it follows {expected[:19]}…, and revision {start.revision} is {start.hash[:19]}…"
        raise InputError(where, problem, _COPY)
    return found[::-1]


def record_path(folder: Path, revision: int) -> Path:
    """Where a revision's record lies."""
    return folder / REVISIONS / f"{revision:06d}.json"


def _read_record(folder: Path, number: int, expected: str) -> Revision:
    path = record_path(folder, number)
    content = _read_plain(path)
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        problem = f"its hash is {actual[:19]}…, and what comes after it was made for {expected[:19]}…"
        raise InputError(path, problem, _COPY)
    facts = json.loads(content)
    if facts.get("format") != FORMAT_VERSION:
        raise InputError(path, f"format is {facts.get('format')!r}, this kinject reads {FORMAT_VERSION}", "upgrade it")
    if facts.get("revision") != number or any(not isinstance(facts.get(name), list) for name in _LISTS):
        raise InputError(path, "it is no record of this revision", _COPY)
    return Revision(facts, _read_vectors(path, facts["vectors"]), actual)


def _read_plain(path: Path) -> bytes:
    """A file's bytes; of a pipe or a device, which may never end, nothing is read."""
    if not path.is_file():
        raise InputError(path, "it is no plain file" if path.exists() else "it is missing", _COPY)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"it cannot be read ({error.strerror})", _COPY) from None


def _read_vectors(path: Path, said: dict[str, Any]) -> np.ndarray:
    """The vectors of a record: its own, or those of the file beside it, checked against size and hash."""
    try:
        if "inline" in said:
            raw = base64.b64decode(said["inline"], validate=True)
        else:
            path = path.with_suffix(".npy")
            raw = _read_plain(path)
            if len(raw) != said["bytes"] or hashlib.sha256(raw).hexdigest() != said["sha256"]:
                raise InputError(path, "its content is not what the record beside it was written for", _COPY)
        vectors = np.load(io.BytesIO(raw), allow_pickle=False)
    except (*NO_ARRAY, KeyError, binascii.Error) as error:
        raise InputError(path, f"the vectors cannot be read: {error}", _COPY) from None
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise InputError(path, f"its vectors are {vectors.dtype} {vectors.shape}, or not all finite", _COPY)
    return vectors


def write_record(folder: Path, facts: dict[str, Any], vectors: np.ndarray) -> str:
    """Writes a revision's record, down to the disk; returns its hash. The pointer does not name it yet."""
    path = record_path(folder, facts["revision"])
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    raw = buffer.getvalue()
    path.with_suffix(".npy").unlink(missing_ok=True)
    if len(raw) <= INLINE:
        said: dict[str, Any] = {"inline": base64.b64encode(raw).decode()}
    else:
        said = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        _write_down(path.with_suffix(".npy"), raw)
    content = (json.dumps({"format": FORMAT_VERSION, **facts, "vectors": said}, ensure_ascii=False) + "\n").encode()
    _write_down(path, content)
    sync_folder(path.parent)
    return hashlib.sha256(content).hexdigest()


def move_head(folder: Path, head: Head) -> None:
    """Makes a revision the newest one: a file beside the pointer, then one rename, then the folder to the disk."""
    partial = folder / (HEAD + ".partial")
    _write_down(partial, (json.dumps({"format": FORMAT_VERSION, **head._asdict()}) + "\n").encode())
    partial.replace(folder / HEAD)
    sync_folder(folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Waits until no other process, and no other thread, writes; then holds the folder for this one.

    Raises:
      InputError: the folder cannot be written.
    """
    try:
        (folder / REVISIONS).mkdir(exist_ok=True)
        lock = open_lock(folder / REVISIONS / LOCK)
    except OSError as error:
        raise InputError(folder, f"it cannot be written ({error.strerror})", "copy it to a folder of yours") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        except OSError as error:
            where = error.filename or folder
            problem = f"it cannot be written ({error.strerror or error})"
            raise InputError(where, problem, "nothing was changed: the revision before still stands") from None


def _write_down(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sees to it that the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
