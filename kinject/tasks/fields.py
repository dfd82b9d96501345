"""Checks of what tasks find in records, each telling file, line and field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.data.records import Mention, Record
    from kinject.data.tokenizer import HostTokenizer

HEAD_MARKER, TAIL_MARKER, ENTITY_MARKER = "#", "$", "$"  # map-tuning's
SUBJECT_MARKER, OBJECT_MARKER = "@", "#"  # K-Adapter's; the former stands around a lone mention too


def marked(record: Record, markers: Sequence[str]) -> tuple[Mention, ...]:
    """Returns the record's mentions, each between its marker; `markers` says how many there must be.

    Raises:
      InputError: another number of mentions.
    """
    if len(record.mentions) != len(markers):
        problem = f"field mentions has {len(record.mentions)} of them, {len(markers)} are needed"
        raise InputError(record.where, problem, "head first, then tail" if len(markers) == 2 else "")
    pairs = zip(record.mentions, markers, strict=True)
    return tuple(replace(mention, opening=marker, closing=marker) for mention, marker in pairs)


def unique_ids(records: Sequence[Record]) -> None:
    """Raises InputError where two records have the same `id`; records need not have one."""
    seen: dict[str | int, str] = {}
    for record in records:
        if "id" not in record.fields:
            continue
        identity = record.fields["id"]
        if not isinstance(identity, (str, int)):
            raise InputError(record.where, f"field id is {identity!r}", "it must be a string or a whole number")
        if identity in seen:
            raise InputError(
                record.where, f"field id: {identity!r} is that of {seen[identity]} too", "keep one of them"
            )
        seen[identity] = record.where


def strings(record: Record, field: str) -> list[str]:
    """Returns a field that must be a list of strings.

    Raises:
      InputError: the field is missing or something else.
    """
    values = record.fields.get(field)
    if not isinstance(values, list) or any(not isinstance(value, str) for value in values):
        raise InputError(record.where, f"field {field} is {values!r}", "it must be a list of strings")
    return values


def single_pieces(tokenizer: HostTokenizer, words: Sequence[str]) -> dict[str, int]:
    """The words that the tokenizer makes one piece of where they stand inside a text, with that piece's id."""
    words = list(dict.fromkeys(words))
    special = (tokenizer.unk_id, tokenizer.mask_id)
    found = zip(words, tokenizer.pieces([f" {word.strip()}" for word in words]), strict=True)
    return {word: one.ids[0] for word, one in found if len(one.ids) == 1 and one.ids[0] not in special}


@lru_cache(maxsize=8)
def some_word(tokenizer: HostTokenizer, find: Callable[[HostTokenizer, list[str]], dict[str, int]]) -> str:
    """The vocabulary's first word that `find` (such as `single_pieces`) makes one piece of.

    Raises:
      InputError: there is none.
    """
    for piece in range(tokenizer.vocab_size):
        word = tokenizer.decode([piece]).strip()
        if word and piece in find(tokenizer, [word]).values():
            return word
    raise InputError("vocabulary", "no word of it is one piece of a text", "use another host")
