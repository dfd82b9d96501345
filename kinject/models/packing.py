"""Batches whose padding is not computed.

Texts of like length still differ by a few positions, and rows are padded to the next of few lengths: a quarter of what
dense layers compute is then padding. A batch may say which of its cells hold something. Layers compute just these, one
behind the other, and only attention puts them back into their rows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

CELLS = "cells"  # in a batch: `Packed.cells`


class Packed(NamedTuple):
    """A batch without its padding: dense layers compute T positions instead of B L, and only attention knows of rows.

    Attributes:
      cells: int32 [T]: which of the B L cells of the batch each position is; B L and more = padding that is left.
      places: int32 [B, L]: where each cell is among these, T where it is not.
    """

    cells: jax.Array
    places: jax.Array

    @classmethod
    def of(cls, cells: jax.Array, rows: int, length: int) -> Packed:
        """Of `cells` int32 [T], of a batch [B, L]."""
        count = len(cells)
        places = (
            jnp.full(rows * length, count, jnp.int32).at[cells].set(jnp.arange(count, dtype=jnp.int32), mode="drop")
        )
        return cls(cells, places.reshape(rows, length))

    def gather(self, values: jax.Array) -> jax.Array:
        """[1, T, …] of [B, L, …]."""
        return jnp.take(values.reshape(-1, *values.shape[2:]), self.cells, axis=0, mode="clip")[None]

    def spread(self, values: jax.Array) -> jax.Array:
        """[B, L, …] of [1, T, …]; zeros stand in cells that are not among these: attention multiplies them by 0."""
        return jnp.take(values[0], self.places, axis=0, mode="fill", fill_value=0)

    def at(self, values: jax.Array, positions: jax.Array) -> jax.Array:
        """[B, P, …] of [1, T, …]: what stands at positions int32 [B, P] of the rows."""
        return jnp.take(
            values[0], jnp.take_along_axis(self.places, positions, axis=1), axis=0, mode="fill", fill_value=0
        )
