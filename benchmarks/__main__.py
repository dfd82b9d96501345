"""All benchmarks, one after another, into one file of rows and one table.

    python -m benchmarks --json OUT.json --markdown OUT.md             (an hour and more)
    python -m benchmarks --quick --json OUT.json --markdown OUT.md     (small sizes, less than eight minutes)
    python -m benchmarks --only start_up pipeline --json OUT.json --markdown OUT.md

Each script runs in a process of its own and writes its rows; they are gathered here. One that fails is told, the rest
goes on, and the exit code is 1 at the end (2: the arguments are at fault). Needs `pip install -e '.[test,benchmarks]'`.
`benchmarks/scaling.py` and `preemption.py` are not among these: they write docs/scaling.md and docs/fault_tolerance.md.
`benchmarks/gpu.py` is what there is for a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinject.cli.parser import Parser, exit_code
from kinject.errors import InputError, did_you_mean

HERE = Path(__file__).resolve().parent
LONGEST = 3600  # seconds of one script


@dataclass(frozen=True)
class Script:
    """A benchmark's arguments: for the figures in docs/performance.md, and for a few minutes in all."""

    full: str
    quick: str


SCRIPTS = {
    "start_up": Script("", "--rounds 1 --cold 1 --repeats 10"),
    "pipeline": Script("", "--sentences 4000 --seconds 1 --rounds 2"),
    "host_tuning": Script("", "--sentences 64 --rounds 1 --buckets 2"),
    "map_tuning": Script(
        "--sentences 192 --rounds 2 --batch 64 --their-batches 8 16 --buckets 6",
        "--sentences 48 --rounds 1 --batch 24 --their-batches 24 --buckets 2 --layers 6 --hidden 384",
    ),
    "kept_memory": Script("", "--sentences 32 --batch 16 --rounds 2 --layers 6 --hidden 384"),
    "step_flops": Script("", ""),
    "cpu_parts": Script("", "--repetitions 3"),
    "frozen_prefix": Script("--sentences 64 --epochs 3", "--sentences 32 --epochs 2 --hidden 384"),
    "fewrel_evaluation": Script(
        "--rounds 2 --episodes 20 --theirs 15 --batch 12 --buckets 12 --torch",
        "--rounds 1 --episodes 4 --theirs 4 --batch 10 --buckets 4 --torch",
    ),
    "predict": Script("--texts 256", "--texts 48 --rounds 3"),
    "knowledge_open": Script("--entities 1000000", "--entities 1000000 --lookups 200000"),
    "opening": Script("--entities 1000000", "--entities 50000"),
    "linker": Script("--megabytes 4", "--names 100000 --megabytes 0.5 --repeats 1"),
    "linker_ambiguity": Script("--epochs 8", "--epochs 1"),
    "memory_search": Script(
        "--size 128 --index-passages 100000", "--passages 50000 --size 128 --index-passages 10000 --repeats 1"
    ),
    "text_vectors": Script("--most 8", "--sentences 20000 --entities 1000 --most 8"),
    "facts": Script("", "--facts 50000"),
    "int8": Script("", "--rounds 3"),
    "vectors": Script("", "--entities 50000 --steps 2 --repetitions 3"),
    "domain_parallel": Script("", "--rows 4 --domains 4 --repetitions 3 --seconds 0.2"),
}
COLUMNS = ("benchmark", "what", "ours", "theirs", "ratio", "unit", "goal")


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """Runs one script; returns its rows, its seconds, and `error` where it failed."""
    started, used, log = time.monotonic(), cpu_of_children(), ""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "rows.json"
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments, "--json", str(out)]
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST)
            log, code = done.stdout + done.stderr, done.returncode
            error = None if code == 0 else f"it ended with {code}"
        except subprocess.TimeoutExpired:
            error = f"it took more than {LONGEST} s"
        made = {"script": name, "arguments": shlex.join(arguments), "rows": []}
        if error is None:
            try:
                made["rows"] = [{"benchmark": name, **row} for row in json.loads(out.read_text())]
            except (OSError, ValueError, TypeError) as problem:
                error = f"it wrote no rows: {problem}"
    made |= {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(cpu_of_children() - used, 1)}
    return made if error is None else {**made, "error": error, "log": log[-4000:]}


def cpu_of_children() -> float:
    """Seconds of CPU time of all processes that have ended, user and system."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def number(value: Any) -> str:
    return "" if not isinstance(value, int | float) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def goal_of(row: dict[str, Any]) -> str:
    return "" if "goal" not in row else f"{row['goal']}: {'met' if row['met'] else '**not met**'}"


def table(made: dict[str, Any]) -> str:
    """The Markdown page."""
    about = made["about"]
    lines = ["# Benchmarks", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---|---:|---:|---:|---|---|"]
    for row in made["rows"]:
        ratio = "" if row.get("ratio") is None else f"{row['ratio']:.2f}x"
        cells = [row["benchmark"], row["name"], number(row.get("ours")), number(row.get("theirs")), ratio]
        lines.append("| " + " | ".join([*cells, str(row.get("unit", "")), goal_of(row)]) + " |")
    lines += ["", "| script | arguments | seconds | of CPU time |", "|---|---|---:|---:|"]
    for one in made["scripts"]:
        end = f" **failed: {one['error']}**" if "error" in one else ""
        lines.append(f"| {one['script']} | `{one['arguments']}`{end} | {one['seconds']} | {one['cpu_seconds']} |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT.json", help="all rows")
    parser.add_argument("--markdown", type=Path, required=True, metavar="OUT.md", help="the same as a table")
    parser.add_argument("--only", nargs="+", default=list(SCRIPTS), metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in SCRIPTS:
            raise InputError("--only", f"there is no benchmark {name}", did_you_mean(name, SCRIPTS))
    for path in (arguments.json, arguments.markdown):
        if path.exists():
            raise InputError(path, "it exists", "choose another file; nothing was overwritten")
        if not path.parent.is_dir():
            raise InputError(path, "its folder is not there", "make it first")
    return arguments


def main() -> int:
    arguments = parse()
    from benchmarks.rows import hardware, versions

    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    about = {"command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]), "hardware": hardware()}
    about |= {"versions": versions(), "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "load before": load}
    made: dict[str, Any] = {"about": about, "scripts": [], "rows": []}
    for name in arguments.only:
        script = SCRIPTS[name]
        found = run(name, shlex.split(script.quick if arguments.quick else script.full))
        end = found.get("error") or f"{len(found['rows'])} rows"
        print(f"{name}: {end}, {found['seconds']} s, {found['cpu_seconds']} s of CPU time", flush=True)
        if "log" in found:
            print(found["log"], file=sys.stderr, flush=True)
        made["rows"] += found.pop("rows")
        made["scripts"].append(found)
        for path, text in ((arguments.json, json.dumps(made, indent=2) + "\n"), (arguments.markdown, table(made))):
            fresh = path.with_name(path.name + ".new")  # what is there counts, even where a later script hangs
            fresh.write_text(text)
            fresh.replace(path)
    return 1 if any("error" in one for one in made["scripts"]) else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
