"""Objects of a JSON file one by one, whether it holds one array or an object a line: no file is in memory whole."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from kinject.datasets.files import read_json_lines, short
from kinject.errors import InputError

CHUNK = 1 << 20  # characters
_SPACE = re.compile(r"[ \t\n\r]*")


def read_objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Streams (number, where, object): of JSON lines number and "file:line" from 1, of an array "file:[index]" from 0.

    Raises:
      InputError: not UTF-8, not JSON, something else than objects, or nothing in it.
    """
    return _array(path) if _is_array(path) else read_json_lines(path)


def _is_array(path: Path) -> bool:
    """Whether the first visible byte opens an array; a file that cannot be read is for the readers to tell."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            start = file.read(3).removeprefix(b"\xef\xbb\xbf")
            while not start.strip() and (more := file.read(64)):
                start = more
            return start.lstrip().startswith(b"[")
    except (OSError, EOFError, zlib.error):
        return False


def _array(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    index = 0
    try:
        with _open(path) as file:
            for value in _values(file):
                where = f"{path}:[{index}]"
                if not isinstance(value, dict):
                    raise InputError(where, f"expected a JSON object, got {short(value)}")
                yield index, where, value
                index += 1
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:[{index}]", f"is not UTF-8 ({error.reason})", "convert: iconv -t UTF-8") from None
    except ValueError as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{path}:[{index}]", f"not JSON: {problem}", "download it again") from None
    except (OSError, EOFError, zlib.error, RecursionError) as error:
        raise InputError(f"{path}:[{index}]", f"cannot be read ({error})", "download it again") from None
    if not index:
        raise InputError(path, "the file is empty: its array holds nothing", "download it again")


def _values(file: TextIO) -> Iterator[Any]:
    """The items of the array, decoded as soon as they are whole."""
    decoder, text, size = json.JSONDecoder(), file.read(CHUNK), CHUNK
    while not text.strip() and (more := file.read(CHUNK)):
        text = more
    at, first = _visible(text, _visible(text, 0) + 1), True
    while True:
        start = at
        try:
            if text.startswith("]", at):
                _nothing_behind(text[at + 1 :], file)
                return
            if not first:
                if at < len(text) and text[at] != ",":
                    raise ValueError("expected a comma or the end of the array")
                at = _visible(text, at + 1)
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:  # an item that goes on behind the chunk, or is none
            more = file.read(size)
            if not more:
                raise
            # twice as much each time, so that a long item is not read again and again
            text, at, size = text[start:] + more, 0, 2 * size
            at = _visible(text, at)
            continue
        yield value
        at, first, size = _visible(text, at), False, CHUNK


def _nothing_behind(text: str, file: TextIO) -> None:
    if (text + file.read()).strip():
        raise ValueError("something stands behind the array")


def _visible(text: str, at: int) -> int:
    """The first place from `at` on that is no white space; the end where there is none."""
    return _SPACE.match(text, at).end()


def _open(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")
