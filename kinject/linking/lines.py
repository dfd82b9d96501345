"""Reads lines that are texts, or JSON objects with a text or tokens.

`{"text": …}` or `{"tokens": […]}`; mentions that are known stand in `mentions`, as `{"start", "end", "entity"}`, or in
`spans`, as `[start, end]` or `[start, end, "entity"]`. The entity may be missing. Everything else passes through.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from kinject.data.lines import bounded_lines, decode_text
from kinject.data.records import decode_line, parse_record
from kinject.errors import InputError
from kinject.linking.document import Document


def read_json(stream: io.BufferedIOBase, name: str) -> Iterator[Document | InputError]:
    """Every line is a JSON object. `name` is what the stream is called in messages."""
    return _read(stream, name, lambda line: True)


def read_text(stream: io.BufferedIOBase, name: str) -> Iterator[Document | InputError]:
    """Every line is a text."""
    return _read(stream, name, lambda line: False)


def read_lines(stream: io.BufferedIOBase, name: str) -> Iterator[Document | InputError]:
    """A line that begins with `{` is a JSON object, any other a text."""
    return _read(stream, name, lambda line: line.lstrip().startswith(b"{"))


def _read(stream: io.BufferedIOBase, name: str, is_json: Callable[[bytes], bool]) -> Iterator[Document | InputError]:
    for number, line in bounded_lines(stream, name):
        where = f"{name}:{number}"
        try:
            if isinstance(line, InputError):
                raise line
            document = _json(line, where) if is_json(line) else Document(decode_text(line, where), None, {})
        except InputError as error:
            yield error
        else:
            yield document


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
