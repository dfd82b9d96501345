"""Labelled records, given from Python or as a table, and what an evaluation of them found.

That is: the host alone, with a plugin, and with wrong knowledge.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject.data.records import Record, parse_record, read_records
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import AliasLinker, Linker
from kinject.reports.results import row_title, shown
from kinject.serving.queries import link

TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".db", ".sqlite", ".sqlite3")
Inputs = Iterable[Mapping[str, Any] | Record] | str | os.PathLike[str]


def open_base(knowledge: KnowledgeBase | str | os.PathLike[str]) -> KnowledgeBase:
    """A knowledge base, opened where a folder was given."""
    return knowledge if isinstance(knowledge, KnowledgeBase) else KnowledgeBase.open(knowledge)


def labelled(
    records: Inputs,
    knowledge: KnowledgeBase | None,
    linker: Linker | None,
    require: Sequence[str],
    name: str = "records",
) -> list[Record]:
    """Records of a task, with their mentions.

    Args:
      records: dicts as a line of a record file has them, `Record`s, or the path of such a file, or of a table (.csv,
        .tsv, .xlsx, .parquet, SQLite) with a column `text` and the task's fields.
      knowledge: whose names are linked in records that do not say where their mentions are; None = none are.
      linker: finds mentions in the place of the knowledge base's names.
      require: the fields that every record must have.
      name: what the records are called in messages.

    Raises:
      InputError: no record, one that cannot be used, or one without a field.
    """
    if isinstance(records, str | os.PathLike):
        records = _read(records, require)
    if linker is None and knowledge is not None and knowledge.entities is not None:
        linker = AliasLinker(knowledge)
    found = []
    for number, one in enumerate(records, 1):
        record = one if isinstance(one, Record) else parse_record(one, f"{name}:{number}", require)
        said = bool(record.mentions) if isinstance(one, Record) else "mentions" in one
        if linker is not None and not said and isinstance(record.source, str):
            record = link(record, (linker,), given=False)
        found.append(record)
    if not found:
        raise InputError(name, "there is none", 'give dicts such as {"text": "…", "label": "…"}')
    return found


def _read(path: str | os.PathLike[str], require: Sequence[str]) -> Iterable[Record]:
    """The records of a file, of a table's rows too."""
    if Path(str(path).partition("#")[0]).suffix.lower() in TABLES:
        from kinject.data.tables import read_table

        return (parse_record(dict(row), where, require) for where, row in read_table(os.fspath(path)))
    return read_records(Path(path), require)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """How a host answers labelled records.

    Attributes:
      n: how many answers were asked for.
      metric: what is told of them; larger is better.
      host: of the host alone.
      plugin: of the host with the plugin.
      wrong_vectors: of the host with the plugin, every record with another's knowledge; None for a plugin that reads
        no knowledge of single records. What is still right there is not owed to the knowledge.
      says_the_wrong_ones: how often the answer is then what is right of the other entity; None where it has no label.
      coverage: share of the mentions whose entity has a vector; None without a knowledge base.
      rows: all of that by the names that results.json has for it.
      name: the plugin's.
    """

    n: int
    metric: str
    host: float
    plugin: float
    wrong_vectors: float | None
    says_the_wrong_ones: float | None
    coverage: float | None
    rows: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, rows: Mapping[str, Any], name: str) -> Evaluation:
        """Out of the rows of `Comparison.rows`."""
        wrong, theirs = rows.get("shuffled"), rows.get("shuffled_follows_vector")
        return cls(
            rows["n"], rows["metric"], rows["host"], rows["plugin"], wrong, theirs, rows.get("coverage"), rows, name
        )

    def __repr__(self) -> str:
        told = [name for name in ("host", "plugin", "shuffled", "shuffled_follows_vector") if name in self.rows]
        width = max(len(row_title(name)) for name in told)
        lines = [f"  {row_title(name):{width}}  {shown(self.rows, name):>6}" for name in told]
        covered = "" if self.coverage is None else f", {self.coverage:.1%} of the mentions have a vector"
        return "\n".join([f"{self.name}: {self.metric} of {self.n:,} answers{covered}", *lines])
