"""Ways of making a task's host out of a pretrained model, by the name that a config gives them.

What each trains by default is what the authors of map-tuning trained (Zhang et al. 2023, thunlp/Knowledge-Plugin):

| tuning  | encoder                  | head with outputs      | masked-LM head |
|---------|--------------------------|------------------------|----------------|
| full    | all                      | all                    | all            |
| lora    | A and B                  | output, not the pooler | frozen         |
| houlsby | the adapters             | output, not the pooler | frozen         |
| bitfit  | every bias               | output, pooler's bias  | all            |

Parameters of a head that a checkpoint lacks and that were drawn at random train in any case: a frozen random layer is
nobody's wish. Rules of the config's own replace all of these.

What a tuning added to a host is in `tuning.safetensors`, beside the host's own weights and under our parameter paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from kinject.config import build
from kinject.errors import InputError, did_you_mean
from kinject.models import manifest
from kinject.models.hf_tensors import open_file
from kinject.models.houlsby import Houlsby
from kinject.models.lora import Lora
from kinject.models.tuning_base import BitFit, Full, Tuning

NAME = "tuning.safetensors"
TUNINGS: dict[str, type[Tuning]] = {cls.name: cls for cls in (Full, Lora, Houlsby, BitFit)}


def make_tuning(settings: Mapping[str, Any], where: str = "tuning") -> Tuning:
    """Reads `{"name": one of TUNINGS, **its settings}`.

    Raises:
      InputError: an unknown name or setting, or a value of the wrong type or range.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    if name not in TUNINGS:
        raise InputError(f"{where}.name", f"there is no tuning {name!r}", did_you_mean(str(name), TUNINGS))
    return build(TUNINGS[name], settings, where)


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
        digests[name] = manifest.array_digest(array)
        arrays[name] = jnp.asarray(array.astype(param_dtype, copy=False))
    return arrays, digests


def write_added(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the added parameters, where there are any."""
    if arrays:
        save_file({path: np.ascontiguousarray(array) for path, array in arrays.items()}, folder / NAME)
