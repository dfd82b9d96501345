"""Parameters onto the devices: where each lives, and in which dtype it is held."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from kinject.inference.mesh import Placement, put
from kinject.models.precision import Precision, held
from kinject.tree import Flat


def place_params(
    train: Flat,
    frozen: Flat,
    precision: Precision,
    place: Placement | None = None,
    tables: Collection[str] = (),
) -> tuple[Flat, Flat]:
    """Puts parameters where they live: trainable ones in float32, frozen ones as the precision says, once.

    Tables keep the dtype that they have. The trainable leaves are copied: the train step donates its buffers, and the
    caller's arrays must survive that.

    Raises:
      InputError: the library of a precision is not installed.
    """
    place = place or Placement.single()

    def kept(path: str, leaf: Any) -> Any:
        made = jnp.asarray(leaf) if path in tables else held(precision, path, leaf)
        return jax.tree.map(lambda part: put(part, place.parameter(path, part.shape, frozen=True)), made)

    moving = {
        path: put(jnp.array(leaf, jnp.float32, copy=True), place.parameter(path, leaf.shape, frozen=False))
        for path, leaf in train.items()
    }
    return moving, {path: kept(path, leaf) for path, leaf in frozen.items()}
