"""Writing a split as array_record shards in the order of its source.

The writer of tensorflow_datasets shuffles by hashed key, holding up to a gigabyte in memory and needing TensorFlow
beyond that. Here nothing is held and order is kept: the paper's FewRel episodes are drawn by index, and shuffling is
Grain's, at training time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorflow_datasets.core.naming import ShardedFileTemplate

SHARD_BYTES = 256 << 20


def write_shards(
    examples: Iterable[bytes], template: ShardedFileTemplate, shard_bytes: int = SHARD_BYTES
) -> tuple[list[int], int]:
    """Writes serialized examples and returns (how many each shard holds, bytes in all).

    Shards get their names last, when it is known how many there are; the folder is a temporary one until
    tensorflow_datasets renames it, so a cut write leaves nothing behind.
    """
    folder = Path(template.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    counts, total, size, writer = [], 0, shard_bytes, None
    try:
        for example in examples:
            if size >= shard_bytes:
                _close(writer)
                writer, size = _open(folder / f"{template.split}.part{len(counts)}"), 0
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


def _open(path: Path):
    from array_record.python import array_record_module

    return array_record_module.ArrayRecordWriter(str(path), "group_size:1")  # a group is what a random read unpacks


def _close(writer) -> None:
    if writer is not None:
        writer.close()
