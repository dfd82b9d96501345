"""An approximate index for memories beyond the devices: usearch's HNSW graph over the keys, searched on the host.

The keys and values stay memory-mapped; of each only the k rows that a query found travel. The index is a file beside
the memory, and a copy in itself: it must be told of edits, which it is in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from kinject.errors import InputError
from kinject.integrity import SEAL, reseal
from kinject.memory.store import PassageMemory

INDEX = "keys.usearch"


def _usearch() -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise InputError("memory index", "usearch is not installed", "pip install 'kinject[index]'") from None
    return Index


class MemoryIndex:
    """The approximate twin of `kinject.memory.search.top_k` for one memory; `PlugLM.lookup` takes it as it is.

    Args:
      memory: whose keys it finds; rows that are not alive are never given.
      index: usearch's Index over them.
    """

    def __init__(self, memory: PassageMemory, index: Any):
        self.memory, self.index = memory, index

    @classmethod
    def build(cls, memory: PassageMemory, **options: int) -> MemoryIndex:
        """Adds all passages' keys, in batches, on all cores.

        Args:
          memory: it stays as it is.
          options: usearch's. `expansion_search` (64) is how many candidates a search keeps: more find more, and take
            longer (docs/pluglm.md).
        """
        index = _usearch()(ndim=memory.keys.shape[1], metric="ip", dtype="f16", **options)
        made = cls(memory, index)
        rows = np.flatnonzero(memory.alive)
        for low in range(0, len(rows), 65_536):
            some = rows[low : low + 65_536]
            index.add(some.astype(np.uint64), np.asarray(memory.keys[some], np.float32))
        return made

    @classmethod
    def open(cls, memory: PassageMemory, **options: int) -> MemoryIndex:
        """Reads the index that `save` wrote; `options` as of `build`: a file does not hold `expansion_search`.

        Raises:
          InputError: there is none, or it holds another number of passages than the memory.
        """
        path = memory.folder / INDEX
        index = _usearch()(ndim=memory.keys.shape[1], metric="ip", dtype="f16", **options)
        if not path.exists():
            raise InputError(path, "there is no index", "build it with MemoryIndex.build, and save it")
        memory.check_file(INDEX)
        index.load(str(path))
        if len(index) != memory.size:
            problem = f"it holds {len(index)} passages, the memory {memory.size}"
            raise InputError(path, problem, "build it again")
        return cls(memory, index)

    def save(self) -> Path:
        """Writes the index beside the memory, whole or not at all."""
        path = self.memory.folder / INDEX
        partial = path.with_name(path.name + ".partial")
        self.index.save(str(partial))
        partial.replace(path)
        if (self.memory.folder / SEAL).exists():
            reseal(self.memory.folder, {INDEX: None})
        return path

    def update(self, rows: np.ndarray) -> None:
        """Takes over edited rows, int [n], as `PassageMemory.take_changes` names them."""
        for row in np.asarray(rows).tolist():
            if row in self.index:
                self.index.remove(row)
            if self.memory.alive[row]:
                self.index.add(row, np.asarray(self.memory.keys[row], np.float32))

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Queries float32 [Q, d] -> rows int32 [Q, k] by falling inner product, -1 where there are fewer."""
        rows = np.full((len(queries), k), -1, np.int32)
        count = min(k, len(self.index))
        if count:
            found = self.index.search(np.asarray(queries, np.float32), count)
            for at in range(len(queries)):
                one = found[at] if len(queries) > 1 else found
                keys = np.asarray(one.keys).reshape(-1)[:count]
                rows[at, : len(keys)] = keys
        return rows

    def __call__(self, queries: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Inside a compiled step: queries [Q, d] -> (rows [Q, k], keys [Q, k, d], values [Q, k, D])."""
        memory, count = self.memory, queries.shape[0]
        shapes = (
            jax.ShapeDtypeStruct((count, k), np.int32),
            jax.ShapeDtypeStruct((count, k, memory.keys.shape[1]), memory.keys.dtype),
            jax.ShapeDtypeStruct((count, k, memory.values.shape[1]), memory.values.dtype),
        )

        def look(queries: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            rows = self.search(np.asarray(queries), k)
            at = np.maximum(rows, 0)
            return rows, np.asarray(memory.keys[at]), np.asarray(memory.values[at])

        return jax.pure_callback(look, shapes, queries)
