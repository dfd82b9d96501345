"""Progress for the person who watches: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Reporter:
    """Progress on the terminal: a bar where there is one, a plain line every few seconds where there is not.

    Both show how much is done, what is told of it (the loss), the rate, the time left, and how much memory of a device
    is in use where the device tells (CPUs do not).
    """

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Prints a text, unless it is quiet."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def say_folded(self, text: str, shown: int = 4) -> None:
        """Prints a text of many lines; on a terminal its first ones, and how many there are more."""
        lines = text.splitlines()
        if self.console.is_terminal and len(lines) > shown + 1:
            more = f"  … and {len(lines) - shown} more lines; they are whole where this is no terminal"
            lines = [*lines[:shown], more]
        self.say("\n".join(lines))

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        """Yields `update(done, **values)`, to be called as often as one likes."""
        if self.quiet:
            yield lambda done, **values: None
        elif self.console.is_terminal:
            with _terminal_bar(self.console) as progress:
                task = progress.add_task(title, total=total, completed=done, values="")
                yield lambda done, **values: progress.update(task, completed=done, values=_shown(values))
        else:
            yield _PlainLines(self, title, total, done)


class _PlainLines:
    def __init__(self, reporter: Reporter, title: str, total: int, done: int, seconds: float = 10.0):
        self.reporter, self.title, self.total, self.seconds = reporter, title, total, seconds
        self.last, self.last_done = time.monotonic(), done

    def __call__(self, done: int, **values: float) -> None:
        now = time.monotonic()
        if now - self.last >= self.seconds or done >= self.total:
            rate = (done - self.last_done) / max(now - self.last, 1e-9)
            self.last, self.last_done = now, done
            left = f"  {_clock((self.total - done) / rate)} left" if rate and done < self.total else ""
            self.reporter.say(f"{self.title}  {done}/{self.total}  {_shown(values)}  {_rate(rate)}{left}")


def memory_in_use(devices: Sequence[Any]) -> str:
    """How much memory is in use on the fullest of some JAX devices, and of how much; "" where they do not tell."""
    found = [stats for stats in (device.memory_stats() for device in devices) if stats and "bytes_in_use" in stats]
    if not found:
        return ""
    most = max(found, key=lambda stats: stats["bytes_in_use"])
    of = f" of {sized(most['bytes_limit'])}" if most.get("bytes_limit") else ""
    return f"{sized(most['bytes_in_use'])}{of}"


def sized(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


class _RateColumn(TextColumn):
    """Steps a second, as rich estimates them over the last half minute."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0))


def _terminal_bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    return Progress(*columns, console=console)


def _rate(each: float) -> str:
    """Steps a second, or seconds a step where they are long."""
    if not each:
        return ""
    if each >= 1000:
        return f"{each:,.0f}/s"
    return f"{each:.3g}/s" if each >= 1 else f"{1 / each:.3g} s each"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _shown(values: Mapping[str, float]) -> str:
    jax = sys.modules.get("jax")  # where nothing has imported it, there is no device to ask
    memory = memory_in_use(jax.local_devices()) if jax else ""
    return "  ".join([*(f"{name} {value:.4g}" for name, value in values.items()), *([memory] if memory else [])])
