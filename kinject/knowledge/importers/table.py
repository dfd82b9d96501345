"""Your own entities: CSV, TSV or JSON lines with id, label, aliases, description and vector.

Only id is needed. Aliases are a list in JSON and joined by `|` elsewhere; a vector is a list of numbers in JSON and
numbers joined by spaces elsewhere. An entity whose vector is empty is known but has none. The vectors may come from a
.npy file instead, in the order of the rows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.importers.lines import at, map_array, read_lines
from kinject.knowledge.importers.spool import VectorSpool
from kinject.knowledge.write import write_knowledge

COLUMNS = ("id", "label", "aliases", "description", "vector")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


def import_table(
    folder_out: Path, *, entities: Path, vectors: Path | None = None, alias_separator: str = "|", **about: Any
) -> Path:
    """Imports a table of entities.

    Args:
      folder_out: the knowledge base to write.
      entities: .csv, .tsv or .jsonl (each also .gz), columns as above; a CSV or TSV starts with their names.
      vectors: .npy, floating [N, k], for a table without a vector column.
      alias_separator: between the aliases of a CSV or TSV.
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
        for where, row in _read_rows(entities, alias_separator):
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


def _read_rows(path: Path, alias_separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".jsonl":
        yield from _read_json(path)
    elif suffix in DELIMITERS:
        yield from _read_delimited(path, DELIMITERS[suffix], alias_separator)
    else:
        raise InputError(path, f"ends in {suffix!r}", "give .csv, .tsv or .jsonl, each also with .gz")


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    texts = {"id", "label", "description"}
    for number, line in read_lines(path):
        where = at(path, number)
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(where, f"is not JSON: {error}") from None
        if not isinstance(row, dict) or "id" not in row:
            raise InputError(where, "is not an object with an id")
        _check_columns(where, row)
        for column, value in row.items():
            kind = str if column in texts else list
            wrong_inside = (
                column == "aliases" and isinstance(value, list) and not all(isinstance(a, str) for a in value)
            )
            if value is not None and (not isinstance(value, kind) or wrong_inside):
                what = (
                    "a string" if kind is str else "a list of strings" if column == "aliases" else "a list of numbers"
                )
                raise InputError(where, f"field {column!r} is {value!r}, not {what}")
        if row["id"] is None:
            raise InputError(where, "field 'id' is null", "every entity needs an id")
        yield where, row


def _read_delimited(path: Path, delimiter: str, alias_separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    lines = csv.reader(
        (line for _, line in read_lines(path, keep_ends=True)), delimiter=delimiter, quoting=quoting, strict=True
    )
    columns: list[str] = []
    try:
        for fields in lines:
            where = at(path, lines.line_num)
            if not columns:
                columns = [field.strip() for field in fields]
                _check_columns(where, columns)
                if "id" not in columns or len(set(columns)) != len(columns):
                    raise InputError(where, f"the columns are {columns}", "name each once, id among them")
                continue
            if len(fields) != len(columns):
                raise InputError(where, f"has {len(fields)} fields, the first line names {len(columns)}")
            row: dict[str, Any] = dict(zip(columns, fields, strict=True))
            row["aliases"] = [alias for alias in row.get("aliases", "").split(alias_separator) if alias]
            row["vector"] = row.get("vector", "").split()
            yield where, row
    except csv.Error as error:
        raise InputError(at(path, lines.line_num), f"is not well-formed: {error}") from None


def _check_columns(where: str, columns: Any) -> None:
    for column in columns:
        if column not in COLUMNS:
            raise InputError(where, f"has a column {column!r}", did_you_mean(str(column), COLUMNS))
