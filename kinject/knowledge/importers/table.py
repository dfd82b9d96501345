"""Your own entities: CSV, TSV or JSON lines with id, label, aliases, description, vector and triples.

Only id is needed. Aliases are a list in JSON and joined by `|` elsewhere; a vector is a list of numbers in JSON and
numbers joined by spaces elsewhere. An entity whose vector is empty is known but has none. The vectors may come from a
.npy file instead, in the order of the rows. Triples, whose head the entity is, are lists of relation and tail in JSON
and `relation=tail` joined by `|` elsewhere; `kinject knowledge build` reads them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.files import VectorSpool, at, map_array, read_lines
from kinject.knowledge.write import write_knowledge

COLUMNS = ("id", "label", "aliases", "description", "vector")
BUILD_COLUMNS = (*COLUMNS, "triples")
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
    entities = Path(entities)
    labels: list[str] = []
    aliases: list[list[str]] = []
    descriptions: list[str] = []
    ids: list[str] = []
    with VectorSpool(Path(folder_out)) as spool:
        for where, row in read_rows(entities, alias_separator, columns=columns):
            if vectors is not None and row.get("vector"):
                raise InputError(where, "has a vector although a .npy of vectors is given", "give one of the two")
            spool.add(where, row["id"], row.get("vector") or None)
            ids.append(row["id"])
            labels.append(row.get("label") or "")
            aliases.append(row.get("aliases") or [])
            descriptions.append(row.get("description") or "")
        if vectors is None:
            _, table, has_vector = spool.finish(entities)
        else:
            table, has_vector = map_array(Path(vectors)), None
            if len(ids) != len(table):
                raise InputError(entities, f"{len(ids)} entities, but {len(table)} vectors in {vectors}")
        words = {"labels": labels, "aliases": aliases, "descriptions": descriptions}
        return write_knowledge(folder_out, ids=ids, vectors=table, has_vector=has_vector, **words, **about)


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
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
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
                    mend = f"{did_you_mean(str(column), self.known)}, or name those to be read with columns"
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
            value = json.loads(line)
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
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    lines = csv.reader(
        (line for _, line in read_lines(path, keep_ends=True)), delimiter=delimiter, quoting=quoting, strict=True
    )
    columns: list[str] = []
    try:
        for fields in lines:
            where = at(path, lines.line_num)
            if not fields:
                continue
            if not columns:
                columns = [field.strip() for field in fields]
                if len(columns) == 1 and any(sign in columns[0] for sign in ",;\t"):
                    mend = "a .csv has commas between its fields, a .tsv tabs"
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
