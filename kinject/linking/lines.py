"""Reads lines that are texts, or JSON objects with a text or tokens.

`{"text": …}` or `{"tokens": […]}`; mentions that are known stand in `mentions`, as `{"start", "end", "entity"}`, or in
`spans`, as `[start, end]` or `[start, end, "entity"]`. The entity may be missing. Everything else passes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kinject.data.records import decode_line, parse_record
from kinject.errors import InputError
from kinject.linking.document import Document

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(lines: Iterable[bytes], name: str) -> Iterator[Document | InputError]:
    """Every line is a JSON object. `name` is what the lines are called in messages."""
    for where, line in _numbered(lines, name):
        yield _tried(_json, line, where)


def read_text(lines: Iterable[bytes], name: str) -> Iterator[Document | InputError]:
    """Every line is a text."""
    for where, line in _numbered(lines, name):
        yield _tried(_text, line, where)


def read_lines(lines: Iterable[bytes], name: str) -> Iterator[Document | InputError]:
    """A line that begins with `{` is a JSON object, any other a text."""
    for where, line in _numbered(lines, name):
        yield _tried(_json if line.lstrip().startswith(b"{") else _text, line, where)


def _numbered(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Yields (name:number, line) of what is not blank."""
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.strip():
            yield f"{name}:{number}", line


def _tried(read: Any, line: bytes, where: str) -> Document | InputError:
    try:
        return read(line, where)
    except InputError as error:
        return error


def _text(line: bytes, where: str) -> Document:
    try:
        return Document(line.rstrip(b"\r\n").decode("utf-8"), None, {})
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} of the line is not UTF-8"
        raise InputError(where, problem, "convert the file: iconv -t UTF-8") from None


def _json(line: bytes, where: str) -> Document:
    value = decode_line(line, where)
    given = False
    if isinstance(value, dict):
        if "spans" in value:
            if "mentions" in value:
                raise InputError(where, "has both 'mentions' and 'spans'", "give one of them")
            value["mentions"] = _from_spans(value.pop("spans"), where)
        given = "mentions" in value
    record = parse_record(value, where)
    return Document(record.source, record.mentions if given else None, record.fields)


def _from_spans(spans: Any, where: str) -> list[Any]:
    if not isinstance(spans, list):
        raise InputError(where, "field 'spans' is no list", 'write [[0, 5], [9, 14, "Q1"]]')
    mentions = []
    for index, span in enumerate(spans):
        if not isinstance(span, list) or len(span) not in (2, 3):
            raise InputError(
                where, f"field 'spans[{index}]' is {span!r}", 'it must be [start, end] or [start, end, "id"]'
            )
        mentions.append(dict(zip(("start", "end", "entity"), span, strict=False)))
    return mentions
