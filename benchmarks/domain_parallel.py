"""Plugins of 8 domains trained at once on one host, against one after another.

    python benchmarks/domain_parallel.py --json domain_parallel.json

The host has MiniLM's shape (6 layers of 384) and random weights, the task is the quickstart's: a cloze of 14 tokens
with one slot, map-tuning with Adam. In each precision, two ratios, kept apart:

- `step`: compiled steps only, sentences a second of 8 domains at once over those of one domain at a time, which is
  granted the precision that is faster for it.
- `run`: what a person waits for, `--sentences` a domain: start of Python and JAX, compilation and steps, 8 runs of
  `kinject.train` against one. A persistent compilation cache would spare seven of the eight compilations; the third
  ratio, `run_cached`, grants it that.

Times are the median of alternating repetitions, so that another process's noise falls on both alike.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from flax import nnx

from kinject.inference.mesh import place_params
from kinject.inference.program import split_program
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.models.precision import Precision
from kinject.models.shapes import SHAPES
from kinject.plugins.base import make_plugin
from kinject.tasks.base import Extent, make_task
from kinject.training.config import OptimizerConfig
from kinject.training.domains import initial_states, make_domains_step, stack_plugins
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

RULES = [("plugin/.*", "train"), (".*", "freeze")]
LENGTH, DIM = 14, 64


class Bench:
    """One host and D plugins, ready to step alone or together."""

    def __init__(self, shape: str, domains: int, precision: Precision):
        self.precision = precision
        self.config, self.domains, self.task = SHAPES[shape], domains, make_task("cloze")
        host = HostModel(Encoder(self.config, rngs=nnx.Rngs(0)), build_head("masked_lm", self.config, rngs=nnx.Rngs(0)))
        plugins = [self._plugin(seed) for seed in range(domains)]
        made = [split_program(host, plugin, self.task) for plugin in plugins]
        self.program, self.params = replace(made[0][0], precision=precision), [params for _, params in made]
        self.labels = label_parameters(self.params[0], RULES)
        self.optimizer = make_optimizer(OptimizerConfig(clip=1.0), self.labels, 1000)

    def _plugin(self, seed: int):
        return make_plugin({"name": "map_tuning"}, hidden_size=self.config.hidden_size, knowledge_dim=DIM, seed=seed)

    def batch(self, rows: int, seed: int) -> dict:
        draw = np.random.default_rng(seed)
        made = {}
        for name, leaf in self.task.batch_shapes(Extent(rows, LENGTH, 1, 1, DIM)).items():
            if name == "entity_vectors":
                made[name] = draw.normal(size=leaf.shape).astype(np.float32)
            elif name in ("token_ids", "labels"):
                made[name] = draw.integers(5, self.config.vocab_size, leaf.shape).astype(np.int32)
            else:
                made[name] = np.ones(leaf.shape, leaf.dtype)
        made["position_ids"] = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (rows, LENGTH))
        made["entity_slot"] = np.where(made["position_ids"] == 1, 0, -1).astype(np.int32)
        made["positions"] = np.full((rows, 1), LENGTH - 2, np.int32)
        return made

    def alone(self, rows: int):
        """(seconds to compile, function of one step of one domain)."""
        train, frozen = place_params(*split(self.params[0], self.labels), self.precision)
        state, batch = initial_state(train, self.optimizer, self.labels), jax.device_put(self.batch(rows, 0))
        step = make_train_step(self.program, self.optimizer, self.labels, seed=0, dropout=False)
        return stepper(step, state, frozen, batch)

    def together(self, rows: int):
        """The same of all domains at once."""
        train, frozen = place_params(*split(stack_plugins(self.params), self.labels), self.precision)
        batches = [self.batch(rows, seed) for seed in range(self.domains)]
        batch = jax.device_put({name: np.stack([each[name] for each in batches]) for name in batches[0]})
        seeds = range(self.domains)
        step = make_domains_step(self.program, self.optimizer, self.labels, seeds=seeds, dropout=False)
        return stepper(step, initial_states(train, self.optimizer, self.labels), frozen, batch)


def stepper(step, state, frozen, batch):
    started = time.perf_counter()
    compiled = step.lower(state, frozen, batch).compile()
    seconds = time.perf_counter() - started
    held = [state]

    def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            held[0], logged = compiled(held[0], frozen, batch)
        jax.block_until_ready(logged)
        return (time.perf_counter() - began) / count

    run(2)
    return seconds, run


def start_up_seconds() -> float:
    """Start of Python, imports, and JAX's backend: what every run of `kinject.train` pays before it loads anything."""
    code = "import kinject.stages.experiment, jax; jax.numpy.zeros(3).block_until_ready()"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    return time.perf_counter() - began


def measure(benches: list[Bench], rows: int, repetitions: int, seconds: float) -> list[dict]:
    """What steps take, a row a precision."""
    sides = [side(rows) for bench in benches for side in (bench.alone, bench.together)]
    counts = [max(2, round(seconds / run(2))) for _, run in sides]
    times = [[run(count) for (_, run), count in zip(sides, counts, strict=True)] for _ in range(repetitions)]
    medians = [statistics.median(each) for each in zip(*times, strict=True)]
    one, domains = min(medians[::2]), benches[0].domains
    return [
        {
            "precision": bench.precision,
            "rows": rows,
            "one_step_ms": 1e3 * one,
            "one_step_of_this_precision_ms": 1e3 * medians[2 * number],
            "all_step_ms": 1e3 * medians[2 * number + 1],
            "sentences_a_second_one_after_another": rows / one,
            "sentences_a_second_at_once": rows * domains / medians[2 * number + 1],
            "step_ratio": domains * one / medians[2 * number + 1],
            "compile_one_s": sides[2 * number][0],
            "compile_all_s": sides[2 * number + 1][0],
        }
        for number, bench in enumerate(benches)
    ]


def add_runs(row: dict, domains: int, sentences: int, start: float) -> None:
    """The ratios of whole runs, from the parts that were measured."""
    steps = sentences / row["rows"]
    one, together = steps * row["one_step_ms"] / 1e3, steps * row["all_step_ms"] / 1e3
    at_once = start + row["compile_all_s"] + together
    row["run_ratio"] = domains * (start + row["compile_one_s"] + one) / at_once
    row["run_cached_ratio"] = (domains * (start + one) + row["compile_one_s"]) / at_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="minilm-l6", choices=sorted(SHAPES))
    parser.add_argument("--domains", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 25], help="rows a domain and step")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16_dots"], choices=get_args(Precision))
    parser.add_argument("--sentences", type=int, default=3000, help="of a run, a domain (the quickstart's 3 epochs)")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="about, of one repetition of one side")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    benches = [Bench(arguments.shape, arguments.domains, precision) for precision in arguments.precision]
    start = statistics.median(start_up_seconds() for _ in range(3))
    device, cores = jax.devices()[0], len(os.sched_getaffinity(0))
    hardware = f"{device.device_kind} ({device.platform}), {cores} {platform.machine()} cores, jax {jax.__version__}"
    print(f"{arguments.shape}, {arguments.domains} domains, {hardware}; start-up {start:.1f} s")
    print("rows  precision      sentences/s alone   at once   steps   whole run   with a compilation cache")
    found = []
    for rows in arguments.rows:
        for row in measure(benches, rows, arguments.repetitions, arguments.seconds):
            add_runs(row, arguments.domains, arguments.sentences, start)
            found.append(
                {
                    "name": f"domain_parallel, {arguments.domains} domains, {rows} rows, {row['precision']}",
                    "ratio": row["step_ratio"],
                    "ours": row["sentences_a_second_at_once"],
                    "theirs": row["sentences_a_second_one_after_another"],
                    "unit": "sentences a second, at once / one after another",
                }
                | {**row, "start_s": start, "hardware": hardware}
                | {"shape": arguments.shape, "domains": arguments.domains, "sentences": arguments.sentences}
            )
            print(
                f"{rows:4d}  {row['precision']:13s}  {row['sentences_a_second_one_after_another']:17.1f}"
                f" {row['sentences_a_second_at_once']:9.1f}   {row['step_ratio']:4.2f}x"
                f"   {row['run_ratio']:8.2f}x   {row['run_cached_ratio']:8.2f}x",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
