"""Tables of vectors that are put together as they are read: what the writer takes in slices never stands in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Picked:
    """Rows of a table [M, k] in another order; float32 [N, k] to whoever reads it in slices.

    Args:
      table: floating [M, k].
      rows: integer [N], rows of the table; -1 reads as zeros.
    """

    def __init__(self, table: np.ndarray, rows: np.ndarray):
        self._table, self._rows = table, rows
        self.shape, self.dtype = (len(rows), table.shape[1]), np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: slice) -> np.ndarray:
        rows = self._rows[some]
        out = np.zeros((len(rows), self.shape[1]), np.float32)
        out[rows >= 0] = self._table[rows[rows >= 0]]
        return out


class Beside:
    """Several tables of the same N rows side by side, float32 [N, k1 + k2 + …] to whoever reads it in slices.

    Args:
      tables: floating [N, k] each.
      present: bool [N] each: rows that are not there read as zeros.
    """

    def __init__(self, tables: Sequence[np.ndarray], present: Sequence[np.ndarray]):
        self._tables, self._present = tables, present
        self.shape = len(tables[0]), sum(table.shape[1] for table in tables)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, some: slice) -> np.ndarray:
        pairs = zip(self._tables, self._present, strict=True)
        return np.concatenate([np.where(there[some, None], table[some], 0) for table, there in pairs], axis=1)
