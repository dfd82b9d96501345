"""What it costs to let a knowledge base live: one entity added, ten thousand added, looking for news, a thousand edits.

    python benchmarks/living.py --entities 5000000 --dim 64 --folder /tmp --json out.json

The base is made up: entities with a name, an alias for every fifth, two triples each, float16 vectors. Files are
written under --folder and removed afterwards. What is measured, in one process that has the base and its linker open:

    add      one entity with label, alias, description, two triples: placed, on the disk (fsync), known to the linker
    refresh  a reader that looks for a new revision, where there is none, and where there is one
    many     ten thousand entities in one revision
    gather, link, search  the same work on the base as built and with as many revisions as were added
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rows import row, write

from kinject.knowledge import KnowledgeBase
from kinject.knowledge.facts import TextIndex
from kinject.knowledge.vectors import Vectors
from kinject.knowledge.write import Entries, write_entries
from kinject.linking import AliasLinker

RELATIONS = 50


class Made(Sequence):
    """A column whose values are made when they are read."""

    def __init__(self, size: int, make: Callable[[int], Any]):
        self.size, self.make = size, make

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self.make(row) for row in range(*at.indices(self.size))]
        return self.make(at)

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, range(self.size))


class MadeVectors:
    """float16 [N, k], made when they are read."""

    def __init__(self, size: int, dim: int):
        self.shape, self.dtype = (size, dim), np.dtype(np.float16)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return np.random.default_rng(start).normal(size=(stop - start, self.shape[1])).astype(np.float16)


def name(row: int) -> str:
    """Two words and a number in letters, different for each row."""
    letters = ""
    while True:
        row, one = divmod(row, 26)
        letters += chr(97 + one)
        if not row:
            return f"{letters} of {letters[::-1]}ton"


def made_base(folder: Path, size: int, dim: int) -> Path:
    """The base."""
    rng = np.random.default_rng(0)
    heads = np.repeat(np.arange(size, dtype=np.int32), 2)
    tails = rng.integers(0, size, 2 * size, dtype=np.int32)
    triples = np.stack([heads, rng.integers(0, RELATIONS, 2 * size, dtype=np.int32), tails], axis=1)
    entries = Entries(
        Made(size, lambda row: f"Q{row}"),
        Made(size, name),
        Made(size, lambda row: [f"the {name(row)}"] if row % 5 == 0 else []),
        None,
        triples,
        [f"P{i}" for i in range(RELATIONS)],
    )
    return write_entries(folder / "kb", entries, Vectors(MadeVectors(size, dim)), name="made up", dtype="float16")


def new(number: int, size: int) -> dict[str, Any]:
    """An entity that comes."""
    rng = np.random.default_rng(number)
    facts = [(f"P{rng.integers(RELATIONS)}", f"Q{rng.integers(size)}") for _ in range(2)]
    label = f"newcomer {name(number)}"
    return {"id": f"N{number}", "label": label, "aliases": [f"{label} again"], "description": "new", "triples": facts}


def timed(work: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of CPU of the quickest of several."""
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def resident_mb() -> float:
    """This process's anonymous memory, in MB of 10^6 bytes: what mapped files share is not its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1.024e-3
    return float("nan")


def reading(base: KnowledgeBase, linker: AliasLinker, size: int, search: bool) -> dict[str, float]:
    """Seconds of CPU of the same work, whatever came since."""
    rows = np.random.default_rng(1).integers(0, size, (200, 512))
    texts = [" and ".join(name(int(row)) for row in some[:20]) for some in rows]
    found = {"gather": timed(lambda: [base.gather(some) for some in rows])}
    found["link"] = timed(lambda: [linker(text) for text in texts])
    if search:
        index = TextIndex(base, "triples")
        found["search"] = timed(lambda: index.search(texts[:20], 10))
    return found


def measure(folder: Path, size: int, adds: int, many: int, search: bool) -> dict[str, Any]:
    """All of it; seconds."""
    start = time.perf_counter()
    base = KnowledgeBase.open(folder)
    opened = time.perf_counter() - start
    linker, reader = AliasLinker(base), KnowledgeBase.open(folder)
    start = time.perf_counter()  # the index of names is there now, and was read by nobody since it was written
    AliasLinker(KnowledgeBase.open(folder))(name(size // 2))
    linked = time.perf_counter() - start
    base.add([new(0, size)])  # the first estimates the relations, once for ever
    before, memory = reading(base, linker, size, search), resident_mb()
    each, refreshed, idle = [], [], []
    for number in range(1, adds + 1):
        entity = new(number, size)
        start = time.perf_counter()
        base.add([entity])
        linker = linker.refreshed(base)
        each.append(time.perf_counter() - start)
        assert linker(entity["label"])[0].entity == entity["id"]
        start = time.perf_counter()
        reader.refresh()
        refreshed.append(time.perf_counter() - start)
        start = time.perf_counter()
        assert not reader.refresh()
        idle.append(time.perf_counter() - start)
    grown = resident_mb() - memory
    after = reading(base, linker, size, search)
    start = time.perf_counter()
    base.add([new(number, size) for number in range(adds + 1, adds + 1 + many)])
    linker.refreshed(base)
    at_once = time.perf_counter() - start
    start = time.perf_counter()
    KnowledgeBase.open(folder)
    spread = lambda some: {"median": float(np.median(some)), "p99": float(np.percentile(some, 99))}  # noqa: E731
    return {
        "open": opened,
        "open_linker": linked,
        "open_with_revisions": time.perf_counter() - start,
        "add": spread(each),
        "refresh_idle": spread(idle),
        "refresh_news": spread(refreshed),
        "many": at_once,
        "memory_mb": grown,
        "reading": before,
        "reading_with_revisions": after,
        "slower": {what: after[what] / before[what] for what in before},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=5_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--adds", type=int, default=1000, help="revisions of one entity")
    parser.add_argument("--many", type=int, default=10_000, help="entities of one revision")
    parser.add_argument("--search", action="store_true", help="measure the search for words too (its index is large)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        start = time.perf_counter()
        folder = made_base(place, arguments.entities, arguments.dim)
        written = time.perf_counter() - start
        found = measure(folder, arguments.entities, arguments.adds, arguments.many, arguments.search)
    finally:
        shutil.rmtree(place)
    about = {"entities": arguments.entities, "dim": arguments.dim, "adds": arguments.adds, "many": arguments.many}
    write(arguments.json, rows_of({"write": written, **found}, arguments.many, about))


def rows_of(found: dict[str, Any], many: int, about: dict[str, int]) -> list[dict[str, Any]]:
    """A row for each thing that was measured; goals are those of 5,000,000 entities."""

    def seconds(what: str, value: float, goal: str = "") -> dict[str, Any]:
        return row(what, value, None, "s", less=True, goal=goal, **about)

    slower = [
        row(
            f"{what}, with the revisions",
            found["reading_with_revisions"][what],
            found["reading"][what],
            "s of CPU",
            less=True,
            goal=f"ratio >= {1 / 1.1}",
            **about,
        )
        for what in found["slower"]
    ]
    return [
        seconds("base written", found["write"]),
        seconds("base opened", found["open"]),
        seconds("base and names opened, one text linked", found["open_linker"], "<= 1"),
        seconds("base opened, with the revisions", found["open_with_revisions"]),
        seconds("one entity added, median", found["add"]["median"]),
        seconds("one entity added, 99th percentile", found["add"]["p99"], "<= 0.05"),
        seconds(f"{many:,} entities added at once", found["many"], "<= 10" if many == 10_000 else ""),
        seconds("refreshed, nothing new, 99th percentile", found["refresh_idle"]["p99"], "<= 0.005"),
        seconds("refreshed, one revision, median", found["refresh_news"]["median"]),
        row("memory of the added entities", found["memory_mb"], None, "MB", less=True, **about),
        *slower,
    ]


if __name__ == "__main__":
    main()
