"""Reading the published files: JSON whole or one object at a time, every fault named by file, line and field."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from types import UnionType
from typing import Any

from kinject.data.records import short
from kinject.errors import InputError, did_you_mean
from kinject.json_file import parse
from kinject.text_files import DAMAGED, array_items, open_unpacked, read_lines, read_whole

_NAMES: dict[type | UnionType, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a whole number",
    str | int: "a string or a whole number",
    str | list: "a string or a list",
}


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
        hint = f"put it there{other}; `python -m kinject.datasets list` says where it comes from"
        raise InputError(folder / names[0], "no such file", hint)
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      InputError: not UTF-8, empty, not JSON (with its line), or an object that names one key twice: one would be lost.
    """
    try:
        text = read_whole(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(path, f"byte {error.start + 1} is not UTF-8", "convert the file: iconv -t UTF-8") from None
    except DAMAGED as error:
        raise InputError(path, f"cannot be read ({error})", "download it again") from None
    if not text.strip():
        raise InputError(path, "the file is empty", "download it again")

    try:
        return parse(text)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
        raise InputError(f"{path}:{error.lineno}", problem, "download it again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"{error}", "keep one of them, or download it again") from None


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
            value = parse(line)
        except json.JSONDecodeError as error:
            raise InputError(where, f"not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(where, f"not readable JSON: {error}") from None
        if not isinstance(value, dict):
            raise InputError(where, f"expected a JSON object, got {short(value)}")
        yield number, where, value
    if empty:
        raise InputError(path, "the file is empty", "download it again")


def take(value: dict[str, Any], name: str, kind: type | UnionType, where: str, at: str = "") -> Any:
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


def texts(values: Any, field: str, where: str) -> list[str]:
    """A list of texts, or raises InputError."""
    return [check(one, str, f"{field}[{i}]", where) for i, one in enumerate(check(values, list, field, where))]


def check_label(label: str, known: Collection[str], field: str, label_file: str, where: str) -> None:
    """Raises InputError for a label that the label file of this name does not have."""
    if label not in known:
        raise InputError(where, f"field {field!r} is {label!r}, not in {label_file}", did_you_mean(label, known))


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


def read_objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Streams (number, where, object): of JSON lines number and "file:line" from 1, of an array "file:[index]" from 0.

    Raises:
      InputError: not UTF-8, not JSON, something else than objects, or nothing in it.
    """
    return _array(path) if _is_array(path) else read_json_lines(path)


def _is_array(path: Path) -> bool:
    """Whether the first visible byte opens an array; a file that cannot be read is for the readers to tell."""
    try:
        with open_unpacked(path) as file:
            start = file.read(3).removeprefix(b"\xef\xbb\xbf")
            while not start.strip() and (more := file.read(64)):
                start = more
            return start.lstrip().startswith(b"[")
    except (*DAMAGED, InputError):
        return False


def _array(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    index = 0
    try:
        with io.TextIOWrapper(open_unpacked(path), "utf-8-sig") as file:
            for value in array_items(file):
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
    except (*DAMAGED, RecursionError) as error:
        raise InputError(f"{path}:[{index}]", f"cannot be read ({error})", "download it again") from None
    if not index:
        raise InputError(path, "the file is empty: its array holds nothing", "download it again")
