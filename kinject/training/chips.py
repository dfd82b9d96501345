"""Accelerators that are not here: devices to compile for, and what their chips can do.

`tpus.py` and `gpus.py` know the kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chip:
    """What one chip can do, as its maker publishes it.

    Attributes:
      flops: peak, bfloat16, a second.
      memory: bytes of HBM.
      bandwidth: of HBM, bytes a second.
      interconnect: all links of one chip together in one direction, bytes a second.
    """

    flops: float
    memory: int
    bandwidth: float
    interconnect: float


@dataclass(frozen=True)
class Slice:
    """Devices to compile for, e.g. `v5e:4x4` or `h100:8`.

    Attributes:
      name: as it was asked for.
      chip: what each of its chips can do.
      chips: how many.
      devices: what JAX computes on: one a chip, on TPU v4 one a core.
    """

    name: str
    chip: Chip
    chips: int
    devices: Sequence[Any]
