"""`kinject split`: linked records into parts that share no entity, each a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinject.cli.parser import Parser, exit_code
from kinject.errors import InputError

EXAMPLES = """\
examples:
  kinject split --by entity --into host=.4,plugin=.4,test=.2 my/linked.jsonl --out my
  kinject split --by record --into train=.8,test=.2 records.jsonl --out parts

Each part is FOLDER/NAME.jsonl, its records in their old order. By entity, records that name an entity in common,
directly or through others, stay in one part: a host is then not tuned on entities that plugin or test ask about.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = Parser(prog="kinject split", description="Cut records into parts that share no entity.", epilog=EXAMPLES)
    parser.add_argument("records", type=Path, metavar="FILE", help="records with mentions, JSON lines")
    parser.add_argument("--into", required=True, metavar="NAME=SHARE,…", help="the parts")
    parser.add_argument("--by", choices=("entity", "record"), default="entity", help="what stays together (entity)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where NAME.jsonl are written")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default 0)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Writes the parts and says what is in them."""
    from kinject.data.records import read_records, read_values
    from kinject.data.split import split_records

    into = _shares(arguments.into)
    files = {part: arguments.out / f"{part}.jsonl" for part in into}
    list(read_records(arguments.records))  # a line that is no record is told before anything is written
    records: list[Any] = [value for _, value in read_values(arguments.records)]
    lines = [json.dumps(one, ensure_ascii=False) for one in records]
    parts = split_records(records, into, by=arguments.by, seed=arguments.seed)
    _write(files, {part: "".join(f"{lines[number]}\n" for number in parts.numbers(part)) for part in files})
    for part, path in files.items():
        print(_told(part, path, [records[number] for number in parts.numbers(part)]))
    print(f"{parts.groups:,} groups, the largest of {parts.largest:,}; {parts.unlinked:,} records name no entity")
    for line in _missing(records, parts.of, next(iter(into))):
        print(line, file=sys.stderr)


def _write(files: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    """Writes each part whole; one that stands there already, as a run that was cut short leaves it, is kept."""
    for part, path in files.items():
        if path.exists() and path.read_bytes() != texts[part].encode():
            raise InputError(path, "it exists", "choose another --out; nothing was overwritten")
    for part, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(texts[part].encode())
        partial.replace(path)


def _shares(text: str) -> dict[str, float]:
    shares = {}
    for one in text.split(","):
        name, _, share = one.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise InputError(
                f"--into {text}", f"{one!r} is not NAME=SHARE", "write host=.4,plugin=.4,test=.2"
            ) from None
        if not name.strip().isidentifier():
            raise InputError(f"--into {text}", f"{name!r} cannot be a part's name", "use letters, digits and _")
    return shares


def _told(part: str, path: Path, records: Sequence[dict[str, Any]]) -> str:
    entities = {one.get("entity") for record in records for one in record.get("mentions", ())} - {None}
    labels = {str(record["label"]) for record in records if "label" in record}
    return f"{part}: {len(records):,} records, {len(entities):,} entities, {len(labels):,} labels: {path}"


def _missing(records: Sequence[dict[str, Any]], parts: Sequence[str], first: str) -> list[str]:
    """A line for each other part with labels that the first lacks: a host learns its labels from one part."""
    labels: dict[str, set[str]] = {}
    for record, part in zip(records, parts, strict=True):
        if "label" in record:
            labels.setdefault(part, set()).add(str(record["label"]))
    lines = []
    for part, found in labels.items():
        lacking = sorted(found - labels.get(first, set()))
        if lacking:
            shown = ", ".join(lacking[:5]) + (", …" if len(lacking) > 5 else "")
            lines.append(f"kinject: {part} has labels that {first} has not: {shown}; try another --seed")
    return lines


if __name__ == "__main__":
    sys.exit(main())
