"""Words with BIO tags, of any corpus: CoNLL's columns or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.datasets.choices import texts
from kinject.datasets.files import take
from kinject.datasets.split_files import SplitFiles
from kinject.errors import InputError
from kinject.knowledge.files import read_lines

COLUMN_ENDINGS = (".txt", ".txt.gz", ".conll", ".conll.gz")
DOCUMENT = "-DOCSTART-"


class Ner(SplitFiles):
    """Records: tokens, `tags` (BIO, one a token), `id`; mentions where JSON lines have them.

    Files in which a name begins with `I-` have the older scheme (IOB1), in which `B-` stands only between two names of
    one type; their tags are turned into BIO.
    """

    DESCRIPTION = "Named entities: words with BIO tags, a corpus of one's own choice."
    HOMEPAGE = "https://www.clips.uantwerpen.be/conll2003/ner/"
    CITATION = "Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 Shared Task, CoNLL 2003"
    USER_NAMED = True
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="corpus", description="a corpus without a name of its own")
    ]
    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train.txt", "train.conll", "train.jsonl", "eng.train.txt"),
        "validation": ("dev.txt", "valid.txt", "dev.conll", "dev.jsonl", "valid.jsonl", "eng.testa.txt"),
        "test": ("test.txt", "test.conll", "test.jsonl", "eng.testb.txt"),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train, dev (or valid) and test, each .txt or .conll: a word a line, columns between spaces or tabs, the word first
    and its tag last, a blank line after each sentence, lines of -DOCSTART- skipped; or .jsonl: {"tokens": […],
    "tags": […]}, perhaps with "mentions". dev and test may be missing. With a label2id.json beside them, other tags are
    refused.
    """

    def objects(self, path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """One object a sentence."""
        return _sentences(path) if path.name.endswith(COLUMN_ENDINGS) else super().objects(path)

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        tokens = texts(take(line, "tokens", list, where), "tokens", where)
        tags = as_bio(texts(take(line, "tags", list, where), "tags", where), where)
        if len(tags) != len(tokens) or not tokens:
            problem = f"field 'tags' has {len(tags)} of them for {len(tokens)} tokens"
            raise InputError(where, problem, "there must be one a token, and a token")
        self.known(((f"tags[{i}]", tag) for i, tag in enumerate(tags)), where)
        mentions = line.get("mentions", [])
        return parse_record({"tokens": tokens, "mentions": mentions, "tags": tags, "id": identity}, where)


def as_bio(tags: list[str], where: str) -> list[str]:
    """Tags in which every name begins with `B-`.

    Raises:
      InputError: a tag that is neither `O` nor `B-` or `I-` and a type.
    """
    found: list[str] = []
    for i, tag in enumerate(tags):
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not tag[2:]):
            raise InputError(where, f"field 'tags[{i}]' is {tag!r}", "a tag is O, or B- or I- and a type")
        inside = i > 0 and found[-1] != "O" and found[-1][2:] == tag[2:]
        found.append(f"B-{tag[2:]}" if tag.startswith("I-") and not inside else tag)
    return found


def _sentences(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number of its first line, "file:line", tokens and tags) of each sentence of a file of columns."""
    start, words, empty = 0, [], True
    for number, line in read_lines(path):
        columns = line.split()
        if columns and columns[0] == DOCUMENT:
            continue
        if not columns:
            if words:
                yield start, f"{path}:{start}", _columns(words)
            words = []
            continue
        if len(columns) < 2:
            raise InputError(f"{path}:{number}", f"the line is {line!r}", "it must be a word, a space and its tag")
        start = start if words else number
        words.append(columns)
        empty = False
    if words:
        yield start, f"{path}:{start}", _columns(words)
    if empty:
        raise InputError(path, "the file is empty: there is no sentence in it", "download it again")


def _columns(words: list[list[str]]) -> dict[str, Any]:
    return {"tokens": [columns[0] for columns in words], "tags": [columns[-1] for columns in words]}
