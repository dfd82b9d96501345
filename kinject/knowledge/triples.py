"""Triples as arrays of indices."""

from __future__ import annotations

import numpy as np

from kinject.errors import InputError


def check_triples(where: object, triples: np.ndarray, num_entities: int, num_relations: int) -> np.ndarray:
    """Returns triples (head, relation, tail), integer [T, 3], as int32, if all their indices point at something.

    Raises:
      InputError: at `where`: another shape or dtype, none at all, or the first triple that points outside.
    """
    triples = np.asarray(triples)
    if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
        raise InputError(where, f"triples are {triples.dtype} {triples.shape}, not integer [T, 3]")
    if len(triples) == 0:
        raise InputError(where, "triples are none", "give at least one")
    bad = np.flatnonzero(((triples < 0) | (triples >= (num_entities, num_relations, num_entities))).any(axis=1))
    if len(bad):
        there = f"there are {num_entities} entities and {num_relations} relations"
        raise InputError(where, f"triple {bad[0]} is {triples[bad[0]].tolist()}, but {there}", "indices count from 0")
    return triples.astype(np.int32)
