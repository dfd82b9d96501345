"""Reads CoNLL files: a token a line with columns beside it, a blank line behind every sentence.

The tags (BIO, IOB or BIOES; their types are not looked at) are the mentions; a column may hold their entities, as
AIDA's does. A sentence becomes `{"tokens", "mentions", "tags"}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from kinject.data.lines import decode_text
from kinject.data.records import Mention
from kinject.errors import InputError
from kinject.linking.document import Document

NO_ENTITY = ("", "_", "-", "O", "--NME--", "NIL")
_TAG = re.compile(r"O|[BIESLU](-.*)?")
_SHAPE = "a line is a token, other columns and a tag such as B-LOC, with spaces or tabs between"

Sentence = list[tuple[str, str, str | None]]  # token, tag, entity


def read_conll(
    stream: Iterable[bytes], name: str, columns: Sequence[str] | None = None
) -> Iterator[Document | InputError]:
    """Yields a document a sentence; of a sentence with a bad line only the error of the first such line.

    Args:
      stream: the file's lines.
      name: what it is called in messages.
      columns: what they hold: "token", "tag" and perhaps "entity", anything else is passed over; columns that a line
        lacks are empty. None: the token is the first, the tag the last.

    Raises:
      InputError: columns that name no token, or neither tag nor entity.
    """
    if columns is not None and not ({"token", "tag"} <= set(columns)):
        raise InputError("--columns", f"{','.join(columns)} names no token or no tag", "write token,_,_,tag")
    sentence: Sentence = []
    error: InputError | None = None
    for number, raw in enumerate(stream, 1):
        if not raw.strip() or raw.startswith((b"-DOCSTART-", b"# ")):
            if error or sentence:
                yield error or _document(sentence)
            sentence, error = [], None
        elif error is None:
            try:
                sentence.append(_fields(raw, f"{name}:{number}", columns))
            except InputError as found:
                error = found
    if error or sentence:
        yield error or _document(sentence)


def _fields(raw: bytes, where: str, columns: Sequence[str] | None) -> tuple[str, str, str | None]:
    line = decode_text(raw, where).rstrip("\r\n")
    fields = line.split("\t") if "\t" in line else line.split()
    if columns is None:
        if len(fields) < 2:
            raise InputError(where, f"{line!r} has one column", _SHAPE)
        token, tag, entity = fields[0], fields[-1], ""
    else:
        known = dict(zip(columns, fields, strict=False))
        token, tag, entity = known.get("token", ""), known.get("tag") or "O", known.get("entity", "")
    if not token.strip():
        raise InputError(where, "field 'token' is empty", _SHAPE)
    if not _TAG.fullmatch(tag):
        raise InputError(where, f"field 'tag' is {tag!r}, not BIO", "name the columns: --columns token,_,_,tag")
    return token, tag, None if entity in NO_ENTITY else entity


def _document(sentence: Sentence) -> Document:
    from seqeval.metrics.sequence_labeling import get_entities

    tokens, tags, entities = zip(*sentence, strict=True)
    typed = [tag if tag == "O" or "-" in tag else f"{tag}-X" for tag in tags]  # AIDA's tags have no type
    mentions = [Mention(first, last + 1, entities[first]) for _, first, last in get_entities(typed)]
    return Document(tokens, tuple(mentions), {"tags": list(tags)})
