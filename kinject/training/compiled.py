"""Compiled programs kept from run to run: a run that was cut short does not compile again before it goes on."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

VARIABLE = "KINJECT_COMPILATION_CACHE"
LARGEST = 4 << 30  # bytes; what was used longest ago goes first
SHORTEST = 0.1  # seconds; what compiles faster is not worth a file


def keep_compiled(folder: Path | None = None) -> Path | None:
    """Lets JAX keep compiled programs in a folder. The same program is then the same binary: no bit changes.

    Args:
      folder: None = `$KINJECT_COMPILATION_CACHE`, or `kinject/` in the user's cache folder.

    Returns:
      The folder; None where JAX was told one of its own (`JAX_COMPILATION_CACHE_DIR`) or none can be made.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return None
    chosen = folder or Path(os.environ.get(VARIABLE) or _users_cache() / "kinject").expanduser() / _processor()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is read-only or missing: a run does not need it
        return None
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    return chosen


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
