"""How every data set here is stored: records as tf.train.Example messages, in array_record shards, in source order.

Messages are built and taken apart directly, not through the feature connectors of tensorflow_datasets (250 and 126
microseconds a sentence, against 15 and 22), which matters for a corpus of 100 million sentences. The layout is
exactly theirs, so that `tfds.builder_from_directory` reads it too.

The writer of tensorflow_datasets shuffles by hashed key, holding up to a gigabyte in memory and needing TensorFlow
beyond that. Here nothing is held and order is kept: the paper's FewRel episodes are drawn by index, and shuffling is
Grain's, at training time.

A random read of an array_record file takes time in proportion to its number of groups, whatever the group's size:
1.1 ms with 200,000 groups of one record, 0.05 ms with 6,250 of 32. So records stand in groups, and shards are short.
(array_record's own data source reads them too, but logs that groups of one would be faster.)
"""

from __future__ import annotations

import bisect
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.data.records import Mention, Record
from kinject.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.naming import ShardedFileTemplate
    from tensorflow_datasets.core.utils.shard_utils import FileInstruction


TEXTS = ("id", "label")
LISTS = ("labels", "answers")


def features() -> tfds.features.FeaturesDict:
    """The features that every data set here has.

    Exactly one of `text` and `tokens` holds something. `entity` is empty where a mention is not linked; `id`, `label`,
    `labels` and `answers` are empty where a record has none. `fields` is a JSON object of all else; `where` is the
    file and place that the record came from, for messages.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    texts, numbers = tfds.features.Text, np.int64
    return tfds.features.FeaturesDict(
        {
            "where": texts(),
            "text": texts(),
            "tokens": tfds.features.Sequence(texts()),
            "mentions": tfds.features.Sequence({"start": numbers, "end": numbers, "entity": texts()}),
            **{name: texts() for name in TEXTS},
            **{name: tfds.features.Sequence(texts()) for name in LISTS},
            "fields": texts(),
        }
    )


def encode(record: Record, where: str) -> bytes:
    """A record -> a serialized tf.train.Example; `where` stands for the record's own."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    fields = dict(record.fields)
    for name in TEXTS:
        text = fields.pop(name) if _is_text(fields.get(name)) else ""
        feature[name].bytes_list.value.append(text.encode())
    for name in LISTS:
        values = fields.get(name)
        fits = isinstance(values, list) and bool(values) and all(map(_is_text, values))
        feature[name].bytes_list.value.extend(value.encode() for value in (fields.pop(name) if fits else ()))
    content, tokens = (record.source, ()) if isinstance(record.source, str) else ("", record.source)
    if not isinstance(record.source, str) and not tokens:
        fields["tokens"] = []  # else it would come back as an empty text
    feature["text"].bytes_list.value.append(content.encode())
    feature["tokens"].bytes_list.value.extend(token.encode() for token in tokens)
    feature["mentions/start"].int64_list.value.extend(mention.start for mention in record.mentions)
    feature["mentions/end"].int64_list.value.extend(mention.end for mention in record.mentions)
    feature["mentions/entity"].bytes_list.value.extend((each.entity or "").encode() for each in record.mentions)
    feature["fields"].bytes_list.value.append(json.dumps(fields).encode() if fields else b"")
    feature["where"].bytes_list.value.append(where.encode("utf-8", "replace"))
    return example.SerializeToString()


def decode(raw: bytes) -> Record:
    """A serialized tf.train.Example -> the record that was encoded.

    Nothing is checked again: what was written had been checked.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(raw).features.feature

    def text(name: str) -> str:
        return feature[name].bytes_list.value[0].decode()

    def texts(name: str) -> list[str]:
        return [value.decode() for value in feature[name].bytes_list.value]

    fields = json.loads(text("fields") or "{}")
    tokens = texts("tokens") or fields.pop("tokens", None)
    fields.update((name, value) for name in TEXTS if (value := text(name)))
    fields.update((name, values) for name in LISTS if (values := texts(name)))
    starts, ends = feature["mentions/start"].int64_list.value, feature["mentions/end"].int64_list.value
    mentions = tuple(
        Mention(start, end, entity or None)
        for start, end, entity in zip(starts, ends, texts("mentions/entity"), strict=True)
    )
    return Record(text("text") if tokens is None else tuple(tokens), mentions, fields, text("where"))


def _is_text(value: object) -> bool:
    """Whether a value can be stored as a text that is told from none."""
    if not isinstance(value, str) or not value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair survives in JSON only
        return False
    return True


GROUP = 16
SHARD_RECORDS, SHARD_BYTES = 1 << 17, 256 << 20
DAMAGED = "delete the data set's folder and prepare it again"


def write_shards(
    examples: Iterable[bytes],
    template: ShardedFileTemplate,
    shard_records: int = SHARD_RECORDS,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[list[int], int]:
    """Writes serialized examples and returns (how many each shard holds, bytes in all).

    Shards get their names last, when it is known how many there are; the folder is a temporary one until
    tensorflow_datasets renames it, so a cut write leaves nothing behind.
    """
    folder = Path(template.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    counts: list[int] = []
    total, size, writer = 0, 0, None
    try:
        for example in examples:
            if writer is None or counts[-1] >= shard_records or size >= shard_bytes:
                _close(writer)
                writer, size = _open_writer(folder / f"{template.split}.part{len(counts)}"), 0
                counts.append(0)
            writer.write(example)
            counts[-1] += 1
            size += len(example)
            total += len(example)
    finally:
        _close(writer)
    for shard in range(len(counts)):
        name = template.sharded_filepath(shard_index=shard, num_shards=len(counts))
        (folder / f"{template.split}.part{shard}").rename(name)
    return counts, total


class Shards(Sequence[bytes]):
    """The serialized examples of a split, or of a slice of one, by index; files are opened when first read from.

    Args:
      parts: the stretches of files that make it up, as tensorflow_datasets names them.

    Raises:
      InputError: a file that is missing, or when it is read: damaged.
    """

    def __init__(self, parts: Sequence[FileInstruction]):
        self._parts = [(Path(part.filename), part.skip) for part in parts]
        self._ends = list(itertools.accumulate(part.take for part in parts))
        self._readers: dict[Path, Any] = {}
        self._lock = threading.Lock()
        for path, _ in self._parts:
            if not path.is_file():
                raise InputError(path, "no such file", DAMAGED)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]  # slices are never asked for
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[bytes]:
        """Examples in the order asked for; one read a file. Indices from 0 to below the length."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for place, index in enumerate(indices):
            wanted[bisect.bisect_right(self._ends, index)].append(place)
        found: list[bytes] = [b""] * len(indices)
        for part, places in wanted.items():
            path, skip = self._parts[part]
            first = (self._ends[part - 1] if part else 0) - skip
            for place, raw in zip(places, self._read(path, [indices[place] - first for place in places]), strict=True):
                found[place] = raw
        return found

    def _read(self, path: Path, positions: list[int]) -> list[bytes]:
        try:
            return self._reader(path).read(positions)
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise InputError(path, f"cannot be read: {error}", DAMAGED) from None

    def _reader(self, path: Path) -> Any:
        with self._lock:
            if path not in self._readers:
                from array_record.python import array_record_module

                options = "readahead_buffer_size:0,max_parallelism:0"
                self._readers[path] = array_record_module.ArrayRecordReader(str(path), options=options)
            return self._readers[path]


def _open_writer(path: Path) -> Any:
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordWriter(str(path), f"group_size:{GROUP}")


def _close(writer: Any) -> None:
    if writer is not None:
        writer.close()
