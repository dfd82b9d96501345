"""Writes a run or a sweep as one HTML file: `kinject report WORKDIR`. reports/html.py makes it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kinject.cli.parser import Parser, exit_code
from kinject.errors import InputError
from kinject.reports.html import write_report

EXAMPLES = """\
examples:
  kinject report runs/quickstart                  a run: writes runs/quickstart/report.html
  kinject report runs/ablation --out ablation.html       a sweep's folder, after it was gathered

Plots need matplotlib: pip install 'kinject[plots]'. Without it the report has tables only, and says so.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command line, checked; raises InputError for any that is wrong."""
    parser = Parser(prog="kinject report", description="Write a run or a sweep as one HTML file.", epilog=EXAMPLES)
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="a run's --workdir, or a gathered sweep's")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file (default WORKDIR/report.html, made anew)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse(sys.argv[1:] if argv is None else argv)))


def run(arguments: argparse.Namespace) -> None:
    """Writes the report and says where.

    Raises:
      InputError: nothing to report there, or an output file that exists or cannot be written.
    """
    out = arguments.out
    if out is not None and out.exists():
        raise InputError(f"--out {out}", "it exists", "choose another file; nothing was overwritten")
    print(f"report: {write_report(arguments.workdir, out)}")


if __name__ == "__main__":
    sys.exit(main())
