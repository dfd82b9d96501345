"""The manifest of a knowledge base folder, and the fingerprint that pins its content.

`knowledge.json` says what the folder holds, so that opening one reads a few kilobytes and never the table. The
fingerprint covers what a plugin is trained against (vectors and ids in row order), not how they are stored: rewriting
the labels or the index leaves it as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.integrity import SEAL, Seal, of_hashes, open_sealed
from kinject.version import __version__

MANIFEST = "knowledge.json"
VECTORS = "vectors.npy"
TRIE = "ids.marisa"
KEY_OF_ROW = "key_of_row.npy"
ROW_OF_KEY = "row_of_key.npy"
HAS_VECTOR = "has_vector.npy"
ENTITIES = "entities.arrow"
TRIPLES = "triples.npy"
RELATIONS = "relations.json"

OUTSIDE = ("HEAD.json", "HEAD.json.partial", "revisions", "base")  # of the base's own seal: what edits move and add

FORMAT_VERSION = 1
DTYPES = {"float32": "<f4", "float16": "<f2"}
BLOCK_BYTES = 16 << 20

# field -> accepted types; a manifest with another field is from a later version, and is read as far as it is known
FIELDS: dict[str, tuple[type, ...]] = {
    "format_version": (int,),
    "name": (str,),
    "count": (int,),
    "dim": (int,),
    "dtype": (str,),
    "fingerprint": (str,),
    "source": (str,),
    "license": (str,),
    "kinject_version": (str,),
    "normalisation": (str,),
    "metrics": (dict,),
    "has_vector": (str, type(None)),
    "files": (dict,),
}


class Fingerprint:
    """SHA-256 over the vectors (little-endian, row by row), then which rows have one, then the ids in row order."""

    def __init__(self, count: int, dim: int, dtype: str):
        self._hash = hashlib.sha256(f"kinject knowledge {count} {dim} {dtype}\n".encode())

    def add_vectors(self, block: np.ndarray) -> None:
        """Takes the next rows, [n, k], C-contiguous, in the stored dtype."""
        self._hash.update(block.data)

    def add_presence(self, has_vector: np.ndarray | None) -> None:
        """Takes which rows have a vector, bool [N]; None says all, and is the same as an array of True."""
        if has_vector is not None and not has_vector.all():
            self._hash.update(np.packbits(has_vector).data)

    def add_ids(self, ids: Iterable[str]) -> None:
        """Takes the next ids; none holds a line break, so that joining by one is unambiguous."""
        self._hash.update("".join(f"{one}\n" for one in ids).encode())

    def hexdigest(self) -> str:
        """The digest of what was added so far, in hexadecimal digits."""
        return self._hash.hexdigest()


def blocks(count: int, row_bytes: int) -> Iterator[slice]:
    """Yields slices that cover `count` rows in pieces of about 16 MiB."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_knowledge_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Writes `knowledge.json`, with the size and hash of every other file in the folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(folder.iterdir())
        if path.name not in (MANIFEST, SEAL)
    }
    manifest = {"format_version": FORMAT_VERSION, **fields, "kinject_version": __version__, "files": files}
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_knowledge_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks `knowledge.json` and the sizes of the files it names.

    Raises:
      InputError: no such folder or manifest, a missing or ill-typed field, a later format, a missing or cut file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "holds no knowledge.json" if folder.is_dir() else "is not a folder"
        raise InputError(folder, what, "make one: kinject knowledge build, or write_knowledge in Python")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, f"is not JSON: {error}", "write the knowledge base again") from None
    _check_fields(path, manifest)
    _check_sizes(folder, manifest["files"])
    return manifest


def _check_fields(path: Path, manifest: Any) -> None:
    again = "write the knowledge base again"
    if not isinstance(manifest, dict):
        raise InputError(path, "is not a JSON object", again)
    if manifest.get("format_version") != FORMAT_VERSION:
        problem = f"format_version is {manifest.get('format_version')!r}, this kinject reads {FORMAT_VERSION}"
        raise InputError(path, problem, "upgrade kinject, or write the knowledge base again")
    for field, types in FIELDS.items():
        if field not in manifest:
            raise InputError(path, f"field {field!r} is missing", again)
        if not isinstance(manifest[field], types) or isinstance(manifest[field], bool):
            raise InputError(path, f"field {field!r} is {manifest[field]!r}, not {types[0].__name__}", again)
    for field in ("count", "dim"):
        if manifest[field] < 1:
            raise InputError(path, f"field {field!r} is {manifest[field]}, not positive", again)
    if manifest["dtype"] not in DTYPES:
        raise InputError(path, f"field 'dtype' is {manifest['dtype']!r}, not one of {', '.join(DTYPES)}", again)
    needed = [VECTORS, TRIE, KEY_OF_ROW, ROW_OF_KEY]
    for name in [*needed, manifest["has_vector"]] if manifest["has_vector"] else needed:
        if name not in manifest["files"]:
            raise InputError(path, f"field 'files' does not name {name}", again)


def _check_sizes(folder: Path, files: dict[str, Any]) -> None:
    for name, facts in files.items():
        path = folder / name
        if Path(name).name != name or not isinstance(facts, dict) or not isinstance(facts.get("bytes"), int):
            raise InputError(folder / MANIFEST, f"field 'files' has a bad entry for {name!r}")
        if not path.is_file():
            raise InputError(path, "is missing", "copy the whole folder again")
        if path.stat().st_size != facts["bytes"]:
            problem = f"has {path.stat().st_size} bytes, knowledge.json says {facts['bytes']}"
            raise InputError(path, problem, "copy the whole folder again")


def seal_of(folder: Path, manifest: dict[str, Any]) -> tuple[Seal, bool]:
    """What the files of a base are checked by: its seal, or the hashes of its manifest; and whether it has a seal.

    Raises:
      InputError: as `integrity.read_seal`.
    """
    seal = open_sealed(folder, "knowledge.json, and files of more than 64 MiB,")
    if seal is not None:
        return seal, True
    facts = manifest["files"].items()
    return of_hashes(folder, {name: (one["bytes"], str(one.get("sha256"))) for name, one in facts}), False


def refuse_existing(folder: Path) -> None:
    """Raises InputError where something is at the path already: nothing is overwritten."""
    if folder.exists() or folder.is_symlink():
        raise InputError(folder, "exists already", "name another folder, or remove this one first")
