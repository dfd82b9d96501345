"""Readers of what is to be linked: lines, JSON lines, tables, CoNLL and BRAT files.

A reader streams `Document`s, and in the place of what cannot be read the `InputError` that says so.

Lines are texts, or JSON objects `{"text": …}` or `{"tokens": […]}`; mentions that are known stand in `mentions`, as
`{"start", "end", "entity"}`, or in `spans`, as `[start, end]` or `[start, end, "entity"]`. The entity may be missing.
Everything else passes through. A file that is one array of such objects is read too.

A table is a CSV or TSV whose first line names its columns, `text` among them; every other column passes through under
its name, as `label` does on its way to training. A text in quotes may hold line ends; empty lines are passed over.

CoNLL files have a token a line with columns beside it, and a blank line after every sentence. The tags (BIO, IOB,
BIOES or BILOU; their types are not looked at) are the mentions; a column may hold their entities, as AIDA's does. A
sentence becomes `{"tokens", "mentions", "tags"}`, with its tags as BIO. Columns stand between tabs, or between blanks;
a line that begins with `# ` before a sentence is a comment, within one it is the token `#`.

BRAT's standoff annotations are `name.ann` beside `name.txt`. `T1<tab>Type start end<tab>words` is a mention, in
characters of the text; `N1<tab>Reference T1 Wikidata:Q90<tab>name` gives its entity, what stands after the colon.
Relations, events and notes are passed over.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from kinject.data.records import Mention, bounded_lines, decode_line, decode_text, parse_record
from kinject.errors import InputError
from kinject.linking.document import Document
from kinject.text_files import array_items, as_bio, begins_array, read_whole, split_columns, table_rows

NO_ENTITY = ("", "_", "-", "O", "--NME--", "NIL")
_TAG = re.compile(r"O|[BIESLU](-.*)?")
_SHAPE = "a line is a token, other columns and a tag such as B-LOC, with spaces or tabs between"

Token = tuple[str, str, str | None]  # token, tag, entity


def read_json(stream: BinaryIO, name: str) -> Iterator[Document | InputError]:
    """Every line is a JSON object. `name` is what the stream is called in messages."""
    return _read_each(stream, name, lambda line: True)


def read_text(stream: BinaryIO, name: str) -> Iterator[Document | InputError]:
    """Every line is a text."""
    return _read_each(stream, name, lambda line: False)


def read_lines(stream: BinaryIO, name: str) -> Iterator[Document | InputError]:
    """A line that begins with `{` is a JSON object, any other a text."""
    return _read_each(stream, name, lambda line: line.lstrip().startswith(b"{"))


def _read_each(stream: BinaryIO, name: str, is_json: Callable[[bytes], bool]) -> Iterator[Document | InputError]:
    if is_json(b"{") and hasattr(stream, "peek") and begins_array(stream.peek(256)[:256]):
        yield from _read_array(stream, name)
        return
    for number, line in bounded_lines(stream, name):
        where = f"{name}:{number}"
        try:
            if isinstance(line, InputError):
                raise line
            if number == 1 and is_json(b"{") and line.strip() == b"{":
                mend = "write one object a line: jq -c . FILE"
                yield InputError(where, "a JSON object goes on over several lines", mend)
                return
            document = _json_document(line, where) if is_json(line) else Document(decode_text(line, where), None, {})
        except InputError as error:
            yield error
        else:
            yield document


def _read_array(stream: BinaryIO, name: str) -> Iterator[Document | InputError]:
    number = 0
    try:
        for number, value in enumerate(array_items(io.TextIOWrapper(stream, "utf-8-sig")), 1):
            try:
                document = _document(value, f"{name}:[{number - 1}]")
            except InputError as error:
                yield error
            else:
                yield document
    except ValueError as error:
        yield InputError(f"{name}:[{number}]", f"not JSON: {error}", "write one object a line")


def _json_document(line: bytes, where: str) -> Document:
    return _document(decode_line(line, where), where)


def _document(value: Any, where: str) -> Document:
    given = False
    if isinstance(value, dict):
        if "spans" in value:
            if "mentions" in value:
                raise InputError(where, "has both 'mentions' and 'spans'", "give one of them")
            value["mentions"] = _mentions_of_spans(value.pop("spans"), where)
        given = "mentions" in value
    record = parse_record(value, where)
    return Document(record.source, record.mentions if given else None, record.fields)


def _mentions_of_spans(spans: Any, where: str) -> list[Any]:
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


def read_table(stream: BinaryIO, name: str, delimiter: str = ",") -> Iterator[Document | InputError]:
    """Streams the rows; one that cannot be read costs only itself.

    Args:
      stream: bytes.
      name: what it is called in messages.
      delimiter: between cells.

    Raises:
      InputError: the first line does not name a column `text`, or names one twice.
    """
    lines = _Lines(stream, name)
    rows = table_rows(lines, delimiter)
    columns: list[str] = []
    while True:
        try:
            cells = next(rows)
            if columns:
                document = _table_row(columns, cells, lines.where)
        except StopIteration:
            return
        except csv.Error as error:
            mend = 'close the quotes; a quote inside of quotes is ""'
            yield InputError(lines.where, f"is no row of a table: {error}", mend)
        except InputError as error:
            yield error
        else:
            if columns:
                yield document
            else:
                columns = _column_names(cells, lines.where)


def _column_names(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "text" not in names:
        said = ", ".join(names)[:80]
        raise InputError(where, f"there is no column text; it has {said}", "call the column of the texts text")
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise InputError(where, f"two columns are called {twice!r}", "rename one")
    return names


def _table_row(columns: list[str], cells: list[str], where: str) -> Document:
    if len(cells) != len(columns):
        problem = f"it has {len(cells)} cells, and the table {len(columns)} columns"
        raise InputError(where, problem, "put cells that hold the delimiter in quotes")
    record = parse_record(dict(zip(columns, cells, strict=True)), where)
    return Document(record.source, None, record.fields)


class _Lines:
    """The lines of a stream as text; goes on after a line that it raised an error for, as a generator would not."""

    def __init__(self, stream: BinaryIO, name: str):
        self._lines = bounded_lines(stream, name)
        self._name, self._number = name, 1

    @property
    def where(self) -> str:
        """The line that was read last."""
        return f"{self._name}:{self._number}"

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self._number, line = next(self._lines)
        if isinstance(line, InputError):
            raise line
        return decode_text(line, self.where) + "\n"


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
    sentence: list[Token] = []
    error: InputError | None = None
    for number, raw in enumerate(stream, 1):
        if not raw.strip() or raw.startswith(b"-DOCSTART-") or (not sentence and not error and _is_comment(raw)):
            if error or sentence:
                yield error or _sentence(sentence)
            sentence, error = [], None
        elif error is None:
            try:
                sentence.append(_token_fields(raw, f"{name}:{number}", columns))
            except InputError as found:
                error = found
    if error or sentence:
        yield error or _sentence(sentence)


def _is_comment(raw: bytes) -> bool:
    """Whether a line before a sentence is a comment: it begins with `# `, and does not end in a tag as `# O` does."""
    fields = raw.split()
    return raw.startswith(b"# ") and (b"=" in fields or not _TAG.fullmatch(fields[-1].decode("utf-8", "replace")))


def _token_fields(raw: bytes, where: str, columns: Sequence[str] | None) -> Token:
    line = decode_text(raw, where).rstrip("\r\n")
    fields = split_columns(line)
    if columns is None:
        if len(fields) < 2:
            raise InputError(where, f"{line!r} has one column", _SHAPE)
        token, tag, entity = fields[0], fields[-1], ""
    else:
        known = dict(zip(columns, fields, strict=False))
        token, tag, entity = known.get("token", ""), known.get("tag") or "O", known.get("entity", "")
    if not token:
        raise InputError(where, "field 'token' is empty", _SHAPE)
    if not _TAG.fullmatch(tag):
        raise InputError(where, f"field 'tag' is {tag!r}, not BIO", "name the columns: --columns token,_,_,tag")
    return token, tag, None if entity in NO_ENTITY else entity


def _sentence(sentence: list[Token]) -> Document:
    from seqeval.metrics.sequence_labeling import get_entities

    tokens, written, entities = zip(*sentence, strict=True)
    tags = as_bio(written)
    typed = [tag if tag == "O" or "-" in tag else f"{tag}-X" for tag in tags]  # AIDA's tags have no type
    mentions = [Mention(first, last + 1, entities[first]) for _, first, last in get_entities(typed)]
    return Document(tokens, tuple(mentions), {"tags": tags})


def read_brat(path: Path) -> Iterator[Document | InputError]:
    """Yields the errors of single annotations, which are left out, and then the document.

    Args:
      path: the .ann file.
    """
    text_path = path.with_suffix(".txt")
    try:
        text = read_whole(text_path).decode("utf-8")  # as it is: line ends count in the offsets
        lines = read_whole(path).decode("utf-8").split("\n")
    except InputError as error:
        yield InputError(error.where, error.problem, f"{error.hint}; name.ann and name.txt go together")
        return
    except UnicodeDecodeError as error:
        yield InputError(path, f"it or its .txt is not UTF-8 ({error.reason})", "convert both: iconv -t UTF-8")
        return
    mentions: dict[str, Mention] = {}
    for number, line in enumerate(lines, 1):
        try:
            _read_annotation(line.rstrip("\r"), f"{path}:{number}", text, mentions)
        except InputError as error:
            yield error
    kept: list[Mention] = []
    for one in sorted(mentions.values(), key=lambda one: (one.start, -one.end)):
        if kept and one.start < kept[-1].end:
            inside = f"characters {one.start} to {one.end} overlap {kept[-1].start} to {kept[-1].end}"
            yield InputError(path, inside, "only the first was kept")
        else:
            kept.append(one)
    yield Document(text, tuple(kept), {"id": path.stem})


def _read_annotation(line: str, where: str, text: str, mentions: dict[str, Mention]) -> None:
    """Takes in one line; `mentions` are by their number, T1, T2, …"""
    number, _, rest = line.partition("\t")
    if number.startswith("T"):
        about, _, words = rest.partition("\t")
        fields = about.split(" ")
        if ";" in about:
            raise InputError(where, f"{number} is in several pieces", "kinject's mentions are in one; it is left out")
        if len(fields) != 3 or not all(field.isdigit() for field in fields[1:]):
            raise InputError(where, f"{about!r} is not a type, a start and an end", "T1<tab>Type 0 5<tab>words")
        start, end = int(fields[1]), int(fields[2])
        if not start < end <= len(text) or text[start:end].split() != words.split():
            found = text[start:end] if start < end <= len(text) else "nothing"
            problem = f"{number} is {words!r}, but characters {start} to {end} of the text are {found!r}"
            raise InputError(where, problem, "is the .txt the one that was annotated, with its line ends?")
        mentions[number] = Mention(start, end)
    elif number.startswith("N"):
        fields = rest.partition("\t")[0].split(" ")
        entity = fields[-1].partition(":")[2]
        if len(fields) != 3 or fields[1] not in mentions or not entity:
            raise InputError(where, f"{rest!r} refers to no mention above", "N1<tab>Reference T1 Wikidata:Q90<tab>name")
        old = mentions[fields[1]]
        mentions[fields[1]] = Mention(old.start, old.end, entity)
