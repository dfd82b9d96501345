"""Finding a million names in text, against pyahocorasick and flashtext2 on the same names and texts.

    pip install -e '.[benchmarks]'
    python benchmarks/linker.py --names 1000000 --megabytes 8 --folder /tmp --json out.json

Names and texts are made up: words of syllables, frequencies by Zipf, one mention in about twelve words, a hundred
characters of a name at most; a tenth of the one-word names are words of the language too, and every twentieth name
belongs to two entities. Case is ignored on all sides. Each side runs in a process of its own, on lines of about 500
characters; seconds are of CPU time, so that other work on the machine does not count, and the best of --repeats.

pyahocorasick finds every occurrence; what our linker gives is made of them in Python (word boundaries, the longest from
the left), and must be the same spans. flashtext2 has word boundaries and longest matches of its own, which differ where
a name ends within a longer candidate; its number of spans is noted. Ours gives entity ids with priors, which the others
are not asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measuring import apart, resident_mb
from rows import write

SIDES = ("ours", "context", "pyahocorasick", "flashtext2")
ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
    "",
]
VOWELS, CODAS = ["a", "e", "i", "o", "u", "ai", "ea", "ou"], ["", "n", "r", "s", "t", "l", "nd", "x"]
Spans = list[tuple[int, int]]


def made_up_words(rng: np.random.Generator, count: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = rng.integers(1, 4)
        parts = ((rng.choice(ONSETS), rng.choice(VOWELS), rng.choice(CODAS)) for _ in range(syllables))
        words["".join(map("".join, parts))] = None
    return list(words)


def write_inputs(folder: Path, names: int, characters: int) -> None:
    """Writes names.txt (a name a line) and texts.txt."""
    rng = np.random.default_rng(0)
    vocabulary = made_up_words(rng, 120_000)
    language, proper = np.array(vocabulary[:50_000]), np.array(vocabulary[45_000:])
    listed: dict[str, None] = {}
    while len(listed) < names:
        lengths = rng.choice([1, 2, 3, 4, 6], 100_000, p=[0.06, 0.5, 0.28, 0.12, 0.04])
        for length, picked in zip(lengths.tolist(), rng.integers(0, len(proper), (100_000, 6)), strict=True):
            listed[" ".join(word.capitalize() for word in proper[picked[:length]])] = None
    kept = list(listed)[:names]
    (folder / "names.txt").write_text("\n".join(kept) + "\n")
    frequencies = 1 / np.arange(1, len(language) + 1)
    running = rng.choice(language, 1 << 20, p=frequencies / frequencies.sum())
    popular = np.minimum(rng.zipf(1.3, 1 << 20), names) - 1  # some entities are named again and again
    written = 0
    with (folder / "texts.txt").open("w") as file:
        while written < characters:
            line: list[str] = []
            while sum(map(len, line)) < 430:
                start = rng.integers(len(running) - 15)
                line += running[start : start + rng.integers(6, 15)].tolist()
                line.append(kept[popular[rng.integers(len(popular))]] + str(rng.choice(["", ",", ".", "'s"])))
            written += file.write(" ".join(line) + "\n")


def write_base(folder: Path) -> None:
    """The names as a knowledge base: label and aliases of a third as many entities; every twentieth is shared."""
    from kinject.knowledge import write_knowledge

    names = (folder / "names.txt").read_text().splitlines()
    count = len(names) // 3 + 1
    rng = np.random.default_rng(1)
    aliases = [
        names[count + row :: count] + ([names[(row * 7) % count]] if row % 20 == 0 else []) for row in range(count)
    ]
    write_knowledge(
        folder / "kb",
        name="benchmark",
        ids=[f"Q{row}" for row in range(count)],
        vectors=rng.standard_normal((count, 64), np.float32),
        labels=names[:count],
        aliases=aliases,
    )


def ours(folder: Path, ambiguous: str = "prior") -> Callable[[str], Spans]:
    from kinject.knowledge import KnowledgeBase
    from kinject.linking import AliasLinker

    linker = AliasLinker(KnowledgeBase.open(folder / "kb"), case="ignore", ambiguous=ambiguous, shortest=1)
    return lambda text: [(one.start, one.end) for one in linker(text)]


def context(folder: Path) -> Callable[[str], Spans]:
    return ours(folder, "context")


def pyahocorasick(folder: Path) -> Callable[[str], Spans]:
    import ahocorasick

    automaton = ahocorasick.Automaton()
    with (folder / "names.txt").open() as file:
        for line in file:
            name = line.rstrip("\n").casefold()
            automaton.add_word(name, len(name))
    automaton.make_automaton()

    def inside(text: str, place: int) -> bool:
        return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()

    def link(text: str) -> Spans:
        folded = text.casefold()
        longest: dict[int, int] = {}
        for last, length in automaton.iter(folded):
            start, end = last + 1 - length, last + 1
            if end > longest.get(start, 0) and not inside(folded, start) and not inside(folded, end):
                longest[start] = end
        spans, end = [], 0
        for start in sorted(longest):
            if start >= end:
                end = longest[start]
                spans.append((start, end))
        return spans

    return link


def flashtext2(folder: Path) -> Callable[[str], Spans]:
    from flashtext2 import KeywordProcessor

    processor = KeywordProcessor(case_sensitive=False)
    with (folder / "names.txt").open() as file:
        processor.add_keywords_from_iter(line.rstrip("\n") for line in file)
    return lambda text: [(start, end) for _, start, end in processor.extract_keywords_with_span(text)]


def measure(side: str, folder: Path, repeats: int) -> dict[str, float]:
    """Opens one side and links every line; the index of ours is there already."""
    import marisa_trie  # noqa: F401 - imports do not count as opening

    import kinject.knowledge
    import kinject.linking  # noqa: F401

    before, start = resident_mb(), time.process_time()
    link = {"ours": ours, "context": context, "pyahocorasick": pyahocorasick, "flashtext2": flashtext2}[side](folder)
    opened, memory = time.process_time() - start, resident_mb() - before
    seconds, spans, checksum, size = [], 0, 0, (folder / "texts.txt").stat().st_size
    for repeat in range(repeats):
        start = time.process_time()
        for line in lines_of(folder):
            found = link(line)
            if repeat == 0:
                spans += len(found)
                checksum = zlib.crc32(repr(found).encode(), checksum)
        seconds.append(time.process_time() - start)
    rate = size / min(seconds[1:] or seconds) / 1e6
    used = resident_mb() - before
    return {"open": opened, "open_memory": memory, "memory": used, "rate": rate, "spans": spans, "checksum": checksum}


def lines_of(folder: Path) -> Iterator[str]:
    with (folder / "texts.txt").open() as file:
        yield from file


def run_side(side: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    return apart(__file__, "--side", side, "--folder", folder, "--repeats", args.repeats)


def rows_of(found: dict[str, dict[str, float]], facts: dict[str, object]) -> list[dict[str, object]]:
    """One row a measure and alternative; a ratio above 1 says that ours is faster or smaller."""
    rows = []
    for other in SIDES[1:]:
        for what, unit in (("rate", "MB/s"), ("open", "s"), ("open_memory", "MB"), ("memory", "MB")):
            mine, theirs = found["ours"][what], found[other][what]
            ratio = mine / theirs if what == "rate" else theirs / max(mine, 1e-3)
            row = {"name": f"linker/{what}/{other}", "ratio": round(ratio, 3), "ours": round(mine, 4)}
            rows.append({**row, "theirs": round(theirs, 4), "unit": unit, "spans": found[other]["spans"], **facts})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="the first of several warms up")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.folder, args.repeats)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        write_inputs(folder, args.names, int(args.megabytes * 1e6))
        write_base(folder)
        start = time.process_time()
        ours(folder)
        indexed = time.process_time() - start
        disk = sum(path.stat().st_size for path in (folder / "kb.names").iterdir()) / 1e6
        found = {side: run_side(side, args, folder) for side in SIDES}
    if len({found[side]["checksum"] for side in ("ours", "context", "pyahocorasick")}) > 1:
        raise SystemExit(f"the sides found different spans: {found}")
    hardware = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    facts = {"names": args.names, "megabytes": args.megabytes, "hardware": hardware}
    rows = rows_of(found, {**facts, "index_seconds": round(indexed, 2), "index_megabytes": round(disk, 1)})
    print(f"index made once: {indexed:.1f} s, {disk:.1f} MB on disk; {found['ours']['spans']:,} spans")
    write(args.json, rows)


if __name__ == "__main__":
    main()
