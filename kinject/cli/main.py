"""The command `kinject VERB …`: which verbs there are, and where they live.

A verb is one line of `VERBS`. Its module has `main(argv) -> exit code` and is imported when it is asked for, so that
`kinject --help` answers before JAX is imported. Each module also runs as `python -m MODULE`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kinject.errors import EXIT_BAD_INPUT, InputError, did_you_mean
from kinject.version import __version__


class Verb(NamedTuple):
    """Where a verb lives, and what it does in a few words."""

    module: str
    does: str


VERBS: dict[str, Verb] = {
    "train": Verb("kinject.cli.train", "train hosts and knowledge plugins as a config file says"),
    "tune": Verb("kinject.cli.tune", "tune a plugin for a host of your own, without a config"),
    "evaluate": Verb("kinject.cli.evaluate", "compare host alone, host + plugins and the shuffled control"),
    "predict": Verb("kinject.cli.predict", "answer texts with a host and plugins"),
    "demo": Verb("kinject.cli.demo", "show in a browser what plugins change, and why"),
    "plugins": Verb("kinject.cli.plugins", "list, show, verify, export, push and pull plugins"),
    "sweep": Verb("kinject.cli.sweep", "run configs with several seeds and gather one table"),
    "report": Verb("kinject.cli.report", "write a run or a sweep as one HTML file"),
    "leaderboard": Verb("kinject.cli.leaderboard", "answer the questions of a FewRel leaderboard"),
    "knowledge": Verb("kinject.cli.knowledge", "build a knowledge base of tables, triples or vectors; inspect one"),
    "link": Verb("kinject.cli.link", "find the entities of a knowledge base in raw text"),
    "verify": Verb("kinject.cli.verify", "check hosts, knowledge bases, plugins and memories, every byte of them"),
    "seal": Verb("kinject.cli.seal", "write seals, so that whatever is changed later is refused"),
    "split": Verb("kinject.cli.split", "cut records into parts that share no entity"),
    "data": Verb("kinject.cli.data", "prepare data sets from their published files"),
}

EXAMPLES = """\
examples:
  kinject train --config configs/quickstart.py --workdir runs/quickstart
  kinject evaluate --host runs/quickstart/host --plugin runs/quickstart/biology_plugin \\
      --knowledge runs/quickstart/biology/knowledge --data runs/quickstart/biology/records/test.jsonl

kinject VERB --help tells a verb's arguments. Exit codes: 0 done, 2 the input is at fault (one line says how).
"""


def help_text() -> str:
    """One line a verb, and two examples."""
    width = max(map(len, VERBS))
    lines = [f"  {name:{width}}  {verb.does}" for name, verb in VERBS.items()]
    title = "usage: kinject VERB [argument ...]\n\nPlug knowledge into a frozen language model.\n\nverbs:\n"
    return title + "\n".join(lines) + "\n\n" + EXAMPLES


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code of the verb, 2 for one that there is not."""
    argv = sys.argv[1:] if argv is None else argv
    first = argv[0] if argv else "--help"
    if first in ("--help", "-h", "help"):
        print(help_text(), end="")
        return 0
    if first == "--version":
        print(f"kinject {__version__}")
        return 0
    if first not in VERBS:
        print(f"kinject: {InputError(first, 'there is no such verb', did_you_mean(first, VERBS))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return importlib.import_module(VERBS[first].module).main(argv[1:])
