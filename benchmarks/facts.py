"""Facts by their words and by keys: BM25 and exact search over a million of each.

    python benchmarks/facts.py --json out.json

`bm25`: a million triples of phrases, as a commonsense graph has them, in a base without vectors; the index is made
once, opened memory-mapped, and asked 64 texts at a time. `keys`: a million keys of 128 numbers, 64 queries, the exact
top five (`kinject.memory.search`, as in memory_search.py). Best of --repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measuring import best, options
from rows import row, write

from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.knowledge.facts import TextIndex
from kinject.memory.search import top_k

QUERIES, K, KEY = 64, 5, 128


def phrases(count: int) -> list[str]:
    """Made-up events of five words, words drawn as often as in texts (Zipf)."""
    draw = np.random.default_rng(0)
    numbers = np.minimum(draw.zipf(1.3, (count, 5)), 30_000)
    return [f"PersonX {' '.join(f'w{one}' for one in line)} {number}" for number, line in enumerate(numbers.tolist())]


def measure(folder: Path, args: argparse.Namespace) -> list[dict]:
    heads = phrases(args.facts)
    tails = [f"to w{i}" for i in range(1000)]
    count = len(heads) + len(tails)
    triples = np.stack([np.arange(args.facts), np.arange(args.facts) % 9, args.facts + np.arange(args.facts) % 1000], 1)
    base = KnowledgeBase.open(
        write_knowledge(
            folder / "kb",
            name="events",
            ids=[*heads, *tails],
            labels=[*heads, *tails],
            vectors=np.zeros((count, 1), np.float32),
            has_vector=np.zeros(count, bool),
            triples=triples,
            relations=[f"r{i}" for i in range(9)],
        )
    )
    asked = [heads[i] for i in np.random.default_rng(1).integers(0, args.facts, QUERIES)]
    started = time.perf_counter()
    index = TextIndex(base, "triples")
    built = time.perf_counter() - started
    opened = best(1, lambda: TextIndex(base, "triples"))
    found = index.search(asked, K)
    first = float(np.mean([base.ids([row])[0] == text for row, text in zip(found[:, 0].tolist(), asked, strict=True)]))
    bm25 = best(args.repeats, lambda: index.search(asked, K))
    draw = np.random.default_rng(2)
    keys = jnp.asarray(draw.standard_normal((args.facts, KEY), np.float32), jnp.float16)
    queries = jnp.asarray(draw.standard_normal((QUERIES, KEY), np.float32))
    alive = jnp.ones(args.facts, bool)
    search = jax.jit(lambda q, k, a: top_k(q, k, a, K))
    jax.block_until_ready(search(queries, keys, alive))
    exact = best(args.repeats, lambda: jax.block_until_ready(search(queries, keys, alive)))
    return [
        row("BM25 built", built, None, "s", note=f"{args.facts:,} facts"),
        row("BM25 opened", opened, None, "s"),
        row(f"BM25, {QUERIES} texts", bm25, None, "s", note=f"the fact's own head is first for {first:.0%}"),
        row(f"keys, {QUERIES} queries, exact", exact, None, "s", note=f"{args.facts:,} keys of {KEY}"),
    ]


def main() -> None:
    args = options(__doc__, facts=1_000_000, repeats=3).parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), args)
    write(args.json, rows)


if __name__ == "__main__":
    main()
