"""What a run says: one JSON line a logged step in `metrics.jsonl`, and progress for the person who watches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kinject.training.trackers import Tracker, open_trackers


class MetricsFile:
    """`metrics.jsonl`: one object a line with `stage` and `step`. It holds no clock, so reruns are equal.

    Of several processes one writes it; on the others it is not `kept`. What is written goes to the `trackers` too,
    which are opened for a stage when it is rewound.
    """

    def __init__(self, path: Path, kept: bool = True, trackers: Sequence[str] = ()):
        self.path, self.kept, self.trackers = Path(path), kept, trackers
        self.opened: list[Tracker] = []

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Adds one line: the stage, the step and its values."""
        if not self.kept:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        for tracker in self.opened:
            tracker.write(step, values)

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self.opened:
            tracker.close()
        self.opened = []

    def rewind(self, stage: str, step: int) -> None:
        """Drops what `stage` wrote after `step`: those steps are about to run again. A torn last line goes too."""
        if not self.kept:
            return
        self.opened = open_trackers(self.trackers, self.path.parent, stage, step)
        if not self.path.exists():
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
