"""What the data sets of one file a split share: which file is which, its objects one by one, labels, counts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from kinject.data.records import Record
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.files import find, need, read_labels
from kinject.datasets.json_stream import read_objects
from kinject.errors import InputError, did_you_mean

LABEL_FILES = ("label2id.json", "rel2id.json")


class SplitFiles(RecordBuilder):
    """A data set of one file a split, each a JSON array or JSON lines.

    Attributes:
      SPLITS: split -> the names that its file may have; the first split is needed, the others may be missing.
      COUNTS: split -> how many objects the published file has, where that is known.
      LABELS: how many labels the published files have, where that is known.
    """

    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train.json", "train.jsonl"),
        "validation": ("dev.json", "dev.jsonl", "valid.json", "valid.jsonl"),
        "test": ("test.json", "test.jsonl"),
    }
    COUNTS: ClassVar[dict[str, int]] = {}
    LABELS: ClassVar[int | None] = None

    @abstractmethod
    def record(self, line: dict[str, Any], where: str, identity: str) -> Record | None:
        """The record of one object; None where it is left out, which is counted.

        Args:
          line: the object.
          where: file and place, for messages.
          identity: "split/number", for objects without an id of their own.

        Raises:
          InputError: a missing field, a wrong type, a span outside of the text, a label that is none.
        """

    def objects(self, path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """(number, where, object) of a file, in order."""
        return read_objects(path)

    def files(self, folder: Path) -> list[Path]:
        labels = find(folder, *LABEL_FILES)
        return [*self._split_files(folder).values(), *([labels] if labels else [])]

    def splits(self, folder: Path) -> Splits:
        self._label_file = find(folder, *LABEL_FILES)
        self.labels = read_labels(self._label_file) if self._label_file else []
        self._known = set(self.labels)
        files = self._split_files(folder)
        if self.check:
            for split, path in files.items():
                if split in self.COUNTS:
                    expect(path, "records", sum(1 for _ in self.objects(path)), self.COUNTS[split])
        return {split: partial(self._records, split, path) for split, path in files.items()}

    def _split_files(self, folder: Path) -> dict[str, Path]:
        first, *_ = self.SPLITS
        need(folder, *self.SPLITS[first])
        found = {split: find(folder, *names) for split, names in self.SPLITS.items()}
        return {split: path for split, path in found.items() if path}

    def _records(self, split: str, path: Path) -> Iterator[Record]:
        for number, where, line in self.objects(path):
            record = self.record(line, where, f"{split}/{number}")
            if record is not None:
                yield record
        if self.check and self.LABELS is not None and split == next(iter(self.SPLITS)):
            expect(path, "labels", len(self.labels), self.LABELS)

    def known(self, labels: Iterable[tuple[str, str]], where: str) -> None:
        """Notes the labels of a record, or holds them to the label file where the folder has one.

        Without a label file the labels of a data set are those that occur, in the order of their names.

        Args:
          labels: (field, label) pairs.
          where: file and place.

        Raises:
          InputError: a label that the label file does not have.
        """
        for field, label in labels:
            if label in self._known:
                continue
            if self._label_file:
                problem = f"field {field!r} is {label!r}, not in {self._label_file.name}"
                raise InputError(where, problem, did_you_mean(label, self._known))
            self._known.add(label)
            self.labels = sorted(self._known)
