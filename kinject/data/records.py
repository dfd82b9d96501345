"""JSON lines -> records: a text (or a list of tokens), its mentions, and whatever fields the task adds.

One line is one object: `{"text": str, "mentions": [{"start", "end", "entity"}], …}` with offsets in characters, or
`{"tokens": [str], …}` with offsets in tokens; `end` is exclusive. Files are read as a stream, so memory does not grow
with them, and whatever is wrong with a line is said with its file, line number and field. Streams of others, such as
standard input, are read by `bounded_lines`, which holds no line that is longer than a megabyte.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kinject.errors import InputError, Misplaced
from kinject.json_file import parse
from kinject.text_files import DAMAGED, array_items, begins_array, byte_lines, open_unpacked

SHAPE = 'a line is {"text": "…", "mentions": [{"start": 0, "end": 4, "entity": "Q1"}]} or has "tokens" for "text"'
KIND, WORDING = "kind", "wording"  # fields of a question: what is asked, and the sentence without the name
LONGEST_LINE = 1 << 20  # bytes; a longer one is refused, not read
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, slots=True)
class Mention:
    """A stretch of text that names an entity.

    Args:
      start, end: characters of the text, or tokens of the token list; end exclusive.
      entity: id in the knowledge base; None when the mention is not linked.
      opening, closing: task markers put around slot and mention, e.g. "#" and "#"; empty for none.
      slot: whether the entity's vector is to stand before the mention (it does only if there is one).
      masked: whether every piece of the mention becomes the mask token (mention-masked language modelling).
    """

    start: int
    end: int
    entity: str | None = None
    opening: str = ""
    closing: str = ""
    slot: bool = True
    masked: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One line of a record file.

    Args:
      source: the text, or the tokens as a tuple; mentions count in characters of the one or items of the other.
      mentions: in the order of the file, not overlapping.
      fields: everything else on the line, as JSON gave it.
      where: "file:line", for messages.
    """

    source: str | tuple[str, ...]
    mentions: tuple[Mention, ...]
    fields: dict[str, Any]
    where: str

    @property
    def text(self) -> str:
        """The text; tokens joined by single spaces."""
        return self.source if isinstance(self.source, str) else " ".join(self.source)


def read_records(paths: str | Path | Iterable[str | Path], require: Sequence[str] = ()) -> Iterator[Record]:
    """Streams the records of one file or several, in order; `.gz` files are unpacked as they are read.

    Args:
      paths: a path or several.
      require: task fields that every line must have.

    Raises:
      InputError: at the call for a missing file, while iterating for a bad line and for a data set without records.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise InputError("records", "no file was given", "name one or more JSON lines files")
    files = [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            problem = "is a folder, not a file" if file.is_dir() else "no such file"
            raise InputError(file, problem, "name a JSON lines file (.jsonl or .jsonl.gz)")
    return _records(files, tuple(require))


def parse_record(value: object, where: str, require: Sequence[str] = ()) -> Record:
    """Checks one decoded JSON object and makes a record of it; tasks use it for objects nested in a line too.

    Raises:
      InputError: naming `where` and the field: not an object, both or neither of text and tokens, a mention outside
        the text, empty or overlapping another, a value of the wrong type, a required field that is missing.
    """
    if not isinstance(value, dict):
        raise InputError(where, f"expected a JSON object, got {short(value)}", SHAPE)
    fields = dict(value)
    source = _source(fields, where)
    mentions = _mentions(fields.pop("mentions", []), source, where)
    for name in require:
        if name not in fields:
            raise InputError(where, f"field {name!r} is missing", f"add it; the line has {', '.join(value)}")
    return Record(source, mentions, fields, where)


def check_mentions(
    mentions: Sequence[Mention], length: int, where: str, unit: str, field: str = "mentions"
) -> list[int]:
    """Returns the mentions' order in the text; raises InputError for one that is empty, outside or overlapping."""
    for index, mention in enumerate(mentions):
        if not 0 <= mention.start < mention.end <= length:
            problem = f"{field}[{index}]: start {mention.start}, end {mention.end} in a text of {length} {unit}"
            raise Misplaced(where, problem, "0 <= start < end <= length must hold; end is exclusive")
    order = sorted(range(len(mentions)), key=lambda index: mentions[index].start)
    for left, right in itertools.pairwise(order):
        if mentions[right].start < mentions[left].end:
            raise Misplaced(where, f"{field}[{left}] and {field}[{right}] overlap", "keep one of them")
    return order


def _records(files: list[Path], require: tuple[str, ...]) -> Iterator[Record]:
    found = False
    for file in files:
        for where, value in read_values(file):
            found = True
            yield parse_record(value, where, require)
    if not found:
        raise InputError(", ".join(map(str, files)), "there is no record in it", SHAPE)


def read_values(file: Path) -> Iterator[tuple[str, object]]:
    """Yields (where, value) of every line that is not blank, or of every item where the file is one array."""
    number = 0
    try:
        with open_unpacked(file) as stream:
            is_array = begins_array(stream.peek(256)[:256])  # type: ignore[attr-defined]  # buffered, or unpacking
            if is_array:
                for number, value in enumerate(array_items(io.TextIOWrapper(stream, "utf-8-sig")), 1):
                    yield f"{file}:[{number - 1}]", value
        if not is_array:
            for number, line in byte_lines(file):
                if not line.isspace():
                    yield f"{file}:{number}", decode_line(line, f"{file}:{number}")
    except ValueError as error:
        raise InputError(f"{file}:[{number}]", f"not JSON: {error}", SHAPE) from error
    except OSError as error:
        if error.strerror is not None:
            raise InputError(f"{file}:{number + 1}", f"cannot be read ({error.strerror})") from error
        raise InputError(f"{file}:{number + 1}", f"corrupt gzip data ({error})", "copy the file again") from error
    except DAMAGED as error:
        raise InputError(f"{file}:{number + 1}", f"corrupt gzip data ({error})", "copy the file again") from error


def decode_line(line: bytes, where: str) -> object:
    """One line of JSON; raises InputError naming `where` for what is not UTF-8 or not JSON."""
    text = decode_text(line.rstrip(b"\r\n"), where)
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        table = where.rpartition(":")[0].lower().endswith((".csv", ".tsv"))
        mend = "kinject link makes records of a table: kinject link --knowledge KB TABLE > linked.jsonl"
        raise InputError(where, f"not JSON: {error.msg} at column {error.colno}", mend if table else SHAPE) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets of thousands of levels
        raise InputError(where, f"not readable JSON: {error}", SHAPE) from error


def _source(fields: dict[str, Any], where: str) -> str | tuple[str, ...]:
    if ("text" in fields) == ("tokens" in fields):
        problem = "has both 'text' and 'tokens'" if "text" in fields else "has neither 'text' nor 'tokens'"
        raise InputError(where, problem, "give exactly one of them")
    if "text" in fields:
        text = fields.pop("text")
        _check_string(text, "text", where)
        return text
    tokens = fields.pop("tokens")
    if not isinstance(tokens, list):
        raise InputError(where, f"field 'tokens' is {short(tokens)}", "it must be a list of strings")
    for index, token in enumerate(tokens):
        _check_string(token, f"tokens[{index}]", where)
    return tuple(tokens)


def _mentions(values: object, source: str | tuple[str, ...], where: str) -> tuple[Mention, ...]:
    if not isinstance(values, list):
        raise InputError(where, f"field 'mentions' is {short(values)}", "it must be a list of objects")
    mentions = tuple(_mention(value, f"mentions[{index}]", where) for index, value in enumerate(values))
    check_mentions(mentions, len(source), where, "characters" if isinstance(source, str) else "tokens")
    return mentions


def _mention(value: object, field: str, where: str) -> Mention:
    if not isinstance(value, dict):
        raise InputError(where, f"field {field!r} is {short(value)}", 'it must be {"start", "end", "entity"}')
    for name in ("start", "end"):
        if name not in value:
            raise InputError(where, f"field '{field}.{name}' is missing", 'a mention is {"start", "end", "entity"}')
        if type(value[name]) is not int:  # True and False are ints to isinstance
            raise InputError(where, f"field '{field}.{name}' is {short(value[name])}", "it must be a whole number")
    entity = value.get("entity")
    if entity is not None:
        _check_string(entity, f"{field}.entity", where)
    return Mention(value["start"], value["end"], entity)


def _check_string(value: object, field: str, where: str) -> None:
    if not isinstance(value, str):
        raise InputError(where, f"field {field!r} is {short(value)}", "it must be a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"field {field!r} has half of a surrogate pair at character {error.start}"
            raise InputError(where, problem, "write such characters whole, as UTF-8") from error


def short(value: object) -> str:
    """A value for a message: its type and its beginning."""
    return f"{type(value).__name__} {reprlib.repr(value)}"


def bounded_lines(stream: io.BufferedIOBase | BinaryIO, name: str) -> Iterator[tuple[int, bytes | InputError]]:
    """Streams (line number from 1, the line without its end, or an InputError for one that is too long).

    Lines that hold nothing but white space are passed over, and a byte order mark before the first one is.

    Args:
      stream: bytes.
      name: what it is called in messages.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if len(line) >= LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            problem = f"the line has more than {LONGEST_LINE} bytes"
            yield number, InputError(f"{name}:{number}", problem, "cut the text into parts")
        elif line.strip():
            yield number, line.rstrip(b"\r\n")


def decode_text(line: bytes, where: str) -> str:
    """Decodes a line that is a text. Raises InputError, naming `where`, for what is no UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"byte {error.start + 1} of the line is not UTF-8"
        raise InputError(where, problem, "convert the file: iconv -t UTF-8") from None


def drawn(records: Sequence[Record], wanted: int, seed: int) -> list[int]:
    """Examples to show: up to `wanted` questions about one entity, then up to `wanted` entities under one question.

    Both are drawn by the seed: an entity among those that are asked most kinds of question, a sentence among those
    that are asked most often.
    """
    draw = np.random.default_rng(seed)
    chosen = []
    for key in (first_entity, lambda record: record.fields.get(WORDING, "")):
        groups: dict[str, list[int]] = {}
        for i, record in enumerate(records):
            groups.setdefault(key(record), []).append(i)
        most = max(min(len(group), wanted) for group in groups.values())
        fit = [group for group in groups.values() if len(group) >= most]
        group = fit[draw.integers(len(fit))]
        chosen += [group[at] for at in sorted(draw.permutation(len(group))[:wanted])]
    return chosen


def first_entity(record: Record) -> str:
    """The id of a record's first mention; "" where it links nothing."""
    return (record.mentions[0].entity if record.mentions else None) or ""
