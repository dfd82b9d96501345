"""Tensors of a Hugging Face folder by name, read one at a time: safetensors or torch files, whole or in shards."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from kinject.errors import InputError

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = ("float32", "float16", "bfloat16", "float64")


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of one checkpoint; `tensors[key]` reads that one from disk.

    Attributes:
      path: the file or shard index they are from.
    """

    def __init__(self, path: Path, readers: dict[str, Callable[[], np.ndarray]]):
        self.path = path
        self._readers = readers

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            array = self._readers[key]()
        except (SafetensorError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(self.path, f"{key} cannot be read ({_first_line(error)})", "get the file again") from error
        if array.dtype.name not in FLOATS:
            raise InputError(self.path, f"{key} is of {array.dtype.name}", "weights must be floating point")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def open_tensors(folder: Path) -> Tensors:
    """Opens the weights of a folder; of several files the first of `FILES` counts.

    Raises:
      InputError: no weights, a shard that is missing, or a file that is truncated or of another format.
    """
    for name in FILES:
        path = folder / name
        if path.is_file():
            shards = _shards(path) if name.endswith(".json") else [path]
            break
    else:
        raise InputError(folder, "has no weights", f"put one of {', '.join(FILES)} there")
    readers: dict[str, Callable[[], np.ndarray]] = {}
    for shard in shards:
        opened = _safetensors(shard) if shard.suffix == ".safetensors" else _torch(shard)
        twice = readers.keys() & opened.keys()
        if twice:
            raise InputError(shard, f"{min(twice)} is in another shard too", "get the shards again")
        readers.update(opened)
    return Tensors(path, readers)


def open_file(path: Path) -> Tensors:
    """Opens one safetensors file."""
    return Tensors(path, _safetensors(path))


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(index, "is no shard index (needs weight_map)", "get the file again") from error
    for name in names:
        # a name is joined to the folder and opened: it may not lead out of it
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise InputError(index, f"names the shard {name!r}, which is not beside it", "get the shards again")
    return [index.parent / name for name in names]


def _safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        opened = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        problem = f"is truncated or no safetensors file ({_first_line(error)})"
        raise InputError(path, problem, "get the file again") from error
    return {key: partial(opened.get_tensor, key) for key in opened.keys()}  # noqa: SIM118 (no mapping)


def _torch(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        mend = "install torch, or convert the weights to model.safetensors"
        raise InputError(path, "is a torch file, and torch is not installed", mend) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises a dozen kinds for a bad file, and UnpicklingError for code in it
        problem = f"is no torch file of plain tensors ({_first_line(error)})"
        raise InputError(path, problem, "convert it to model.safetensors where you trust it") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(path, "holds something other than a flat dict of tensors", "save the model's state_dict()")
    return {key: partial(_from_torch, tensor) for key, tensor in state.items()}


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy knows none of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
