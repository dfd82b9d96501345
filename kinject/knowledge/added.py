"""Vectors of entities that come after the graph was trained, from their triples alone.

Other entities say what a vector looks like, given its neighbours: for each relation and direction the mean vector of
the neighbours, and whether there are any, are the features of a ridge regression whose target is the entity's own.
Nothing is trained anew, and it serves any method that made the vectors.
"""

from __future__ import annotations

import numpy as np

from kinject.errors import InputError


def vectors_of_added(
    vectors: np.ndarray, triples: np.ndarray, relations: int, new: np.ndarray, penalty: float = 1.0
) -> np.ndarray:
    """Makes the vectors of new entities as if theirs were not known.

    Args:
      vectors: float [N, k]; those of the new entities are not looked at.
      triples: int [T, 3], columns head row, relation, tail row; those between two new entities are left out.
      relations: how many there are.
      new: rows of the new entities.
      penalty: of the regression.

    Returns:
      float32 [len(new), k], in the order of `new`.

    Raises:
      InputError: no other entity has a triple.
    """
    is_new = np.zeros(len(vectors), bool)
    is_new[new] = True
    features, linked = _neighbours(np.asarray(vectors, np.float32), np.asarray(triples), relations, is_new)
    known = linked & ~is_new
    if not known.any():
        raise InputError("added entities", "no other entity has a triple", "name fewer entities, or give more triples")
    x, y = features[known].astype(np.float64), np.asarray(vectors, np.float64)[known]
    x_mean, y_mean = x.mean(0), y.mean(0)
    x -= x_mean
    gram = x.T @ x + penalty * np.eye(x.shape[1])
    solved = np.linalg.solve(gram, x.T @ (y - y_mean))
    return ((features[new] - x_mean) @ solved + y_mean).astype(np.float32)


def _neighbours(
    vectors: np.ndarray, triples: np.ndarray, relations: int, is_new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [N, 2 * relations * (k + 1)] out of neighbours that are not new, and who has any: bool [N]."""
    size, dim = vectors.shape
    features = np.zeros((size, 2 * relations, dim + 1), np.float32)
    for side, (own, other) in enumerate(((0, 2), (2, 0))):
        usable = triples[~is_new[triples[:, other]]]
        for relation in range(relations):
            found = usable[usable[:, 1] == relation]
            count = np.bincount(found[:, own], minlength=size)
            there = count > 0
            column = features[:, side * relations + relation]
            np.add.at(column[:, :dim], found[:, own], vectors[found[:, other]])
            column[there, :dim] /= count[there, None]
            column[:, dim] = there
    return features.reshape(size, -1), np.any(features[:, :, dim] > 0, axis=1)
