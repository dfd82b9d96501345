"""Arrays of a checkpoint: threads read and check them while the model that they are for is still being built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.hf_tensors import Tensors, aligned
from kinject.models.manifest import Digests, array_digest, digest_later
from kinject.models.tensor_rules import Rule

READERS = 2
BLOCK = 1 << 17  # bytes of a tensor that are laid out anew at a time, which caches hold: up to five times as fast


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors on disk, matched with a host's table.

    Attributes:
      tensors: by the names that they have there.
      table: the host's.
      names: {key of the table: its name among the tensors}.
      fresh: paths of parameters that are not among them.
      unused: what is there of other heads.
    """

    tensors: Tensors
    table: tuple[Rule, ...]
    names: Mapping[str, str]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Read:
    """A parameter as it was read: `array` is None where the shapes of its tensors do not make one.

    `digest` is None where the array stays as it is, and can be read once more when all are there.
    """

    shapes: tuple[tuple[int, ...], ...]
    array: np.ndarray | None = None
    digest: str | None = None


class WeightReading:
    """Reads a checkpoint's parameters, from the beginning of a `with` on, until it ends or all are read.

    Each is in memory once, in the array that a CPU's device then takes over. NumPy and hashlib let other threads run;
    digests are made when all is read, beside what follows.
    """

    def __init__(self, checkpoint: Checkpoint, config: EncoderConfig, param_dtype: DTypeLike):
        self.checkpoint, self.config, self.param_dtype = checkpoint, config, param_dtype
        self.rules: dict[str, list[Rule]] = {}
        for rule in checkpoint.table:
            if rule.path not in checkpoint.fresh:
                self.rules.setdefault(rule.path, []).append(rule)

    def __enter__(self) -> WeightReading:
        self.pool = ThreadPoolExecutor(READERS)
        self.reads: dict[str, Future[_Read]] = {path: self.pool.submit(self._read, path) for path in self.rules}
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def arrays(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], Digests]:
        """Arrays on the device, and digests, by path.

        Args:
          shapes: of the model's parameters.

        Raises:
          InputError: a tensor of another shape, one that cannot be read or that is not finite.
        """
        arrays, digests, held = {}, dict[str, str | Future[str]](), dict[str, np.ndarray]()
        for path in list(self.reads):
            read = self.reads.pop(path).result()
            self._check_shapes(path, read.shapes, shapes[path])
            assert read.array is not None
            arrays[path] = jax.device_put(read.array)  # takes over what is aligned: nobody else writes there
            if read.digest is None:
                held[path] = read.array
            else:
                digests[path] = read.digest
        digests |= {path: digest_later(array) for path, array in held.items()}  # now that all are there
        return arrays, Digests(digests)

    def _read(self, path: str) -> _Read:
        rules, parts, shapes = self.rules[path], [], []
        for rule in rules:
            tensor = self._tensor(rule)
            shapes.append(tensor.shape)
            try:
                parts.append(rule.transform.ours(tensor, self.config))
            except ValueError:  # no array of this rule's has that shape; `arrays` says which it should be
                return _Read((*shapes,))
        if len({part.shape for part in parts}) > 1:
            return _Read((*shapes,))
        array = _in_order(parts[0]) if rules[0].part is None else _stacked(parts, rules[0].axis)
        if array.dtype == self.param_dtype and jax.default_backend() == "cpu":
            return _Read((*shapes,), array)
        return _Read((*shapes,), array.astype(self.param_dtype, copy=False), array_digest(array))

    def _tensor(self, rule: Rule) -> np.ndarray:
        tensors, key = self.checkpoint.tensors, self.checkpoint.names[rule.key]
        tensor = tensors[key]
        if not _finite(tensor):
            problem, mend = f"{key} has numbers that are not finite", "its training went wrong: take another"
            raise InputError(tensors.path, problem, mend)
        return tensor

    def _check_shapes(self, path: str, found: Sequence[tuple[int, ...]], ours: tuple[int, ...]) -> None:
        """Compares shapes in their layout, which the user can look up."""
        for rule, shape in zip(self.rules[path], found, strict=False):  # reading ends at the first that is odd
            part = ours if rule.part is None else ours[: rule.axis] + ours[rule.axis + 1 :]
            wanted = rule.transform.theirs(np.broadcast_to(np.float32(0), part), self.config).shape
            if shape != wanted:
                key, path_of = self.checkpoint.names[rule.key], self.checkpoint.tensors.path
                problem = f"{key} has shape {list(shape)}, and config.json says {list(wanted)}"
                raise InputError(path_of, problem, "take both files of one model")


def _in_order(array: np.ndarray) -> np.ndarray:
    """The array with its numbers one behind the other in memory."""
    if array.flags.c_contiguous:
        return array
    made = aligned(array.shape, array.dtype)
    _copy(array, made)
    return made


def _stacked(arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
    shape = list(arrays[0].shape)
    shape.insert(axis, len(arrays))
    made = aligned(tuple(shape), np.result_type(*arrays))
    for array, part in zip(arrays, np.moveaxis(made, axis, 0), strict=True):
        _copy(array, part)
    return made


def _copy(array: np.ndarray, into: np.ndarray) -> None:
    """Copies a tensor that lies in rows, as they may be turned to columns, so many rows at a time."""
    axis = int(np.argmax(array.strides)) if array.ndim else 0
    if axis == 0:
        into[...] = array
        return
    count = max(1, BLOCK // array.strides[axis])
    source, target = np.moveaxis(array, axis, 0), np.moveaxis(into, axis, 0)
    for at in range(0, len(source), count):
        target[at : at + count] = source[at : at + count]


def _finite(tensor: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):  # bfloat16's own word for NaN
        return not tensor.size or bool(np.isfinite(tensor.max()) and np.isfinite(tensor.min()))
