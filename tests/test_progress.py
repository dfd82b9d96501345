"""What a person who watches sees: a bar on a terminal, lines elsewhere, each with rate, time left, loss and memory."""

import io
import re
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console

from kinject.reports.console import Reporter, memory_in_use


@pytest.fixture
def watched(monkeypatch):
    """What is printed while something takes `total` steps of `each` seconds, ten at a time, by a clock of our own."""

    def watch(terminal, total=40, each=0.05):
        now, printed = 100.0, io.StringIO()
        monkeypatch.setattr("kinject.reports.console.time", SimpleNamespace(monotonic=lambda: now))
        console = Console(file=printed, force_terminal=terminal, width=200, highlight=False, get_time=lambda: now)
        with Reporter(console).bar("plugin", total) as update:
            if not terminal:
                update.seconds = 0.0  # else a line every ten seconds
            for done in range(10, total + 1, 10):
                now += 10 * each
                update(done, loss=1 / done)
        return printed.getvalue()

    return watch


def test_a_line_tells_how_far_how_fast_and_how_long(watched):
    first, *_, last = watched(terminal=False).splitlines()
    assert first == "plugin  10/40  loss 0.1  20/s  0:00:02 left"
    assert last == "plugin  40/40  loss 0.025  20/s"


def test_a_bar_tells_the_same(watched):
    drawn = watched(terminal=True)
    assert "\x1b[" in drawn
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for part in ("plugin", "40/40", "loss 0.025", "0:00:00"):
        assert part in text
    assert re.search(r"\d/s", text)


def test_long_steps_are_told_in_seconds(watched):
    lines = watched(terminal=False, total=20, each=0.2).splitlines()
    assert "loss 0.1" in lines[0] and re.search(r"\d(\.\d+)? ?(/s|s each)", lines[0])


def test_memory_is_the_fullest_devices_and_nothing_where_none_is_told():
    def device(**stats):
        return SimpleNamespace(memory_stats=lambda: stats or None)

    gib = 2**30
    assert memory_in_use([device(bytes_in_use=gib, bytes_limit=8 * gib), device(bytes_in_use=3 * gib)]) == "3 GiB"
    assert memory_in_use([device(bytes_in_use=gib // 2, bytes_limit=8 * gib)]) == "512 MiB of 8 GiB"
    assert memory_in_use([device(), device()]) == "" == memory_in_use(jax.local_devices())
