"""The files of a knowledge base that never change: memory-mapped tables, and ids in a succinct trie.

Opening five million entities costs a few megabytes and milliseconds, and every process on a machine shares the same
pages. What was added, changed or removed since stands in revisions (overlay.py); `view.py` reads both as one.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import marisa_trie
import numpy as np

from kinject.errors import NO_ARRAY, InputError
from kinject.knowledge import manifest as layout
from kinject.knowledge.space import Part

if TYPE_CHECKING:
    import pyarrow

_COPY = "copy the whole folder again"


class Entity(NamedTuple):
    """What is known of an entity in words; empty where nothing is."""

    id: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""


class Stored:
    """The files of one folder, open.

    Attributes:
      folder: where they lie.
      manifest: the content of `knowledge.json`.
      vectors: memory map [N, k], float32 or float16, read-only; rows without a vector are zeros.
      has_vector: bool [N] memory map, or None when every entity has a vector.
      triples: int32 [T, 3] memory map of (head row, relation index, tail row), or None.
      parts: of the vector space, once `placement.parts_of` has read them.
      readings: how votes are read, once `readings.readings_of` has looked for it.
      taught: the regression from descriptions, once `regressed.learned` has looked for it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest
        self.size, self.dim = int(manifest["count"]), int(manifest["dim"])
        self._seal, self._sealed = layout.seal_of(folder, manifest)
        self._seal.hold(manifest["files"])  # a compaction may take the names away, and blocks are checked later
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
        self._entities, self._relations = (self._open_file(name) for name in (layout.ENTITIES, layout.RELATIONS))
        self.parts: tuple[Part, ...] | None = None
        self.taught: tuple[Part | None] | None = None
        self.readings: dict[int, Any] | None = None

    @classmethod
    def open(cls, folder: Path) -> Stored:
        """Opens a folder, checking manifest, file sizes, shapes and dtypes.

        Raises:
          InputError: not a knowledge base, a missing, cut or unfitting file, a later format.
        """
        return cls(folder, layout.read_knowledge_manifest(folder))

    @cached_property
    def relations(self) -> list[dict[str, str]]:
        """The relations in index order as {"id", "label"}; empty without triples.

        Raises:
          InputError: the file is damaged.
        """
        if self._relations is None:
            return []
        self._check_file(layout.RELATIONS)
        try:
            return json.loads(self._relations[:].decode())
        except ValueError as error:
            raise InputError(self.folder / layout.RELATIONS, f"is not JSON: {error}", _COPY) from None

    @cached_property
    def entities(self) -> pyarrow.Table | None:
        """Memory-mapped table (id, label, description: string; aliases: list of string), or None without names."""
        if self._entities is None:
            return None
        self._check_file(layout.ENTITIES)  # Arrow follows damaged offsets out of the file
        return _read_table(self.folder / layout.ENTITIES, self._entities, self.size)

    @property
    def has_names(self) -> bool:
        """Whether there are labels, aliases or descriptions; does not import Arrow."""
        return layout.ENTITIES in self.manifest["files"]

    def check_claim(self) -> None:
        """Holds unsealed files to the fingerprint that they claim; more than 64 MiB only `verify` reads whole.

        Raises:
          InputError: as `verify`.
        """
        if not self._sealed and layout.VECTORS in self._seal.files:
            self.verify()
            self._sealed = True  # what it claims is what it is

    def _checked(self, name: str, dtype: str, shape: tuple[int, ...]) -> Any:
        """A memory map whose blocks are checked when they are first read, where there is something to check by."""
        return self._seal.array(name, _map(self.folder / name, dtype, shape))

    def _check_file(self, name: str) -> None:
        if name in self._seal.files:
            self._seal.check(name)

    def _open_file(self, name: str) -> mmap.mmap | None:
        if name not in self.manifest["files"]:
            return None
        try:
            with (self.folder / name).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise InputError(self.folder / name, f"cannot be read: {error}", _COPY) from None

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Looks up n ids; returns int32 [n], -1 where an id is unknown."""
        keys = np.fromiter(map(self._trie.get, ids, repeat(-1)), np.int32, count=len(ids))
        return np.where(keys >= 0, self._row_of_key[keys], np.int32(-1))

    def ids(self, rows: np.ndarray) -> list[str]:
        """The ids of rows int [n], which must be there."""
        return [self._trie.restore_key(key) for key in self._key_of_row[rows].tolist()]

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows int [...] of this table have a vector, bool [...]."""
        return np.ones(rows.shape, bool) if self.has_vector is None else np.asarray(self.has_vector[rows])

    def entity(self, row: int) -> Entity:
        """What is known of one row in words."""
        (one,) = self.ids(np.array([row]))
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
            actual.add_ids(self.ids(np.arange(rows.start, rows.stop)))
        said = self.manifest["fingerprint"]
        if actual.hexdigest() != said:
            problem = f"fingerprint is {actual.hexdigest()}, knowledge.json says {said}"
            raise InputError(self.folder, problem, _COPY)
        return said


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-maps an array, insisting on its dtype and shape (-1 = any length)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except NO_ARRAY as error:
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


def _read_table(path: Path, content: mmap.mmap, count: int) -> pyarrow.Table:
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(content))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"is not a readable Arrow file: {error}", _COPY) from None
    missing = {"id", "label", "description", "aliases"} - set(table.column_names)
    if missing or table.num_rows != count:
        problem = f"has {table.num_rows} rows and lacks columns {sorted(missing)}; knowledge.json says {count} rows"
        raise InputError(path, problem, _COPY)
    return table
