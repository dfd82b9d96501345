"""`python -m kinject.datasets prepare NAME --manual-dir D --data-dir E`, and `list`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinject.cli.parser import Parser, exit_code

if TYPE_CHECKING:
    from kinject.datasets.prepare import Coverage

EXAMPLES = """\
examples:
  python -m kinject.datasets list fewrel
  python -m kinject.datasets prepare fewrel --manual-dir downloads/FewRel --data-dir data
  python -m kinject.datasets prepare wiki80/from_fewrel --manual-dir downloads/FewRel --data-dir data
  python -m kinject.datasets prepare jsonl/mine --manual-dir corpus --data-dir data --knowledge kb

A prepared data set is named tfds:NAME/CONFIG@DATA_DIR?split=SPLIT wherever a config takes records.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(
        prog="python -m kinject.datasets",
        description="Prepare data sets from their published files.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="what there is, and which file goes where")
    listing.add_argument("name", nargs="?", help="only this data set")
    making = commands.add_parser("prepare", help="make a data set out of its files")
    making.add_argument("name", metavar="NAME[/CONFIG]", help="see list; without CONFIG, what the files are for")
    making.add_argument("--manual-dir", required=True, type=Path, metavar="DIR", help="where the published files are")
    making.add_argument("--data-dir", required=True, type=Path, metavar="DIR", help="where prepared data sets live")
    making.add_argument("--knowledge", type=Path, metavar="KB", help="count how many mentions this one knows")
    making.add_argument("--no-check", action="store_true", help="take files that are not the published ones")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace) -> None:
    """Shows, or prepares."""
    if arguments.command == "list":
        show_list(arguments.name)
    else:
        show_prepared(arguments)


def show_list(name: str | None) -> None:
    """Prints name, configs and instructions of one data set, or of all."""
    from kinject.datasets.prepare import BUILDERS, builder_class

    for each in [name] if name else BUILDERS:
        builder = builder_class(each)
        print(f"{each}: {builder.DESCRIPTION}")
        print("  " + inspect.cleandoc(builder.MANUAL_DOWNLOAD_INSTRUCTIONS).replace("\n", "\n  "))
        for config in builder.BUILDER_CONFIGS:
            print(f"  {each}/{config.name}: {config.description}")


def show_prepared(arguments: argparse.Namespace) -> None:
    """Prepares and prints a summary."""
    from absl import logging

    from kinject.datasets.prepare import prepare
    from kinject.knowledge.base import KnowledgeBase

    logging.set_verbosity(logging.ERROR)  # tensorflow_datasets warns of configs that are the user's own
    knowledge = KnowledgeBase.open(arguments.knowledge) if arguments.knowledge else None
    check = not arguments.no_check
    for summary in prepare(arguments.name, arguments.manual_dir, arguments.data_dir, check=check, knowledge=knowledge):
        print(f"{summary.reference}{'' if summary.fresh else ' (was there already)'}")
        for split, count in summary.splits.items():
            print(f"  {split}: {count:,} records")
            if split in summary.coverage:
                print(f"    {coverage_line(summary.coverage[split])}")
        if summary.labels:
            print(f"  {summary.labels} labels")
        for reason, count in summary.left_out.items():
            print(f"  {count:,} left out: {reason}")


def coverage_line(found: Coverage) -> str:
    """One line about links, with shares of all mentions."""
    shares = [f"{count:,} ({count / max(found.mentions, 1):.1%})" for count in (found.linked, found.known)]
    vectors = f"{found.with_vector:,} ({found.with_vector / max(found.mentions, 1):.1%})"
    return f"{found.mentions:,} mentions: {shares[0]} linked, {shares[1]} known, {vectors} with a vector"


if __name__ == "__main__":
    sys.exit(main())
