"""Errors that are the user's to mend, told in one line.

Every entry point catches `InputError`, prints its single line on standard error and exits with code 2, without a
traceback. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import tokenize
from collections.abc import Iterable
from typing import Any

EXIT_BAD_INPUT = 2
NO_ARRAY = (OSError, ValueError, EOFError, tokenize.TokenError)  # what numpy.load raises of a file that is damaged


class InputError(Exception):
    """Bad input: where it is, what is wrong with it, and how to mend it. As a string it is one line.

    Args:
      where: the file (with line number where there is one), config key or argument at fault.
      problem: what is wrong, naming the field and the value.
      hint: what the user can do about it; empty when the problem says it.
    """

    def __init__(self, where: object, problem: str, hint: str = ""):
        self.where, self.problem, self.hint = where, problem, hint
        line = f"{where}: {problem}" + (f"; {hint}" if hint else "")
        super().__init__(printable(" ".join(line.split())))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.problem, self.hint)


class Misplaced(InputError):
    """A mention or an answer that does not stand where its file says; data sets may leave such records out."""


def printable(text: str) -> str:
    r"""Returns a text without what moves a terminal's cursor or hides: such characters as their escapes, `\x1b`."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)


def first_line(error: BaseException, limit: int = 160) -> str:
    """Returns the first line of another library's message, cut, or the error's class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns 'did you mean x?' for the known word nearest to `word`, or the list of what there is."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    return "there is " + ", ".join(known) if known else "there is none"
