"""General map-tuning at a large size, on counts: every term measured on a small run and scaled by its law.

    python benchmarks/size.py --json OUT --markdown docs/scaling.md

Nothing large is trained. A step's time on a chip is the compiler's count of it at the chip's published peaks
(docs/scaling.json of benchmarks/scaling.py, and for the H100 what `--aot h100:1` said); what the hosts do for it
(reading, encoding, dealing, checkpoints) is measured here, in seconds of CPU time of one core, on a few thousand
sentences of FewRel's lengths. Laws: reading, encoding and memory grow with the sentences, dealing with those that
a host's chips read, a table with its bytes; a permutation of all sentences is drawn as it is, at full size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from made_up import SPECIAL, shape_of
from map_tuning import World, sentences
from rows import row, write
from scaling import LENGTH, ROWS, find, seconds

from kinject.data.encode import EntityEncoder
from kinject.data.kept import write_examples
from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.data.shuffling import Permutations
from kinject.data.tokenizer import load_tokenizer
from kinject.training.checkpoint import Checkpoints

ENTITIES, SENTENCES, DIM = 5_000_000, 20_000_000, 100
H100 = {"rows": 256, "length": 32, "flops": 2.9e12, "accessed": 10.6e9, "peak": 989e12, "bandwidth": 3.35e12}
SIZE = 768
BEGIN, END = "<!-- written by benchmarks/size.py -->", "<!-- end of size -->"


class Machine(NamedTuple):
    """Chips, the hosts that they belong to, and the seconds of a step of `ROWS` x `LENGTH` tokens a chip."""

    name: str
    chips: int
    hosts: int
    step: float
    memory: float


def machines(scaling: list[dict[str, Any]]) -> list[Machine]:
    """What is compared; a chip's memory is in GB."""
    gpu = max(H100["flops"] / H100["peak"], H100["accessed"] / H100["bandwidth"])
    gpu *= ROWS * LENGTH / (H100["rows"] * H100["length"])
    small, large = (seconds(find(scaling, "bert-base", name))["step"] for name in ("v5e:4x4", "v5e:16x16"))
    return [
        Machine("v5e-16", 16, 4, small, 17.2),
        Machine("v5e-256", 256, 64, large, 17.2),
        Machine("8 x H100", 8, 1, gpu, 80.0),
    ]


def per_item(run: Callable[[], Any], count: int, rounds: int = 3) -> float:
    """Seconds of CPU time an item: the least of a few rounds."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return min(taken) / count


def terms(folder: Path, count: int) -> dict[str, float]:
    """What each term costs, measured: seconds of CPU time, and bytes."""
    words = 30_522 - len(SPECIAL)
    world = World(folder, shape_of(1, 48, 30_522), 200, 4)
    lines = [json.dumps(one) for one in sentences(count, words)]
    records = [parse_record(json.loads(line), "made up") for line in lines]
    encoder = EntityEncoder(load_tokenizer(folder / "tokenizer"), LENGTH)

    def encode() -> Any:
        return world.task.examples(records, encoder, world.knowledge, buckets=4)

    feed = Feed(encode(), world.knowledge.gather, shuffle=2)
    order = feed.order(ROWS, 0)
    held = sum(values.nbytes for bucket in feed.examples.buckets for values in bucket.values())
    texts = [one.text for one in records]
    started = time.process_time()
    Permutations(SENTENCES, 0).rows(np.zeros(1, np.int64))
    drawn = time.process_time() - started
    written = per_item(lambda: write_examples(folder / "kept", feed.examples, {}), count, rounds=1)
    block = bytes(64 << 20)
    state = {
        f"{part}/{name}": jnp.zeros(shape) for part in "abc" for name, shape in (("k", (DIM, SIZE)), ("b", (SIZE,)))
    }
    kept = Checkpoints(folder / "checkpoints")
    kept.save(0, state, {})
    kept.wait()
    started = time.perf_counter()
    for step in (1, 2, 3):
        kept.save(step, state, {})
        kept.wait()
    saved = (time.perf_counter() - started) / 3
    started = time.process_time()
    kept.restore(state)
    return {
        "line_bytes": sum(map(len, lines)) / count,
        "read": per_item(lambda: [parse_record(json.loads(line), "made up") for line in lines], count),
        "tokenize": per_item(lambda: encoder.tokenizer.pieces(texts), count),
        "encode": per_item(encode, count),
        "held_bytes": held / count,
        "keep": written,
        "hash_byte": per_item(lambda: hashlib.sha256(block), len(block)),
        "deal": per_item(lambda: [order[i] for i in range(60)], 60 * ROWS),
        "permutation_seconds": drawn,
        "checkpoint_seconds": saved,
        "restore_seconds": time.process_time() - started,
    }


def held(machine: Machine) -> float:
    """Per cent of a chip's memory that its rows of the table take, filled up to 128 numbers."""
    return 100 * 4 * 128 * ENTITIES / 1e9 / machine.chips / machine.memory


def table(found: dict[str, float], some: list[Machine]) -> list[str]:
    """Lines of Markdown: the terms, then the machines."""
    encoding = SENTENCES * (found["read"] + found["encode"])
    hashing = SENTENCES * found["hash_byte"]
    serial = SENTENCES * (found["read"] + found["encode"] - found["tokenize"])

    def term(name: str, of_one: str, in_all: str) -> str:
        return f"| {name} | {of_one} | {in_all} |"

    def minutes(name: str, key: str) -> str:
        return term(name, f"{1e6 * found[key]:.0f} µs", f"{SENTENCES * found[key] / 60:.0f} min of a core")

    def gigabytes(name: str, key: str) -> str:
        return term(name, f"{found[key]:,.0f} B", f"{SENTENCES * found[key] / 1e9:.0f} GB")

    lines = [
        f"{SENTENCES:,} sentences, {ENTITIES:,} entities of {DIM} float32, bert-base, {ROWS} x {LENGTH} tokens a chip.",
        "",
        "| of one host | measured, a sentence | in all |",
        "|---|---:|---:|",
        gigabytes("records on disk", "line_bytes"),
        term("vectors on disk, mapped", "", f"{4 * DIM * ENTITIES / 1e9:.1f} GB"),
        minutes("reading lines", "read"),
        minutes("tokens, slots, arrays", "encode"),
        gigabytes("encoded sentences in memory", "held_bytes"),
        term("an epoch's order (`fit.shuffle=2`)", "", f"{found['permutation_seconds']:.1f} s of a core"),
        minutes("keeping them on disk (`keep_encoded`), once", "keep"),
        term("finding them again: hashing all records", "", f"{hashing * found['line_bytes']:.0f} s of a core"),
        term("checking them as they are read, once a start", "", f"{hashing * found['held_bytes']:.0f} s of a core"),
        minutes("dealing batches, vectors gathered, all of them", "deal"),
        term("restoring a checkpoint", "", f"{found['restore_seconds']:.1f} s of a core"),
        "",
        "| | " + " | ".join(one.name for one in some) + " |",
        "|---|" + "---:|" * len(some),
    ]
    rates = [one.chips * ROWS / one.step for one in some]
    epochs = [SENTENCES / rate for rate in rates]

    def told(name: str, values: list[str]) -> str:
        return f"| {name} | " + " | ".join(values) + " |"

    pairs = list(zip(some, rates, epochs, strict=True))
    cut = (serial + (encoding - serial) / 16) / 60
    often = f"a checkpoint ({found['checkpoint_seconds']:.2f} s by the clock) takes 1% where it is made every … steps"
    lines += [
        told("a step, at best, ms", [f"{1e3 * one.step:.1f}" for one in some]),
        told("sentences a second, at best", [f"{rate:,.0f}" for rate in rates]),
        told("an epoch, s", [f"{epoch:,.0f}" for epoch in epochs]),
        told("chip-hours an epoch", [f"{one.chips * epoch / 3600:.2f}" for one, _, epoch in pairs]),
        told("the table on each chip, of its memory", [f"{held(one):.2g}%" for one in some]),
        told("cores of a host that deal", [f"{found['deal'] * rate / one.hosts:.2f}" for one, rate, _ in pairs]),
        told("encoding before the first step, min (texts cut by 16 cores)", [f"{cut:.0f}"] * len(some)),
        told("the same of a rerun that has kept them, s", [f"{hashing * found['line_bytes']:.0f}"] * len(some)),
        told(often, [f"{100 * found['checkpoint_seconds'] / one.step:,.0f}" for one in some]),
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page with the two marks between which the tables stand")
    parser.add_argument("--sentences", type=int, default=2_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = terms(Path(folder), arguments.sentences)
    some = machines(json.loads((Path(__file__).parent.parent / "docs" / "scaling.json").read_text()))
    lines = table(found, some)
    print("\n".join(lines))
    if arguments.markdown is not None:
        text = arguments.markdown.read_text()
        before, rest = text.split(BEGIN)
        arguments.markdown.write_text("\n".join([before + BEGIN, "", *lines, "", END + rest.split(END)[1]]))
    about = {"machines": [one._asdict() for one in some]}
    write(arguments.json, [row(f"size, {name}", value, None, "s, or bytes", **about) for name, value in found.items()])


if __name__ == "__main__":
    main()
