"""Reading the published files: JSON whole or line by line, every fault named by file, line and field."""

from __future__ import annotations

import gzip
import hashlib
import json
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

from kinject.errors import InputError
from kinject.knowledge.files import read_lines


def find(folder: Path, *names: str) -> Path | None:
    """The first of these files that is in the folder, packed with gzip or not; None where there is none."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def need(folder: Path, *names: str) -> Path:
    """The first of these files that is in the folder.

    Raises:
      InputError: naming the file and where to put it.
    """
    path = find(folder, *names)
    if path is None:
        other = f" (or as {', '.join(names[1:])})" if len(names) > 1 else ""
        mend = f"put it there{other}; `python -m kinject.datasets list` says where it comes from"
        raise InputError(folder / names[0], "no such file", mend)
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      InputError: not UTF-8, empty, not JSON (with its line), or an object that names one key twice: one would be lost.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, f"byte {error.start + 1} is not UTF-8", "convert the file: iconv -t UTF-8") from None
    except (EOFError, zlib.error, OSError) as error:  # a damaged archive is an OSError too
        raise InputError(path, f"cannot be read ({error})", "download it again") from None
    if not text.strip():
        raise InputError(path, "the file is empty", "download it again")

    def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InputError(path, f"key {key!r} stands twice in one object", "keep one of them")
        return found

    try:
        return json.loads(text, object_pairs_hook=no_key_twice)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
        raise InputError(f"{path}:{error.lineno}", problem, "download it again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not readable JSON: {error}") from None


def read_json_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Streams (line number, "file:line", object) of a file of JSON lines, packed with gzip or not.

    Raises:
      InputError: a line that is not UTF-8, not JSON or not an object; a file without lines.
    """
    empty = True
    for number, line in read_lines(path):
        if not line.strip():
            continue
        empty = False
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(where, f"not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(where, f"not readable JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(where, f"expected a JSON object, got {short(value)}")
        yield number, where, value
    if empty:
        raise InputError(path, "the file is empty", "download it again")


def take(value: dict[str, Any], name: str, kind: type, where: str, at: str = "") -> Any:
    """A field that must be there and be of this type; `at` is where `value` stands in its record, e.g. "h".

    Raises:
      InputError: naming place and field.
    """
    field = f"{at}.{name}" if at else name
    if name not in value:
        raise InputError(where, f"field {field!r} is missing", f"it has {', '.join(map(str, value)) or 'none'}")
    return check(value[name], kind, field, where)


def check(value: Any, kind: type | UnionType, field: str, where: str) -> Any:
    """The value, if it is of this type (a bool is no int).

    Raises:
      InputError: naming place and field.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(where, f"field {field!r} is {short(value)}", f"it must be {_NAMES[kind]}")
    return value


def read_labels(path: Path) -> list[str]:
    """The labels of `rel2id.json` or `label2id.json`, in the order of their numbers.

    Raises:
      InputError: not an object of label -> number, or numbers that are not 0, 1, 2, … each once.
    """
    numbers = check(read_json(path), dict, "the whole file", str(path))
    owner: dict[int, str] = {}
    for label, number in numbers.items():
        check(number, int, label, str(path))
        if number in owner:
            raise InputError(path, f"labels {owner[number]!r} and {label!r} are both number {number}")
        if not 0 <= number < len(numbers):
            raise InputError(path, f"label {label!r} is number {number}, there are {len(numbers)} labels from 0 on")
        owner[number] = label
    if not owner:
        raise InputError(path, "there is no label in it", "download it again")
    return [owner[number] for number in range(len(owner))]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short(value: object) -> str:
    """A value for a message: its type and its beginning."""
    return f"{type(value).__name__} {reprlib.repr(value)}"


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    str | int: "a string or a whole number",
    str | list: "a string or a list",
}
