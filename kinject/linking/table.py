"""Reads a table of texts: a CSV or TSV whose first line names its columns, `text` among them.

Every other column passes through under its name, as `label` does on its way to training. A text in quotes may hold line
ends; empty lines are passed over, there too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from kinject.data.lines import bounded_lines, decode_text
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.linking.document import Document


def read_table(stream: io.BufferedIOBase, name: str, delimiter: str = ",") -> Iterator[Document | InputError]:
    """Streams the rows; one that cannot be read costs only itself.

    Args:
      stream: bytes.
      name: what it is called in messages.
      delimiter: between cells.

    Raises:
      InputError: the first line does not name a column `text`, or names one twice.
    """
    lines = _Lines(stream, name)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        try:
            cells = next(rows)
            if columns:
                document = _document(columns, cells, lines.where)
        except StopIteration:
            return
        except csv.Error as error:
            mend = 'close the quotes; a quote inside of quotes is ""'
            yield InputError(lines.where, f"is no row of a table: {error}", mend)
        except InputError as error:
            yield error
        else:
            if columns:
                yield document
            else:
                columns = _columns(cells, lines.where)


def _columns(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "text" not in names:
        said = ", ".join(names)[:80]
        raise InputError(where, f"there is no column text; it has {said}", "call the column of the texts text")
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise InputError(where, f"two columns are called {twice!r}", "rename one")
    return names


def _document(columns: list[str], cells: list[str], where: str) -> Document:
    if len(cells) != len(columns):
        problem = f"it has {len(cells)} cells, and the table {len(columns)} columns"
        raise InputError(where, problem, "put cells that hold the delimiter in quotes")
    record = parse_record(dict(zip(columns, cells, strict=True)), where)
    return Document(record.source, None, record.fields)


class _Lines:
    """The lines of a stream as text; goes on after a line that it raised an error for, as a generator would not."""

    def __init__(self, stream: io.BufferedIOBase, name: str):
        self._lines = bounded_lines(stream, name)
        self._name, self._number = name, 1

    @property
    def where(self) -> str:
        """The line that was read last."""
        return f"{self._name}:{self._number}"

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self._number, line = next(self._lines)
        if isinstance(line, InputError):
            raise line
        return decode_text(line, self.where) + "\n"
