"""Reading prepared data sets back as records, by reference, next to plain files of JSON lines.

A reference is `tfds:NAME[/CONFIG][:VERSION]@DATA_DIR[?split=SPLIT]`, for example
`tfds:fewrel/val_wiki@~/data?split=validation[:7000]`. SPLIT is whatever tensorflow_datasets takes: `train`,
`train+test`, `train[:10%]`; it may be left out where there is one split. Records come in the order of their source.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from kinject.data.records import Record, read_records
from kinject.datasets.storage import Shards, decode
from kinject.errors import InputError, did_you_mean

PREFIX = "tfds:"
FORM = "a data set is tfds:NAME/CONFIG@DATA_DIR?split=SPLIT"
BLOCK = 512


class Dataset(Sequence[Record]):
    """A prepared split: records by index, each read and parsed when it is asked for; a source for Grain.

    Picklable: it travels as its reference.

    Args:
      reference: see the module.
      require: fields that every record must have.

    Attributes:
      folder: where it lives.
      split: as in the reference, or the only one there is.
      metadata: what was noted when it was prepared: labels, left_out, files, checked.

    Raises:
      InputError: no such data set, version or split; not one of ours. When a record is read: a required field missing.
    """

    def __init__(self, reference: str, require: Sequence[str] = ()):
        self.reference, self.require = reference, tuple(require)
        name, data_dir, split = parse_reference(reference)
        self.folder = find_dataset(name, data_dir, reference)
        builder = _open_builder(self.folder)
        self.split = _choose_split(split, list(builder.info.splits), reference)
        self._source = _open_split(builder, self.split, reference)
        self.metadata: dict[str, Any] = read_metadata(self.folder)

    @property
    def labels(self) -> list[str]:
        """All labels in the order of their numbers; empty where a data set has no such order."""
        return self.metadata.get("labels", [])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex | slice) -> Record | list[Record]:  # type: ignore[override]  # Grain asks for single records or lists of them
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._record(self._source[index % len(self)])

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        """Several records at once, which is faster than one by one."""
        return [self._record(raw) for raw in self._source.__getitems__(indices)]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), BLOCK):
            yield from self.__getitems__(range(start, min(start + BLOCK, len(self))))

    def __reduce__(self) -> tuple[Any, ...]:
        return Dataset, (self.reference, self.require)

    def __repr__(self) -> str:
        return f"Dataset({self.reference!r}, {len(self)} records)"

    def _record(self, raw: bytes) -> Record:
        record = decode(raw)
        for name in self.require:
            if name not in record.fields:
                has = ", ".join(record.fields) or "none"
                raise InputError(f"{self.reference} ({record.where})", f"field {name!r} is missing", f"it has {has}")
        return record


def is_dataset(reference: str) -> bool:
    """Whether a reference names a prepared data set, not a file."""
    return reference.startswith(PREFIX)


def read_dataset(reference: str, require: Sequence[str] = ()) -> Sequence[Record] | Iterator[Record]:
    """A prepared data set by index, or a file of JSON lines as a stream.

    Raises:
      InputError: see `Dataset` and `read_records`.
    """
    return Dataset(reference, require) if is_dataset(reference) else read_records(reference, require)


def read_datasets(references: Iterable[str | Path], require: Sequence[str] = ()) -> Iterator[Record]:
    """Streams the records of several data sets and files, in order.

    Raises:
      InputError: at the call for what is not there, while iterating for a bad record.
    """
    found = [read_dataset(str(reference), require) for reference in references]
    if not found:
        raise InputError("records", "no file and no data set was given", f"name JSON lines files; {FORM}")
    return (record for records in found for record in records)


def parse_reference(reference: str) -> tuple[str, Path, str]:
    """`tfds:NAME@DATA_DIR?split=SPLIT` -> (name, data_dir, split or "").

    Raises:
      InputError: another form.
    """
    name, at, rest = reference.removeprefix(PREFIX).partition("@")
    data_dir, question, split = rest.partition("?split=")
    if not is_dataset(reference) or not name or not at or not data_dir or (question and not split):
        raise InputError(reference, "not a reference to a data set", FORM)
    return name, Path(data_dir).expanduser(), split


def find_dataset(name: str, data_dir: Path, where: str) -> Path:
    """The folder of `NAME[/CONFIG][:VERSION]`; the highest version where none is named.

    Raises:
      InputError: there is none, or CONFIG is left out and there are several.
    """
    path, _, version = name.partition(":")
    folder = data_dir / path
    versions = {each.name: each for each in _children(folder) if re.fullmatch(r"\d+\.\d+\.\d+", each.name)}
    if version in versions:
        return versions[version]
    if versions and not version:
        return max(versions.values(), key=lambda each: tuple(map(int, each.name.split("."))))
    if versions:
        raise InputError(where, f"{path} has no version {version}", did_you_mean(version, versions))
    configs = [each.name for each in _children(folder) if any(_children(each))]
    if configs:
        raise InputError(where, f"{path} has the configs {', '.join(configs)}", f"name one: {path}/{configs[0]}")
    hint = f"prepare it: python -m kinject.datasets prepare {path} --manual-dir FILES --data-dir {data_dir}"
    raise InputError(where, f"there is no data set {path} in {data_dir}", hint)


def _children(folder: Path) -> list[Path]:
    """The folders in a folder, unfinished ones of tensorflow_datasets left out."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and "incomplete" not in each.name)


def _open_builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        problem = f"not a prepared data set ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise InputError(folder, problem, "delete the folder and prepare it again") from None
    ours = {"where", "text", "tokens", "mentions", "fields"}
    if not ours <= set(builder.info.features or ()):
        raise InputError(folder, "a data set that kinject.datasets did not prepare", "prepare it as jsonl")
    return builder


def _choose_split(split: str, known: list[str], where: str) -> str:
    if not split and len(known) != 1:
        raise InputError(where, f"there are the splits {', '.join(known)}", f"name one: ?split={known[0]}")
    for name in re.findall(r"[A-Za-z_]\w*(?![\w%])", re.sub(r"\[.*?\]", "", split)):
        if name not in (*known, "all"):
            raise InputError(where, f"there is no split {name}", did_you_mean(name, known))
    return split or known[0]


def _open_split(builder: Any, split: str, where: str) -> Shards:
    try:
        parts = builder.info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(where, f"split {split}: {error}", "use train, train+test or train[:10%]") from None
    return Shards(parts)


def read_metadata(folder: Path) -> dict[str, Any]:
    """What was noted when a data set was prepared."""
    path = folder / "metadata.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({error})", "delete the folder and prepare it again") from None
