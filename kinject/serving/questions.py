"""What is asked -> records: lines, texts and dicts are read, mentions are linked, ids are put aside."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kinject.data.lines import bounded_lines, decode_text
from kinject.data.records import Mention, Record, check_mentions, decode_line, parse_record
from kinject.errors import InputError
from kinject.linking import Linker, Span
from kinject.serving.answers import Refused


@dataclass(frozen=True)
class Question:
    """One text to be answered.

    Attributes:
      line: its place in the input, from 1.
      record: the text with its mentions.
      id: the record's own.
    """

    line: int
    record: Record
    id: Any = None


def read_lines(stream: io.BufferedIOBase, name: str, *, plain: bool = False) -> Iterator[tuple[int, Any]]:
    """Streams (line number, what stands there): decoded JSON, or with `plain` the text itself, or an InputError.

    Lines that hold nothing but white space are passed over. No line longer than `LONGEST_LINE` is held.
    """
    for number, line in bounded_lines(stream, name):
        if isinstance(line, InputError):
            yield number, line
            continue
        where = f"{name}:{number}"
        try:
            yield number, decode_text(line, where) if plain else decode_line(line, where)
        except InputError as error:
            yield number, error


def questions(inputs: Iterable[tuple[int, Any]], name: str, linkers: Sequence[Linker]) -> Iterator[Question | Refused]:
    """Numbered inputs (a text, a dict as a line of JSON has it, a `Record`, or an InputError) -> questions."""
    for number, value in inputs:
        identity = value.get("id") if isinstance(value, Mapping) else None
        try:
            if isinstance(value, InputError):
                raise value
            record, given = _record(value, f"{name}:{number}")
            if linkers and isinstance(record.source, str):
                record = link(record, linkers, given)
        except InputError as error:
            yield Refused(number, str(error), identity)
            continue
        fields = dict(record.fields)
        identity = fields.pop("id", None)  # two questions may have one id; of a data set's records none may
        yield Question(number, replace(record, fields=fields), identity)


def _record(value: Any, where: str) -> tuple[Record, bool]:
    """The record, and whether it says itself where its mentions are."""
    if isinstance(value, Record):
        return value, bool(value.mentions)
    if isinstance(value, str):
        return parse_record({"text": value}, where), False
    record = parse_record(value, where)
    return record, "mentions" in value


def link(record: Record, linkers: Sequence[Linker], given: bool) -> Record:
    """The record with the mentions that the linkers find.

    Where two overlap the longer one stays, then the earlier linker's. Where the record says itself where its mentions
    are, none is added: those without an entity get that of a span with the same characters, or what
    `linker.link` names.

    Raises:
      InputError: a span outside of the text.
    """
    if given:
        return _filled(record, linkers)
    spans = [Span(*one) for linker in linkers for one in linker(record.source)]
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start - one.end):  # the sort is stable: earlier linkers first
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    mentions = tuple(Mention(one.start, one.end, one.entity) for one in sorted(kept))
    check_mentions(mentions, len(record.source), record.where, "characters", "linked")
    return replace(record, mentions=mentions)


def _filled(record: Record, linkers: Sequence[Linker]) -> Record:
    """The record whose mentions have the entity of the first linker that knows one for just these characters."""
    bare = [(one.start, one.end) for one in record.mentions if one.entity is None]
    if not bare:
        return record
    known: dict[tuple[int, int], str] = {}
    for linker in reversed(linkers):
        asked = getattr(linker, "link", None)  # a linker of whole texts may know how to name a given mention
        found = linker(record.source) if asked is None else asked(record.source, bare)
        known |= {(one[0], one[1]): one[2] for one in found if one is not None}
    filled = (
        one if one.entity is not None else replace(one, entity=known.get((one.start, one.end)))
        for one in record.mentions
    )
    return replace(record, mentions=tuple(filled))
