"""Files that pair every id with the row of its vector, in either order of the two fields."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kinject.errors import InputError
from kinject.knowledge.importers.lines import at


def ids_by_row(path: Path, pairs: Iterable[tuple[int, str, int]], count: int) -> list[str]:
    """Puts ids in row order.

    Args:
      path: the file they are from, for messages.
      pairs: (line number, id, row).
      count: how many vectors there are; every one of them must get an id.

    Raises:
      InputError: a row named twice, beyond the vectors, or left out.
    """
    ids: list[str | None] = [None] * count
    for number, one, row in pairs:
        if row >= count:
            problem = f"{one!r} has row {row}, there are {count} vectors"
            raise InputError(at(path, number), problem, "take the vectors and the ids from the same release")
        if ids[row] is not None:
            raise InputError(at(path, number), f"row {row} belongs to both {ids[row]!r} and {one!r}")
        ids[row] = one
    missing = ids.count(None)
    if missing:
        problem = f"no id for {missing} of {count} vectors, the first of them row {ids.index(None)}"
        raise InputError(path, problem, "take the vectors and the ids from the same release")
    return ids  # type: ignore[return-value]
