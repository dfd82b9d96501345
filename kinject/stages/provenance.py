"""What a stage was made with: a line of `provenance.jsonl` a finished stage. It holds a clock; most files do not."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import jax

from kinject.inference.compiled import cores
from kinject.plugins.store import library_versions
from kinject.reports.results import PROVENANCE


def note(workdir: Path, stage: str, command: str, seconds: float) -> None:
    """Adds a stage's line. A stage that was resumed is noted by the call that finished it."""
    line = {
        "stage": stage,
        "command": command,
        "seconds": round(seconds, 2),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **library_versions()},
    }
    with (workdir / PROVENANCE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def hardware() -> dict[str, Any]:
    """The processor, how many of its cores this process may use, and the devices of all processes by kind."""
    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return {
        "processor": _processor(),
        "cores": cores(),
        "devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "processes": jax.process_count(),
    }


def _processor() -> str:
    """The name by which a processor goes, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
