"""`kinject knowledge add`, `edit`, `remove`, `log` and `compact`: a knowledge base that lives."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.knowledge.base import KnowledgeBase
    from kinject.knowledge.growth import Change

SHOWN = 20  # entities of a revision that are told one by one
SUFFIXES = (".csv", ".tsv")  # where an empty cell says nothing

ADD = """\
examples:
  kinject knowledge add kb --entities new.csv
  kinject knowledge add kb --entities whole_catalogue.xlsx --known skip
  kinject knowledge add kb --id P301 --label "Kettle 3" --description "a kettle made in Oslo, Norway"
  kinject knowledge add kb --id Q77 --label Bergen --fact country=Q20 --fact twin=Q21
  kinject knowledge add kb --triples new.tsv
  kinject knowledge add kb --id Q77 --label Bergen --sentences linked.jsonl --host runs/quickstart/host

A table has the columns of `kinject knowledge build`, or, for a base that was built with --id, those that were named
then (any table: .csv, .xlsx, .parquet, SQLite). Vectors that are not given are made in the base's space: of
triples, else of the description. An entity whose triples all name unknown entities waits, and is placed when they come.
Each line says how an entity was placed and how far that can be trusted, 0 to 1. What was there before does not change.
"""
EDIT = """\
examples:
  kinject knowledge edit kb --id P301 --description "a kettle made in Ghent, Belgium"
  kinject knowledge edit kb --id Q77 --fact country=Q22
  kinject knowledge edit kb --entities changed.csv --drop untrue.tsv

What is not named stays as it is: an empty cell of a CSV or TSV too. A fact replaces those of its entity and relation
and moves the entity by what it says and they did not; no other moves.
"""


def add_edits(commands: Any) -> None:
    """Adds the verbs to those of `kinject knowledge`."""
    for name, text, epilog in (("add", "add entities and facts", ADD), ("edit", "change entities and facts", EDIT)):
        verb = _verb(commands, name, text, epilog)
        verb.add_argument("--entities", type=Path, metavar="FILE", help="entities: .csv, .tsv or .jsonl; see below")
        verb.add_argument("--separator", default="|", metavar="C", help='between aliases of a CSV or TSV (default "|")')
        verb.add_argument("--triples", type=Path, metavar="FILE", help="TSV of head, relation, tail")
        verb.add_argument("--id", metavar="ID", help="one entity, with what follows")
        verb.add_argument("--label", metavar="TEXT", help="its name")
        verb.add_argument("--alias", action="append", metavar="TEXT", help="another name; may be repeated")
        verb.add_argument("--description", metavar="TEXT", help="a text about it")
        verb.add_argument(
            "--fact", action="append", default=[], metavar="RELATION=ID", help="a triple of it; may be repeated"
        )
        if name == "edit":
            verb.add_argument("--drop", type=Path, metavar="FILE", help="TSV of triples that are no longer true")
        else:
            verb.add_argument(
                "--known", choices=("refuse", "skip"), default="refuse", help="what becomes of entities that are there"
            )
            verb.add_argument("--sentences", type=Path, metavar="FILE", help="records with linked mentions, for --host")
            verb.add_argument("--host", metavar="DIR", help="reads --sentences; places what nothing else does")
        verb.add_argument("--note", default="", metavar="TEXT", help="kept in the log")
    remove = _verb(commands, "remove", "remove entities; compact takes them from the disk", "")
    remove.add_argument("ids", nargs="+", metavar="ID")
    remove.add_argument("--note", default="", metavar="TEXT", help="kept in the log")
    log = _verb(commands, "log", "what each revision did", "")
    log.add_argument("--json", action="store_true", help="print JSON lines")
    compact = _verb(commands, "compact", "fold revisions into new files; what was removed is gone then", "")
    compact.add_argument("--keep", type=int, default=0, metavar="N", help="newest revisions that stay (default 0)")


def _verb(commands: Any, name: str, text: str, epilog: str) -> argparse.ArgumentParser:
    verb = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=epilog)
    verb.add_argument("folder", metavar="KB", help="knowledge base folder")
    return verb


def _add(base: KnowledgeBase, arguments: argparse.Namespace) -> Change:
    read = _read(arguments)
    entities = _entities(arguments, base)
    if arguments.known == "skip":
        entities = _unknown(base, entities)
    return base.add(entities, triples=_triples(arguments.triples), read=read, note=arguments.note)


def _edit(base: KnowledgeBase, arguments: argparse.Namespace) -> Change:
    triples, drop = _triples(arguments.triples), _triples(arguments.drop)
    return base.edit(_entities(arguments, base), triples=triples, drop=drop, note=arguments.note)


def _remove(base: KnowledgeBase, arguments: argparse.Namespace) -> Change:
    return base.remove(arguments.ids, note=arguments.note)


CHANGES: dict[str, Callable[[KnowledgeBase, argparse.Namespace], Change]] = {
    "add": _add,
    "edit": _edit,
    "remove": _remove,
}
EDITS = (*CHANGES, "log", "compact")


def run_edit(arguments: argparse.Namespace) -> None:
    """Changes a knowledge base, or tells what changed it.

    Raises:
      InputError: what cannot be done; nothing was changed then.
    """
    from kinject.knowledge.base import KnowledgeBase

    base = KnowledgeBase.open(arguments.folder)
    if arguments.command == "log":
        for one in base.log():
            print(json.dumps(one, ensure_ascii=False) if arguments.json else _log_line(one))
        return
    start = time.perf_counter()
    if arguments.command == "compact":
        if arguments.keep < 0:
            raise InputError(f"--keep {arguments.keep}", "it must be 0 or more")
        folded = base.compact(arguments.keep)
        print(f"{folded} revisions folded; {base.name} is at revision {base.revision} {_took(start)}")
        return
    change = CHANGES[arguments.command](base, arguments)
    for placed in change.placed[:SHOWN]:
        print(placed)
    if len(change.placed) > SHOWN:
        trusts = [one.trust for one in change.placed if one.trust is not None]
        mean = f", mean trust {sum(trusts) / len(trusts):.2f}" if trusts else ""
        waiting = sum(not one.by for one in change.placed)
        print(f"… and {len(change.placed) - SHOWN:,} more; of all {waiting:,} wait{mean}")
    print(f"revision {_counts(change.summary, change.revision)} {_took(start)}")


def _took(start: float) -> str:
    return f"({time.perf_counter() - start:.2f} s)"


def _counts(said: dict[str, Any], revision: int) -> str:
    counts = [f"{value:,} {name}" for name, value in said.items() if isinstance(value, int) and name != "revision"]
    return f"{revision}: {said['kind']} " + ", ".join(counts)


def _log_line(said: dict[str, Any]) -> str:
    note = f"  {said['note']}" if said.get("note") else ""
    return f"{said['time']}  {_counts(said, said['revision'])}{note}"


def _entities(arguments: argparse.Namespace, base: KnowledgeBase) -> Iterator[dict[str, Any]]:
    """The entities of the table, then the one of the command line; only what is said of them."""
    from kinject.knowledge.importers.table import BUILD_COLUMNS, read_rows

    if arguments.entities is not None and (own := _own_table(arguments, base)) is not None:
        yield from own
    elif arguments.entities is not None:
        empty_says_nothing = any(suffix in SUFFIXES for suffix in arguments.entities.suffixes)
        for _, row in read_rows(arguments.entities, arguments.separator, BUILD_COLUMNS):
            yield {name: value for name, value in row.items() if value or not empty_says_nothing}
    words = {"label": arguments.label, "aliases": arguments.alias, "description": arguments.description}
    said = {name: value for name, value in words.items() if value is not None}
    facts = []
    for fact in arguments.fact:
        relation, found, tail = fact.partition("=")
        if not found or not relation or not tail:
            raise InputError(f"--fact {fact}", "it is not RELATION=ID", "write --fact country=Q142")
        facts.append((relation, tail))
    if arguments.id is not None:
        yield {"id": arguments.id, **said, **({"triples": facts} if facts else {})}
    elif said or facts:
        raise InputError("--label, --alias, --description, --fact", "they are of one entity", "name it: --id")


def _unknown(base: KnowledgeBase, entities: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those that are not there; says how many are, and raises InputError where all are."""
    given = list(entities)
    rows = base.rows([str(one.get("id", "")) for one in given])
    print(f"{sum(row >= 0 for row in rows.tolist()):,} entities are there already and stay as they are")
    return iter([one for one, row in zip(given, rows.tolist(), strict=True) if row < 0])


def _own_table(arguments: argparse.Namespace, base: KnowledgeBase) -> Iterator[dict[str, Any]] | None:
    """The entities of a table with the columns that the base was built of; None where it is no such table."""
    from kinject.data.tables import read_table
    from kinject.knowledge.facts_of_columns import FactColumns, read_entities

    columns = FactColumns.of(base.manifest)
    if columns is None:
        return None
    rows = list(read_table(str(arguments.entities)))
    if rows and columns.id not in rows[0][1] and "id" in rows[0][1]:
        return None
    told, entities = read_entities(rows, columns, str(arguments.entities), lambda one: bool(base.rows([one])[0] >= 0))
    made = [{name: value for name, value in one.items() if value} for one in entities]
    if arguments.command == "edit":  # a value that is new to the base is no entity that could be changed
        made = made[: told.entities]
    print("\n".join(told.lines()))
    return iter(made)


def _read(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a host puts out where sentences mention entities."""
    if arguments.sentences is None:
        return {}
    if arguments.host is None:
        raise InputError(f"--sentences {arguments.sentences}", "nobody is named who reads them", "name one: --host")
    from kinject.data.records import read_records
    from kinject.inference.host import open_host
    from kinject.inference.mentions import read_mentions

    return read_mentions(open_host(arguments.host), read_records(arguments.sentences))


def _triples(path: Path | None) -> list[tuple[str, str, str]]:
    from kinject.knowledge.triples import read_triples

    if path is None:
        return []
    entities, relations, triples = read_triples(path)
    return [(entities[head], relations[relation], entities[tail]) for head, relation, tail in triples.tolist()]
