"""Signals, full disks, closed pipes and descriptors: a line each, and nothing that grows."""

import errno
import gc
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from kinject.cli import main as commands
from kinject.cli.parser import exit_code, of_this_machine
from kinject.inference.processes import Preempted, listen
from kinject.knowledge import KnowledgeBase
from kinject.linking import AliasLinker


@pytest.fixture(scope="module")
def world(small_world):
    return small_world


@pytest.fixture
def listening():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook
    listen()
    yield
    listen()
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])
    sys.unraisablehook = before[2]


def test_a_notice_that_comes_while_an_object_is_finalised_is_not_lost(listening):
    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        one = Finalised()
        del one
        for _ in range(200):
            time.sleep(0.02)


def test_the_first_ctrl_c_is_a_notice_while_a_loop_trains_and_the_second_is_not(listening):
    from kinject.inference.mesh import Placement
    from kinject.inference.processes import watched

    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    with watched(Placement.single()) as watch:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert watch.stop(agree=False) and Preempted().interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def raising(error):
    def command():
        raise error

    return command


def chained(error):
    try:
        try:
            raise error
        except Exception as inner:
            raise ValueError("a library's own words") from inner
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/m/kb"), "/m/kb: No space left on device"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/m/kb"), "/m/kb: Read-only file system"),
        (chained(OSError(errno.EMFILE, os.strerror(errno.EMFILE))), "this machine: Too many open files"),
        (ValueError("RESOURCE_EXHAUSTED: writing x: No space left on device [type.googleapis]"), "No space left on"),
        (MemoryError("Unable to allocate 9 TiB"), "there is not enough memory (Unable to allocate 9 TiB)"),
    ],
)
def test_what_a_machine_lacks_is_one_line(capsys, error, says):
    assert exit_code(raising(error)) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback():
    assert of_this_machine(ValueError("x")) is None
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()))


def test_a_disk_that_is_full_leaves_nothing_half_written(tmp_path, capsys):
    """A limit on the size of files, as `ulimit -f` sets it, in the place of a disk: writing beyond it fails alike."""
    triples = tmp_path / "t.tsv"
    triples.write_text("".join(f"a{i}\tr\tb{i}\n" for i in range(200)))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, before[1]))
    argv = ["knowledge", "build", "--triples", str(triples), "--epochs", "1", "--quiet", "--out", str(tmp_path / "kb")]
    try:
        assert commands.main(argv) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "File too large" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.tsv"]


def test_a_closed_pipe_is_no_error(world, tmp_path):
    """`kinject link … | head -0`: whoever reads has gone before anything was written."""
    read, written = os.pipe()
    os.close(read)
    kept = os.dup(1)
    os.dup2(written, 1)
    try:
        assert commands.main(["verify", str(world / "plugin"), str(world / "knowledge")]) == 0
        argv = ["link", "--knowledge", str(world / "knowledge"), str(world / "questions.jsonl")]
        assert commands.main(argv) == 0
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(written)


def test_no_descriptor_is_kept_by_bases_and_linkers_that_nobody_holds(world):
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    AliasLinker(KnowledgeBase.open(world / "knowledge"))("city50")
    gc.collect()
    gc.disable()
    try:
        before = descriptors()
        for _ in range(20):
            list(AliasLinker(KnowledgeBase.open(world / "knowledge"))("city50 is far"))
            _ = KnowledgeBase.open(world / "knowledge").entities
            del _
        assert descriptors() <= before + 1
    finally:
        gc.enable()
