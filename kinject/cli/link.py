"""Links raw text: `kinject link --knowledge KB < text.jsonl > linked.jsonl`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.cli.parser import Parser, exit_code, finite, whole
from kinject.errors import EXIT_BAD_INPUT, InputError, first_line

if TYPE_CHECKING:
    from kinject.linking.document import Document, Reader
    from kinject.linking.linker import AliasLinker

PACKED = (".gz", ".bz2", ".xz")
FORMATS = ("auto", "json", "text", "csv", "tsv", "conll", "brat")

EXAMPLES = """\
examples:
  kinject link --knowledge kb < text.jsonl > linked.jsonl
  echo "Bonn lies on the Rhine." | kinject link --knowledge kb
  kinject link --knowledge kb labelled.csv > linked.jsonl
  kinject link --knowledge kb --ambiguous context news.txt
  kinject link --knowledge kb --format conll --columns token,_,_,tag eng.testa > linked.jsonl
  kinject link --knowledge kb --format brat corpus/*.ann > linked.jsonl

A line is a text, or a JSON object with "text" or "tokens"; a .csv or .tsv has a column called text, and the other
columns pass through. Mentions that a line gives ("mentions" or "spans", CoNLL's tags, BRAT's T lines) are named and no
others are looked for. Each output line is a record that every command of kinject reads:
{"text", "mentions": [{"start", "end", "entity", "score"}], ...}.

The names of a knowledge base are indexed once, beside it (KB.names/). Between entities of one name the prior decides:
1 + the triples that an entity stands in, halved where the name is an alias and not its label; "context" weighs that
against the cosine between an entity's vector and those of the text's other entities.

A line that cannot be read is named on standard error and left out. Exit codes: 0 something was linked, 2 nothing could
be.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(prog="kinject link", description="Find the entities that texts name.", epilog=EXAMPLES)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="texts (default: standard input)")
    parser.add_argument("--knowledge", required=True, metavar="KB", help="knowledge base folder")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="of the input; auto: by name, else by line")
    parser.add_argument("--columns", metavar="NAME,…", help="of CoNLL files (default: first token, last tag)")
    parser.add_argument("--search", action="store_true", help="look for more mentions where some are given")
    parser.add_argument("--ambiguous", choices=("prior", "context"), default="prior", help="see below")
    parser.add_argument("--strength", type=finite, default=10.0, metavar="X", help="of the context (default 10)")
    parser.add_argument(
        "--case", choices=("auto", "ignore", "exact"), default="auto", help="auto: short names in capitals are exact"
    )
    parser.add_argument(
        "--capitals", type=whole(0), default=5, metavar="N", help="characters of a short name (default 5)"
    )
    parser.add_argument("--shortest", type=whole(1), default=2, metavar="N", help="characters of a name (default 2)")
    parser.add_argument("--summary", action="store_true", help="say at the end, on standard error, what was found")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Links what comes, line by line, and returns the exit code."""
    from kinject.json_file import to_line
    from kinject.knowledge.base import KnowledgeBase
    from kinject.linking.document import link_document
    from kinject.linking.linker import AliasLinker

    for path in arguments.files:
        if not path.is_file():
            raise InputError(path, "there is no such file", "check the path")
    linker = AliasLinker(
        KnowledgeBase.open(arguments.knowledge),
        case=arguments.case,
        capitals=arguments.capitals,
        ambiguous=arguments.ambiguous,
        strength=arguments.strength,
        shortest=arguments.shortest,
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    counted = _Count()
    try:
        for document in _documents(arguments):
            if isinstance(document, InputError):
                counted.bad += 1
                print(f"kinject: {document}", file=sys.stderr)
                continue
            record = link_document(linker, document, search=arguments.search)
            counted.add(record)
            # each at once, for whoever waits at the other end; beside the linking it costs nothing
            print(to_line(record), flush=True)
    except BrokenPipeError:  # whoever reads has enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        problem = f"cannot be read or written ({error.strerror or error})"
        raise InputError(error.filename or "kinject link", problem) from None
    if counted.bad:
        print(f"kinject: {counted.bad:,} could not be read, {counted.texts:,} were linked", file=sys.stderr)
    if arguments.summary:
        print(counted.line(linker), file=sys.stderr)
    return EXIT_BAD_INPUT if counted.bad and not counted.texts else 0


class _Count:
    """What was linked so far."""

    def __init__(self) -> None:
        self.texts = self.mentions = self.linked = self.bad = 0

    def add(self, record: dict[str, Any]) -> None:
        self.texts += 1
        self.mentions += len(record["mentions"])
        self.linked += sum(mention["entity"] is not None for mention in record["mentions"])

    def line(self, linker: AliasLinker) -> str:
        names = f"{len(linker.aliases):,} names, {linker.aliases.ambiguous:,} of several entities"
        return f"{self.texts:,} texts, {self.mentions:,} mentions, {self.linked:,} linked; {names}"


def _documents(arguments: argparse.Namespace) -> Iterator[Document | InputError]:
    from kinject.linking.readers import read_brat, read_conll, read_json, read_lines, read_table, read_text
    from kinject.text_files import DAMAGED, open_unpacked, unpacked

    if arguments.format == "brat":
        if not arguments.files:
            raise InputError("--format brat", "no file was given", "name the .ann files")
        for path in arguments.files:
            yield from read_brat(path)
        return
    columns = arguments.columns.split(",") if arguments.columns else None
    conll = partial(read_conll, columns=columns)
    tables: dict[str, Reader] = {"csv": partial(read_table, delimiter=","), "tsv": partial(read_table, delimiter="\t")}
    readers: dict[str, Reader] = {"auto": read_lines, "json": read_json, "text": read_text, "conll": conll, **tables}
    read = readers[arguments.format]
    if not arguments.files:
        yield from read(unpacked(sys.stdin.buffer, "standard input"), "standard input")
    for path in arguments.files:
        suffix = Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower().removeprefix(".")
        by_name = tables.get(suffix) if arguments.format == "auto" else None
        try:
            with open_unpacked(path) as file:
                yield from (by_name or read)(file, str(path))
        except DAMAGED as error:
            yield InputError(path, f"cannot be read to its end: {first_line(error)}", "copy or pack it again")


if __name__ == "__main__":
    sys.exit(main())
