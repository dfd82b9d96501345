"""What every benchmark writes: rows of JSON, each with the hardware and the versions that it was measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("kinject", "jax", "numpy", "torch", "transformers")


def hardware() -> str:
    """The processor and how many of its cores this process may use; no library is imported for it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores used of {os.cpu_count()}"


def versions() -> str:
    """Python and the packages that matter, as they are installed."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def row(
    name: str, ours: float, theirs: float | None, unit: str, *, less: bool = False, goal: str = "", **more: Any
) -> dict[str, Any]:
    """One row.

    Args:
      name: what was measured.
      ours, theirs: in `unit`; theirs is None where there is nobody to compare with.
      unit: of both.
      less: less is better, as of seconds; the ratio is above 1 where ours is the better one in either case.
      goal: `<= X` or `>= X`, which `ours` must fulfil, or `ratio >= X`, which the ratio must.
      more: what else belongs into the row.
    """
    ratio = None if theirs is None else (theirs / ours if less else ours / theirs)
    made = {"name": name, "ratio": ratio, "ours": ours, "theirs": theirs, "unit": unit}
    if goal:
        made |= {"goal": goal, "met": fulfils(goal, ours, ratio)}
    return {**made, **more, "hardware": hardware(), "versions": versions()}


def fulfils(goal: str, ours: float, ratio: float | None) -> bool:
    """Whether `<= X`, `>= X` or `ratio >= X` holds."""
    *of, sign, bound = goal.split()
    value = ratio if of else ours
    return value is not None and (value <= float(bound) if sign == "<=" else value >= float(bound))


def write(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Prints a line for each row, and writes them where a path is given."""
    for one in rows:
        theirs = "" if one["theirs"] is None else f", theirs {one['theirs']:.4g}, ratio {one['ratio']:.2f}"
        goal = f"  (goal {one['goal']}: {'met' if one['met'] else 'NOT met'})" if "goal" in one else ""
        print(f"{one['name']}: {one['ours']:.4g}{theirs}  [{one['unit']}]{goal}", flush=True)
    if path is not None:
        path.write_text(json.dumps(rows, indent=2) + "\n")
