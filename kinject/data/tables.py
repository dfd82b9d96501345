"""Tables as people have them: CSV of any delimiter, TSV, JSON lines, Excel, Parquet, SQLite; row by row, as text.

`name.xlsx#Sheet` is a sheet of a workbook (else its first), `name.db#table` or `name.db#SELECT …` rows of a database,
which is opened for reading only. Excel needs openpyxl (`pip install 'kinject[tables]'`).
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean, first_line
from kinject.json_file import parse
from kinject.text_files import read_lines, table_rows

Row = dict[str, str]
DATABASES = (".db", ".sqlite", ".sqlite3")
KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".xlsx", ".parquet", *DATABASES)
SNIFFED = 1000  # lines, and characters, that the delimiter is told from


def read_table(source: str | Path) -> Iterator[tuple[str, Row]]:
    """Streams (where, row) of a table; every cell is text, "" where there is nothing.

    Args:
      source: a path, for workbooks and databases with `#` and what of it.

    Raises:
      InputError: no such file, one of another kind, a sheet or table that there is not, a row that does not fit the
        columns.
    """
    name, _, part = str(source).partition("#")
    path = Path(name)
    if not path.is_file():
        raise InputError(path, "there is no such file", "check the path")
    suffix = path.suffix.lower()
    if part and suffix not in (".xlsx", *DATABASES):
        raise InputError(source, f"a {suffix} has no parts to name after #", "leave it out")
    if suffix in (".csv", ".tsv", ".txt"):
        rows = _delimited(path, "\t" if suffix == ".tsv" else None)
    elif suffix == ".jsonl":
        rows = _json_lines(path)
    elif suffix == ".xlsx":
        rows = _workbook(path, part)
    elif suffix == ".parquet":
        rows = _parquet(path)
    elif suffix in DATABASES:
        rows = _database(path, part)
    else:
        raise InputError(path, f"ends in {suffix!r}", f"give {', '.join(KINDS)}")
    for number, row in rows:
        yield f"{path}:{number}", {str(column).strip(): _text(value) for column, value in row.items()}


def _text(value: Any) -> str:
    """A cell as a person would write it."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # spreadsheets hold whole numbers as floats
    if isinstance(value, list | tuple):
        return "|".join(map(_text, value))
    return value.isoformat() if hasattr(value, "isoformat") else str(value).strip()


def _delimited(path: Path, delimiter: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    lines: Iterator[str] = (line for _, line in read_lines(path, keep_ends=True))
    try:
        if delimiter is None:
            first = list(islice(lines, SNIFFED))
            delimiter = _delimiter_of("".join(first)[:SNIFFED])
            lines = chain(first, lines)
        rows = table_rows(lines, delimiter)
        columns: list[str] = []
        for cells in rows:
            if not columns:
                columns = _checked(cells, f"{path}:{rows.line_num}")
            elif cells and len(cells) != len(columns):
                problem = f"has {len(cells)} cells, the first line names {len(columns)}"
                raise InputError(f"{path}:{rows.line_num}", problem, "quote cells that hold the delimiter")
            elif cells:
                yield rows.line_num, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise InputError(path, f"is no table: {error}", "close the quotes") from None


def _delimiter_of(text: str) -> str:
    first = text.partition("\n")[0]
    try:
        return csv.Sniffer().sniff(text, ",;\t|").delimiter
    except csv.Error:
        return max(",;\t|", key=first.count)


def _checked(cells: list[Any], where: str) -> list[str]:
    columns = [_text(one) for one in cells]
    twice = [one for number, one in enumerate(columns) if one in columns[:number]]
    if twice or "" in columns:
        problem = f"names the column {twice[0]!r} twice" if twice else "a column has no name"
        raise InputError(where, problem, "the first line names every column once")
    return columns


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = parse(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}", f"is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(f"{path}:{number}", "is not an object", 'a line is {"column": "value"}')
        yield number, value


def _workbook(path: Path, sheet: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import openpyxl
    except ImportError:
        raise InputError(
            path, "Excel files need openpyxl", "pip install 'kinject[tables]', or save it as .csv"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # whatever it meets in a file that is none
        raise InputError(path, f"is no workbook: {first_line(error)}") from None
    try:
        if sheet and sheet not in book.sheetnames:
            raise InputError(path, f"it has no sheet {sheet!r}", did_you_mean(sheet, book.sheetnames))
        rows = (book[sheet] if sheet else book.worksheets[0]).iter_rows(values_only=True)
        columns = _checked(list(next(rows, ())), f"{path}:1")
        for number, cells in enumerate(rows, 2):
            if any(one is not None for one in cells):
                yield number, dict(zip(columns, cells, strict=False))
    finally:
        book.close()


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"is no Parquet file: {first_line(error)}") from None


def _database(path: Path, asked: str) -> Iterator[tuple[int, dict[str, Any]]]:
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        tables = [name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
        if " " not in asked.strip():
            asked = asked or (tables[0] if len(tables) == 1 else "")
            if asked not in tables:
                problem = f"it has no table {asked!r}" if asked else "it has several tables"
                raise InputError(path, problem, f"{did_you_mean(asked, tables)}: write {path.name}#TABLE")
            asked = 'SELECT * FROM "{}"'.format(asked.replace('"', '""'))
        found = base.execute(asked)
        columns = _checked([one[0] for one in found.description or ()], f"{path}#{asked}")
        for number, cells in enumerate(found, 1):
            yield number, dict(zip(columns, cells, strict=True))
    except sqlite3.Error as error:
        raise InputError(path, f"the database refuses it: {error}") from None
    finally:
        base.close()
