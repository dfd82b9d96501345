"""Entity vectors gathered on the host with each batch, against a table on the devices: steps a second of map-tuning.

    python benchmarks/vectors.py --json vectors.json

The host has MiniLM's shape and random weights; an example is a cloze of 14 tokens that names one entity, of a
memory-mapped knowledge base of 64 numbers an entity. Both ways deal batches by the run's own pipeline and take the
run's own step; what differs is the vectors' way. `batch_ms` is what making one batch and sending it takes: as long as
that is less than a step, an accelerator does not wait for it. Medians of alternating repetitions.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from domain_parallel import DIM, LENGTH, Bench

from kinject.data.pipeline import Examples, Feed
from kinject.inference.mesh import Placement, place_params
from kinject.inference.vectors import TABLE, load_table
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.training.partition import split
from kinject.training.step import initial_state, make_train_step

WAYS, EXAMPLES = ("host", "device"), 20_000


def knowledge(folder: Path, entities: int) -> KnowledgeBase:
    vectors = np.random.default_rng(0).normal(size=(entities, DIM)).astype(np.float32)
    write_knowledge(folder, name="random", ids=[f"Q{i}" for i in range(entities)], vectors=vectors)
    return KnowledgeBase.open(folder)


def feed(bench: Bench, base: KnowledgeBase) -> Feed:
    """Examples that name entities at random."""
    rows = bench.batch(EXAMPLES, 0)
    del rows["entity_vectors"], rows["weights"]
    rows["entity_ids"] = np.random.default_rng(1).integers(0, base.size, (EXAMPLES, 1)).astype(np.int32)
    rows["index"] = np.arange(EXAMPLES, dtype=np.int32)
    return Feed(Examples((rows,), (LENGTH,)), base.gather)


class Way:
    """One of the two ways, ready to be timed."""

    def __init__(self, bench: Bench, feed: Feed, base: KnowledgeBase, rows: int, on_devices: bool):
        self.place, self.rows = Placement.over(None), rows
        train, self.frozen = place_params(*split(bench.params[0], bench.labels), "float32", self.place)
        program = bench.program
        if on_devices:
            table = load_table(base, self.place)
            self.frozen[TABLE] = table.vectors
            program, feed = replace(program, vectors=table.look_up), replace(feed, gather=None)
        self.state = self.place.state(initial_state(train, bench.optimizer, bench.labels))
        shardings = self.place.shardings(self.state)
        self.step = make_train_step(program, bench.optimizer, bench.labels, seed=0, dropout=False, shardings=shardings)
        self.feed, self.batches = feed, iter(feed.training(rows, seed=0))

    def steps(self, count: int) -> float:
        """Seconds a step, batches and all."""
        began = time.perf_counter()
        for _ in range(count):
            batch = self.place.batch(next(self.batches), self.rows)
            self.state, logged = self.step(self.state, self.frozen, batch)
        jax.block_until_ready(logged)
        return (time.perf_counter() - began) / count

    def batch(self, count: int) -> float:
        """Seconds that making a batch and sending it takes."""
        draw = np.random.default_rng(2).integers(0, EXAMPLES, (count, self.rows))
        began = time.perf_counter()
        for rows in draw:
            jax.block_until_ready(self.place.batch(self.feed.batch(0, rows), self.rows))
        return (time.perf_counter() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=64, help="of a batch")
    parser.add_argument("--steps", type=int, default=10, help="of one repetition of one way")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, bench = knowledge(Path(folder) / "base", arguments.entities), Bench("minilm-l6", 1, "float32")
        ways = {name: Way(bench, feed(bench, base), base, arguments.rows, name == "device") for name in WAYS}
        for way in ways.values():
            way.steps(2), way.batch(2)
        times = []
        for _ in range(arguments.repetitions):
            times.append({name: (way.steps(arguments.steps), way.batch(50)) for name, way in ways.items()})
    found = {}
    for name in WAYS:
        step, batch = (statistics.median(one[name][i] for one in times) for i in (0, 1))
        found[name] = {"steps_a_second": 1 / step, "batch_ms": 1e3 * batch}
        print(f"{name:7s} {1 / step:8.2f} steps a second, {1e3 * batch:.3f} ms to make and send a batch")
    device, cores = jax.devices()[0], len(os.sched_getaffinity(0))
    hardware = f"{device.device_kind} ({device.platform}), {cores} {platform.machine()} cores, jax {jax.__version__}"
    row = {
        "name": "vectors_on_the_devices",
        "ratio": found["device"]["steps_a_second"] / found["host"]["steps_a_second"],
        "ours": found["device"]["steps_a_second"],
        "theirs": found["host"]["steps_a_second"],
        "unit": "steps a second, table on the devices over gathered on the host",
        **found,
        "entities": arguments.entities,
        "rows": arguments.rows,
        "devices": jax.device_count(),
        "hardware": hardware,
    }
    print(f"ratio {row['ratio']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row], indent=2) + "\n")


if __name__ == "__main__":
    main()
