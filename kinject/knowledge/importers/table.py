"""Your own entities: CSV, TSV or JSON lines with id, label, aliases, description, vector and triples.

Only id is needed. Aliases are a list in JSON and joined by `|` elsewhere; a vector is a list of numbers in JSON and
numbers joined by spaces elsewhere. An entity whose vector is empty is known but has none. The vectors may come from a
.npy file instead, in the order of the rows. Triples, whose head the entity is, are lists of relation and tail in JSON
and `relation=tail` joined by `|` elsewhere; `kinject knowledge build` reads them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError, did_you_mean
from kinject.json_file import parse
from kinject.knowledge.files import VectorSpool, at, map_array
from kinject.knowledge.write import write_knowledge
from kinject.text_files import read_lines, table_rows

COLUMNS = ("id", "label", "aliases", "description", "vector")
BUILD_COLUMNS = (*COLUMNS, "triples")
_BATCH = 65_536  # entities of a record batch
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def import_table(
    folder_out: Path,
    *,
    entities: Path,
    vectors: Path | None = None,
    alias_separator: str = "|",
    columns: Mapping[str, str] | None = None,
    **about: Any,
) -> Path:
    """Imports a table of entities.

    Args:
      folder_out: the knowledge base to write.
      entities: .csv, .tsv or .jsonl (each also .gz), columns as above; a CSV or TSV starts with their names.
      vectors: .npy, floating [N, k], for a table without a vector column.
      alias_separator: between the aliases of a CSV or TSV.
      columns: what the columns are called in the file, by the names above; any others are then passed over.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    apart = vectors is not None
    with EntityTable(
        Path(entities), Path(folder_out), columns, alias_separator, known=COLUMNS, vectors_apart=apart
    ) as table:
        if vectors is None:
            values, has_vector = table.vectors()
        else:
            values, has_vector = map_array(Path(vectors)), None
            if len(table.row_of) != len(values):
                problem = f"{len(table.row_of)} entities, but {len(values)} vectors in {vectors}"
                raise InputError(Path(entities), problem)
        return write_knowledge(
            folder_out,
            ids=list(table.row_of),
            labels=table.words("label"),
            aliases=table.words("aliases"),
            descriptions=table.words("description"),
            vectors=values,
            has_vector=has_vector,
            **about,
        )


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


class EntityTable:
    """Reads a table of entities; a context manager that leaves no file behind.

    Args:
      path: .csv, .tsv or .jsonl, each also .gz.
      draft: a path beside which its files may be made.
      columns: what the columns are called in the file; None: as in `BUILD_COLUMNS`.
      separator: between aliases, and between triples, of a CSV or TSV.
      known: the columns that may be there.
      vectors_apart: whether the vectors are in another file, so that a row with one is refused.

    Attributes:
      row_of: rows by id; triples may add to it.
      has_triples: whether the table has triples of its own.

    Raises:
      InputError: naming file, line and field of what is wrong.
    """

    def __init__(
        self,
        path: Path,
        draft: Path,
        columns: Mapping[str, str] | None = None,
        separator: str = "|",
        *,
        known: tuple[str, ...] = BUILD_COLUMNS,
        vectors_apart: bool = False,
    ):
        self.path, self._columns, self._separator = path, columns, separator
        self._known, self._vectors_apart = known, vectors_apart
        self._words = draft.with_name(f".{draft.name}.words-{os.getpid()}")
        self._spool = VectorSpool(draft)
        self.has_triples = False
        self.row_of = self._spool.row_of

    def __enter__(self) -> EntityTable:
        try:
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.__exit__()
        self._words.unlink(missing_ok=True)

    def words(self, field: str) -> Column:
        """The labels, descriptions or aliases; an entity that only triples name has its id as its label."""
        size = len(self.row_of)
        if field != "label":
            return Column(self._table.column(field), size, lambda row: [] if field == "aliases" else "")
        added = list(self.row_of)[self._table.num_rows :]
        return Column(self._table.column(field), size, lambda row: added[row - self._table.num_rows])

    @property
    def has_vectors(self) -> bool:
        """Whether an entity has a vector in the table."""
        return self._spool.dim > 0

    def vectors(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The vector column, memory-mapped [N, k], and which entities have one, bool [N] (None = all).

        Raises:
          InputError: no entity has one.
        """
        _, vectors, present = self._spool.finish(self.path)
        return vectors, present

    def triples(self) -> Iterator[tuple[str, str, str, str]]:
        """Yields (where, head, relation, tail) of the table's own triples, by reading the file again."""
        for where, row in self._rows():
            for relation, tail in row.get("triples") or ():
                yield where, row["id"], relation, tail

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return read_rows(self.path, self._separator, self._known, self._columns)

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
                if self._vectors_apart and row.get("vector"):
                    raise InputError(where, "has a vector although a .npy of vectors is given", "give one of the two")
                self._spool.add(where, row["id"], row.get("vector") or None)
                self.has_triples |= bool(row.get("triples"))
                batch.append((row.get("label") or "", row.get("description") or "", row.get("aliases") or []))
                if len(batch) == _BATCH:
                    writer.write_batch(_batch(batch, schema))
                    batch = []
            if batch:
                writer.write_batch(_batch(batch, schema))
        self._table = pa.ipc.open_file(pa.memory_map(str(self._words))).read_all()


def _batch(rows: list[tuple[str, str, list[str]]], schema: Any) -> Any:
    import pyarrow as pa

    columns = zip(*rows, strict=True)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def read_rows(
    path: Path, separator: str = "|", known: tuple[str, ...] = COLUMNS, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where, row) of every entity; aliases, vector and triples are lists, empty or missing where there is none.

    Args:
      path: .csv, .tsv or .jsonl, each also .gz.
      separator: between the aliases, and between the triples, of a CSV or TSV.
      known: the columns that may be there.
      columns: what they are called in the file, by known column; any others are then passed over. None: as in `known`.

    Raises:
      InputError: naming file, line and field of what is wrong.
    """
    suffix = Path(path.stem).suffix if path.suffix in (".gz", ".bz2", ".xz") else path.suffix
    names = _Names(known, columns)
    if suffix == ".jsonl":
        yield from _read_json(path, names)
    elif suffix in DELIMITERS:
        yield from _read_delimited(path, DELIMITERS[suffix], separator, names)
    else:
        raise InputError(path, f"ends in {suffix!r}", "give .csv, .tsv or .jsonl, each also with .gz")


class _Names:
    """Which columns are read, and what they are called in the file."""

    def __init__(self, known: tuple[str, ...], columns: Mapping[str, str] | None):
        self.known, self.columns = known, columns
        for column in columns or ():
            if column not in known:
                raise InputError("columns", f"there is no column {column!r}", did_you_mean(column, known))
        self.own = {theirs: ours for ours, theirs in (columns or {}).items()}

    def read(self, where: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row by our names; raises InputError for a column that is missing or that nobody knows."""
        if self.columns is None:
            for column in row:
                if column not in self.known:
                    mend = f"{did_you_mean(str(column), self.known)}; or name those to be read: --columns, or --id"
                    raise InputError(where, f"has a column {column!r}", mend)
            return dict(row)
        for theirs in self.own:
            if theirs not in row:
                raise InputError(where, f"has no column {theirs!r}", did_you_mean(theirs, row))
        return {ours: row[theirs] for theirs, ours in self.own.items()}


def _read_json(path: Path, names: _Names) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = at(path, number)
        try:
            value = parse(line)
        except ValueError as error:
            raise InputError(where, f"is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(where, "is not an object with an id")
        if names.columns is not None:  # in JSON, what an entity lacks may be left out
            value = {theirs: value.get(theirs) for theirs in names.own}
        row = names.read(where, value)
        if "id" not in row:
            raise InputError(where, "is not an object with an id")
        for column, field in row.items():
            _check_json(where, column, field)
        if row["id"] is None:
            raise InputError(where, "field 'id' is null", "every entity needs an id")
        yield where, row


def _check_json(where: str, column: str, value: Any) -> None:
    """Raises InputError where a value of a JSON object is of the wrong type; null is none."""
    if column in ("id", "label", "description"):
        right, what = isinstance(value, str), "a string"
    elif column == "aliases":
        right, what = isinstance(value, list) and all(isinstance(one, str) for one in value), "a list of strings"
    elif column == "vector":
        right, what = isinstance(value, list), "a list of numbers"
    else:
        right, what = isinstance(value, list) and all(map(_is_pair, value)), "a list of [relation, tail]"
    if value is not None and not right:
        raise InputError(where, f"field {column!r} is {value!r}, not {what}")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) and one for one in value)


def _read_delimited(path: Path, delimiter: str, separator: str, names: _Names) -> Iterator[tuple[str, dict[str, Any]]]:
    if not separator:
        raise InputError("--separator", "it is empty", "give what stands between aliases, such as |")
    lines = table_rows((line for _, line in read_lines(path, keep_ends=True)), delimiter)
    columns: list[str] = []
    try:
        for fields in lines:
            where = at(path, lines.line_num)
            if not fields:
                continue
            if not columns:
                columns = [field.strip() for field in fields]
                if len(columns) == 1 and any(sign in columns[0] for sign in ",;\t"):
                    mend = "a .csv has commas between its fields, a .tsv tabs; with --id COLUMN any table is read"
                    raise InputError(where, f"names one column, {columns[0]!r}", mend)
                known = names.read(where, dict.fromkeys(columns, ""))
                if "id" not in known or len(set(columns)) != len(columns):
                    raise InputError(where, f"the columns are {columns}", "name each once, id among them")
                continue
            if len(fields) != len(columns):
                raise InputError(where, f"has {len(fields)} fields, the first line names {len(columns)}")
            row = names.read(where, dict(zip(columns, fields, strict=True)))
            row["aliases"] = [alias for alias in row.get("aliases", "").split(separator) if alias]
            row["vector"] = row.get("vector", "").split()
            if "triples" in row:
                row["triples"] = _pairs(where, row["triples"], separator)
            yield where, row
    except csv.Error as error:
        raise InputError(at(path, lines.line_num), f"is not well-formed: {error}") from None


def _pairs(where: str, text: str, separator: str) -> list[list[str]]:
    pairs = []
    for one in filter(None, text.split(separator)):
        relation, _, tail = one.partition("=")
        if not relation or not tail:
            raise InputError(where, f"field 'triples' has {one!r}", f"write relation=tail{separator}relation=tail")
        pairs.append([relation, tail])
    return pairs
