"""What the command lines share: arguments refused in one line, and a standard error that holds nothing else."""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kinject.errors import EXIT_BAD_INPUT, InputError, first_line

ENGINES = ("jax", "onnxruntime", "auto")  # serving/choose.py's
PRECISIONS = ("float32", "bfloat16", "bfloat16_dots", "int8")  # models/precision.py's, which imports jax
EXIT_INTERRUPTED = 130
MOST_DEVICES = 4096  # of one machine
DISK = ("No space left on device", "Read-only file system", "Disk quota exceeded")  # as libraries tell it in texts
YOUNG = 20_000  # objects made before Python looks for cycles among them; its own choice is 700, or 2,000
CHATTY = ("absl", "asyncio")  # Orbax warns through these of what its caller sees as an exception anyway


def typed(verb: str) -> list[str]:
    """How a verb was asked for: `kinject VERB`, `python -m kinject VERB`, or `python -m kinject.VERB`."""
    program = Path(sys.argv[0] or "")
    if program.name == "kinject":
        return ["kinject", verb]
    whole = program.name == "__main__.py" and program.parent.name == "kinject"
    return ["python", "-m", "kinject", verb] if whole else ["python", "-m", f"kinject.{verb}"]


class Parser(argparse.ArgumentParser):
    """argparse, whose complaints are `InputError`s of one line; names are never guessed from their beginnings."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(self.prog, message, "see --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but an argument that is no Unicode is refused: nothing could be looked up by it or written."""
        for one in sys.argv[1:] if args is None else args:
            try:
                str(one).encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(self.prog, f"the argument {one!r} is not UTF-8", "set the locale to UTF-8") from None
        return super().parse_known_args(args, namespace)


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """What argparse makes a whole number from `low` to `high` with; sizes that cannot be are refused at once."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return read


def finite(text: str) -> float:
    """What argparse makes a number with; NaN and infinity are none."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


def add_plugs(parser: Parser, plugin: str, *, required: bool) -> None:
    """Adds the arguments that name a host and what is plugged into it; `plugin` is the help of --plugin."""
    several: dict[str, Any] = {"action": "append", "default": [], "metavar": "DIR"}
    parser.add_argument("--host", required=True, metavar="DIR", help="host folder (or hub id)")
    parser.add_argument("--plugin", required=required, help=plugin, **several)
    parser.add_argument("--knowledge", help="knowledge base of a plugin; repeated in any order", **several)
    parser.add_argument("--memory", help="passage memory of a PlugLM plugin; may be repeated", **several)


def chosen(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What the options of these names were given, for what takes them by the same names."""
    return {name: getattr(arguments, name) for name in names}


def own_process() -> None:
    """What a command may change of its process, and a library of its caller's must not.

    Standard error is left to the one line that says what is wrong (our own logger `kinject` still warns). And Python
    looks for cycles less often: imports and tracing make a million objects that stay, and looking through these again
    and again was a seventh of a training run's start.
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    young, *older = gc.get_threshold()
    if 0 < young < YOUNG:
        gc.set_threshold(YOUNG, *older)


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command; returns its exit code (0 where it returns none), 2 for bad input, which is said in one line."""
    own_process()
    try:
        return command() or 0
    except InputError as error:
        print(f"kinject: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # who reads wants no more; Python would complain again when it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("kinject: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        told = of_this_machine(error)
        if told is None:
            raise
        print(f"kinject: {told}", file=sys.stderr)
        return EXIT_BAD_INPUT


def of_this_machine(error: BaseException) -> InputError | None:
    """What a full or read-only disk, a file that is gone or too little memory have to say; None for any other error."""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        seen.append(link)
        if isinstance(link, OSError) and link.strerror:
            return InputError(link.filename or "this machine", link.strerror, "make room or mend it, and run it again")
        if isinstance(link, MemoryError):
            return InputError("this machine", f"there is not enough memory ({first_line(link)})", "take smaller sizes")
        if found := next((one for one in DISK if one in str(link)), None):
            return InputError("this machine", found, "make room, and run the same command again")
        link = link.__cause__ or link.__context__
    return None
