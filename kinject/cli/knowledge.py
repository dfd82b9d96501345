"""`kinject knowledge build` makes a knowledge base of what a user has, `add` and its kin change it, `inspect` tells."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.cli.knowledge_edit import EDITS, add_edits, run_edit
from kinject.cli.knowledge_inspect import inspect, summary_lines
from kinject.cli.parser import Parser, chosen, exit_code, finite, whole
from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.knowledge.build import Given
    from kinject.knowledge.described import Cut
    from kinject.reports.console import Reporter

FORMATS = ("biggraph", "glove", "npy", "openke", "pykeen", "table", "umls", "wikipedia2vec", "word2vec")

EXAMPLES = """\
examples:
  kinject knowledge build --entities things.csv --triples triples.tsv --out kb
  kinject knowledge add kb --id Q77 --label Bergen --fact country=Q20
  kinject knowledge inspect kb --near Q90
"""

BUILD = """\
examples:
  kinject knowledge build --entities things.csv --out kb
  kinject knowledge build --entities products.xlsx --id code --label name --facts manufacturer,form --out kb
  kinject knowledge build --entities "shop.db#SELECT * FROM products" --id code --label name --facts form --out kb
  kinject knowledge build --entities things.csv --triples triples.tsv --vectors-from both --out kb
  kinject knowledge build --entities export.csv --columns id=qid,label=name,aliases=also --out kb
  kinject knowledge build --entities things.jsonl --vectors things.npy --out kb
  kinject knowledge build --entities things.csv --vectors enwiki.txt.gz --vectors-format wikipedia2vec --out kb
  kinject knowledge build --triples assertions.csv.gz --triples-format conceptnet --least-weight 2 --out kb
  kinject knowledge build --from-text linked.jsonl --host runs/quickstart/host --out kb
  kinject knowledge build --vectors vectors=transe.npy --vectors entities=entity2id.txt --vectors-format openke --out kb

A table of entities is CSV, TSV or JSON lines (each also .gz) with the columns id, label, aliases, description, vector
and triples; only id is needed. In CSV and TSV aliases are joined by "|", triples are "relation=tail|relation=tail", and
a vector is numbers with spaces between; in JSON all are lists. --triples is a TSV of head, relation, tail.

With --id any table will do: CSV of any delimiter, TSV, JSON lines, .xlsx, .parquet, SQLite (FILE.db#TABLE, #SELECT …).
Each column of --facts becomes a relation, and each of its values an entity; "|" stands between several in a cell.

Vectors that are not given are made. Of triples: a graph embedding (TransE; or RotatE, DistMult), trained here. Of
descriptions: TF-IDF and a truncated SVD from scikit-learn (latent semantic analysis), which need no model and no
download. "both" puts them side by side. knowledge.json tells how the vectors of a folder were made.

--from-text makes vectors of what a masked language model itself says where an entity's name is hidden (PELT), over
texts with linked mentions: JSON lines as `kinject link` writes them. The corpus is streamed; a command that was
interrupted goes on where it stopped when it is repeated.

A line that cannot be used ends the command with its file, line and field. Nothing is ever overwritten.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(prog="kinject knowledge", description="Build, change, inspect a knowledge base.", epilog=EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build(commands)
    inspect = commands.add_parser("inspect", help="counts, coverage, single entities and their neighbours")
    inspect.add_argument("folder", metavar="KB", help="knowledge base folder")
    inspect.add_argument("--entity", action="append", default=[], metavar="ID", help="all about it; may be repeated")
    inspect.add_argument("--near", action="append", default=[], metavar="ID", help="its neighbours; may be repeated")
    inspect.add_argument(
        "--count", type=whole(0), default=10, metavar="N", help="neighbours, triples shown (default 10)"
    )
    inspect.add_argument("--verify", action="store_true", help="read everything and check its hashes")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    add_edits(commands)
    return parser.parse_args(argv)


def _add_build(commands: Any) -> None:
    build = commands.add_parser(
        "build", help="make a folder of entities, triples, vectors", epilog=BUILD, description="Build a knowledge base."
    )
    build.add_argument("--out", required=True, type=Path, metavar="KB", help="folder to write; must not exist")
    build.add_argument("--entities", metavar="FILE", help=".csv, .tsv or .jsonl of entities; with --id any table")
    build.add_argument("--id", metavar="COLUMN", help="of a table of your own: the column that names each entity")
    for name, what in (("label", "the name in texts"), ("aliases", "other names"), ("description", "a text about it")):
        build.add_argument(f"--{name}", metavar="COLUMN", help=f"with --id: {what}")
    build.add_argument("--facts", metavar="COLUMN,…", help="with --id: columns that become triples")
    build.add_argument("--columns", metavar="NAME=THEIRS,…", help="what its columns are called; others are not read")
    build.add_argument("--separator", default="|", metavar="C", help='between aliases of a CSV or TSV (default "|")')
    build.add_argument("--triples", type=Path, metavar="FILE", help="TSV of head, relation, tail")
    build.add_argument(
        "--triples-format",
        choices=("tsv", "atomic", "atomic10x", "conceptnet"),
        default="tsv",
        help="whose file --triples is: ATOMIC-2020's, ATOMIC-10X's, ConceptNet's",
    )
    build.add_argument("--least-weight", type=finite, default=0.0, metavar="W", help="of a triple of such a file")
    build.add_argument(
        "--language", default="en", metavar="LL", help='of ConceptNet\'s concepts (default en; "" = any)'
    )
    build.add_argument(
        "--unknown",
        choices=("refuse", "add", "skip"),
        default="refuse",
        help="a triple of an unknown entity is refused, adds it, or is skipped",
    )
    _add_vectors(build)
    for name in ("name", "source", "license"):
        build.add_argument(f"--{name}", metavar="TEXT", help="noted in knowledge.json")
    build.add_argument("--quiet", action="store_true", help="print nothing")


def _add_vectors(build: Any) -> None:
    """Where vectors come from, or what they are made of."""
    build.add_argument(
        "--vectors", action="append", default=[], metavar="[NAME=]FILE", help="vectors; .npy: in the entities' order"
    )
    build.add_argument("--vectors-format", choices=FORMATS, help="whose files --vectors are")
    build.add_argument(
        "--vectors-from",
        choices=("auto", "triples", "descriptions", "both", "nothing"),
        default="auto",
        help="what vectors are made of (default: triples if there are any, else descriptions)",
    )
    build.add_argument(
        "--from-text", nargs="+", metavar="FILE", help="linked texts to make vectors of, through --host; or tfds:…"
    )
    build.add_argument("--host", metavar="HOST", help="masked language model for --from-text")
    build.add_argument("--most", type=whole(1), default=256, metavar="N", help="occurrences of an entity (default 256)")
    build.add_argument("--max-length", type=whole(1), default=64, metavar="N", help="pieces of a text (default 64)")
    build.add_argument(
        "--dim", type=whole(1, 65_536), default=64, metavar="K", help="numbers in a vector, of each (default 64)"
    )
    build.add_argument("--method", choices=("transe", "rotate", "distmult"), default="transe", help="for triples")
    build.add_argument(
        "--epochs", type=whole(1, 1_000_000), metavar="N", help="over the triples (default: by their number)"
    )
    build.add_argument(
        "--held-out", type=whole(0), default=0, metavar="N", help="triples to rank instead of training on"
    )
    build.add_argument(
        "--tokenizer-of", metavar="HOST", help="cut descriptions into this host's pieces, not into words"
    )
    build.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of what is made (default 0)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Builds, changes or inspects."""
    if arguments.command in EDITS:
        run_edit(arguments)
    elif arguments.command == "build":
        _build(arguments)
    else:
        inspect(arguments)


def _build(arguments: argparse.Namespace) -> None:
    if arguments.from_text is not None:
        _build_from_text(arguments)
        return
    from kinject.knowledge.build import Given, Making, build_knowledge
    from kinject.knowledge.commonsense import Filter
    from kinject.reports.console import Reporter

    for option, least in (("dim", 1), ("epochs", 1), ("held_out", 0)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            raise InputError(f"--{option.replace('_', '-')} {value}", f"it must be {least} or more")
    given = Given(
        entities=None if arguments.entities is None else Path(arguments.entities),
        triples=arguments.triples,
        vectors=_files(arguments.vectors),
        columns=None if arguments.columns is None else _pairs(arguments.columns),
        **chosen(arguments, "vectors_format", "separator", "unknown", "triples_format"),
        keep=Filter(arguments.least_weight, arguments.language),
    )
    making = Making(
        of=arguments.vectors_from,
        **chosen(arguments, "dim", "method", "epochs", "held_out", "seed"),
        cut=None if arguments.tokenizer_of is None else _pieces_of(arguments.tokenizer_of),
    )
    about = _about(arguments)
    reporter = Reporter(quiet=arguments.quiet)
    updates: list[Any] = []
    with ExitStack() as stack:

        def progress(done: int, total: int, loss: float) -> None:
            if not updates:
                updates.append(stack.enter_context(reporter.bar("graph embedding", total)))
            updates[0](done, loss=loss)

        with _writing(arguments):
            given = _of_columns(arguments, given, stack, reporter)
            build_knowledge(arguments.out, given, making, progress=progress, **about)


@contextmanager
def _writing(arguments: argparse.Namespace) -> Iterator[None]:
    """Around what writes --out: what the disk refuses is the user's to know, and so is what was written."""
    from kinject.knowledge.base import KnowledgeBase
    from kinject.knowledge.summary import summarise

    try:
        yield
    except OSError as error:
        where = error.filename or arguments.out
        raise InputError(where, f"cannot be read or written ({error.strerror or error})") from None
    if not arguments.quiet:
        print("\n".join(summary_lines(summarise(KnowledgeBase.open(arguments.out)))))
        print(f"written: {arguments.out}")


def _about(arguments: argparse.Namespace) -> dict[str, str]:
    return {name: given for name, given in chosen(arguments, "name", "source", "license").items() if given}


def _build_from_text(arguments: argparse.Namespace) -> None:
    from kinject.inference.host import open_host
    from kinject.inference.occurrences import Reading, build_from_text
    from kinject.reports.console import Reporter

    if arguments.host is None:
        raise InputError("--host", "it is missing", "name the masked language model that reads the texts")
    for name in ("vectors", "triples", "id"):
        if getattr(arguments, name):
            raise InputError(f"--{name}", "vectors are made of texts here", f"leave --{name} or --from-text out")
    reading = Reading(most=arguments.most, max_length=arguments.max_length, seed=arguments.seed)
    host = open_host(arguments.host, head="masked_lm")
    columns = None if arguments.columns is None else _pairs(arguments.columns)
    with ExitStack() as stack:
        bars: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Reporter(quiet=arguments.quiet).bar("texts", total)))
            bars[0](done)

        table = (Path(arguments.entities), columns, arguments.separator) if arguments.entities else None
        with _writing(arguments):
            build_from_text(arguments.out, host, arguments.from_text, reading, table, progress, **_about(arguments))


def _of_columns(arguments: argparse.Namespace, given: Given, stack: ExitStack, reporter: Reporter) -> Given:
    """The same with the table's columns told as triples, where --id says that it is a table of one's own."""
    from kinject.data.tables import read_table
    from kinject.knowledge.facts_of_columns import FactColumns, write_entities

    about = chosen(arguments, "label", "aliases", "description")
    if arguments.id is None:
        for name in ("label", "aliases", "description", "facts"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name}", "it is a column of a table of your own", "name its ids too: --id COLUMN")
        return given
    if arguments.entities is None or arguments.columns is not None:
        raise InputError(
            "--id", "it needs --entities, and no --columns", "say what the columns are in one of the two ways"
        )
    facts = tuple(one.strip() for one in (arguments.facts or "").split(",") if one.strip())
    columns = FactColumns(arguments.id, **about, facts=facts, separator=arguments.separator)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kinject-")))
    name = Path(arguments.entities.partition("#")[0]).name
    told = write_entities(read_table(arguments.entities), columns, folder / f"{name}.jsonl")
    reporter.say("\n".join(told.lines()))
    return replace(given, entities=folder / f"{name}.jsonl", table=columns.to_json())


def _files(values: Sequence[str]) -> dict[str, Path]:
    """`[NAME=]FILE` -> files by name, "" where none is given."""
    files: dict[str, Path] = {}
    for value in values:
        name, found, path = value.partition("=")
        if not found or not name.isidentifier():
            name, path = "", value
        if name in files:
            raise InputError(f"--vectors {value}", "a file was given for this already", "write --vectors NAME=FILE")
        files[name] = Path(path)
        if not files[name].exists():
            raise InputError(f"--vectors {value}", f"there is no {path}", "check the path")
    return files


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for part in text.split(","):
        ours, found, theirs = part.partition("=")
        if not found or not theirs:
            raise InputError(f"--columns {text}", f"{part!r} is not NAME=THEIRS", "write id=qid,label=name")
        pairs[ours.strip()] = theirs.strip()
    return pairs


def _pieces_of(host: str) -> Cut:
    from kinject.data.tokenizer import load_tokenizer
    from kinject.knowledge.described import TokenizerCut

    return TokenizerCut(load_tokenizer(host).backend.to_str())


if __name__ == "__main__":
    sys.exit(main())
