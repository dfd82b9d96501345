"""Lines of a key and k numbers, with or without a first line of counts: what word vector tools write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kinject.errors import InputError
from kinject.knowledge.importers.lines import at, read_lines


def text_vectors(
    path: Path, *, separator: str, header: int, dim: int | None = None, only_counted: bool = False
) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (where, key, numbers as text) of every line; a key may hold spaces (some of GloVe's do).

    Args:
      path: the file, gzipped if it ends in .gz.
      separator: what stands between the fields.
      header: how many integers a first line of counts has, the count first and the dimension last.
      dim: numbers in a line; None takes them from the first line, which then may have no space in its key.
      only_counted: stop after the number of lines that the header counts, for files that go on with something else.

    Raises:
      InputError: a line with fewer or more numbers, fewer or more lines than counted.
    """
    counted = None
    read = 0
    for number, line in read_lines(path):
        line = line.rstrip(" ")
        fields = line.split(separator)
        if number == 1 and len(fields) == header and all(field.isdigit() for field in fields):
            counted, announced = int(fields[0]), int(fields[-1])
            if dim not in (None, announced):
                raise InputError(at(path, 1), f"announces {announced} numbers a line, not {dim}", "leave dim out")
            dim = announced
            continue
        if only_counted and read == counted:
            return
        dim = dim or len(fields) - 1
        if len(fields) <= dim or dim == 0:
            problem = f"{_short(line)} has {len(fields) - 1} numbers, not {dim or 'one or more'}"
            raise InputError(at(path, number), problem, "the line may be cut, or the format another one")
        key = separator.join(fields[:-dim])
        if len(fields) > dim + 1 and (separator == "\t" or _is_number(fields[-dim - 1])):
            raise InputError(at(path, number), f"{_short(line)} has more than {dim} numbers", "check the line, or dim")
        yield at(path, number), key, fields[-dim:]
        read += 1
    if counted is not None and read != counted:
        raise InputError(path, f"announces {counted} lines and holds {read}", "the file may be cut; get it again")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(line: str) -> str:
    return repr(line if len(line) < 40 else f"{line[:40]}…")
