"""What the multiple-choice data sets share: choices, the number of the right one, knowledge texts."""

from __future__ import annotations

from typing import Any

from kinject.data.records import Record, parse_record
from kinject.datasets.files import check, take
from kinject.errors import InputError


def choice_record(
    where: str, text: str, choices: list[str], label: int | None, facts: list[list[str]] | None, **fields: Any
) -> Record:
    """A record of the task multiple_choice; `label` and `facts` are left out where there are none."""
    given = {"label": label, "facts": facts if facts and any(facts) else None}
    given = {name: value for name, value in given.items() if value is not None}
    return parse_record({"text": text, "choices": choices, **given, **fields}, where)


def choice_texts(line: dict[str, Any], where: str) -> list[str]:
    """`choices`: a list of texts, or of objects with `text`."""
    choices = take(line, "choices", list, where)
    if len(choices) < 2:
        raise InputError(where, f"field 'choices' has {len(choices)} of them", "a question has two or more")
    return [
        take(one, "text", str, where, f"choices[{i}]")
        if isinstance(one, dict)
        else check(one, str, f"choices[{i}]", where)
        for i, one in enumerate(choices)
    ]


def right_choice(line: dict[str, Any], name: str, count: int, where: str, first: int = 0) -> int | None:
    """The number of the right choice from 0, a whole number or one in a string; None where the field is missing.

    Args:
      line: the object.
      name: of its field; published test files do not have it.
      count: how many choices there are.
      where: file and place.
      first: what the file counts from.
    """
    if line.get(name) is None:
        return None
    given = check(line[name], str | int, name, where)
    number = int(given) if str(given).isascii() and str(given).isdigit() else -1
    if not first <= number < first + count:
        problem = f"field {name!r} is {given!r}, and there are {count} choices"
        raise InputError(where, problem, f"they are counted from {first}")
    return number - first


def texts(values: Any, field: str, where: str) -> list[str]:
    """A list of texts, or raises InputError."""
    return [check(one, str, f"{field}[{i}]", where) for i, one in enumerate(check(values, list, field, where))]
