"""What every builder here shares: the feature form, how a split is written, and what is noted about it.

A data set says which records each split of a folder holds, as callables, so that nothing is read before its turn and
a split can be read twice. Everything else of a tensorflow_datasets builder is here; `SplitFiles` is for the many data
sets of one file a split.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.utils import tqdm_utils

from kinject.data.records import Record
from kinject.datasets.files import check_label, find, need, read_labels, read_objects
from kinject.datasets.storage import encode, features, write_shards
from kinject.errors import InputError, Misplaced

Splits = Mapping[str, Callable[[], Iterator[Record]]]


class RecordBuilder(FileReaderBuilder):
    """A builder whose examples are records.

    Args:
      check: whether the files must be the published ones (counts, and checksums where they are known). Without, files
        of any size in the same format will do, and sentences that no task can use are left out and counted.
      **kwargs: `data_dir`, `config` and `version`, as for every tensorflow_datasets builder.

    Attributes:
      DESCRIPTION, HOMEPAGE, CITATION, LICENSE: of the data set.
      HAS_OWN_IDS: whether `id` is the user's own, so that one may stand twice by mistake.
      USER_NAMED: whether a config is a corpus of the user's own, by any name.
      FILES: config -> its file and how many entries the published one has, 0 = not known; a class that has some is
        given a config for each.
      left_out: why and how many records of the files were left out, filled as they are read.
      labels: all labels in the order of their numbers, where a data set has such an order.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    DESCRIPTION: ClassVar[str]
    HOMEPAGE: ClassVar[str] = ""
    CITATION: ClassVar[str] = ""
    LICENSE: ClassVar[str] = ""
    HAS_OWN_IDS: ClassVar[bool] = False
    USER_NAMED: ClassVar[bool] = False
    FILES: ClassVar[dict[str, tuple[str, int]]]

    def __init_subclass__(cls, **options: Any) -> None:
        if "FILES" in vars(cls):
            cls.BUILDER_CONFIGS = [
                tfds.core.BuilderConfig(name=name, description=name.replace("_", " ")) for name in cls.FILES
            ]
        super().__init_subclass__(**options)

    def __init__(self, *, check: bool = True, **kwargs: Any):
        self.check = check
        self.left_out: Counter[str] = Counter()
        self.labels: list[str] = []
        super().__init__(**kwargs)
        self._original_state["check"] = check  # what pickling restores

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        """The configs that a folder of published files is meant for; the default one, unless a builder knows better."""
        del folder
        return [cls.default_builder_config.name] if cls.BUILDER_CONFIGS else []

    @abstractmethod
    def files(self, folder: Path) -> list[Path]:
        """The files that will be read.

        Raises:
          InputError: a missing one, and where to put it.
        """

    @abstractmethod
    def splits(self, folder: Path) -> Splits:
        """What reads the records of each split; called once, before any of them.

        Raises:
          InputError: here or while reading: whatever is wrong with the files.
        """

    def unless_overlap(self, record: Record | None, where: str, fields: str = "fields 'h' and 't'") -> Iterator[Record]:
        """Yields the record; of None, a sentence whose mentions overlap, it notes that it was left out.

        Raises:
          InputError: such a sentence where the files are to be the published ones.
        """
        if record is not None:
            yield record
        elif self.check:
            raise InputError(where, f"{fields} overlap", "--no-check leaves such sentences out")
        else:
            self.left_out["head and tail overlap"] += 1

    def placed(self, make: Callable[[], Record | None]) -> Iterator[Record]:
        """Yields the record that is made, if one is; one with a misplaced mention or answer is left out and counted.

        Raises:
          InputError: such a record where the files are to be the published ones.
        """
        try:
            record = make()
        except Misplaced as error:
            if self.check:
                hint = f"{error.hint}; --no-check leaves such records out"
                raise Misplaced(error.where, error.problem, hint) from None
            self.left_out["a mention or an answer not where its place says"] += 1
            return
        if record is not None:
            yield record

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=features(),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            license=self.LICENSE,
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        del download_config
        folder = Path(dl_manager.manual_dir)
        self.info.set_file_format("array_record", override=True)
        files, splits = self.files(folder), self.splits(folder)
        written = Path(self._data_dir)
        ids = Ids(written) if self.HAS_OWN_IDS else None
        infos = [self._write_split(name, read, folder, ids) for name, read in splits.items()]
        if ids is not None:
            every = (record for read in splits.values() for record in read())
            ids.refuse_repeated((record.fields["id"], record.where) for record in every if "id" in record.fields)
        self.info.set_splits(tfds.core.splits.SplitDict(infos))
        self.info.metadata.update(
            labels=self.labels,
            left_out=dict(self.left_out),
            files={str(path.relative_to(folder)): path.stat().st_size for path in files},
            checked=self.check,
        )

    def _write_split(
        self, name: str, read: Callable[[], Iterator[Record]], folder: Path, ids: Ids | None
    ) -> tfds.core.SplitInfo:
        def examples() -> Iterator[bytes]:
            for record in progress(read(), name):
                if ids is not None and "id" in record.fields:
                    ids.add(record.fields["id"])
                yield encode(record, record.where.removeprefix(f"{folder}/"))

        template = self._get_filename_template(split_name=name)
        counts, size = write_shards(examples(), template)
        if not counts:
            raise InputError(folder, f"split {name} holds no record that can be used{self._reasons()}")
        return tfds.core.SplitInfo(name=name, shard_lengths=counts, num_bytes=size, filename_template=template)

    def _reasons(self) -> str:
        return "".join(f"; {count} left out: {reason}" for reason, count in self.left_out.items())


def corpus_config(name: str, known: Iterable[tfds.core.BuilderConfig]) -> tfds.core.BuilderConfig:
    """The config of a corpus with a name of its own; one of the known ones where the name is theirs.

    Raises:
      InputError: a name that cannot be a folder's everywhere.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"corpus {name}", "not a name", "use letters, digits, _, . and -")
    named = {config.name: config for config in known}
    return named.get(name) or tfds.core.BuilderConfig(name=name, description=f"the corpus {name}")


def progress(records: Iterable[Record], title: str) -> Iterable[Record]:
    """The same records, counted on a bar where there is a terminal to show it."""
    return tqdm_utils.tqdm(records, desc=title, unit=" records", mininterval=0.5, disable=None, leave=False)


def expect(where: object, what: str, found: int, published: int) -> None:
    """Raises InputError when a count is not the published one."""
    if found != published:
        hint = "download it again, or prepare with --no-check"
        raise InputError(where, f"it has {found:,} {what}, the published one has {published:,}", hint)


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
            yield from self.placed(lambda: self.record(line, where, f"{split}/{number}"))  # noqa: B023 (called at once)
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
                check_label(label, self._known, field, self._label_file.name, where)
            self._known.add(label)
            self.labels = sorted(self._known)


class Ids:
    """Collects ids as 64-bit hashes in a temporary file, eight bytes each, and sorts them there.

    Two ids may share a hash (for 100 million ids, once in some 4,000 data sets), so `refuse_repeated` looks at the
    ids themselves again before it blames one.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (lives as long as this object)

    def add(self, one: str) -> None:
        """Notes one id."""
        self._file.write(_hash(one))

    def repeated(self) -> set[bytes]:
        """The hashes that occur more than once."""
        self._file.flush()
        if not self._file.tell():
            return set()
        hashes = np.memmap(self._file, np.uint64, mode="r+")
        hashes.sort()
        return {value.tobytes() for value in hashes[1:][hashes[1:] == hashes[:-1]]}

    def refuse_repeated(self, again: Iterable[tuple[str, str]]) -> None:
        """Raises InputError for an id that stands twice.

        Args:
          again: (id, where) of all records once more; read only if there is a suspicion.
        """
        suspects = self.repeated()
        if not suspects:
            return
        first: dict[str, str] = {}
        for one, where in again:
            if _hash(one) in suspects and first.setdefault(one, where) != where:
                raise InputError(where, f"field 'id' is {one!r}, as at {first[one]} already", "give each its own id")


def _hash(one: str) -> bytes:
    return hashlib.blake2b(one.encode("utf-8", "surrogatepass"), digest_size=8).digest()
