"""What a CPU step was given is kept for the next one: counted in fresh pages, by a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from kinject.inference.xla import tune_malloc
kept = tune_malloc() if sys.argv[1] == "kept" else None
import jax, jax.numpy as jnp
from kinject.inference.xla import split_cpu
from kinject.inference.mesh import Placement
split_cpu(2)
place = Placement.over()
compute = jax.jit(lambda rows: jnp.sum(jnp.sort(jnp.exp(rows), axis=0) @ rows.T, axis=1))  # 100 MB of temporaries
rows = jax.device_put(jnp.ones((64, 200_000)), place.rows)
pages = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    compute(rows).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(pages))
"""

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # where pages are huge always, there are few
FEW = HUGE.exists() and "[always]" in HUGE.read_text()
GLIBC = sys.platform.startswith("linux") and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")


def least_pages(how, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    said, pages = done.stdout.split()
    return said, int(pages)


@pytest.mark.skipif(FEW or not GLIBC, reason="another C library, or few and huge pages")
def test_a_step_finds_the_memory_of_the_last_one():
    said, pages = least_pages("kept")
    assert said == "True"
    assert pages < 1_000
    _, fresh = least_pages("as it is")
    assert fresh > 10_000


@pytest.mark.skipif(FEW or not GLIBC, reason="another C library, or few and huge pages")
def test_who_told_the_c_library_otherwise_is_obeyed():
    said, pages = least_pages("kept", MALLOC_ARENA_MAX="4")
    assert said == "False"
    assert pages > 10_000
