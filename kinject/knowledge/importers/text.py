"""Vectors as text, a key and its numbers a line: word2vec, fastText, GloVe, Wikipedia2Vec and PyTorch-BigGraph.

word2vec and fastText start with a line of count and dimension, GloVe does not. Wikipedia2Vec's is word2vec's format in
which an entity is written `ENTITY/Title_With_Underscores`; E-BERT fits its matrix on the words and applies it to the
entities, so both can be imported. PyTorch-BigGraph's export is separated by tabs; the published Wikidata file starts
with three counts (entities, relations, dimension) and goes on with relation parameters after the entities, which are
left out. word2vec's binary format (float32, little-endian, behind each word and a blank) is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.files import VectorSpool, at
from kinject.knowledge.write import write_knowledge
from kinject.text_files import DAMAGED, LONGEST, open_unpacked, read_lines

ENTITY_PREFIX = "ENTITY/"
KEEP = ("entities", "words", "both")


def import_word2vec(folder_out: Path, *, vectors: Path, dim: int | None = None, **about: Any) -> Path:
    """Imports word vectors; a word is both id and label.

    Args:
      folder_out: the knowledge base to write.
      vectors: text, one word and its numbers a line, separated by spaces, or word2vec's binary format; either may be
        packed with gzip, bzip2 or xz.
      dim: numbers a line; needed only for a file without a first line of counts whose first word holds a space.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    vectors = Path(vectors)
    with VectorSpool(Path(folder_out)) as spool:
        binary = binary_vectors(vectors) if is_binary(vectors) else None
        for where, word, numbers in binary or text_vectors(vectors, separator=" ", header=2, dim=dim):
            spool.add(where, word, numbers)
        ids, table, _ = spool.finish(vectors)
        return write_knowledge(folder_out, ids=ids, labels=ids, vectors=table, **about)


def import_wikipedia2vec(folder_out: Path, *, vectors: Path, keep: str = "entities", **about: Any) -> Path:
    """Imports Wikipedia2Vec vectors.

    Args:
      folder_out: the knowledge base to write.
      vectors: the text file; gzipped if it ends in .gz.
      keep: "entities" (id = `Title_With_Underscores`), "words" (id = word), or "both" (entities keep `ENTITY/` in
        front of their id, as a word may be spelled like a title). Labels are titles with spaces, and words.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    if keep not in KEEP:
        raise InputError("wikipedia2vec", f"keep is {keep!r}", did_you_mean(keep, KEEP))
    vectors = Path(vectors)
    labels: list[str] = []
    with VectorSpool(Path(folder_out)) as spool:
        for where, key, numbers in text_vectors(vectors, separator=" ", header=2):
            is_entity = key.startswith(ENTITY_PREFIX)
            if is_entity == (keep == "words") and keep != "both":
                continue
            title = key.removeprefix(ENTITY_PREFIX) if is_entity else key
            spool.add(where, key if keep == "both" else title, numbers)
            labels.append(title.replace("_", " ") if is_entity else title)
        ids, table, _ = spool.finish(vectors)
        return write_knowledge(folder_out, ids=ids, labels=labels, vectors=table, **about)


def import_biggraph(folder_out: Path, *, vectors: Path, pattern: str | None = None, **about: Any) -> Path:
    r"""Imports a PyTorch-BigGraph TSV export.

    Args:
      folder_out: the knowledge base to write.
      vectors: the TSV file; gzipped if it ends in .gz.
      pattern: regular expression; only entities it matches whole are kept, and its first group, where it has one, is
        the id: `<http://www\.wikidata\.org/entity/(Q\d+)>` keeps Wikidata's items as Q1, Q2, ….
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    vectors = Path(vectors)
    try:
        wanted = re.compile(pattern or "(.*)")
    except re.error as error:
        raise InputError("biggraph", f"pattern {pattern!r} is no regular expression: {error}") from None
    with VectorSpool(Path(folder_out)) as spool:
        for where, key, numbers in text_vectors(vectors, separator="\t", header=3, only_counted=True):
            match = wanted.fullmatch(key)
            if match:
                spool.add(where, match[1] if wanted.groups else key, numbers)
        ids, table, _ = spool.finish(vectors)
        return write_knowledge(folder_out, ids=ids, vectors=table, **about)


def is_binary(path: Path) -> bool:
    """Whether a file is word2vec's binary format: a line of two counts, a word, a blank, and then no digits."""
    try:
        with open_unpacked(path) as file:
            first, second = file.readline(64), file.read(512)
    except DAMAGED:
        return False  # for the reader of lines to tell
    counts = re.fullmatch(rb"\d+ (\d+)\s*\n", first)
    if counts is None:
        return False
    fields = second.split(b"\n")[0].split()[1:][-int(counts[1]) :]
    return not fields or not all(re.fullmatch(rb"[-+.\dEe]+|[-+]?(nan|inf)", one) for one in fields[:-1] or fields)


def binary_vectors(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (where, word, float32 [k]) of word2vec's binary format.

    Raises:
      InputError: it ends too early, goes on behind the last word, or a word is not UTF-8.
    """
    number = 0
    try:
        with open_unpacked(path) as file:
            count, dim = (int(one) for one in file.readline(64).split())
            held, at, width = b"", 0, 4 * dim
            for number in range(1, count + 1):
                while (end := held.find(b" ", at)) < 0 or len(held) < end + 1 + width:
                    more = file.read(max(1 << 20, width))
                    if not more or len(held) - at > LONGEST + width:
                        raise InputError(f"{path}, word {number}", "the file is cut", f"it announces {count} words")
                    held, at = held[at:] + more, 0
                word = held[at:end].lstrip(b"\n").decode("utf-8")
                yield f"{path}, word {number}", word, np.frombuffer(held, "<f4", dim, end + 1)
                at = end + 1 + width
            held = held[at:]
            if (held + file.read(64)).strip():
                raise InputError(path, f"announces {count} words and goes on behind them", "get the file again")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, word {number}", f"is not UTF-8: {error.reason}", "get the file again") from None
    except DAMAGED as error:
        raise InputError(path, f"is damaged after word {number}: {error}", "get the file again") from None


def text_vectors(
    path: Path, *, separator: str, header: int, dim: int | None = None, only_counted: bool = False
) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (where, key, numbers as text) of every line; a key may hold spaces (some of GloVe's do).

    Args:
      path: the file, gzipped if it ends in .gz.
      separator: what stands between the fields.
      header: how many integers a first line of counts has, the count first and the dimension last.
      dim: numbers in a line; None takes them from the first line, which then may have no space in its key.
      only_counted: stop after the number of lines that the header counts, for files that go on with something else.

    Raises:
      InputError: a line with fewer or more numbers, fewer or more lines than counted.
    """
    counted = None
    read = 0
    for number, line in read_lines(path):
        line = line.rstrip(" ")
        fields = line.split(separator)
        if number == 1 and len(fields) == header and all(field.isdigit() for field in fields):
            counted, announced = int(fields[0]), int(fields[-1])
            if dim not in (None, announced):
                raise InputError(at(path, 1), f"announces {announced} numbers a line, not {dim}", "leave dim out")
            dim = announced
            continue
        if only_counted and read == counted:
            return
        dim = dim or len(fields) - 1
        if len(fields) <= dim or dim == 0:
            problem = f"{_short(line)} has {len(fields) - 1} numbers, not {dim or 'one or more'}"
            raise InputError(at(path, number), problem, "the line may be cut, or the format another one")
        key = separator.join(fields[:-dim])
        if len(fields) > dim + 1 and (separator == "\t" or _is_number(fields[-dim - 1])):
            raise InputError(at(path, number), f"{_short(line)} has more than {dim} numbers", "check the line, or dim")
        yield at(path, number), key, fields[-dim:]
        read += 1
    if counted is not None and read != counted:
        raise InputError(path, f"announces {counted} lines and holds {read}", "the file may be cut; get it again")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(line: str) -> str:
    return repr(line if len(line) < 40 else f"{line[:40]}…")
