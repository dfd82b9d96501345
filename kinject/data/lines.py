"""Lines of a stream of any size, none held that is longer than a megabyte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from kinject.errors import InputError

LONGEST_LINE = 1 << 20  # bytes; a longer one is refused, not read
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
