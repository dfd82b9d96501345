"""A table whose columns are facts, as entities and triples: `manufacturer` of a product becomes a relation.

The value of a fact is the entity of that id where the table has one, and else an entity of its own, called after column
and value (`form: tablet`): it takes a vector, and no text is linked to it by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean

Row = Mapping[str, str]


@dataclass(frozen=True)
class FactColumns:
    """What the columns of a table are.

    Attributes:
      id: names each entity; every row has one of its own.
      label: the name in texts; None = the id.
      aliases: other names, `separator` between them.
      description: a text about it.
      facts: columns whose values are told as triples; several values of a cell have `separator` between them.
      separator: between values of one cell.
    """

    id: str
    label: str | None = None
    aliases: str | None = None
    description: str | None = None
    facts: tuple[str, ...] = ()
    separator: str = "|"

    @property
    def named(self) -> tuple[str, ...]:
        """All of them."""
        some = (self.id, self.label, self.aliases, self.description, *self.facts)
        return tuple(dict.fromkeys(one for one in some if one is not None))

    def to_json(self) -> dict[str, Any]:
        """As the provenance of a knowledge base has it."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> FactColumns | None:
        """The columns that a knowledge base was built of, by its manifest; None where it was built otherwise."""
        told = manifest.get("provenance", {}).get("table")
        return None if told is None else cls(**{**told, "facts": tuple(told["facts"])})


@dataclass
class TableSummary:
    """What became of a table.

    Attributes:
      entities: rows that are entities.
      facts: triples, by column.
      values: values that became entities of their own, by column.
      empty: entities without any fact of the column, by column.
      unread: columns that nobody named.
    """

    entities: int = 0
    facts: dict[str, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    empty: dict[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a person."""
        made = [f"{self.entities:,} entities"]
        for column, count in self.facts.items():
            line = f"  {column}: {count:,} facts, {self.values[column]:,} values"
            line += f", {self.empty[column]:,} entities without" if self.empty[column] else ""
            if count and self.values[column] > 0.8 * count and count > 10:
                line += "; nearly every entity has a value of its own, which tells none by another"
            made.append(line)
        return [*made, *([f"  not read: {', '.join(self.unread)}"] if self.unread else [])]


def write_entities(rows: Iterable[tuple[str, Row]], columns: FactColumns, path: Path) -> TableSummary:
    """Writes a table as JSON lines of entities with their triples, as `kinject knowledge build` reads them.

    Args:
      rows: (where, row) of the table; read once, and held.
      columns: what its columns are.
      path: the file to write.

    Raises:
      InputError: a column that there is not, an empty id, or one that occurs twice.
    """
    told, entities = read_entities(rows, columns, path.stem)
    with path.open("w", encoding="utf-8") as file:
        for made in entities:
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    return told


def read_entities(
    rows: Iterable[tuple[str, Row]], columns: FactColumns, name: str, known: Callable[[str], bool] = lambda one: False
) -> tuple[TableSummary, Iterator[dict[str, Any]]]:
    """The entities of a table, each with its triples, and after them those that values of facts became.

    Args:
      rows: as of `write_entities`.
      columns: what its columns are.
      name: what the table is called in messages.
      known: whether there is an entity of an id already: a value that is one stands for it, and none is made anew.

    Returns:
      (what became of the table, complete once the entities were read; the entities).

    Raises:
      InputError: as of `write_entities`.
    """
    held = list(rows)
    if not held:
        raise InputError(name, "the table has no row", "its first line names the columns")
    first = held[0][1]
    for one in columns.named:
        if one not in first:
            table = held[0][0].rpartition(":")[0]
            raise InputError(table, f"there is no column {one!r}", did_you_mean(one, first))
    told = TableSummary(len(held), unread=tuple(one for one in first if one not in columns.named))
    ids: dict[str, str] = {}
    for where, row in held:
        one = row.get(columns.id, "")
        if not one:
            raise InputError(where, f"column {columns.id!r} is empty", "every entity needs an id")
        if one in ids:
            raise InputError(where, f"{columns.id} {one!r} stands in {ids[one]} already", "keep one row of each")
        ids[one] = where
    return told, _entities([row for _, row in held], columns, lambda one: one in ids or known(one), told)


def _entities(
    rows: Sequence[Row], columns: FactColumns, known: Callable[[str], bool], told: TableSummary
) -> Iterator[dict[str, Any]]:
    values: dict[str, None] = {}
    for row in rows:
        triples = list(_triples(row, columns, known, values, told))
        made = {"id": row[columns.id], "label": row[columns.label or columns.id], "triples": triples}
        made["aliases"] = _split(row[columns.aliases], columns.separator) if columns.aliases else []
        made["description"] = row[columns.description] if columns.description else ""
        yield made
    for value in values:
        yield {"id": value, "label": value}


def _triples(
    row: Row, columns: FactColumns, known: Callable[[str], bool], values: dict[str, None], told: TableSummary
) -> Iterable[Sequence[str]]:
    for column in columns.facts:
        found = _split(row[column], columns.separator)
        told.facts[column] = told.facts.get(column, 0) + len(found)
        told.empty[column] = told.empty.get(column, 0) + (not found)
        told.values.setdefault(column, 0)
        for value in found:
            tail = value if known(value) else f"{column}: {value}"
            if tail not in values and not known(tail):
                values[tail] = None
                told.values[column] += 1
            yield column, tail


def _split(cell: str, separator: str) -> list[str]:
    return [one.strip() for one in cell.split(separator) if one.strip()]
