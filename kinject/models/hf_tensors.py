"""Tensors of a Hugging Face folder: read one at a time by name, and the table of which is which parameter of a host.

Files are safetensors or torch's, whole or in shards. The table serves reading and writing alike.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open

from kinject.errors import InputError, first_line
from kinject.models.config import EncoderConfig
from kinject.models.heads import head_kind
from kinject.models.tensor_rules import HEADS_BIAS, HEADS_IN, HEADS_OUT, Rule, attention, dense, norm, one_head

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SAFETENSORS: dict[str, DTypeLike] = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "BOOL": "?"}
SAFETENSORS |= {f"{theirs}{bits}": f"{ours}{bits // 8}" for theirs, ours in ("Ii", "Uu") for bits in (8, 16, 32, 64)}
LARGEST_READ = 1 << 30  # bytes; Linux reads no more than 2 GiB at once
MAPPED = 1 << 20  # bytes from which on memory is the system's own, see `aligned`
REUSED = 1 << 25  # bytes up to which memory that was given back is used again
ALIGNMENT = 64  # bytes: XLA copies what begins elsewhere
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
            raise InputError(
                self.path, f"{key} cannot be read ({first_line(error, 200)})", "get the file again"
            ) from error
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
    """Opens one file of safetensors or, by its name, of torch."""
    return Tensors(path, _safetensors(path) if path.suffix == ".safetensors" else _torch(path))


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


class _Safetensors:
    """A file of safetensors, whose tensors are read into memory of ours one by one.

    The library checks the file; it is not asked for tensors, as it maps the file and copies out of it, so that each
    would be held twice.

    Attributes:
      places: where each tensor is: its dtype, its shape, and its bytes [begin, end) in the file.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="numpy"):
                pass
            self._file = path.open("rb", buffering=0)
            size = int.from_bytes(self._file.read(8), "little")
            header = json.loads(self._file.read(size))
        except (SafetensorError, OSError, ValueError) as error:
            problem = f"is truncated or no safetensors file ({first_line(error, 200)})"
            raise InputError(path, problem, "get the file again") from error
        header.pop("__metadata__", None)
        self.places: dict[str, tuple[str, tuple[int, ...], int, int]] = {
            key: (one["dtype"], tuple(one["shape"]), *(8 + size + at for at in one["data_offsets"]))
            for key, one in header.items()
        }
        self._state = self._stat()

    def tensor(self, key: str) -> np.ndarray:
        """Reads one of them."""
        kind, shape, begin, end = self.places[key]
        if kind not in SAFETENSORS:
            raise InputError(self.path, f"{key} is of {kind}", "weights must be floating point")
        array = aligned(shape, SAFETENSORS[kind], REUSED)
        buffer: Any = array.reshape(-1).view(np.uint8)  # to numpy's older stubs an array is none
        memory, done = memoryview(buffer), 0
        while done < end - begin:
            count = os.preadv(self._file.fileno(), [memory[done : done + LARGEST_READ]], begin + done)
            if not count:
                break
            done += count
        if done < end - begin or self._stat() != self._state:
            raise InputError(self.path, "was changed while it was read", "open the host again")
        return array

    def _stat(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


def aligned(shape: tuple[int, ...], dtype: DTypeLike, mapped: int = MAPPED) -> np.ndarray:
    """An array with nothing in it yet, which begins where JAX wants a buffer to begin, so that it may take it over.

    From `mapped` bytes on its memory is the system's own: NumPy would ask for huge pages, and may wait for them longer
    than reading takes.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size >= mapped:
        try:
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{size / 2**30:.1f} GiB for an array of {list(shape)}") from error
        return np.frombuffer(memory, dtype).reshape(shape)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    begin = -buffer.ctypes.data % ALIGNMENT
    return buffer[begin : begin + size].view(dtype).reshape(shape)


def _safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    opened = _Safetensors(path)
    return {key: partial(opened.tensor, key) for key in opened.places}


def _torch(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    try:
        import torch
    except ImportError as error:
        mend = "install torch, or convert the weights to model.safetensors"
        raise InputError(path, "is a torch file, and torch is not installed", mend) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises a dozen kinds for a bad file, and UnpicklingError for code in it
        problem = f"is no torch file of plain tensors ({first_line(error, 200)})"
        raise InputError(path, problem, "convert it to model.safetensors where you trust it") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(path, "holds something other than a flat dict of tensors", "save the model's state_dict()")
    return {key: partial(_from_torch, torch, tensor) for key, tensor in state.items()}


def _from_torch(torch: Any, tensor: Any) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy knows none of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


_JOINED = (*dense("mentions.dense", "head/dense"), *dense("mentions.output", "head/output"))  # the name is ours
_DEPENDENCY = (  # and so is this one
    *attention(
        [f"dependencies.attention.self.{name}" for name in ("query", "key", "value")],
        "dependencies.attention.output.dense",
        "head/attention",
        [one_head(way) for way in (HEADS_OUT, HEADS_BIAS, HEADS_IN)],
    ),
    *norm("dependencies.attention.output.LayerNorm", "head/attention/norm"),
    *dense("dependencies.dense", "head/dense"),
    *dense("dependencies.output", "head/output"),
)

_EMBEDDING = dense("embedding.output", "head/output")

# What a checkpoint may hold beside what is asked for. Anything else there is an error, not a warning.
_BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)")
_OUR_HEADS = r"mentions\.(dense|output)\.(weight|bias)|dependencies\.(attention|dense|output)\..*|embedding\.output\..*"


def rules(config: EncoderConfig, head: str | None) -> tuple[Rule, ...]:
    """Returns the table of a host with this shape and kind of head (None = bare encoder)."""
    family = config.family
    layers = (rule for i in range(config.num_hidden_layers) for rule in family.layer_rules(config, i))
    return (*family.encoder_rules(config), *layers, *_head_rules(config, head))


def _head_rules(config: EncoderConfig, head: str | None) -> tuple[Rule, ...]:
    if head is None:
        return ()
    kind = head_kind(head)
    if kind.places:
        return _JOINED
    if kind.pooled:
        return _EMBEDDING if kind.own_output else ()
    if kind.form is None:
        return _DEPENDENCY
    return config.family.head(kind.form, config).rules


def architecture(config: EncoderConfig, head: str | None) -> str:
    """Returns the transformers class that holds the same parameters; the bare encoder's where none has the head."""
    return config.family.class_name + ("Model" if head is None else head_kind(head).architecture)


def full_key(rule: Rule, config: EncoderConfig, head: str | None) -> str:
    """Returns the key as transformers writes it: prefixed where a head stands beside the encoder."""
    within = rule.within or rule.path.startswith("encoder/")
    return f"{config.family.prefix}.{rule.key}" if head is not None and within else rule.key


def canonical(keys: Iterable[str], config: EncoderConfig, where: object) -> dict[str, str]:
    """Returns {key of the table's form: key in the file}, whatever age and class the checkpoint is from.

    Raises:
      InputError: two keys of the file name the same tensor.
    """
    found: dict[str, str] = {}
    for key in keys:
        name = key.removeprefix(f"{config.family.prefix}.")
        name = re.sub(r"(?<=\.LayerNorm\.)gamma$", "weight", name)
        name = re.sub(r"(?<=\.LayerNorm\.)beta$", "bias", name)
        if name in found:
            raise InputError(where, f"{found[name]} and {key} are the same tensor", "remove one of them")
        found[name] = key
    return found


def set_aside(names: Iterable[str], wanted: Iterable[str], config: EncoderConfig) -> tuple[list[str], list[str]]:
    """Sorts names of a checkpoint that were not asked for into (other heads' weights, unexpected ones).

    Args:
      names: canonical keys of the checkpoint.
      wanted: canonical keys of the host's table.
      config: the encoder's shape, whose family knows what else it has.
    """
    rest = sorted(set(names) - set(wanted))
    rest = [name for name in rest if not _BUFFERS.fullmatch(name)]
    other_heads = re.compile(f"{config.family.other_heads}|{_OUR_HEADS}")
    unused = [name for name in rest if other_heads.fullmatch(name)]
    return unused, sorted(set(rest) - set(unused))
