"""Where arrays live: a mesh with the axes `data` (rows of a batch) and `model` (heads, columns and words of a host).

Everything is `jax.jit` with `NamedSharding`s over Auto axes: arrays are placed by the rules below and XLA puts in the
collectives. One axis is the special case of two, several processes are that of one, and a single device is placed
plainly, without a mesh. `place_params` also says in which dtype parameters are held.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from pydantic import Field

from kinject.config import Section
from kinject.errors import InputError
from kinject.models.precision import Precision, held
from kinject.tree import Flat

DATA, MODEL = "data", "model"

# Megatron's split (Shoeybi et al. 2019): heads, the columns of a layer's first matrix and the rows of its second, so
# that one sum over `model` ends each half of a layer. Of several dimensions the first that can be divided is taken:
# rows of the word table, or its hidden size.
MODEL_RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"host/encoder/embeddings/word/embedding", (0, 1)),
    (r"host/head/bias", (0,)),
    (r"host/encoder/layers/\d+/attention/qkv/kernel", (2,)),
    (r"host/encoder/layers/\d+/attention/qkv/bias", (1,)),
    (r"host/encoder/layers/\d+/attention/output/kernel", (0,)),
    (r"host/encoder/layers/\d+/feed_forward/up/kernel", (1,)),
    (r"host/encoder/layers/\d+/feed_forward/up/bias", (0,)),
    (r"host/encoder/layers/\d+/feed_forward/down/kernel", (0,)),
)


class MeshConfig(Section):
    """How devices are arranged: the config's section `mesh`.

    Attributes:
      data: how many parts a batch is split into; -1 = all devices that `model` leaves.
      model: how many parts the host's layers are split into.
      shard_frozen: frozen matrices are split over `data` too, and gathered where a layer needs them: less memory, more
        traffic.
      rules: (regex over parameter paths, dimensions of which the first that can be divided is split over `model`); a
        path that no rule covers is replicated, which is what plugins are.
    """

    data: int = Field(default=-1, ge=-1)
    model: int = Field(default=1, ge=1)
    shard_frozen: bool = False
    rules: tuple[tuple[str, tuple[int, ...]], ...] = MODEL_RULES


ONE_AXIS = MeshConfig()


@dataclass(frozen=True)
class Placement:
    """Shardings of a run.

    Attributes:
      mesh: with the axes `data` and `model`; None = the one device of the one process.
      config: the rules by which parameters are placed.
    """

    mesh: Mesh | None = None
    config: MeshConfig = ONE_AXIS

    @classmethod
    def single(cls) -> Placement:
        """Everything on one device."""
        return cls()

    @classmethod
    def over(
        cls, count: int | None = None, config: MeshConfig = ONE_AXIS, available: Sequence[Any] | None = None
    ) -> Placement:
        """A mesh over `count` devices, of all processes; None = as many as `config` asks for, or all.

        `available` are devices of another machine to compile for (training/aot_targets.py); None = those here.

        Raises:
          InputError: there are not that many, they do not make up the axes, or a process would have none of them.
        """
        if count is not None and count < 1:
            raise InputError("devices", f"{count} asked for", "give 1 or more, or nothing for all")
        if config.data == 0:
            raise InputError("mesh.data", "0 parts", "give 1 or more, or -1 for all that model leaves")
        here = available is None
        found = jax.devices() if available is None else available
        if count is None:
            count = len(found) if config.data == -1 else config.data * config.model
        if count > len(found):
            raise InputError("devices", f"{count} asked for, there are {len(found)} ({found[0].platform})")
        data = count // config.model if config.data == -1 else config.data
        if data * config.model != count:
            axes = f"data {'the rest' if config.data == -1 else data} x model {config.model}"
            raise InputError("mesh", f"{count} devices do not make up {axes}", "mend --devices or mesh")
        if jax.process_count() > 1 and count != len(found):
            problem = f"{count} asked for, the {jax.process_count()} processes have {len(found)}"
            raise InputError("devices", problem, "all devices of several processes are used")
        if count == 1 and here:
            return cls(None, config)
        types = (AxisType.Auto,) * 2
        mesh = jax.make_mesh((data, config.model), (DATA, MODEL), axis_types=types, devices=found[:count])
        return cls(mesh, config)

    @property
    def devices(self) -> int:
        """How many devices there are, over all processes."""
        return 1 if self.mesh is None else self.mesh.size

    @property
    def platform(self) -> str:
        """What kind of devices they are: cpu, gpu, tpu."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    @property
    def kind(self) -> str:
        """What they call themselves, such as NVIDIA H200."""
        return (jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]).device_kind

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return 1 if self.mesh is None else self.mesh.shape[DATA]

    @cached_property
    def replicated(self) -> NamedSharding | None:
        return self._sharding()

    @cached_property
    def rows(self) -> NamedSharding | None:
        return self._sharding(DATA)

    def _sharding(self, *axes: str | None) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*axes))

    def describe(self) -> str:
        """The devices in words."""
        if self.mesh is None:
            return "1 device"
        processes = jax.process_count()
        axes = f"{self.devices} devices, data {self.row_parts} x model {self.mesh.shape[MODEL]}"
        return axes + (f", {processes} processes" if processes > 1 else "")

    # Parameters

    def parameter(self, path: str, shape: tuple[int, ...], frozen: bool) -> NamedSharding | None:
        """Where a parameter lives; None on a single device."""
        if self.mesh is None:
            return None
        axes: list[str | None] = [None] * len(shape)
        split = self._first_divisible(shape, self._rule(path), MODEL)
        if split is not None:
            axes[split] = MODEL
        if frozen and self.config.shard_frozen and len(shape) > 1:
            largest = sorted((dim for dim in range(len(shape)) if dim != split), key=lambda dim: -shape[dim])
            whole = self._first_divisible(shape, largest, DATA)
            if whole is not None:
                axes[whole] = DATA
        return self._sharding(*axes)

    def notes(self, params: Mapping[str, Any]) -> list[str]:
        """The parameters that a rule would split and that are replicated, as they do not divide."""
        if self.mesh is None or self.mesh.shape[MODEL] == 1:
            return []
        found: dict[str, int] = {}
        for path, leaf in params.items():
            dims = self._rule(path)
            if dims and self._first_divisible(leaf.shape, dims, MODEL) is None:
                group = re.sub(r"/\d+(?=/|$)", "/*", path)
                note = f"{group} {list(leaf.shape)} does not divide by model {self.mesh.shape[MODEL]}: replicated"
                found[note] = found.get(note, 0) + 1
        return [note + (f" ({count} leaves)" if count > 1 else "") for note, count in found.items()]

    def _rule(self, path: str) -> tuple[int, ...]:
        return next((dims for pattern, dims in self.config.rules if re.fullmatch(pattern, path)), ())

    def _first_divisible(self, shape: tuple[int, ...], dims: Iterable[int], axis: str) -> int | None:
        size = 1 if self.mesh is None else self.mesh.shape[axis]
        fitting = (dim for dim in dims if dim < len(shape) and shape[dim] % size == 0)
        return next(fitting, None) if size > 1 else None

    def state(self, tree: Any) -> Any:
        """A tree whose leaves are either on the mesh or the same everywhere (counters) -> all on the mesh."""
        if self.mesh is None:
            return tree

        def placed(leaf: jax.Array) -> jax.Array:
            there = isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == self.mesh
            return leaf if there else put(leaf, self.replicated)

        return jax.tree.map(placed, tree)

    def shardings(self, tree: Any) -> Any:
        """The tree's shardings, for `jax.jit`; None on a single device."""
        return None if self.mesh is None else jax.tree.map(lambda leaf: leaf.sharding, tree)

    # Batches

    def round_up(self, rows: int) -> int:
        """The next number of rows that the mesh can share."""
        return -(-rows // self.row_parts) * self.row_parts

    def share(self, rows: int) -> np.ndarray | None:
        """Which of a batch's rows this process's devices hold, int [n], ascending; None = all of them."""
        if self.rows is None or self.rows.is_fully_addressable:
            return None
        held = self.rows.addressable_devices_indices_map((rows,)).values()
        return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))

    def given(self, batch: Mapping[str, Any], rows: int | None = None) -> Mapping[str, Any]:
        """A batch as a compiled step is given it: on the devices, or, for a single one, as it is.

        A step moves arrays of numpy to its device in a tenth of the time that `jax.device_put` takes for each.

        Args:
          batch: the rows of `share(rows)`, [n, …] of every array.
          rows: as of `batch`.
        """
        return batch if self.mesh is None else self.batch(batch, rows)

    def batch(self, batch: Mapping[str, Any], rows: int | None = None) -> dict[str, jax.Array]:
        """A batch onto the devices, rows split over `data`.

        Args:
          batch: the rows of `share(rows)`, [n, …] of every array.
          rows: how many the whole batch has, all processes' together; None where there is one process.
        """
        if self.rows is None or self.rows.is_fully_addressable:
            return jax.device_put(dict(batch), self.rows)
        return {
            key: jax.make_array_from_process_local_data(self.rows, values, (rows, *values.shape[1:]))
            for key, values in batch.items()
        }


def put(leaf: Any, sharding: Sharding | None) -> jax.Array:
    """A leaf that every process has whole, onto the devices; as it is without a sharding."""
    if sharding is None:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def is_split(leaf: Any) -> bool:
    """Whether no single process has the whole of an array."""
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def fetch(tree: Any) -> Any:
    """A tree of device arrays -> numpy, whole, on every process (which all must call it)."""
    split = [leaf for leaf in jax.tree.leaves(tree) if is_split(leaf)]
    if split:
        tree = jax.jit(lambda tree: tree, out_shardings=NamedSharding(split[0].sharding.mesh, PartitionSpec()))(tree)
    return jax.device_get(tree)


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
        path: put(leaf, place.parameter(path, leaf.shape, frozen=False)) for path, leaf in _copied(dict(train)).items()
    }
    return moving, {path: kept(path, leaf) for path, leaf in frozen.items()}


@jax.jit
def _copied(tree: Flat) -> Flat:
    """New float32 arrays of these, by one program and not by one a shape."""
    return {path: jnp.array(leaf, jnp.float32, copy=True) for path, leaf in tree.items()}
