"""Opening a knowledge base and looking entities up, against a dict of ids beside `np.load`, and a dict of arrays.

    python benchmarks/knowledge_open.py --entities 5000000 --dim 128 --lookups 1000000 --folder /tmp --json out.json

Each side runs in a process of its own on the same files, so that seconds and resident memory are its own. The files
(2.6 GB at the size above) are written under --folder first and removed afterwards. They are in the page cache when
read, as on a machine that trains for more than a minute; --cold evicts them before each side.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measuring import apart, resident_mb
from rows import write

OTHERS = {"theirs": "a dict of ids and one array", "dict": "a dict of arrays"}
SIDES = ("ours", "theirs", "dict")


def wanted(entities: int, lookups: int) -> list[str]:
    """Ids to look up, one in ten of them unknown."""
    rows = np.random.default_rng(1).integers(0, int(entities / 0.9), lookups)
    return [f"Q{row}" for row in rows.tolist()]


def run_ours(folder: Path, ids: list[str]) -> dict[str, float]:
    from kinject.knowledge import KnowledgeBase

    before, start = resident_mb(), time.perf_counter()
    kb = KnowledgeBase.open(folder / "kb")
    opened = {"open": time.perf_counter() - start, "open_memory": resident_mb() - before}
    return {**opened, **looked_up_and_gathered(lambda: kb.rows(ids), kb.gather)}


def looked_up_and_gathered(
    look_up: Callable[[], np.ndarray], gather: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """Seconds that rows of ids and then their vectors take, batch by batch as a data pipeline does."""
    measured = {"process_memory": resident_mb()}
    start = time.perf_counter()
    rows = look_up()
    measured["lookup"] = time.perf_counter() - start
    start, checksum = time.perf_counter(), 0.0
    for batch in np.array_split(rows, max(1, len(rows) // 8192)):
        vectors, found = gather(batch)
        checksum += float(vectors.sum(dtype=np.float64)) + int(found.sum())
    return {**measured, "gather": time.perf_counter() - start, "checksum": checksum}


def run_theirs(folder: Path, ids: list[str]) -> dict[str, float]:
    before, start = resident_mb(), time.perf_counter()
    table = np.load(folder / "kb" / "vectors.npy")
    row_of = {line.rstrip("\n"): row for row, line in enumerate((folder / "ids.txt").open(encoding="utf-8"))}
    opened = {"open": time.perf_counter() - start, "open_memory": resident_mb() - before}

    def gather(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = batch >= 0
        vectors = np.zeros((len(batch), table.shape[1]), np.float32)
        vectors[found] = table[batch[found]]
        return vectors, found

    look_up = partial(np.fromiter, (row_of.get(one, -1) for one in ids), np.int32, count=len(ids))
    return {**opened, **looked_up_and_gathered(look_up, gather)}


def run_dict(folder: Path, ids: list[str]) -> dict[str, float]:
    """An array an entity, in a dict: what a word-vector file is often read into."""
    before, start = resident_mb(), time.perf_counter()
    table = np.load(folder / "kb" / "vectors.npy")
    vector_of = {line.rstrip("\n"): table[row].copy() for row, line in enumerate((folder / "ids.txt").open())}
    dim = table.shape[1]
    del table
    opened, memory = time.perf_counter() - start, resident_mb() - before
    start, checksum, nothing = time.perf_counter(), 0.0, np.zeros(dim, np.float32)
    for low in range(0, len(ids), 8192):
        some = ids[low : low + 8192]
        vectors = np.stack([vector_of.get(one, nothing) for one in some])
        found = np.fromiter((one in vector_of for one in some), bool, count=len(some))
        checksum += float(vectors.sum(dtype=np.float64)) + int(found.sum())
    return {"open": opened, "open_memory": memory, "gather": time.perf_counter() - start, "checksum": checksum}


def evict(folder: Path) -> None:
    """Asks the kernel to forget the pages of every file below the folder."""
    for path in filter(Path.is_file, folder.rglob("*")):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def write_inputs(folder: Path, entities: int, dim: int) -> float:
    """Writes the knowledge base and a plain list of ids; returns the seconds of the former."""
    from kinject.knowledge import write_knowledge

    raw = np.lib.format.open_memmap(folder / "raw.npy", "w+", np.float32, (entities, dim))
    rng = np.random.default_rng(0)
    for start in range(0, entities, 65_536):
        raw[start : start + 65_536] = rng.standard_normal((min(65_536, entities - start), dim), np.float32)
    ids = [f"Q{row}" for row in range(entities)]
    start_time = time.perf_counter()
    write_knowledge(folder / "kb", name="benchmark", ids=ids, vectors=raw)
    seconds = time.perf_counter() - start_time
    (folder / "raw.npy").unlink()
    (folder / "ids.txt").write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
    return seconds


def measure(side: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    sizes = ("--entities", args.entities, "--lookups", args.lookups)
    return apart(__file__, "--side", side, "--folder", folder, *sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=5_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--lookups", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--cold", action="store_true", help="evict the files from the page cache first")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run = {"ours": run_ours, "theirs": run_theirs, "dict": run_dict}[args.side]
        print(json.dumps(run(args.folder, wanted(args.entities, args.lookups))))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        seconds = write_inputs(Path(scratch), args.entities, args.dim)
        sides = {}
        for side in SIDES:
            if args.cold:
                evict(Path(scratch))
            sides[side] = measure(side, Path(scratch), args)
    sums = [side["checksum"] for side in sides.values()]
    if not np.allclose(sums, sums[0], rtol=1e-6):  # the batches' borders differ, and with them the sums' rounding
        raise SystemExit(f"the sides gathered different vectors: {sides}")
    size = {"entities": args.entities, "dim": args.dim, "lookups": args.lookups, "cold": args.cold}
    size["write_seconds"] = round(seconds, 2)
    hardware = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    units = {"open": "s", "open_memory": "MB", "process_memory": "MB", "lookup": "s", "gather": "s"}
    rows = []
    for what, unit in units.items():
        ours, theirs = sides["ours"][what], sides["theirs"][what]
        # theirs / ours: above 1 the knowledge base is faster or smaller
        row = {"name": f"knowledge/{what}", "ratio": round(theirs / ours, 3), "ours": round(ours, 4)}
        rows.append({**row, "theirs": round(theirs, 4), "unit": unit, "hardware": hardware, **size})
    rates = {name: args.lookups / (one.get("lookup", 0.0) + one["gather"]) for name, one in sides.items()}
    for other in ("theirs", "dict"):
        row = {"name": f"knowledge/ids to vectors, beside {OTHERS[other]}", "ratio": rates["ours"] / rates[other]}
        row |= {"ours": round(rates["ours"]), "theirs": round(rates[other]), "unit": "entities a second"}
        rows.append({**row, "hardware": hardware, **size})
    for what, unit in (("open", "s"), ("open_memory", "MB")):
        ours, theirs = sides["ours"][what], sides["dict"][what]
        row = {"name": f"knowledge/{what}, beside {OTHERS['dict']}", "ratio": round(theirs / ours, 3)}
        rows.append(
            {**row, "ours": round(ours, 4), "theirs": round(theirs, 4), "unit": unit, "hardware": hardware, **size}
        )
    write(args.json, rows)


if __name__ == "__main__":
    main()
