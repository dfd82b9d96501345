"""OpenKE and THUNLP releases: `transe.npy`, `entity2id.txt` and, beside them, `entity_map.txt`.

`entity2id.txt` starts with the number of entities, then has `ID<whitespace>row` lines. `entity_map.txt` is
tab-separated: the first field is a mention, case kept, the last the id it stands for; a later line overrides an earlier
one (thunlp/Knowledge-Plugin; map-tuning, ACL 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.importers.lines import at, map_array, read_lines, whole_number
from kinject.knowledge.importers.row_ids import ids_by_row
from kinject.knowledge.write import write_knowledge


def import_openke(folder_out: Path, *, vectors: Path, entities: Path, names: Path | None = None, **about: Any) -> Path:
    """Imports an OpenKE or THUNLP release; names become aliases.

    Args:
      folder_out: the knowledge base to write.
      vectors: .npy, floating [N, k].
      entities: `entity2id.txt`.
      names: `entity_map.txt`; mentions of entities that have no vector are counted in the manifest and left out.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    table = map_array(Path(vectors))
    entities = Path(entities)
    ids = ids_by_row(entities, _read_entity2id(entities), len(table))
    aliases = None
    if names is not None:
        aliases, left_out = _read_names(Path(names), ids)
        counts = {"names": len(aliases.values), "names_of_unknown_entities": left_out}
        about["metrics"] = {**about.get("metrics", {}), **counts}
    return write_knowledge(folder_out, ids=ids, vectors=table, aliases=aliases, **about)


def _read_entity2id(path: Path) -> Iterator[tuple[int, str, int]]:
    expected = read = 0
    for number, line in read_lines(path):
        where = at(path, number)
        if number == 1:
            expected = whole_number(where, line.strip(), "the count of entities that the file starts with")
            continue
        fields = line.rsplit(None, 1)
        if len(fields) != 2:
            raise InputError(where, f"{line!r} is not an id and a row")
        yield number, fields[0], whole_number(where, fields[1], "the row")
        read += 1
    if read != expected:
        raise InputError(path, f"announces {expected} entities and holds {read}", "the file may be cut; get it again")


def _read_names(path: Path, ids: list[str]) -> tuple[NamesByRow, int]:
    row_of = {one: row for row, one in enumerate(ids)}
    row_of_name: dict[str, int] = {}
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0]:
            raise InputError(at(path, number), f"{line!r} is not a mention, a tab and an id")
        row_of_name[fields[0]] = row_of.get(fields[-1].strip(), -1)
    names = [name for name, row in row_of_name.items() if row >= 0]
    rows = np.fromiter((row for row in row_of_name.values() if row >= 0), np.int64, count=len(names))
    return NamesByRow(names, rows, len(ids)), len(row_of_name) - len(names)


class NamesByRow(Sequence):
    """The names of every row, as N lists that are made when asked for: most of five million would be empty."""

    def __init__(self, names: list[str], rows: np.ndarray, count: int):
        order = np.argsort(rows, kind="stable")
        self.values = [names[index] for index in order.tolist()]
        self._starts = np.searchsorted(rows[order], np.arange(count + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return self.values[self._starts[rows] : self._starts[rows + 1]]
        return [self[row] for row in range(*rows.indices(len(self)))]
