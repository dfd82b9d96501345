"""Text that people bring, whatever it is packed in: one place that looks at a file's first bytes before it is read.

gzip, bzip2 and xz are unpacked as they are read, whatever a file is called; what is no text (UTF-16, archives, arrays)
is named with the command that makes a text of it. Nothing is held that is longer than its bound, however small it was
packed. CSV has one dialect (commas, double quotes, strict), TSV one (tabs, no quotes), and columns of words stand
between tabs, or else blanks.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from kinject.errors import InputError, first_line

DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)  # what reading a packed file may raise
LONGEST = 16 << 20  # bytes of a line of a file, or characters of an item of a JSON array
LARGEST = 1 << 30  # bytes of a file that must be held whole, unpacked
CHUNK = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD = 16  # bytes that tell what a file is
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_FOREIGN = {
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    b"PK\x03\x04": ("a zip archive (an .xlsx is one too)", "unpack it: unzip FILE; save a sheet as CSV UTF-8"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it: 7z x FILE"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it: zstd -d FILE"),
    b"\x93NUMPY": ("a NumPy array", "give the file of texts; arrays are named beside it"),
    b"ARROW1": ("an Arrow file", "write it as CSV or JSON lines"),
    b"PAR1": ("a Parquet file", "write it as JSON lines: DataFrame.to_json(NEW, orient='records', lines=True)"),
    b"\x89HDF": ("an HDF5 file", "write it as CSV or .npy"),
    b"SQLite format 3": ("an SQLite database", "write its table as CSV: sqlite3 -header -csv FILE 'select …'"),
    b"%PDF": ("a PDF", "give its text"),
    b"\x80\x04\x95": ("a pickle, which can execute anything", "write it as CSV, JSON lines or .npy where it was made"),
}
_VISIBLE = re.compile(r"[ \t\n\r]*")
_BLANKS = re.compile("[\t ]+")


def unpacked(stream: Any, name: object, *, packed: bool = False) -> BinaryIO:
    """A stream of bytes, unpacked if it is packed.

    Args:
      stream: bytes, at their beginning.
      name: what it is called in messages.
      packed: its name says that it is packed with gzip, so that it must be.

    Raises:
      InputError: it is no text.
    """
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    start = buffered.peek(HEAD)[:HEAD]
    for magic, opener in _PACKED.items():
        if start.startswith(magic):
            return unpacked(opener(buffered, "rb"), name)
    if packed and start:
        raise gzip.BadGzipFile(f"Not a gzipped file ({start[:2]!r})")
    for magic, (what, mend) in _FOREIGN.items():
        if start.startswith(magic):
            raise InputError(name, f"it is {what}, not a text in UTF-8", mend)
    if start.count(0) > 1 and start.count(0) * 3 > len(start):
        raise InputError(name, "it is no text in UTF-8: every other byte is 0", "convert it: iconv -f UTF-16 -t UTF-8")
    return buffered


def open_unpacked(path: Path) -> BinaryIO:
    """Opens a file of text to be read as bytes, see `unpacked`.

    Raises:
      InputError: no such file, no plain file, or no text.
      OSError: it cannot be read, or its name says .gz and it is not packed.
    """
    if not path.is_file():
        other = "is a folder, not a file" if path.is_dir() else "is no plain file"
        raise InputError(path, other if path.exists() else "is not there", "check the path")
    file = path.open("rb")
    try:
        return unpacked(file, path, packed=path.suffix == ".gz")
    except BaseException:
        file.close()
        raise


def byte_lines(path: Path, longest: int = LONGEST) -> Iterator[tuple[int, bytes]]:
    """Streams (number from 1, line) of a file, packed or not; only a line feed ends one.

    Blank lines at the end are passed over.

    Raises:
      InputError: as `open_unpacked`, and for a line of more than `longest` bytes.
      DAMAGED: a packed file that is.
    """
    blank: list[tuple[int, bytes]] = []
    with open_unpacked(path) as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            if len(line) > longest:
                problem = f"the line has more than {longest} bytes"
                raise InputError(f"{path}, line {number}", problem, "cut it into parts")
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if line.isspace() or not line:
                if len(blank) < LONGEST:
                    blank.append((number, line))
                continue
            yield from blank
            blank.clear()
            yield number, line


def read_lines(path: Path, *, keep_ends: bool = False) -> Iterator[tuple[int, str]]:
    """Streams (line number from 1, line) of a UTF-8 file, packed or not; only a line feed ends one.

    Blank lines at the end are passed over.

    Raises:
      InputError: no such file, no text, a damaged archive, a line that is not UTF-8 or longer than 16 MiB.
    """
    number = 0
    try:
        for number, raw in byte_lines(path):
            line = raw.decode("utf-8")
            yield number, line if keep_ends else line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}", f"is not UTF-8: {error}", "convert the file to UTF-8") from None
    except DAMAGED as error:
        raise InputError(path, f"is damaged after line {number}: {error}", "download or pack it again") from None


def read_whole(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a file that must be held whole, unpacked, without a byte order mark.

    Raises:
      InputError: as `open_unpacked`, for more than `largest` bytes, and for a packed file that is damaged.
    """
    try:
        with open_unpacked(path) as file:
            content = file.read(largest + 1)
    except DAMAGED as error:
        raise InputError(path, f"cannot be read to its end: {first_line(error)}", "copy or pack it again") from None
    if len(content) > largest:
        raise InputError(path, f"it has more than {largest} bytes unpacked", "give it in parts")
    return content.removeprefix(BYTE_ORDER_MARK)


def table_rows(lines: Iterable[str], delimiter: str) -> Any:
    """The rows of a table as `csv.reader` gives them: CSV with double quotes, TSV without any."""
    if delimiter == "\t":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def split_columns(line: str) -> list[str]:
    """The columns of a line: between tabs where it has tabs, else between blanks; no other white space divides."""
    line = line.strip(" \t\r\n")
    if "\t" in line:
        return [one.strip(" ") for one in line.split("\t")]
    return _BLANKS.split(line) if line else []


def as_bio(tags: Sequence[str]) -> list[str]:
    """Tags of BIOES or BILOU as BIO: a single one (S, U) begins, the last one (E, L) is inside."""
    other = {"S": "B", "U": "B", "E": "I", "L": "I"}
    return [other.get(tag[:1], tag[:1]) + tag[1:] if tag[1:2] in ("-", "") else tag for tag in tags]


def begins_array(start: bytes) -> bool:
    """Whether bytes begin a JSON array of objects: a text may begin with a bracket, but hardly with one and a brace."""
    return re.match(rb"(\xef\xbb\xbf)?\s*\[\s*(\{|$|\])", start) is not None


def array_items(file: TextIO, longest: int = LONGEST) -> Iterator[Any]:
    """The items of a JSON array, each decoded as soon as it is whole.

    Raises:
      ValueError: not JSON, something behind the array, an item of more than `longest` characters.
    """
    from kinject.json_file import decoder

    text, size = file.read(CHUNK), CHUNK
    while not text.strip() and (more := file.read(CHUNK)):
        text = more
    at, first = _visible(text, _visible(text, 0) + 1), True
    while True:
        start = at
        try:
            if text.startswith("]", at):
                while not text[at + 1 :].strip() and (more := file.read(CHUNK)):
                    text, at = more, -1
                if text[at + 1 :].strip():
                    raise ValueError("something stands behind the array")
                return
            if not first:
                if at < len(text) and text[at] != ",":
                    raise ValueError("expected a comma or the end of the array")
                at = _visible(text, at + 1)
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:  # an item that goes on behind the chunk, or is none
            if len(text) - start > longest:
                raise ValueError(f"an item has more than {longest} characters, or is not JSON") from None
            more = file.read(size)
            if not more:
                raise
            # twice as much each time, so that a long item is not read again and again
            text, at, size = text[start:] + more, 0, 2 * size
            at = _visible(text, at)
            continue
        yield value
        at, first, size = _visible(text, at), False, CHUNK


def _visible(text: str, at: int) -> int:
    """The first place from `at` on that is no white space; the end where there is none."""
    found = _VISIBLE.match(text, at)
    return found.end() if found else at  # the pattern matches everywhere
