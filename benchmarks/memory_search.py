"""A memory of a million passages on one machine: search, edits, building, resident memory.

    python benchmarks/memory_search.py --json out.json

`search`: exact top-5 for 64 queries by blocks (`kinject.memory.search`, compiled) against one numpy matrix product with
argpartition, whose [64, N] scores are whole in memory. `edit`: one passage replaced on disk and in the device tables,
against making the tables anew from the files. `build`: the memory-mapped folder against its arrays alone by `np.save`;
the passage encoder draws random numbers, so that what is timed is the store. `index`: usearch against exact
search, on --index-passages of the keys, with its recall, at several `expansion`s (how many candidates a search keeps).
Keys are random, the worst case for an index: real ones cluster. Half of the index rows ask `random` queries,
which no passage is near to, half `near` ones: a passage's key and as much noise. The best of --repeats is told.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import best, resident_mb

from kinject.inference.passages import sync
from kinject.memory.index import MemoryIndex
from kinject.memory.search import top_k
from kinject.memory.store import Passage, PassageMemory, build_memory
from kinject.plugins.pluglm import PlugLM

KEY, K, QUERIES = 128, 5, 64
EXPANSIONS = (64, 256, 1024, 4096)


class Encoder:
    """Random keys, a fresh one a text, and values that are drawn once: what is timed is the store."""

    def __init__(self, size: int, seed: int = 0):
        self.draw = np.random.default_rng(seed)
        self.values = self.draw.standard_normal((1024, size), np.float32)

    def __call__(self, texts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(texts)
        keys = self.draw.standard_normal((count, KEY), np.float32)
        return np.zeros((count, 8), np.int32), keys, self.values[:count]


def build(folder: Path, count: int, size: int) -> tuple[PassageMemory, float]:
    sizes = {"hidden_size": size, "key_size": KEY, "length": 8}
    about = {"encoder_fingerprint": "sha256:none", "plugin_fingerprint": "sha256:none", "sizes": sizes}
    passages = (Passage(f"entity {row} is of the kind {row % 97}", f"Q{row}") for row in range(count))
    start = time.perf_counter()
    memory = build_memory(folder, passages, Encoder(size), name="m", capacity=count + 64, dtype="float16", **about)
    return memory, time.perf_counter() - start


def by_numpy(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    scores = queries @ keys.T
    some = np.argpartition(-scores, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1)
    return np.take_along_axis(some, order, 1)


def row(name: str, ours: float, theirs: float, unit: str = "s", **more: Any) -> dict[str, Any]:
    """One result; a ratio above 1 is ours faster or smaller."""
    numbers = {"ratio": round(theirs / ours, 3), "ours": round(ours, 5), "theirs": round(theirs, 5)}
    print(f"{name:16} ours {ours:12.5f} {unit:3} theirs {theirs:12.5f} {numbers['ratio']}x {more or ''}", flush=True)
    return {"name": f"memory/{name}", **numbers, "unit": unit, **more}


def on_disk(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Building and opening; leaves the memory in `folder/m`."""
    memory, seconds = build(folder / "m", args.passages, args.size)
    names = ("keys", "values", "tokens", "alive")
    start = time.perf_counter()
    for name in names:
        np.save(folder / f"{name}.npy", getattr(memory, name))
    rate = round(args.passages / seconds)
    yield row("build", seconds, time.perf_counter() - start, passages_a_second=rate)
    before, start = resident_mb(), time.perf_counter()
    again = PassageMemory.open(folder / "m")
    opened, mapped = time.perf_counter() - start, resident_mb() - before
    start = time.perf_counter()
    whole = [np.load(folder / f"{name}.npy") for name in names]
    yield row("open", opened, time.perf_counter() - start)
    yield row("open_rss", max(mapped, 0.01), sum(array.nbytes for array in whole) / 1e6, "MB", size=again.size)


def searching(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Exact search of all passages; raises SystemExit where the two sides differ."""
    memory = PassageMemory.open(folder / "m")
    keys, alive = jnp.asarray(np.asarray(memory.keys, np.float32)), jnp.asarray(memory.alive)
    plain = np.asarray(keys)[: args.passages]
    queries = np.random.default_rng(1).standard_normal((QUERIES, KEY), np.float32)
    search = jax.jit(lambda *given: top_k(*given, K)).lower(queries, keys, alive).compile()
    if not np.array_equal(search(queries, keys, alive)[1], by_numpy(queries, plain)):
        raise SystemExit("the two sides found different passages")
    ours = best(args.repeats, lambda: jax.block_until_ready(search(queries, keys, alive)))
    yield row("search", ours, best(args.repeats, lambda: by_numpy(queries, plain)))
    scratch = search.memory_analysis().temp_size_in_bytes / 1e6
    yield row("search_scratch", scratch, QUERIES * args.passages * 4 / 1e6, "MB")


def editing(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One passage replaced, on disk and on the device; raises SystemExit where the next search does not see it."""
    plugin = PlugLM(PlugLM.Config(layers=(0,), heads=1), hidden_size=args.size)
    with PassageMemory.open(folder / "m", write=True) as memory:

        def anew() -> None:
            plugin.set_tables(*(jnp.asarray(np.array(part)) for part in (memory.keys, memory.values, memory.alive)))
            jax.block_until_ready(plugin.values[...])

        encoder = Encoder(args.size, seed=1)

        def edit() -> None:
            memory.replace(memory.rows_about("Q7"), [Passage("entity 7 is another now", "Q7")], encoder)
            sync(plugin, [memory])
            jax.block_until_ready(plugin.values[...])

        refilled = best(1, anew)
        edit()  # compiles
        yield row("edit", best(args.repeats, edit), refilled)
        (now,) = memory.rows_about("Q7")
        query = np.asarray(memory.keys[now], np.float32)[None]
        if int(top_k(jnp.asarray(query), plugin.keys[...], plugin.alive[...], 1)[1][0, 0]) != now:
            raise SystemExit("an edit was not seen in the next call")


def indexed(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """usearch against exact search, from its default effort upwards, for both kinds of queries."""
    count = min(args.index_passages, args.passages)
    memory, _ = build(folder / "small", count, 8)
    start = time.perf_counter()
    index = MemoryIndex.build(memory)
    more = {"build_seconds": round(time.perf_counter() - start, 2), "index_passages": count}
    keys, alive = jnp.asarray(np.asarray(memory.keys, np.float32)), jnp.asarray(memory.alive)
    draw = np.random.default_rng(1)
    random, sought = draw.standard_normal((QUERIES, KEY), np.float32), draw.integers(count, size=QUERIES)
    search = jax.jit(lambda *given: top_k(*given, K))
    for kind, queries in {"random": random, "near": np.asarray(memory.keys[sought], np.float32) + random}.items():
        right = np.asarray(search(queries, keys, alive)[1])
        exact = best(args.repeats, partial(lambda asked: jax.block_until_ready(search(asked, keys, alive)), queries))
        for expansion in EXPANSIONS:
            index.index.expansion_search = expansion
            found = index.search(queries, K)
            both = zip(found.tolist(), right.tolist(), strict=True)
            told = {"recall": round(float(np.mean([len({*one} & {*other}) / K for one, other in both])), 4)}
            told["first"] = round(float(np.mean(found[:, 0] == right[:, 0])), 4)
            seconds = best(args.repeats, partial(index.search, queries, K))
            yield row(f"index, {kind}, {expansion}", seconds, exact, **told, **more)


def measure(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for part in (on_disk, searching, editing, indexed):
        for one in part(folder, args):
            yield {**one, "rss_mb": round(resident_mb())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=384, help="D: numbers of a value")
    parser.add_argument("--index-passages", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        rows = list(measure(scratch, args))
    finally:
        shutil.rmtree(scratch)
    hardware = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
    rows = [{**one, "hardware": hardware, "passages": args.passages, "queries": QUERIES} for one in rows]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
