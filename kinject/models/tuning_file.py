"""`tuning.safetensors`: what a tuning added to a host, beside the host's own weights and under our parameter paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from kinject.errors import InputError
from kinject.models import manifest
from kinject.models.fingerprint import array_digest
from kinject.models.tuning import Tuning, make_tuning
from kinject.models.weights import open_file

NAME = "tuning.safetensors"


def saved_tuning(values: Mapping[str, Any], folder: Path) -> Tuning | None:
    """The tuning that a folder's manifest names, None where the host is a plain one.

    Raises:
      InputError: it is malformed, or the file of added parameters stands there without being named.
    """
    settings = values.get("tuning")
    if settings is None:
        if (folder / NAME).exists():
            problem = f"stands there, but {manifest.NAME} names no tuning"
            raise InputError(folder / NAME, problem, f"take {manifest.NAME} and weights of one host")
        return None
    where = f"{folder / manifest.NAME}: tuning"
    if not isinstance(settings, Mapping):
        raise InputError(where, f"is {settings!r}", 'it must be {"name": …}')
    return make_tuning(settings, where)


def read_added(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], param_dtype: DTypeLike
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns arrays and digests by path, exactly of the paths and shapes asked for.

    Raises:
      InputError: the file is missing or damaged, or holds others.
    """
    path = folder / NAME
    if not path.is_file():
        raise InputError(path, "is missing", f"{manifest.NAME} names a tuning: take all files of the host")
    tensors = open_file(path)
    for name in sorted(shapes.keys() ^ tensors.keys()):
        problem = f"lacks {name}" if name in shapes else f"has {name}, which the tuning does not have"
        raise InputError(path, problem, f"take {manifest.NAME} and weights of one host")
    arrays, digests = {}, {}
    for name, shape in shapes.items():
        array = tensors[name]
        if array.shape != shape:
            problem = f"{name} has shape {list(array.shape)}, and {manifest.NAME} says {list(shape)}"
            raise InputError(path, problem, f"take {manifest.NAME} and weights of one host")
        digests[name] = array_digest(array)
        arrays[name] = jnp.asarray(array.astype(param_dtype, copy=False))
    return arrays, digests


def write_added(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the added parameters, where there are any."""
    if arrays:
        save_file({path: np.ascontiguousarray(array) for path, array in arrays.items()}, folder / NAME)
