"""Records given from Python, or as a table: labelled texts, linked by the knowledge base's names if they say none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinject.data.records import Record, parse_record, read_records
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import AliasLinker, Linker
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
