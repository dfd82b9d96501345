"""A knowledge base at one revision, as everything above reads it: the files that never change, and what came since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kinject.errors import InputError
from kinject.knowledge import manifest as layout
from kinject.knowledge.overlay import Overlay
from kinject.knowledge.stored import Entity, Stored

if TYPE_CHECKING:
    import pyarrow


class View:
    """Reads one revision. Rows of the files come first, then those of added entities; none is used twice.

    Attributes:
      folder: the knowledge base's folder.
      stored: its files.
      overlay: what revisions changed.
      manifest: the content of the files' `knowledge.json`.
    """

    def __init__(self, folder: Path, stored: Stored, overlay: Overlay):
        self.folder, self.stored, self.overlay = folder, stored, overlay
        self.manifest = stored.manifest

    def snapshot(self) -> Self:
        """The revision of now, whatever the knowledge base that it is taken of goes on to; nothing is copied."""
        return type(self)(self.folder, self.stored, self.overlay)

    def built(self) -> View:
        """The files as they are, without what came since."""
        return View(self.folder, self.stored, Overlay(self.stored, self.overlay.head))

    @property
    def name(self) -> str:
        """What it was called when it was written."""
        return self.manifest["name"]

    @property
    def dim(self) -> int:
        """Numbers in a vector, k."""
        return self.stored.dim

    @property
    def size(self) -> int:
        """Number of rows N: entities, those without a vector and those that were removed since included."""
        return self.overlay.size

    @property
    def revision(self) -> int:
        """Which revision this is; 0 = as it was built."""
        return self.overlay.head.revision

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex over vectors and ids as they were built; of a later revision, of its record and all before."""
        return self.overlay.head.hash

    @property
    def space(self) -> dict[str, Any]:
        """What a plugin is pinned to: {"id", "parts"}; a base that says nothing of its space is one of its own.

        `origins` are fingerprints of bases built in it, for plugins that were pinned before there were spaces.
        """
        told = self.manifest.get("space") or {"id": self.manifest["fingerprint"], "parts": []}
        return {**told, "origins": [*told.get("origins", ()), self.manifest["fingerprint"]]}

    @property
    def relations(self) -> list[dict[str, str]]:
        """The relations in index order as {"id", "label"}; empty without triples.

        Raises:
          InputError: the file is damaged.
        """
        return [*self.stored.relations, *self.overlay.relations]

    @property
    def has_names(self) -> bool:
        """Whether there are labels, aliases or descriptions."""
        return self.stored.has_names or bool(self.overlay.words)

    @cached_property
    def vectors(self) -> Any:
        """Table [N, k] of float32 or float16: a memory map, or read from two places in slices; prefer `gather`."""
        overlay = self.overlay
        if not len(overlay.table) and not len(overlay.patched):
            return self.stored.vectors
        return _GrownTable(self)

    @cached_property
    def has_vector(self) -> np.ndarray | None:
        """Which rows have a vector, bool [N]; None where all do. Of a grown base it is made anew: see `present`."""
        overlay = self.overlay
        if not len(overlay.table) and not len(overlay.patched):
            return self.stored.has_vector
        return self.present(np.arange(self.size))

    @cached_property
    def triples(self) -> np.ndarray | None:
        """All triples, int32 [T, 3] of (head row, relation index, tail row); a memory map where none changed."""
        stored, overlay = self.stored.triples, self.overlay
        if not overlay.triples and not overlay.dropped and not overlay.removed:
            return stored
        added = np.array(list(overlay.triples), np.int32).reshape(-1, 3)
        every = added if stored is None else np.concatenate([stored, added])
        gone = np.isin(every[:, 0], overlay.removed_rows) | np.isin(every[:, 2], overlay.removed_rows)
        for triple in overlay.dropped:
            gone |= (every == np.array(triple)).all(axis=1)
        return every[~gone]

    @cached_property
    def entities(self) -> pyarrow.Table | None:
        """Table (id, label, description: string; aliases: list of string) of all rows, or None without names."""
        if not self.overlay.named and not self.overlay.ids:
            return self.stored.entities
        return _grown_table(self) if self.has_names else None

    def rows(self, ids: Iterable[str]) -> np.ndarray:
        """Looks up n ids; returns int32 [n], -1 where an id is unknown or was removed."""
        if isinstance(ids, str):
            raise TypeError("rows() takes many ids; wrap a single one in a list")
        if not isinstance(ids, Sequence):
            ids = list(ids)
        found, overlay = self.stored.rows(ids), self.overlay
        if len(overlay.removed_rows):
            found[_among(found, overlay.removed_rows)] = -1
        if overlay.rows:
            for place in np.flatnonzero(found < 0).tolist():
                found[place] = overlay.row(ids[place])
        return found

    def ids(self, rows: Iterable[int]) -> list[str]:
        """The ids of n rows.

        Raises:
          InputError: a row is not of this knowledge base; -1 has no id either.
        """
        rows = self._check_rows(rows, lowest=0).ravel()
        first = self.stored.size
        if not self.overlay.ids or (rows < first).all():
            return self.stored.ids(rows)
        old = iter(self.stored.ids(rows[rows < first]))
        return [next(old) if row < first else self.overlay.ids[row - first] for row in rows.tolist()]

    def present(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows, int [...], have a vector: bool [...]; -1 has none. Costs nothing for the rows not asked for."""
        rows = np.asarray(rows)
        overlay, first = self.overlay, self.stored.size
        old = (rows >= 0) & (rows < first)
        found = np.zeros(rows.shape, bool)
        found[old] = self.stored.present(rows[old])
        if len(overlay.table):
            new = rows >= first
            found[new] = overlay.present[rows[new] - first]
        if len(overlay.patched):
            hit = _among(rows, overlay.patched)
            found[hit] = overlay.patch_present[np.searchsorted(overlay.patched, rows[hit])]
        return found

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the vectors of rows, int [...].

        Returns:
          float32 [..., k], zeros where nothing was found, and bool [...]: whether the row has a vector. -1 has none.

        Raises:
          InputError: a row below -1 or beyond the last.
        """
        rows = self._check_rows(rows, lowest=-1)
        found = self.present(rows)
        out = np.zeros((*rows.shape, self.dim), np.float32)
        overlay, first = self.overlay, self.stored.size
        if not len(overlay.table) and not len(overlay.patched):
            out[found] = self.stored.vectors[rows[found]]
            return self._finite(rows, out), found
        old, new = found & (rows < first), found & (rows >= first)
        out[old] = self.stored.vectors[rows[old]]
        out[new] = overlay.table[rows[new] - first]
        patched = found & _among(rows, overlay.patched)
        out[patched] = overlay.patches[np.searchsorted(overlay.patched, rows[patched])]
        return self._finite(rows, out), found

    def entity(self, row: int) -> Entity:
        """What is known of one row in words.

        Raises:
          InputError: the row is not of this knowledge base.
        """
        (one,) = self.ids([row])
        row = int(row)
        if row in self.overlay.words:
            return self.overlay.words[row]
        return Entity(one) if row >= self.stored.size or row in self.overlay.removed else self.stored.entity(row)

    def _finite(self, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        if not np.isfinite(vectors).all():
            bad = int(rows[~np.isfinite(vectors).all(axis=-1)].ravel()[0])
            problem = f"the vector of {self.ids([bad])[0]!r} (row {bad}) holds a number that is not finite"
            raise InputError(self.stored.folder / layout.VECTORS, problem, "copy the whole folder again")
        return vectors

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


class _GrownTable:
    """The vectors of a grown base, [N, k] in the stored dtype, to whoever reads them in slices or by rows."""

    def __init__(self, view: View):
        self._view = view
        self.shape, self.dtype = (view.size, view.dim), view.stored.vectors.dtype
        self.itemsize = self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._view.gather(np.asarray(np.arange(len(self))[rows]))[0].astype(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = np.empty(self.shape, dtype or self.dtype)
        for some in layout.blocks(len(self), self.shape[1] * 4):
            out[some] = self[some]
        return out


def _among(rows: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which rows, int [...], are among some that are sorted; bool [...]."""
    if not len(some):
        return np.zeros(rows.shape, bool)
    place = np.minimum(np.searchsorted(some, rows), len(some) - 1)
    return some[place] == rows


def _grown_table(view: View) -> pyarrow.Table:
    """The words of all rows: slices of the memory-mapped table between the rows that changed."""
    import pyarrow as pa

    from kinject.knowledge.write import entity_schema

    schema = entity_schema()
    first, parts, done = view.stored.size, [], 0
    changed = sorted({row for row in view.overlay.named if row < first})
    if view.stored.entities is None:
        changed = list(range(first))
    for row in [*changed, first]:
        if view.stored.entities is not None and row > done:
            parts.append(view.stored.entities.select(schema.names).slice(done, row - done).cast(schema))
        if row < first:
            parts.append(_words_table([view.entity(row)], schema))
        done = row + 1
    parts.append(_words_table([view.entity(row) for row in range(first, view.size)], schema))
    return pa.concat_tables(parts)


def _words_table(words: Sequence[Entity], schema: Any) -> pyarrow.Table:
    import pyarrow as pa

    rows = [{**one._asdict(), "aliases": list(one.aliases)} for one in words]
    return pa.Table.from_pylist(rows, schema=schema)
