"""A closed-form start for a mapping network: ridge regression from entity vectors to word embeddings.

Poerner et al., "E-BERT", section 3.1, align vectors with word embeddings by least squares; ridge regression is the same
with a penalty, which matters where there are fewer pairs than would determine the map.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kinject.errors import InputError


def fit_ridge(vectors: np.ndarray, targets: np.ndarray, penalty: float = 0.1) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Solves min ||X W + b - Y||^2 + penalty * n * ||W||^2 over centred data, in float64.

    Args:
      vectors: X [n, k].
      targets: Y [n, D].
      penalty: multiplies the number of pairs n.

    Returns:
      (kernel float32 [k, D], bias float32 [D]).

    Raises:
      InputError: fewer than two pairs.
    """
    if len(vectors) < 2:
        raise InputError("initialise", f"ridge regression needs at least 2 pairs, there are {len(vectors)}")
    x, y = np.asarray(vectors, np.float64), np.asarray(targets, np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    gram = centred.T @ centred + penalty * len(x) * np.eye(x.shape[1])
    kernel = np.linalg.solve(gram, centred.T @ (y - y_mean))
    return jnp.asarray(kernel, jnp.float32), jnp.asarray(y_mean - x_mean @ kernel, jnp.float32)
