"""What opening costs with every file checked: a host, a plugin and a knowledge base, beside a version without seals.

    python benchmarks/opening.py --run runs/quickstart --before ../f5eefac --json OUT
    python benchmarks/opening.py --entities 5000000 --folder /tmp --json OUT

--before is a checkout that wrote no seals. Each opening of the first kind is one of several in a process that has
opened all three before, the versions in turn; told are medians of the CPU's and of the clock's time, and the goal is
at most a tenth more. The second kind opens a made-up base of many entities, all of whose files were written a moment
ago, with the index of its names, in one process: seconds of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import row, write

ROOT = Path(__file__).resolve().parents[1]
MEASURE = """
import json, sys, time, logging
from pathlib import Path
from kinject.knowledge import KnowledgeBase
from kinject.serving import Host, Plugin
logging.getLogger("kinject").setLevel(logging.ERROR)
run, often = Path(sys.argv[1]), int(sys.argv[2])
opens = {"host": lambda: Host.load(run / "host"), "plugin": lambda: Plugin.load(run / "geography_plugin"),
         "knowledge base": lambda: KnowledgeBase.open(run / "geography/knowledge").vectors}
found = {}
for name, open in opens.items():
    open()
    wall, cpu = [], []
    for _ in range(often):
        began = time.perf_counter(), time.process_time()
        open()
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    found[name] = [sorted(wall)[often // 2], sorted(cpu)[often // 2]]
print(json.dumps(found))
"""
MANY = """
import json, sys, time
import numpy as np
from pathlib import Path
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.linking import AliasLinker
folder, count = Path(sys.argv[1]), int(sys.argv[2])
vectors = np.random.default_rng(0).standard_normal((count, 16), np.float32)
ids = [f"Q{i}" for i in range(count)]
labels = [f"n{i * 7919 % 15485863:x}" for i in range(count)]
write_knowledge(folder / "kb", name="many", ids=ids, vectors=vectors, labels=labels)
del vectors, ids, labels
linker = AliasLinker(KnowledgeBase.open(folder / "kb"))
del linker
began = time.perf_counter()
base = KnowledgeBase.open(folder / "kb")
opened = time.perf_counter() - began
base.gather(np.arange(count)[:: count // 1000])
began = time.perf_counter()
list(AliasLinker(base)("n3 is far"))
print(json.dumps([opened, time.perf_counter() - began]))
"""


def child(code: str, root: Path, *arguments: object) -> object:
    """What a process with the code of a checkout prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{root}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(run: Path, before: Path, rounds: int, often: int) -> list[dict]:
    """Rows of the three openings, ours beside those of the version before."""
    sides = {"ours": ROOT, "before": before}
    found: dict[str, list] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, root in sides.items():
            found[side].append(child(MEASURE, root, run, often))
    rows = []
    for name in ("host", "plugin", "knowledge base"):
        wall, cpu = (
            {side: 1000 * statistics.median(one[name][which] for one in some) for side, some in found.items()}
            for which in (0, 1)
        )
        more = {"wall_ours": wall["ours"], "wall_before": wall["before"]}
        goal = {"goal": "ratio >= 0.91"} if cpu["before"] >= 1 else {"goal": f"<= {cpu['before'] + 1:.2f}"}
        rows.append(
            row(f"opening a {name}, checked", cpu["ours"], cpu["before"], "ms of CPU", less=True, **goal, **more)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a workdir of the quickstart, sealed")
    parser.add_argument("--before", type=Path, help="a checkout of a version without seals")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--often", type=int, default=5)
    parser.add_argument("--entities", type=int)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    if arguments.run and arguments.before:
        rows += compared(arguments.run.absolute(), arguments.before.absolute(), arguments.rounds, arguments.often)
    if arguments.entities:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            opened, linker = child(MANY, ROOT, folder, arguments.entities)
        name = f"{arguments.entities:,} entities"
        rows.append(row(f"opening {name}", opened, None, "s", less=True, goal="<= 1"))
        rows.append(row(f"opening the names of {name}, and one look-up", linker, None, "s", less=True, goal="<= 1"))
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
