"""A knowledge base: entities, their vectors, names and triples, in one folder that is opened and never loaded.

Tables are memory-mapped and ids live in a succinct trie, so opening five million entities costs a few megabytes and
milliseconds, and every process on a machine shares the same pages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import marisa_trie
import numpy as np

from kinject.errors import InputError
from kinject.knowledge import manifest as layout
from kinject.knowledge.write import write_knowledge

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Entity", "KnowledgeBase", "write_knowledge"]

_COPY = "copy the whole folder again"


class Entity(NamedTuple):
    """What is known of an entity in words; empty where nothing is."""

    id: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""


class KnowledgeBase:
    """An open knowledge base; make one with `KnowledgeBase.open`. Cheap to pickle: it travels as its folder's path.

    Attributes:
      folder: where it lives.
      manifest: the content of `knowledge.json`.
      vectors: memory map [N, k], float32 or float16, read-only; rows without a vector are zeros, so prefer `gather`.
      has_vector: bool [N] memory map, or None when every entity has a vector.
      triples: int32 [T, 3] memory map of (head row, relation index, tail row), or None.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest
        self._seal, self._sealed = layout.seal_of(folder, manifest)
        shape, dtype = (self.size, self.dim), layout.DTYPES[manifest["dtype"]]
        self.vectors: Any = self._checked(layout.VECTORS, dtype, shape)
        for name in (layout.KEY_OF_ROW, layout.ROW_OF_KEY, layout.TRIE, manifest["has_vector"]):
            if name in self._seal.files:  # small beside the vectors, and read at places that nobody can foresee
                self._seal.check(name)
        self._key_of_row = _map(folder / layout.KEY_OF_ROW, "<i4", (self.size,))
        self._row_of_key = _map(folder / layout.ROW_OF_KEY, "<i4", (self.size,))
        presence = manifest["has_vector"]
        self.has_vector = _map(folder / presence, "|b1", (self.size,)) if presence else None
        has_triples = layout.TRIPLES in manifest["files"]
        self.triples: Any = self._checked(layout.TRIPLES, "<i4", (-1, 3)) if has_triples else None
        self._trie = _map_trie(folder / layout.TRIE, self.size)
        self._entities: pyarrow.Table | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> KnowledgeBase:
        """Opens a folder, checking manifest, file sizes, shapes and dtypes (content: see `verify`).

        Raises:
          InputError: not a knowledge base, a missing, cut or unfitting file, a later format.
        """
        folder = Path(folder).absolute()
        return cls(folder, layout.read_knowledge_manifest(folder))

    def _checked(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        """A memory map whose blocks are checked when they are first read, where there is something to check by."""
        return self._seal.array(name, _map(self.folder / name, dtype, shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return KnowledgeBase.open, (self.folder,)

    def __repr__(self) -> str:
        return f"KnowledgeBase({self.name!r}, {self.size} entities x {self.dim}, {self.folder})"

    @property
    def name(self) -> str:
        """What it was called when it was written."""
        return self.manifest["name"]

    @property
    def dim(self) -> int:
        """Numbers in a vector, k."""
        return self.manifest["dim"]

    @property
    def size(self) -> int:
        """Number of entities N, those without a vector included."""
        return self.manifest["count"]

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over vectors and ids; what a plugin is pinned to."""
        return self.manifest["fingerprint"]

    @property
    def relations(self) -> list[dict[str, str]]:
        """The relations in index order as {"id", "label"}; empty without triples.

        Raises:
          InputError: the file is damaged.
        """
        path = self.folder / layout.RELATIONS
        if layout.RELATIONS not in self.manifest["files"]:
            return []
        self._check_file(layout.RELATIONS)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(path, f"is not JSON: {error}", _COPY) from None

    @property
    def entities(self) -> pyarrow.Table | None:
        """Memory-mapped table (id, label, description: string; aliases: list of string), or None without names."""
        if self._entities is None and layout.ENTITIES in self.manifest["files"]:
            self._check_file(layout.ENTITIES)  # Arrow follows damaged offsets out of the file
            self._entities = _map_table(self.folder / layout.ENTITIES, self.size)
        return self._entities

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Looks up n ids; returns int32 [n], -1 where an id is unknown."""
        if isinstance(ids, str):
            raise TypeError("rows() takes many ids; wrap a single one in a list")
        if not isinstance(ids, Sequence):
            ids = list(ids)
        keys = np.fromiter(map(self._trie.get, ids, repeat(-1)), np.int32, count=len(ids))
        return np.where(keys >= 0, self._row_of_key[keys], np.int32(-1))

    def ids(self, rows: Iterable[int]) -> list[str]:
        """The ids of n rows.

        Raises:
          InputError: a row is not of this knowledge base; -1 has no id either.
        """
        rows = self._check_rows(rows, lowest=0)
        return [self._trie.restore_key(key) for key in self._key_of_row[rows.ravel()].tolist()]

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the vectors of rows, int [...].

        Returns:
          float32 [..., k], zeros where nothing was found, and bool [...]: whether the row has a vector. -1 has none.

        Raises:
          InputError: a row below -1 or beyond the last.
        """
        rows = self._check_rows(rows, lowest=-1)
        found = rows >= 0
        if self.has_vector is not None:
            found = found & self.has_vector[rows]
        out = np.zeros((*rows.shape, self.dim), np.float32)
        out[found] = self.vectors[rows[found]]
        if not np.isfinite(out).all():
            bad = int(rows[~np.isfinite(out).all(axis=-1)][0])
            problem = f"the vector of {self.ids([bad])[0]!r} (row {bad}) holds a number that is not finite"
            raise InputError(self.folder / layout.VECTORS, problem, _COPY)
        return out, found

    def entity(self, row: int) -> Entity:
        """What is known of one row in words.

        Raises:
          InputError: the row is not of this knowledge base.
        """
        (one,) = self.ids([row])
        if self.entities is None:
            return Entity(one)
        fields = self.entities.slice(int(row), 1).to_pylist()[0]
        return Entity(one, fields["label"] or "", tuple(fields["aliases"] or ()), fields["description"] or "")

    def verify(self) -> str:
        """Reads everything, block by block, and returns the fingerprint.

        Raises:
          InputError: a file or the whole differs from what the manifest says.
        """
        self._seal.forget()
        if self._sealed:
            self._seal.verify()
        for name, facts in self.manifest["files"].items():
            if layout.file_hash(self.folder / name) != facts.get("sha256"):
                raise InputError(self.folder / name, "content differs from what knowledge.json says", _COPY)
        actual = layout.Fingerprint(self.size, self.dim, self.manifest["dtype"])
        for rows in layout.blocks(self.size, self.vectors.itemsize * self.dim):
            actual.add_vectors(np.ascontiguousarray(self.vectors[rows]))
        actual.add_presence(self.has_vector)
        for rows in layout.blocks(self.size, 64):
            actual.add_ids(self.ids(range(rows.start, rows.stop)))
        if actual.hexdigest() != self.fingerprint:
            problem = f"fingerprint is {actual.hexdigest()}, knowledge.json says {self.fingerprint}"
            raise InputError(self.folder, problem, _COPY)
        return self.fingerprint

    def check_claim(self) -> None:
        """Holds an unsealed base to the fingerprint that it claims; one larger than 64 MiB only `verify` reads whole.

        Raises:
          InputError: as `verify`.
        """
        if not self._sealed and layout.VECTORS in self._seal.files:
            self.verify()
            self._sealed = True  # what it claims is what it is

    def _check_file(self, name: str) -> None:
        if name in self._seal.files:
            self._seal.check(name)

    def _check_rows(self, rows: Any, lowest: int) -> np.ndarray:
        rows = np.asarray(rows if isinstance(rows, np.ndarray | Sequence | int) else list(rows))
        if rows.size == 0:
            return rows.astype(np.int64)
        if not np.issubdtype(rows.dtype, np.integer):
            raise InputError(f"knowledge base {self.name}", f"rows are {rows.dtype}, not integers")
        if rows.min() < lowest or rows.max() >= self.size:
            wrong = rows.min() if rows.min() < lowest else rows.max()
            problem = f"row {wrong} asked for, there are {self.size} entities"
            raise InputError(f"knowledge base {self.name}", problem, "look rows up with rows() of the same base")
        return rows


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-maps an array, insisting on its dtype and shape (-1 = any length)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(path, f"is not a readable .npy file: {error}", _COPY) from None
    fits = array.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype.str != dtype or not fits or not array.flags.c_contiguous:
        raise InputError(path, f"is {array.dtype.str} {array.shape}, knowledge.json asks for {dtype} {shape}", _COPY)
    return array


def _map_trie(path: Path, count: int) -> marisa_trie.Trie:
    try:
        trie = marisa_trie.Trie().mmap(str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(path, f"is not a readable id index: {error}", _COPY) from None
    if len(trie) != count:
        raise InputError(path, f"holds {len(trie)} ids, knowledge.json says {count}", _COPY)
    return trie


def _map_table(path: Path, count: int) -> pyarrow.Table:
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"is not a readable Arrow file: {error}", _COPY) from None
    missing = {"id", "label", "description", "aliases"} - set(table.column_names)
    if missing or table.num_rows != count:
        problem = f"has {table.num_rows} rows and lacks columns {sorted(missing)}; knowledge.json says {count} rows"
        raise InputError(path, problem, _COPY)
    return table
