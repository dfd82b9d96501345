"""glibc's malloc, told to keep the memory that a training step frees on a CPU for the next step.

XLA asks for the temporaries of every step anew, hundreds of megabytes at a time. The C library takes so much from the
kernel and gives it back afterwards, and each step then waits for hundreds of thousands of pages to be zeroed and
mapped: a fifth of the time of a map-tuning step of bert-base's shape (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of glibc's malloc.h
VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)


def tune_malloc() -> bool:
    """Makes this process keep what it frees, large blocks too. Call it once, before JAX starts its threads.

    A process then holds on to as much memory as it ever needed at one time, or more where it is fragmented. Training
    and evaluation by command do so; the library leaves the memory of programs that import it alone.

    Returns:
      Whether malloc was tuned: not where the C library is another than glibc, where an environment variable tunes it
      already, or where `JAX_PLATFORMS` names an accelerator. It has no effect on a preloaded allocator.
    """
    configured = any(name in os.environ for name in VARIABLES)
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
