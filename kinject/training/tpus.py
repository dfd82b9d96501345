"""TPU slices that are not here.

The `libtpu` wheel compiles for any slice on a machine without one. `pip install kinject[tpu]` brings it.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from kinject.errors import InputError, did_you_mean, first_line
from kinject.training.chips import Chip, Slice


@dataclass(frozen=True)
class Tpu(Chip):
    """One chip as Google's documentation of Cloud TPU gives it; the interconnect is ICI.

    Attributes:
      axes: dimensions of its topology.
      accelerator: the prefix of `--accelerator-type`, before the number of cores or chips.
    """

    axes: int
    accelerator: str


TPUS = {
    "v4": Tpu(275e12, 32 << 30, 1228e9, 300e9, 3, "v4"),
    "v5e": Tpu(197e12, 16 << 30, 819e9, 200e9, 2, "v5litepod"),
    "v5p": Tpu(459e12, 95 << 30, 2765e9, 600e9, 3, "v5p"),
    "v6e": Tpu(918e12, 32 << 30, 1640e9, 448e9, 2, "v6e"),
}


def open_slice(name: str) -> Slice:
    """The devices of a slice; nothing is looked for on this machine or on the network.

    Raises:
      InputError: not of the form `v5e:4x4`, a shape that there is not, or libtpu is not installed.
    """
    form = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if form is None:
        raise InputError(f"--aot {name}", "it names no TPU slice", "write it like v5e:4x4 or v5p:2x2x4")
    if form[1] not in TPUS:
        raise InputError(f"--aot {name}", f"unknown TPU {form[1]!r}", did_you_mean(form[1], TPUS))
    chip, sizes = TPUS[form[1]], [int(size) for size in form[2].split("x")]
    if len(sizes) != chip.axes:
        example = "x".join("4" * chip.axes)
        raise InputError(f"--aot {name}", f"a {form[1]} slice has {chip.axes} axes", f"such as {form[1]}:{example}")
    chips = math.prod(sizes)
    # libtpu would ask the metadata server of a cloud machine where it is
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.accelerator}-{chips}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    try:
        one_host = {"chips_per_host_bounds": (1,) * 3} if chips == 1 else {}  # the default is 2x2x1
        described = topologies.get_topology_desc(topology_name=name, platform="tpu", **one_host)
    except Exception as error:  # jax and libtpu have no common class for it
        try:
            import libtpu  # noqa: F401
        except ImportError:
            raise InputError(f"--aot {name}", "libtpu is not installed", "pip install 'kinject[tpu]'") from None
        raise InputError(f"--aot {name}", f"libtpu refuses it: {first_line(error)}", "ask for another shape") from None
    return Slice(name, chip, chips, described.devices)
