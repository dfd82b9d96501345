"""What several processes must agree on before they train together."""

from __future__ import annotations

import jax
import numpy as np

from kinject.errors import InputError
from kinject.inference.mesh import fetch
from kinject.inference.processes import share
from kinject.tree import Flat, digest


def check_same_start(name: str, train: Flat) -> None:
    """Holds several processes to the same start: replicated leaves that differ would stay different, silently.

    Raises:
      InputError: this process has other trainable parameters than process 0.
    """
    mine = digest({path: np.asarray(leaf) for path, leaf in fetch(train).items()})
    if share(mine) != mine:
        problem = "this process starts from other trainable parameters than process 0"
        raise InputError(f"{name}, process {jax.process_index()}", problem, "give all the same files, versions")
