"""What is linked: a text or tokens, with the mentions that somebody gave, and the line that is written of it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from kinject.data.records import Mention
from kinject.errors import InputError
from kinject.linking.linker import AliasLinker, Span


class Document(NamedTuple):
    """One text on its way through the linker.

    Attributes:
      source: the text, or its tokens.
      given: mentions in characters of the text or in tokens; None where nobody gave any, and they are to be found.
      fields: what else the line says; written as it came.
    """

    source: str | tuple[str, ...]
    given: tuple[Mention, ...] | None
    fields: dict[str, Any]


# what a reader makes of a stream: documents, and in the place of what cannot be read the error that says so
Reader = Callable[[BinaryIO, str], Iterator[Document | InputError]]


def link_document(linker: AliasLinker, document: Document, *, search: bool = False) -> dict[str, Any]:
    """Links a document; returns the record of it.

    Args:
      linker: names given mentions that have no entity, and finds mentions where none are given.
      document: what is linked.
      search: look for mentions beside given ones too; what overlaps a given one is left out.
    """
    source = document.source
    if isinstance(source, str):
        tokens, text = None, source
    else:
        tokens, text = _Tokens(source), " ".join(source)
    given = document.given or ()
    places = [(one.start, one.end) if tokens is None else tokens.characters(one.start, one.end) for one in given]
    mentions = _named(linker, text, given, places)
    if document.given is None or search:
        for span in linker(text):
            if any(span.start < end and start < span.end for start, end in places):
                continue
            place = (span.start, span.end) if tokens is None else tokens.covered(span.start, span.end)
            if place is not None:
                mentions.append(_written(*place, span.entity, span.score))
        mentions.sort(key=lambda mention: mention["start"])
    whole = {"text": source} if tokens is None else {"tokens": list(source)}
    return {**whole, "mentions": mentions, **document.fields}


def _named(
    linker: AliasLinker, text: str, given: tuple[Mention, ...], places: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Given mentions as they are written: those with an entity keep it, the others get one where a name fits."""
    open_places = [place for one, place in zip(given, places, strict=True) if one.entity is None]
    spans: Iterator[Span | None] = iter(linker.link(text, open_places))
    mentions = []
    for one in given:
        if one.entity is not None:
            mentions.append({"start": one.start, "end": one.end, "entity": one.entity})
            continue
        span = next(spans)
        entity, score = (None, None) if span is None else (span.entity, span.score)
        mentions.append(_written(one.start, one.end, entity, score))
    return mentions


def _written(start: int, end: int, entity: str | None, score: float | None) -> dict[str, Any]:
    mention = {"start": start, "end": end, "entity": entity}
    return mention if score is None else {**mention, "score": round(score, 4)}


class _Tokens:
    """Where tokens stand in the text that they make with single spaces between them."""

    def __init__(self, tokens: tuple[str, ...]):
        self.ends = [end + i for i, end in enumerate(itertools.accumulate(map(len, tokens)))]
        self.starts = [end - len(token) for end, token in zip(self.ends, tokens, strict=True)]

    def characters(self, start: int, end: int) -> tuple[int, int]:
        return self.starts[start], self.ends[end - 1]

    def covered(self, start: int, end: int) -> tuple[int, int] | None:
        """The tokens that characters are, [first, last + 1); None where they cut one."""
        first, last = bisect.bisect_left(self.starts, start), bisect.bisect_left(self.ends, end)
        whole = last < len(self.ends) and self.starts[first] == start and self.ends[last] == end
        return (first, last + 1) if whole else None
