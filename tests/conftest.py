"""What every test stands on: two CPU devices, no network, quick compilation, and one tiny world for all."""

import os
import tempfile

# tests compile a thousand small programs and run each a few times; the older emitters of fused loops compile in less
# than half the time, with the same passes before them
QUICK = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker inherits all this from the process that started it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
    # tests and the processes they start compile the same small programs again and again
    CACHE = tempfile.TemporaryDirectory(prefix="kinject-test-jit-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # JAX writes an entry in place: a reader that comes too early, or after a writer that a test killed, finds half of
    # it, says so on standard error, and compiles
    quiet = "ignore:Error reading persistent compilation cache entry"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# how long an example takes says how busy the machine is, and a failure must come again
settings.register_profile("kinject", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kinject")


def pytest_report_teststatus(report):
    """A test that fails is named at once, among the dots: a run that is cut short comes to no summary."""
    if report.failed:
        kind = "error" if report.when in ("collect", "setup", "teardown") else "failed"
        return kind, f"\n{kind.upper()} {report.nodeid}\n", kind.upper()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A host that reads its slot, a knowledge base and records: see tiny_world.py. Read only."""
    from tiny_world import write_world

    return write_world(tmp_path_factory.mktemp("world") / "files")
