"""How benchmarks take time and memory, each side in a process of its own where it has to be."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def options(doc: str, **defaults: int) -> argparse.ArgumentParser:
    """A parser with `--json FILE` and one whole number an option, each with its default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="gets the rows")
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default:,}")
    return parser


def best(repeats: int, run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def resident_mb(*, mapped: bool = True) -> float:
    """This process's resident memory now, in MB of 10^6 bytes; `mapped`: pages of files that are mapped count too."""
    pages = [int(count) for count in Path("/proc/self/statm").read_text().split()]
    return (pages[1] - (0 if mapped else pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6


def apart(script: str, *arguments: object) -> Any:
    """What a script prints as JSON, run with some arguments in a process of its own, with this kinject."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, script, *map(str, arguments)]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)
