"""What a run says: one JSON line a logged step in `metrics.jsonl`, and progress for the person who watches."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsFile:
    """`metrics.jsonl`: one object a line with `stage` and `step`. It holds no clock, so reruns are equal.

    Of several processes one writes it; on the others it is not `kept`.
    """

    def __init__(self, path: Path, kept: bool = True):
        self.path, self.kept = Path(path), kept

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if not self.kept:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")

    def rewind(self, stage: str, step: int) -> None:
        """Drops what `stage` wrote after `step`: those steps are about to run again. A torn last line goes too."""
        if not self.kept or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["stage"] != stage or record["step"] <= step:
                kept.append(line + "\n")
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(kept))
        partial.replace(self.path)


class Reporter:
    """Progress on the terminal: a bar where there is one, a plain line every few seconds where there is not."""

    def __init__(self, console: Console | None = None, quiet: bool = False):
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, markup=False)

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
            yield _PlainLines(self, title, total)


class _PlainLines:
    def __init__(self, reporter: Reporter, title: str, total: int, seconds: float = 10.0):
        self.reporter, self.title, self.total, self.seconds = reporter, title, total, seconds
        self.last = time.monotonic()

    def __call__(self, done: int, **values: float) -> None:
        now = time.monotonic()
        if now - self.last >= self.seconds or done >= self.total:
            self.last = now
            self.reporter.say(f"{self.title}  {done}/{self.total}  {_shown(values)}")


def sized(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


def _terminal_bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    return Progress(*columns, console=console)


def _shown(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
