"""A user's table of entities, read once: ids in memory, words and vectors in files of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.files import VectorSpool
from kinject.knowledge.importers.table import BUILD_COLUMNS, read_rows

_BATCH = 65_536  # entities of a record batch
FIELDS = ("label", "description", "aliases")


class Column(Sequence):
    """A column of words on disk that is read in slices; entities that came later have the value of `beyond`."""

    def __init__(self, column: Any, size: int, beyond: Callable[[int], Any]):
        self._column, self._size, self._beyond = column, size, beyond

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return self[rows : rows + 1][0]
        start, stop, step = rows.indices(self._size)
        there = self._column.slice(start, max(0, min(stop, len(self._column)) - start)).to_pylist()
        later = [self._beyond(row) for row in range(max(start, len(self._column)), stop)]
        return (there + later)[::step]


class EntityFile:
    """Reads a table of entities; a context manager that leaves no file behind.

    Args:
      path: .csv, .tsv or .jsonl, each also .gz.
      draft: a path beside which its files may be made.
      columns: what the columns are called in the file; None: as in `BUILD_COLUMNS`.
      separator: between aliases, and between triples, of a CSV or TSV.

    Attributes:
      row_of: rows by id; triples may add to it.
      has_triples: whether the table has triples of its own.

    Raises:
      InputError: naming file, line and field of what is wrong; a table without an entity.
    """

    def __init__(self, path: Path, draft: Path, columns: Mapping[str, str] | None = None, separator: str = "|"):
        self.path, self._columns, self._separator = path, columns, separator
        self._words = draft.with_name(f".{draft.name}.words-{os.getpid()}")
        self._spool = VectorSpool(draft)
        self.has_triples = False
        self.row_of = self._spool.row_of

    def __enter__(self) -> EntityFile:
        try:
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.__exit__()
        self._words.unlink(missing_ok=True)

    @property
    def ids(self) -> list[str]:
        """All ids, in the order of their rows."""
        return list(self.row_of)

    def words(self, field: str) -> Column:
        """The labels, descriptions or aliases; an entity that only triples name has its id as its label."""
        size = len(self.row_of)
        if field != "label":
            return Column(self._table.column(field), size, lambda row: [] if field == "aliases" else "")
        added = self.ids[self._table.num_rows :]
        return Column(self._table.column(field), size, lambda row: added[row - self._table.num_rows])

    def vectors(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The vector column, memory-mapped [N, k], and which entities have one; None where there is no such column."""
        if not self._spool.dim:
            return None
        _, vectors, present = self._spool.finish(self.path)
        return vectors, present

    def triples(self) -> Any:
        """Yields (where, head, relation, tail) of the table's own triples, by reading the file again."""
        for where, row in self._rows():
            for relation, tail in row.get("triples") or ():
                yield where, row["id"], relation, tail

    def _rows(self) -> Any:
        return read_rows(self.path, self._separator, BUILD_COLUMNS, self._columns)

    def _read(self) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [
                ("label", pa.large_string()),
                ("description", pa.large_string()),
                ("aliases", pa.large_list(pa.large_string())),
            ]
        )
        with pa.OSFile(str(self._words), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            batch: list[tuple[str, str, list[str]]] = []
            for where, row in self._rows():
                self._spool.add(where, row["id"], row.get("vector") or None)
                self.has_triples |= bool(row.get("triples"))
                batch.append((row.get("label") or "", row.get("description") or "", row.get("aliases") or []))
                if len(batch) == _BATCH:
                    writer.write_batch(_batch(batch, schema))
                    batch = []
            if batch:
                writer.write_batch(_batch(batch, schema))
        if not self.row_of:
            raise InputError(self.path, "holds no entity", "the first line of a CSV names its columns, id among them")
        self._table = pa.ipc.open_file(pa.memory_map(str(self._words))).read_all()


def _batch(rows: list[tuple[str, str, list[str]]], schema: Any) -> Any:
    import pyarrow as pa

    columns = zip(*rows, strict=True)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
