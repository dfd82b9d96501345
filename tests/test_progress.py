"""What a person who watches sees: a bar on a terminal, lines elsewhere, each with rate, time left, loss and memory."""

import io
import re
import time
from types import SimpleNamespace

import jax
from rich.console import Console

from kinject.reports.console import Reporter, memory_in_use


def watched(terminal, total=40, each=0.05):
    """What is printed while something takes `total` steps of `each` seconds, ten at a time."""
    printed = io.StringIO()
    reporter = Reporter(Console(file=printed, force_terminal=terminal, width=200, highlight=False))
    with reporter.bar("plugin", total) as update:
        if not terminal:
            update.seconds = 0.0  # else a line every ten seconds
        for done in range(10, total + 1, 10):
            time.sleep(10 * each)
            update(done, loss=1 / done)
    return printed.getvalue()


def test_a_line_tells_how_far_how_fast_and_how_long():
    first, *_, last = watched(terminal=False).splitlines()
    assert re.fullmatch(r"plugin  10/40  loss 0\.1  \d+(\.\d+)?/s  0:00:0[12] left", first), first
    assert last.startswith("plugin  40/40  loss 0.025  ") and "left" not in last
    rate = float(re.search(r"([\d.]+)/s", first)[1])
    assert 2 < rate <= 20.5, "never more than twenty steps of 0.05 s"


def test_a_bar_tells_the_same():
    drawn = watched(terminal=True)
    assert "\x1b[" in drawn
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    for part in ("plugin", "40/40", "loss 0.025", "0:00:00"):
        assert part in text
    assert re.search(r"\d/s", text)


def test_long_steps_are_told_in_seconds():
    lines = watched(terminal=False, total=20, each=0.2).splitlines()
    assert "loss 0.1" in lines[0] and re.search(r"\d(\.\d+)? ?(/s|s each)", lines[0])


def test_memory_is_the_fullest_devices_and_nothing_where_none_is_told():
    def device(**stats):
        return SimpleNamespace(memory_stats=lambda: stats or None)

    gib = 2**30
    assert memory_in_use([device(bytes_in_use=gib, bytes_limit=8 * gib), device(bytes_in_use=3 * gib)]) == "3 GiB"
    assert memory_in_use([device(bytes_in_use=gib // 2, bytes_limit=8 * gib)]) == "512 MiB of 8 GiB"
    assert memory_in_use([device(), device()]) == "" == memory_in_use(jax.local_devices())
