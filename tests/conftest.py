"""What every test stands on: two CPU devices, no network, quick compilation, and one tiny world for all."""

import gc
import os
import tempfile
from importlib.metadata import version

# tests compile a thousand small programs and run each a few times
COMPILE_QUICKLY = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if version("jaxlib").startswith("0.10."):  # later ones end at once at a flag that they do not know
    # the older emitters of fused loops compile in less than half the time, with the same passes before them
    COMPILE_QUICKLY += " --xla_cpu_use_fusion_emitters=false"
gc.set_threshold(20_000, 10, 10)  # as commands do: tracing makes objects by the million, and few of them cycles
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker inherits all this from the process that started it
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_QUICKLY}".strip()
    # tests and the processes they start compile the same small programs again and again
    CACHE = tempfile.TemporaryDirectory(prefix="kinject-test-jit-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # JAX writes an entry in place: a reader that comes too early, or after a writer that a test killed, finds half of
    # it, says so on standard error, and compiles
    quiet = "ignore:Error reading persistent compilation cache entry"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))
    # a process that finds no list of fonts, and takes more than five seconds to make one, says so too: it is made here
    import matplotlib.font_manager  # noqa: F401

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


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """Every kind of artefact in a few kilobytes, made without training: see fault_world.py. Read only."""
    from fault_world import write_fault_world

    return write_fault_world(tmp_path_factory.mktemp("small") / "w")


@pytest.fixture(scope="module")
def host(world):
    """The host of `world`, loaded."""
    from kinject.inference.host import open_host

    return open_host(world / "host")


@pytest.fixture(scope="module")
def knowledge(world):
    """The knowledge base of `world`, open."""
    from kinject.knowledge.base import KnowledgeBase

    return KnowledgeBase.open(world / "knowledge")


# `-m quick`: what is run of each package (kinject/*.py: "kinject"), so that all of it ends in under 90 seconds on two
# cores. A file stands for all its tests that are not slow. tests/test_quick.py holds that every package is here.
QUICK = {
    "api": ["test_python_api.py::test_options_of_fit_and_of_its_optimizer_go_where_they_belong"],
    "kinject": ("test_config.py", "test_imports.py", "test_quick.py", "test_verbs.py"),
    "cli": ("test_verbs.py",),
    "data": ("test_records.py", "test_tokenizer.py", "test_truncation.py"),
    "datasets": ("test_dataset_faults.py",),
    "demo": ("test_demo.py::test_what_can_be_chosen", "test_demo.py::test_what_cannot_be_answered_is_one_line"),
    "inference": ("test_portions.py",),
    "knowledge": ("test_facts.py", "test_importers.py", "test_knowledge_build.py"),
    "linking": ("test_linking.py",),
    "memory": ("test_memory_search.py", "test_memory_store.py"),
    "models": ("test_attention_products.py", "test_dropout.py"),
    "plugins": ("test_store.py",),
    "reports": ("test_progress.py",),
    "serving": (
        "test_serving.py::test_bad_inputs_are_told_and_the_rest_answered",
        "test_serving.py::test_order_ids_and_lengths",
        "test_stored.py::test_answers_are_the_same",
        "test_stored.py::test_what_is_read_is_the_same",
    ),
    "stages": (
        "test_comparison.py::test_a_derangement_gives_everyone_another_group",
        "test_comparison.py::test_majority_by_hand",
        "test_comparison.py::test_nearest_neighbour_by_hand",
        "test_stored.py::test_a_finished_run_is_reported_and_not_run_again",
    ),
    "tasks": (
        "test_marker_tasks.py::test_relation_metrics_do_not_count_no_relation",
        "test_marker_tasks.py::test_typing_metrics",
        "test_multiple_choice.py::test_facts_of_each_choice_or_of_all",
        "test_tasks.py::test_unknown_tasks_and_options_are_one_line",
    ),
    "training": ("test_checkpoint.py", "test_portions.py", "test_progress.py"),
}
QUICK_TESTS = {test for tests in QUICK.values() for test in tests}
QUICK_FILES = {test.partition("::")[0] for test in QUICK_TESTS}


def pytest_ignore_collect(collection_path, config):
    """Under `-m quick` the other files are not even imported."""
    if config.option.markexpr == "quick" and collection_path.name.startswith("test_"):
        return True if collection_path.name not in QUICK_FILES else None
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        names = {item.path.name, f"{item.path.name}::{getattr(item, 'originalname', item.name)}"}
        if names & QUICK_TESTS and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)
