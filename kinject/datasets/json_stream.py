"""Objects of a JSON file one by one, whether it holds one array or an object a line: no file is in memory whole."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from kinject.datasets.files import read_json_lines, short
from kinject.errors import InputError

CHUNK = 1 << 20  # characters


def read_objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Streams (number, where, object): of JSON lines number and "file:line" from 1, of an array "file:[index]" from 0.

    Raises:
      InputError: not UTF-8, not JSON, something else than objects, or nothing in it.
    """
    return _array(path) if _is_array(path) else read_json_lines(path)


def _is_array(path: Path) -> bool:
    """Whether the first visible character opens an array; a file that cannot be read is for the readers to tell."""
    try:
        with _open(path) as file:
            while part := file.read(64):
                if part.strip():
                    return part.lstrip()[0] == "["
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        pass
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
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:[{index}]", f"not JSON: {error.msg}", "download it again") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:[{index}]", f"is not UTF-8 ({error.reason})", "convert: iconv -t UTF-8") from None
    except (OSError, EOFError, zlib.error, RecursionError) as error:
        raise InputError(f"{path}:[{index}]", f"cannot be read ({error})", "download it again") from None
    if not index:
        raise InputError(path, "the file is empty: its array holds nothing", "download it again")


def _values(file: TextIO) -> Iterator[Any]:
    """The items of the array, decoded as soon as they are whole."""
    decoder, text, size = json.JSONDecoder(), file.read(CHUNK).lstrip()[1:], CHUNK
    separator = ""  # what must stand before the next item: nothing before the first, then a comma
    while True:
        text = text.lstrip()
        if text.startswith("]"):
            if (text[1:] + file.read()).strip():
                raise json.JSONDecodeError("something stands behind the array", text[:1], 0)
            return
        if text and not text.startswith(separator):
            raise json.JSONDecodeError("expected a comma or the end of the array", text[:1], 0)
        try:
            value, end = decoder.raw_decode(text[len(separator) :].lstrip() if text else "")
        except json.JSONDecodeError:
            more = file.read(size)
            if not more:
                raise
            text, size = text + more, 2 * size  # twice as much each time, so that a long item is not read again often
            continue
        rest = text[len(separator) :].lstrip()
        if end == len(rest) and (more := file.read(size)):  # a number may go on
            text += more
            continue
        yield value
        text, separator, size = rest[end:], ",", CHUNK


def _open(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig")
