"""The plainest of formats: a .npy array, and a text file with one id a line in the order of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kinject.errors import InputError
from kinject.knowledge.importers.lines import at, map_array, read_lines
from kinject.knowledge.importers.row_ids import ids_by_row
from kinject.knowledge.write import write_knowledge


def import_npy(folder_out: Path, *, vectors: Path, ids: Path, **about: Any) -> Path:
    """Imports an array and its ids.

    Args:
      folder_out: the knowledge base to write.
      vectors: .npy, floating [N, k].
      ids: text, one id a line.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    table, ids = map_array(Path(vectors)), Path(ids)
    pairs = ((number, line, number - 1) for number, line in read_lines(ids))
    listed = ids_by_row(ids, pairs, len(table))
    if "" in listed:
        raise InputError(at(ids, listed.index("") + 1), "is empty", "every line is an id")
    return write_knowledge(folder_out, ids=listed, vectors=table, **about)
