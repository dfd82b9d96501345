"""Entity vectors on the devices: the table's rows split over all of them, looked up by id inside the step.

The other way is `Feed.gather`: the batch's vectors are read from the memory map as it is made, and travel with it. Here
a batch brings its `entity_ids` alone. `Program.with_vectors` puts `entity_vectors` beside them before anything else
happens in a step, so that no method knows which way was taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kinject.errors import InputError
from kinject.inference.mesh import DATA, MODEL, Placement
from kinject.inference.processes import on_first
from kinject.knowledge.base import KnowledgeBase
from kinject.reports.console import sized

Where = Literal["auto", "host", "device"]
TABLE = "knowledge/vectors"  # its path among a step's frozen arguments: it is no parameter, so rules do not see it
SHARE = 0.25  # of a device's memory: what the table may take there where nobody said
LANES = {"tpu": 128}  # a row is filled up to a multiple of so many numbers, or XLA copies the whole table in each step


@dataclass(frozen=True)
class TableShape:
    """A table of entity vectors [rows, dim]."""

    rows: int
    dim: int
    dtype: str

    @classmethod
    def of(cls, knowledge: KnowledgeBase) -> TableShape:
        """The shape of a knowledge base's table."""
        return cls(knowledge.size, knowledge.dim, knowledge.vectors.dtype.name)

    def held(self, place: Placement) -> tuple[int, int]:
        """The shape in which devices hold it: as many rows each, and rows as long as they must be; zeros fill up."""
        return _multiple(self.rows, place.devices), _multiple(self.dim, LANES.get(place.platform, 1))

    def bytes_held(self, place: Placement) -> int:
        """What each device holds of it."""
        return math.prod(self.held(place)) // place.devices * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.dim} {self.dtype}"


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


@dataclass(frozen=True)
class Choice:
    """Where a training takes its entity vectors from.

    Attributes:
      on: "host" or "device".
      bytes: what the table takes, or would take, of each device.
      why: in words.
    """

    on: Literal["host", "device"]
    bytes: int
    why: str

    def __str__(self) -> str:
        return f"entity vectors on the {'host' if self.on == 'host' else 'devices'}: {self.why}"


def choose(asked: Where, table: TableShape, place: Placement, memory: int | None) -> Choice:
    """Where the vectors are to be: as asked, or by their size.

    Args:
      asked: "auto" puts them on the devices where they take less than `SHARE` of each one's memory.
      table: the whole table.
      place: the devices over which it would be split.
      memory: bytes of one of them; None = they share the host's.
    """
    size = table.bytes_held(place)
    told = f"{table}, {sized(size)} of each of {place.devices}"
    if memory is not None:
        told += f", {100 * size / memory:.2g} % of its memory"
    if asked != "auto":
        return Choice(asked, size, f"{told}; asked for")
    if memory is None:
        return Choice("host", size, f"{told}; these devices have no memory of their own")
    fits = size < SHARE * memory
    bound = f"{'less' if fits else 'not less'} than {100 * SHARE:.0f} %"
    return Choice("device" if fits else "host", size, f"{told}; {bound}")


def device_memory() -> int | None:
    """Bytes of a device's memory that JAX may use, as process 0 finds them; None where it is the host's (CPUs)."""

    def smallest() -> int | None:
        found = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
        limits = [limit for limit in found if limit is not None]
        return min(limits) if len(limits) == len(found) else None

    return on_first(smallest)  # all processes must choose alike


def table_sharding(mesh: Mesh | None) -> NamedSharding | None:
    """Rows over all devices of a mesh; None on a single device."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec(_axes(mesh)))


def _axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which rows are split; one of a single part would cost a sum over nobody."""
    return (DATA, MODEL) if mesh.shape[MODEL] > 1 else (DATA,)


@dataclass(frozen=True)
class LookUp:
    """How a step finds vectors: the part of it that is no array.

    Attributes:
      dim: k, numbers of a vector; the table's rows may be longer.
      mesh: over whose devices the table's rows are split; None = a single one has them all.
    """

    dim: int
    mesh: Mesh | None = None

    def give(self, table: jax.Array, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """The batch with `entity_vectors` float32 [B, …, M, k] of its `entity_ids` int32 [B, …, M].

        A batch without any entity (M = 0) stays as it is, as it does where the host gathers.
        """
        rows = batch.get("entity_ids")
        if rows is None or not rows.size:
            return batch
        if self.mesh is None:
            return {**batch, "entity_vectors": own_rows(table, rows, self.dim)}
        return {**batch, "entity_vectors": exchange(table, rows, self.dim, self.mesh)}


class VectorTable(NamedTuple):
    """Entity vectors on the devices, and how they are found there.

    Attributes:
      vectors: as `TableShape.held` says, in the dtype in which they are stored.
      look_up: of them.
    """

    vectors: jax.Array
    look_up: LookUp


def load_table(knowledge: KnowledgeBase, place: Placement) -> VectorTable:
    """Puts a knowledge base's vectors on the devices, each one's rows straight from the memory map.

    A process reads the rows of its own devices only, those of one device after the other.
    """
    vectors, shape = np.asarray(knowledge.vectors), TableShape.of(knowledge).held(place)

    def part(rows: slice) -> np.ndarray:
        low, high, _ = rows.indices(shape[0])
        stored = vectors[low:high]
        missing = [(0, high - low - stored.shape[0]), (0, shape[1] - stored.shape[1])]
        return np.pad(stored, missing) if any(fill for _, fill in missing) else stored

    look_up, sharding = LookUp(knowledge.dim, place.mesh), table_sharding(place.mesh)
    if sharding is None:
        return VectorTable(jax.device_put(part(slice(None))), look_up)
    held = sharding.addressable_devices_indices_map(shape).items()
    parts = [jax.device_put(part(index[0]), device).block_until_ready() for device, index in held if index is not None]
    return VectorTable(jax.make_array_from_single_device_arrays(shape, sharding, parts), look_up)


def own_rows(table: jax.Array, rows: jax.Array, dim: int) -> jax.Array:
    """Vectors [N, k or more] of rows int [...]: float32 [..., k], zeros for a row that is none of the table's."""
    inside = (rows >= 0) & (rows < table.shape[0])
    found = table[jnp.where(inside, rows, 0)][..., :dim].astype(jnp.float32)
    return jnp.where(inside[..., None], found, 0)


def exchange(table: jax.Array, rows: jax.Array, dim: int, mesh: Mesh) -> jax.Array:
    """`own_rows` of a table that is split over a mesh: ids go to all devices, of the table moves only what they name.

    Each device answers out of its own rows for the whole batch; a sum, of which one term is not zero, brings every row
    of the batch its vectors, and no other's. Left to the partitioner of jax 0.10.2, a take ends in a sum of the whole
    batch's vectors on every device, twice as much, and nothing would keep another from gathering the table.

    Args:
      table: [N, k or more], rows split over all devices, see `table_sharding`.
      rows: int32 [B, …], B split over `data`.
      dim: k.
      mesh: with the axes `data` and `model`.
    """
    axes = _axes(mesh)

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(axes), PartitionSpec(DATA)),
        out_specs=PartitionSpec(DATA),
    )
    def answer(part: jax.Array, rows: jax.Array) -> jax.Array:
        everyones = jax.lax.all_gather(rows, DATA, tiled=True)
        found = own_rows(part, everyones - jax.lax.axis_index(axes) * part.shape[0], dim)
        found = jax.lax.psum_scatter(found, DATA, tiled=True)
        return jax.lax.psum(found, MODEL) if MODEL in axes else found

    return answer(table, rows)


def check_read(asked: Where, method: Any, where: str) -> None:
    """Raises InputError where a table is asked for and the method reads no entity vectors."""
    if asked == "device" and not method.reads_slots:
        raise InputError(where, f"{method.name} reads no entity vectors to put on devices", "leave it out")
