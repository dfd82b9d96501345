"""What a GPU does, within eight minutes: parity of every method, map-tuning and serving beside torch, a profile.

    python benchmarks/gpu.py --json rows.json --profile profile/
    python benchmarks/gpu.py --dry-run --json rows.json           (small, where there is no GPU)

Each part is a script of its own in a process of its own, so that one that fails, or that does not end within its share
of the time, takes nothing from the others; after each, all rows so far are written. It needs no network and no
installation: a machine that has Python 3.12, jax 0.11 and torch for CUDA lacks a few small packages (`--missing` prints
which), that can be brought along as wheels:

    python benchmarks/gpu.py --missing > missing.txt              (there)
    pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels -r missing.txt       (elsewhere)
    pip install --no-index --no-deps --target site wheels/*.whl && PYTHONPATH=site:. python benchmarks/gpu.py …

Exit code: 0 when every part ended and met its goals, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """A script, its arguments on a GPU and in a dry run, and the seconds that it may take on a GPU."""

    script: str
    full: str
    dry: str
    seconds: int


PARTS = {
    "parity": Part("device_parity", "", "--layers 2 --hidden 48 --vocabulary 300 --rows 4 --length 12", 90),
    "profile": Part(
        "device_profile", "--profile {profile}", "--layers 2 --hidden 48 --vocabulary 300 --rows 4 --length 12", 60
    ),
    "map_tuning": Part(
        "map_tuning",
        "--sentences 4096 --batch 256 --their-batches 128 512 --buckets 4 --rounds 2",
        "--sentences 16 --batch 8 --their-batches 8 --buckets 2 --rounds 1 --layers 2 --hidden 48 --vocabulary 300",
        110,
    ),
    "predict": Part(
        "predict",
        "--texts 2048 --hidden 768 --layers 12 --batch-size 256 --rounds 3",
        "--texts 8 --hidden 48 --layers 2 --rounds 1",
        100,
    ),
    "map_tuning, compiled": Part(
        "map_tuning",
        "--sentences 2048 --batch 256 --their-batches 256 --buckets 2 --rounds 1 --compile",
        "--sentences 8 --batch 8 --their-batches 8 --buckets 1 --rounds 1 --layers 2 --hidden 48 --vocabulary 300",
        110,
    ),
}  # 470 seconds together


def missing() -> list[str]:
    """The core requirements of setup.py that are not installed, or in a version outside of their bounds."""
    from packaging.requirements import Requirement

    spec = spec_from_file_location("lowest", HERE.parent / ".ci" / "lowest.py")
    assert spec is not None and spec.loader is not None
    lowest = module_from_spec(spec)
    spec.loader.exec_module(lowest)
    found = []
    for text in lowest.requirements([]):
        one = Requirement(text)
        try:
            here = version(one.name)
        except PackageNotFoundError:
            found.append(text)
            continue
        if here not in one.specifier:
            found.append(text)
    return found


def run(name: str, part: Part, dry: bool, profile: Path, left: float) -> list[dict[str, Any]]:
    """The rows of one part; one row with `error` where it did not come to an end."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "rows.json"
        arguments = (part.dry if dry else part.full).format(profile=profile).split()
        command = [sys.executable, str(HERE / f"{part.script}.py"), *arguments, "--json", str(out)]
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch has arms on the same GPU
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=min(part.seconds, left) * (10 if dry else 1),
            )
            problem = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]
        except subprocess.TimeoutExpired:
            problem = f"not done after {min(part.seconds, left):.0f} s"
        rows = json.loads(out.read_text()) if out.exists() else []
    seconds = round(time.monotonic() - started, 1)
    print(f"{name}: {len(rows)} rows in {seconds} s{': ' + problem if problem else ''}", flush=True)
    if problem:
        rows.append({"name": name, "error": problem})
    return [{**row, "part": name, "part_seconds": seconds} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT", help="all rows; written after each part")
    parser.add_argument("--profile", type=Path, default=Path("profile"), metavar="FOLDER", help="gets the trace")
    parser.add_argument("--seconds", type=float, default=480, help="in all")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--dry-run", action="store_true", help="small shapes, on whatever there is")
    parser.add_argument("--missing", action="store_true", help="print the packages that are missing here, and end")
    arguments = parser.parse_args()
    if arguments.missing:
        print("\n".join(missing()))
        return
    if arguments.json is None:
        parser.error("--json OUT is needed")
    started, rows = time.monotonic(), []
    for name in arguments.only:
        left = arguments.seconds - (time.monotonic() - started)
        if left < 10 and not arguments.dry_run:
            rows.append({"name": name, "part": name, "error": "no time was left"})
        else:
            rows += run(name, PARTS[name], arguments.dry_run, arguments.profile, max(left, 10))
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    bad = [row["name"] for row in rows if "error" in row or row.get("met") is False]
    if bad:
        raise SystemExit("not met, or not done: " + "; ".join(bad))


if __name__ == "__main__":
    main()
