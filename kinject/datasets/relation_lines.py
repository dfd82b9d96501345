"""Sentences with a head and a tail entity in three forms: thunlp's OpenNRE lines and FewRel objects, and TACRED's."""

from __future__ import annotations

from typing import Any

from kinject.data.records import Record, parse_record, short
from kinject.datasets.files import check, take
from kinject.errors import InputError

Span = tuple[int, int]


def opennre_record(line: dict[str, Any], where: str, **fields: Any) -> Record | None:
    """`{"token": […], "h": {"id", "pos": [start, end)}, "t": {…}}` -> a record, head first.

    `text` may stand for `token`; positions count in characters then. None when head and tail overlap: a text with two
    slots in one place has no meaning.

    Raises:
      InputError: a missing field, a wrong type, a span outside the sentence.
    """
    source = "token" if "token" in line or "text" not in line else "text"
    content = take(line, source, list if source == "token" else str, where)
    mentions = [_opennre_mention(line, name, len(content), where) for name in ("h", "t")]
    key = {"token": "tokens", "text": "text"}[source]
    return _unless_overlap({key: content, "mentions": mentions, **fields}, where)


def fewrel_record(item: Any, where: str, entity_kind: str | None, **fields: Any) -> Record | None:
    """`{"tokens": […], "h": [name, id, [[indices], …]], "t": […]}` -> a record, head first.

    The first occurrence of each entity is used, as the paper's code does, from its first index to its last. (In the
    published files the indices of an occurrence are always consecutive.) None when head and tail overlap.

    Args:
      item: the object.
      where: for messages.
      entity_kind: the letter that ids begin with, "Q" for Wikidata or "C" for UMLS; None when there are no ids and
        the mentions stay unlinked.
      **fields: for the record.

    Raises:
      InputError: a missing field, a wrong type, indices outside the sentence, an id of another kind.
    """
    item = check(item, dict, "the instance", where)
    tokens = take(item, "tokens", list, where)
    mentions = [_fewrel_mention(item, name, len(tokens), entity_kind, where) for name in ("h", "t")]
    return _unless_overlap({"tokens": tokens, "mentions": mentions, **fields}, where)


def subject_object_record(
    item: Any, where: str, *, entities: tuple[str | None, str | None] = (None, None), **fields: Any
) -> Record | None:
    """`{"token": […], "subj_start", "subj_end" (inclusive), "obj_start", "obj_end"}` -> a record, subject first.

    TACRED's form, which T-REx-rc has too. None when subject and object overlap.

    Args:
      item: the object.
      where: for messages.
      entities: what subject and object are linked to; None = nothing.
      **fields: for the record.

    Raises:
      InputError: a missing field, a wrong type, a span outside the sentence.
    """
    item = check(item, dict, "the instance", where)
    tokens = take(item, "token", list, where)
    mentions = []
    for name, entity in zip(("subj", "obj"), entities, strict=True):
        start, last = (take(item, f"{name}_{end}", int, where) for end in ("start", "end"))
        check_span((start, last + 1), len(tokens), f"{name}_start, {name}_end", where)
        mentions.append({"start": start, "end": last + 1, "entity": entity})
    return _unless_overlap({"tokens": tokens, "mentions": mentions, **fields}, where)


def _unless_overlap(value: dict[str, Any], where: str) -> Record | None:
    """The record of an object with two mentions; None where they share a place."""
    left, right = value["mentions"]
    overlap = left["start"] < right["end"] and right["start"] < left["end"]
    return None if overlap else parse_record(value, where)


def check_span(span: Span, length: int, field: str, where: str) -> None:
    """Raises InputError unless 0 <= start < end <= length."""
    if not 0 <= span[0] < span[1] <= length:
        problem = f"field {field!r} spans {span[0]} to {span[1]} (exclusive) in a sentence of length {length}"
        raise InputError(where, problem, "0 <= start < end <= length must hold")


def _opennre_mention(line: dict[str, Any], name: str, length: int, where: str) -> dict[str, Any]:
    entity = take(line, name, dict, where)
    position = take(entity, "pos", list, where, name)
    if len(position) != 2:
        raise InputError(where, f"field '{name}.pos' is {short(position)}", "it must be [start, end], end exclusive")
    start, end = (check(value, int, f"{name}.pos", where) for value in position)
    check_span((start, end), length, f"{name}.pos", where)
    return {"start": start, "end": end, "entity": take(entity, "id", str, where, name) or None}


def _fewrel_mention(item: dict[str, Any], name: str, length: int, kind: str | None, where: str) -> dict[str, Any]:
    entity = take(item, name, list, where)
    if len(entity) != 3:
        raise InputError(where, f"field {name!r} is {short(entity)}", "it must be [name, id, [[index, …], …]]")
    occurrences = check(entity[2], list, f"{name}[2]", where)
    first = check(occurrences[0] if occurrences else None, list, f"{name}[2][0]", where)
    for index in first or [None]:
        check(index, int, f"{name}[2][0]", where)
    start, end = first[0], first[-1] + 1
    check_span((start, end), length, f"{name}[2][0]", where)
    if kind is None:
        return {"start": start, "end": end}
    one = check(entity[1], str, f"{name}[1]", where)
    if not (one.startswith(kind) and one[1:].isascii() and one[1:].isdigit()):
        raise InputError(where, f"field '{name}[1]' is {one!r}", f"an id is {kind} and digits here")
    return {"start": start, "end": end, "entity": one}
