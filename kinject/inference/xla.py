"""How this process runs XLA: programs that are kept, devices that a CPU is split into, memory that is not given back.

A run that was cut short does not compile again before it goes on. And XLA asks for the temporaries of every step anew,
hundreds of megabytes at a time. The C library takes so much from the kernel and gives it back afterwards, and each step
on a CPU then waits for hundreds of thousands of pages to be zeroed and mapped: a fifth of the time of a map-tuning step
of bert-base's shape (docs/performance.md). So glibc's malloc is told to keep it for the next step.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import jax

ONE_CORE = {"xla_cpu_multi_thread_eigen": False}  # options of a program that computes with one thread of a CPU
CACHE_VARIABLE = "KINJECT_COMPILATION_CACHE"
LARGEST = 4 << 30  # bytes; what was used longest ago goes first
SHORTEST = 0.02  # seconds; what compiles faster is not worth a file. A start has some twenty that take up to 0.05
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
MALLOC_VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)


def keep_compiled(folder: Path | None = None) -> Path | None:
    """Lets JAX keep compiled programs in a folder. The same program is then the same binary: no bit changes.

    Args:
      folder: None = `$KINJECT_COMPILATION_CACHE`, or `kinject/` in the user's cache folder.

    Returns:
      The folder; None where JAX was told one of its own (`JAX_COMPILATION_CACHE_DIR`) or none can be made.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return None
    chosen = folder or Path(os.environ.get(CACHE_VARIABLE) or _users_cache() / "kinject").expanduser() / _processor()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is read-only or missing: a run does not need it
        return None
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    return chosen


def options(row_parts: int) -> dict[str, bool] | None:
    """Options of XLA for a step whose rows `row_parts` devices share; None = its own.

    Where a CPU is taken as one device a core, each computes with one thread: with all threads in every device they
    wait for each other.
    """
    if row_parts == 1 or jax.default_backend() != "cpu" or jax.local_device_count() < cores():
        return None
    return ONE_CORE


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def split_cpu(count: int) -> None:
    """Makes `count` devices of the CPU, if JAX has not started and was not told how many; accelerators stay."""
    if count > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # it has started
            jax.config.update("jax_num_cpu_devices", count)


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def _processor() -> str:
    """A folder for this kind of CPU: homes are shared by machines, and code for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        about = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def tune_malloc() -> bool:
    """Makes this process keep what it frees, large blocks too. Call it once, before JAX starts its threads.

    A process then holds on to as much memory as it ever needed at one time, or more where it is fragmented. Training
    and evaluation by command do so; the library leaves the memory of programs that import it alone.

    Returns:
      Whether malloc was tuned: not where the C library is another than glibc, where an environment variable tunes it
      already, or where `JAX_PLATFORMS` names an accelerator. It has no effect on a preloaded allocator.
    """
    configured = any(name in os.environ for name in MALLOC_VARIABLES)
    if (
        not sys.platform.startswith("linux")
        or configured
        or not os.environ.get("JAX_PLATFORMS", "cpu").startswith("cpu")
    ):
        return False
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        library = None
    if not library:
        return False
    choose = ctypes.CDLL(None).mallopt
    # one arena: those of threads are too small for such pieces, and pass them on to the kernel whatever they are told
    return all([choose(ARENA_MAX, 1), choose(MMAP_MAX, 0), choose(TRIM_THRESHOLD, -1)])
