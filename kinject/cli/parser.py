"""What the command lines share: arguments refused in one line, and a standard error that holds nothing else."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from kinject.errors import EXIT_BAD_INPUT, InputError

PRECISIONS = ("float32", "bfloat16", "bfloat16_dots", "int8")  # models/precision.py's, which imports jax
CHATTY = ("absl", "asyncio")  # Orbax warns through these of what its caller sees as an exception anyway


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are `InputError`s of one line; names are never guessed from their beginnings."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(self.prog, message, "see --help")


def add_plugs(parser: Parser, plugin: str, *, required: bool) -> None:
    """Adds the arguments that name a host and what is plugged into it; `plugin` is the help of --plugin."""
    several: dict[str, Any] = {"action": "append", "default": [], "metavar": "DIR"}
    parser.add_argument("--host", required=True, metavar="DIR", help="host folder (or hub id)")
    parser.add_argument("--plugin", required=required, help=plugin, **several)
    parser.add_argument("--knowledge", help="knowledge base of a plugin; repeated in any order", **several)
    parser.add_argument("--memory", help="passage memory of a PlugLM plugin; may be repeated", **several)


def quiet_libraries() -> None:
    """Leaves standard error to the one line that says what is wrong (our own logger `kinject` still warns)."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command; returns its exit code (0 where it returns none), 2 for bad input, which is said in one line."""
    quiet_libraries()
    try:
        return command() or 0
    except InputError as error:
        print(f"kinject: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
