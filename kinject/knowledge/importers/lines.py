"""Reading text files line by line, so that whatever is wrong with one can be named by its number."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kinject.errors import InputError


def read_lines(path: Path, *, keep_ends: bool = False) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line) of a UTF-8 file, gzipped if it ends in .gz; only a line feed ends one.

    Raises:
      InputError: no such file, a damaged archive, a line that is not UTF-8.
    """
    if not path.is_file():
        raise InputError(path, "is not there", "check the path")
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, line if keep_ends else line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(at(path, number), f"is not UTF-8: {error}", "convert the file to UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(path, f"is damaged after line {number}: {error}", "download or pack it again") from None


def at(path: Path, number: int) -> str:
    """Names a line for an error message."""
    return f"{path}, line {number}"


def whole_number(where: str, text: str, what: str) -> int:
    """Parses a non-negative integer, or says where it is not one."""
    if not (text.isascii() and text.isdigit()):
        raise InputError(where, f"{what} is {text!r}, not a number")
    return int(text)


def map_array(path: Path) -> np.ndarray:
    """Memory-maps a .npy file of vectors, float [N, k]; its content is never executed.

    Raises:
      InputError: no such file, not an array of that kind.
    """
    if not path.is_file():
        raise InputError(path, "is not there", "check the path")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(path, f"is not a plain .npy array: {error}", "save it with numpy.save") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        what = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else "an archive"
        raise InputError(path, f"holds {what}, not floating vectors [entities, dimensions]")
    return vectors
