"""What every builder here shares: the feature form, how a split is written, and what is noted about it.

A data set says which records each split of a folder holds, as callables, so that nothing is read before its turn and
a split can be read twice. Everything else of a tensorflow_datasets builder is here.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.utils import tqdm_utils

from kinject.data.records import Record
from kinject.datasets.example import encode, features
from kinject.datasets.shards import write_shards
from kinject.datasets.unique import Ids
from kinject.errors import InputError

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

    def leave_out_overlap(self, where: str, fields: str = "fields 'h' and 't'") -> None:
        """Counts a sentence whose mentions overlap; raises InputError instead where files are to be the published."""
        if self.check:
            raise InputError(where, f"{fields} overlap", "--no-check leaves such sentences out")
        self.left_out["head and tail overlap"] += 1

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
        mend = "download it again, or prepare with --no-check"
        raise InputError(where, f"it has {found:,} {what}, the published one has {published:,}", mend)
