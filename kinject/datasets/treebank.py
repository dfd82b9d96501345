"""Dependency trees of any treebank or parser in CoNLL-U, read by the `conllu` library: for the linguistic K-Adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kinject.data.records import Record, parse_record
from kinject.datasets.builder import RecordBuilder, Splits
from kinject.errors import InputError, first_line
from kinject.knowledge.files import read_lines

ENDINGS = (".conllu", ".conllu.gz")
FORM = "CoNLL-U has ten columns between tabs, ID to MISC, and a blank line after each sentence"


class Treebank(RecordBuilder):
    """Records: tokens (syntactic words), `heads` (from 1, 0 = root), `relations` (their names), `id` (split/line).

    The words are those that have heads: of a contraction its parts, such as `de` and `le` of `du`. Empty nodes are left
    out. A sentence is refused where its words are not numbered from 1 on or a head is none of them.
    """

    DESCRIPTION = "Dependency trees in CoNLL-U: a treebank of one's own choice, or what a parser wrote."
    HOMEPAGE = "https://universaldependencies.org/format.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    One file a split, whose name ends in it: en_ewt-ud-train.conllu, dev.conllu, x-test.conllu.gz, … (Universal
    Dependencies' own names are such). dev is called validation afterwards.
    """

    def files(self, folder: Path) -> list[Path]:
        found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))
        if not found:
            raise InputError(folder, "no file ends in .conllu or .conllu.gz", "put train.conllu there")
        return found

    def splits(self, folder: Path) -> Splits:
        files: dict[str, Path] = {}
        for path in self.files(folder):
            split = re.split(r"[-.]", path.name.removesuffix(".gz").removesuffix(".conllu"))[-1]
            split = {"dev": "validation"}.get(split, split)
            if not re.fullmatch(r"[A-Za-z0-9_]+", split) or split == "all":
                raise InputError(path, f"{split!r} cannot be a split's name", "rename it: …-train.conllu")
            if split in files:
                raise InputError(path, f"split {split} is in {files[split].name} already", "keep one of them")
            files[split] = path
        return {split: partial(_records, split, path) for split, path in files.items()}


def _records(split: str, path: Path) -> Iterator[Record]:
    for number, text in _sentences(path):
        where = f"{path}:{number}"
        words = [token for token in _parse(text, where) if isinstance(token["id"], int)]
        heads = _heads(words, where)
        record = {
            "tokens": [word["form"] for word in words],
            "heads": heads,
            "relations": [str(word.get("deprel") or "_") for word in words],
            "id": f"{split}/{number}",
        }
        yield parse_record(record, where)


def _sentences(path: Path) -> Iterator[tuple[int, str]]:
    """(number of its first line, lines) of each sentence."""
    start, lines = 1, []
    for number, line in read_lines(path):
        if line.strip():
            start = start if lines else number
            lines.append(line.rstrip("\r\n"))
        elif lines:
            yield start, "\n".join(lines)
            lines = []
    if lines:
        yield start, "\n".join(lines)


def _parse(text: str, where: str) -> list[Any]:
    import conllu

    try:
        sentences = conllu.parse(text + "\n\n")
    except Exception as error:  # whatever the library makes of a malformed line
        raise InputError(where, f"a sentence that is not CoNLL-U ({first_line(error, 80)})", FORM) from None
    return sentences[0] if sentences else []


def _heads(words: list[Any], where: str) -> list[int]:
    """The heads of a sentence's words; raises InputError where they are no tree's."""
    if not words:
        raise InputError(where, "a sentence without words", FORM)
    heads = []
    for place, word in enumerate(words, start=1):
        if word["id"] != place:
            raise InputError(where, f"word {word['id']} stands where {place} is due", "number the words from 1 on")
        head = word.get("head")
        if type(head) is not int or not 0 <= head <= len(words) or head == place:
            mend = f"a head is another word of the sentence, 1 to {len(words)}, or 0"
            raise InputError(where, f"field HEAD of word {place} is {head!r}", mend)
        heads.append(head)
    return heads
