"""AOT compilation targets: TPU slices and GPUs that a step is compiled for on a machine without them.

The `libtpu` wheel compiles for any TPU slice; `pip install kinject[tpu]` brings it. JAX's CUDA plugin compiles for any
GPU that it is told the properties of; `pip install kinject[cuda]` brings it. It cannot try out kernels here, so the
programs for GPUs are its first guess: FLOPs and collectives are those of a run, but a run, which tunes, may fuse
otherwise and choose other kernels, and then its memory and traffic differ.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from kinject.errors import InputError, did_you_mean, first_line


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
class Target:
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


def open_slice(name: str) -> Target:
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
    return Target(name, chip, chips, described.devices)


@dataclass(frozen=True)
class Gpu(Chip):
    """One GPU as NVIDIA's data sheets give it, and what XLA asks of it.

    Products are dense; the interconnect is NVLink, within a machine.

    Attributes:
      description: as a driver names it.
      capability: CUDA's compute capability.
      cores: streaming multiprocessors.
      lanes: float32 units of each.
      shared: bytes of shared memory of each, of which a block may have 1 KiB less.
      cache: bytes of the second-level cache.
      clock: GHz.
    """

    description: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    shared: int
    cache: int
    clock: float

    def target(self) -> str:
        """The text form of XLA's `GpuTargetConfigProto`."""
        major, minor = self.capability
        features = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.description}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor}{features} }}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.shared - 1024}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
              l2_cache_size: {self.cache} memory_bandwidth: {int(self.bandwidth)}
              device_memory_size: {self.memory}
            }}"""


PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
AMPERE, HOPPER = ((8, 0), 108, 64, 164 << 10, 40 << 20, 1.41), ((9, 0), 132, 128, 228 << 10, 50 << 20, 1.98)
GPUS = {
    "a100": Gpu(312e12, 85_100_068_864, 2039e9, 300e9, "NVIDIA A100-SXM4-80GB", *AMPERE),
    "h100": Gpu(989e12, 84_942_979_072, 3350e9, 450e9, "NVIDIA H100 80GB HBM3", *HOPPER),
    "h200": Gpu(989e12, 151_397_597_184, 4800e9, 450e9, "NVIDIA H200", *HOPPER),
}


def open_gpus(name: str) -> Target:
    """The devices of a machine with GPUs, `h100:8`, or of several, `h100:4x8` for four with eight.

    Raises:
      InputError: not of that form, a GPU that is not known, or the CUDA plugin is not installed.
    """
    form = re.fullmatch(r"(\w+):(?:([1-9]\d*)x)?([1-9]\d*)", name)
    if form is None:
        raise InputError(f"--aot {name}", "it names no GPUs", "write it like h100:8, or h100:4x8 for four machines")
    if form[1] not in GPUS:
        raise InputError(f"--aot {name}", f"unknown GPU {form[1]!r}", did_you_mean(form[1], GPUS))
    gpu, machines, each = GPUS[form[1]], int(form[2] or 1), int(form[3])
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            topology_name=name, platform="cuda", target_config=gpu.target(), topology=f"1x{machines}x{each}"
        )
    except Exception as error:  # jax and its plugin have no common class for it
        if not any(map(find_spec, PLUGINS)):
            mend = "pip install 'kinject[cuda]'"
            raise InputError(f"--aot {name}", "JAX's CUDA plugin is not installed", mend) from None
        raise InputError(f"--aot {name}", f"JAX's CUDA plugin refuses it: {first_line(error)}") from None
    return Target(name, gpu, machines * each, described.devices)


def open_target(name: str) -> Target:
    """The devices that `--aot` names; nothing is looked for on this machine or on the network.

    Raises:
      InputError: no such kind or shape, or the library that compiles for it is not installed.
    """
    kind = name.partition(":")[0]
    if kind not in {**TPUS, **GPUS}:
        raise InputError(f"--aot {name}", f"unknown TPU or GPU {kind!r}", did_you_mean(kind, [*TPUS, *GPUS]))
    return open_gpus(name) if kind in GPUS else open_slice(name)
