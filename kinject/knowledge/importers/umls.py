"""UMLS vectors as map-tuning releases them: `transe.npy` and `entities.tsv`.

`entities.tsv` has a header line, then `row<whitespace>CUI` lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinject.errors import InputError
from kinject.knowledge.importers.lines import at, map_array, read_lines, whole_number
from kinject.knowledge.importers.row_ids import ids_by_row
from kinject.knowledge.write import write_knowledge


def import_umls(folder_out: Path, *, vectors: Path, entities: Path, **about: Any) -> Path:
    """Imports UMLS concept vectors; ids are CUIs.

    Args:
      folder_out: the knowledge base to write.
      vectors: .npy, floating [N, k].
      entities: `entities.tsv`.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    table = map_array(Path(vectors))
    ids = ids_by_row(Path(entities), _read_entities(Path(entities)), len(table))
    return write_knowledge(folder_out, ids=ids, vectors=table, **about)


def _read_entities(path: Path) -> Iterator[tuple[int, str, int]]:
    for number, line in read_lines(path):
        if number == 1:
            continue
        fields = line.split()
        if len(fields) != 2:
            raise InputError(at(path, number), f"{line!r} is not a row and a CUI")
        yield number, fields[1], whole_number(at(path, number), fields[0], "the row")
