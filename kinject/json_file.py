"""JSON files that hold one object: manifests, configs, results; and the files that are locked beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kinject.errors import InputError, first_line

LARGEST = 256 << 20  # bytes of a file that is parsed


def parse(text: str) -> Any:
    """Parses JSON as RFC 8259 has it, strictly: a key that stands twice in an object, and NaN or Infinity, are errors.

    Raises:
      ValueError: what is wrong, and where.
      RecursionError: brackets of thousands of levels.
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in found if keys.count(key) > 1)!r} stands twice in one object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
"""Decodes as `parse` does, from a place in a text."""


def read_object(path: Path, hint: str = "") -> dict[str, Any]:
    """Reads the one object of a JSON file.

    Args:
      path: the file, UTF-8.
      hint: what a person can do where it cannot be read.

    Raises:
      InputError: no such file, no plain one, no JSON (see `parse`), or no object.
    """
    found = read_value(path, hint)
    if not isinstance(found, dict):
        raise InputError(path, "it is not a JSON object", hint)
    return found


def read_value(path: Path, hint: str = "") -> Any:
    """Reads what a JSON file holds, whatever it is; see `read_object`.

    Raises:
      InputError: no such file, no plain one, or no JSON.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(path, "it is no plain file", hint)
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InputError(path, f"it has {path.stat().st_size} bytes, more than {LARGEST}", hint)
        return parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(path, f"it cannot be read: {error.strerror or error}", hint) from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"it is not JSON: {first_line(error)}", hint) from None


def open_lock(path: Path) -> BinaryIO:
    """Opens a file that is locked and never read.

    Raises:
      InputError: it is no plain file: a pipe would be waited for.
      OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise InputError(path, "it is no plain file", "take it out of the folder")
    return path.open("ab")


def to_line(value: Any) -> str:
    """A value as one line of JSON; half of a surrogate pair, which no UTF-8 can hold, is escaped, and NaN refused."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return line


def write_object(path: Path, values: Mapping[str, Any]) -> None:
    """Writes an object as JSON, readable by people, whole or not at all: into a sibling first, then renamed over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
