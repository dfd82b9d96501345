"""A user's own corpus: JSON lines with entity spans, in the records' own form, of any size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, read_records
from kinject.datasets.builder import RecordBuilder, Splits, corpus_config
from kinject.datasets.files import check
from kinject.errors import InputError

ENDINGS = (".jsonl", ".jsonl.gz")


class Jsonl(RecordBuilder):
    """Records: as they are, with all their fields. An `id` is optional; no two records may have the same one.

    The config's name is the corpus's: `Jsonl(config=corpus("mine"))`, or `jsonl/mine` on the command line.
    """

    DESCRIPTION = "A corpus of one's own: texts or token lists with entity mentions."
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    One file a split, named after it: train.jsonl, test.jsonl.gz, … A line is
    {"text": "Paris is big.", "mentions": [{"start": 0, "end": 5, "entity": "Q90"}]}, or has "tokens": ["Paris", …] and
    offsets in tokens; any further fields (id, label, labels, answers, …) are kept.
    """
    HAS_OWN_IDS = True
    USER_NAMED = True
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="corpus", description="a corpus without a name of its own")
    ]

    def files(self, folder: Path) -> list[Path]:
        found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))
        if not found:
            raise InputError(folder, "no file ends in .jsonl or .jsonl.gz", "put train.jsonl there; one file a split")
        return found

    def splits(self, folder: Path) -> Splits:
        files: dict[str, Path] = {}
        for path in self.files(folder):
            split = path.name.partition(".")[0]
            if (
                not re.fullmatch(r"[A-Za-z0-9_]+", split)
                or split == "all"
                or path.name.removeprefix(split) not in ENDINGS
            ):
                raise InputError(path, f"{split!r} cannot be a split's name", "rename it: letters, digits and _")
            if split in files:
                raise InputError(path, f"split {split} is in {files[split].name} already", "keep one of them")
            files[split] = path
        return {split: partial(_records, path) for split, path in files.items()}


def corpus(name: str) -> tfds.core.BuilderConfig:
    """The config of a corpus with a name of its own.

    Raises:
      InputError: a name that cannot be a folder's everywhere.
    """
    return corpus_config(name, Jsonl.BUILDER_CONFIGS)


def _records(path: Path) -> Iterator[Record]:
    for record in read_records(path):
        if "id" in record.fields and not check(record.fields["id"], str, "id", record.where):
            raise InputError(record.where, "field 'id' is empty", "leave it out where there is none")
        yield record
