"""GPUs that are not here.

JAX's CUDA plugin compiles for any GPU that it is told the properties of, on a machine without one. It cannot try out
kernels there, so the programs are its first guess: FLOPs and collectives are those of a run, but a run, which tunes,
may fuse otherwise and choose other kernels, and then its memory and traffic differ. `pip install kinject[cuda]` brings
the plugin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec

from kinject.errors import InputError, did_you_mean, first_line
from kinject.training.chips import Chip, Slice


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


def open_gpus(name: str) -> Slice:
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
    return Slice(name, gpu, machines * each, described.devices)
