"""Where arrays live: a one-axis mesh over which the batch is split and everything else is replicated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kinject.errors import InputError


@dataclass(frozen=True)
class Placement:
    """Shardings of a run; on a single device, plain placement."""

    devices: int
    replicated: NamedSharding | None
    rows: NamedSharding | None

    @classmethod
    def single(cls) -> Placement:
        return cls(1, None, None)

    @classmethod
    def over(cls, count: int | None) -> Placement:
        """A mesh over `count` devices (all of them when None).

        Raises:
          InputError: there are not that many.
        """
        if count is not None and count < 1:
            raise InputError("devices", f"{count} asked for", "give 1 or more, or nothing for all")
        available = jax.devices()
        count = count or len(available)
        if count > len(available):
            raise InputError("devices", f"{count} asked for, there are {len(available)} ({available[0].platform})")
        if count == 1:
            return cls.single()
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=available[:count])
        return cls(count, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))

    def round_up(self, rows: int) -> int:
        return -(-rows // self.devices) * self.devices

    def batch(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A batch onto the devices, rows split over the mesh."""
        if self.rows is None:
            return jax.device_put(dict(batch))
        return jax.device_put(dict(batch), self.rows)
