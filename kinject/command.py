"""What the command lines share: arguments refused in one line, and a standard error that holds nothing else."""

from __future__ import annotations

import argparse
import logging
from typing import Any, NoReturn

from kinject.errors import InputError

CHATTY = ("absl", "asyncio")  # Orbax warns through these of what its caller sees as an exception anyway


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are `InputError`s of one line; names are never guessed from their beginnings."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(self.prog, message, "see --help")


def quiet_libraries() -> None:
    """Leaves standard error to the one line that says what is wrong (our own logger `kinject` still warns)."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
