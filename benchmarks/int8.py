"""Weights of the host in 8 bits: bytes that stay, bytes that a program needs beside them, speed, and error.

    python benchmarks/int8.py --json OUT             (MiniLM's shape)

A host with random weights, held in float32, for products in bfloat16, and in int8. Every arm evaluates a batch and one
text, and takes a map-tuning step; arms in turns, medians of rounds. Temporaries are the compiler's own count. The error
is that of the words' scores by norm, and the share of places where the best word is float32's. What it costs a trained
host in answers is in docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from made_up import random_host
from rows import row, write

from kinject.inference.mesh import place_params
from kinject.inference.program import Program, make_evaluation_step, split_program
from kinject.models.precision import Precision
from kinject.models.shapes import SHAPES
from kinject.plugins.base import make_plugin
from kinject.tasks.base import Extent, make_task
from kinject.training.aot import cost_of
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step
from kinject.tree import Flat

RULES = [("plugin/.*", "train"), (".*", "freeze")]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16_dots", "int8")
DIM, KINDS = 128, ("evaluation, a batch", "evaluation, one text", "map-tuning step")
Batch = dict[str, np.ndarray]


def batch_of(program: Program, rows: int, length: int, words: int) -> Batch:
    """Random sentences, each with one slot and one mask."""
    draw, made = np.random.default_rng(0), {}
    for name, leaf in program.task.batch_shapes(Extent(rows, length, 1, 1, DIM)).items():
        if name == "entity_vectors":
            made[name] = draw.normal(size=leaf.shape).astype(np.float32)
        elif name in ("token_ids", "labels"):
            made[name] = draw.integers(5, words, leaf.shape).astype(np.int32)
        else:
            made[name] = np.ones(leaf.shape, leaf.dtype)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    slots = {"position_ids": places, "entity_slot": np.where(places == 1, 0, -1).astype(np.int32)}
    return {**made, **slots, "positions": np.full((rows, 1), length - 2, np.int32)}


@dataclass
class Arm:
    """One precision: bytes held of the host, bytes of programs' temporaries, timed calls, scores [B, 1, V]."""

    held: int
    temporaries: dict[str, int]
    calls: dict[str, Callable[[], float]]
    scores: np.ndarray


def arm(program: Program, params: Flat, precision: Precision, batch: Batch) -> Arm:
    """Holds the host and compiles all programs."""
    labels = label_parameters(params, RULES)
    train, frozen = place_params(*split(params, labels), precision)
    program = replace(program, precision=precision)
    optimizer = make_optimizer(OptimizerConfig(), labels, 1000)
    first = {name: values[:1] for name, values in batch.items()}
    state, everything = initial_state(train, optimizer, labels), {**frozen, **train}
    evaluate = make_evaluation_step(program)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    compiled = {
        KINDS[0]: evaluate.lower(everything, batch).compile(),
        KINDS[1]: evaluate.lower(everything, first).compile(),
        KINDS[2]: step.lower(state, frozen, batch).compile(),
    }
    scores = np.asarray(jax.jit(program.outputs)(everything, batch, None))
    moving = [jax.tree.map(jax.numpy.copy, state)]

    def take() -> Any:
        moving[0], logged = compiled[KINDS[2]](moving[0], frozen, batch)
        return logged

    programs = {KINDS[0]: lambda: compiled[KINDS[0]](everything, batch)}
    programs |= {KINDS[1]: lambda: compiled[KINDS[1]](everything, first), KINDS[2]: take}
    return Arm(
        sum(leaf.nbytes for path, one in frozen.items() for leaf in jax.tree.leaves(one)),
        {kind: int(cost_of(one, 0, 0.0).temporaries) for kind, one in compiled.items()},
        {kind: timer(one) for kind, one in programs.items()},
        scores,
    )


def timer(call: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - started

    return seconds


def measure(arms: dict[Precision, Arm], rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds by (precision, kind), arms in turns; a first round is thrown away."""
    taken: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for kind in KINDS:
            for name, one in arms.items():
                seconds = one.calls[kind]()
                if number:
                    taken.setdefault((name, kind), []).append(seconds)
    return {key: statistics.median(values) for key, values in taken.items()}


def rows_of(arms: dict[Precision, Arm], seconds: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    ours, exact, made = arms["int8"], arms["float32"].scores.astype(np.float64), []
    for other in PRECISIONS[:2]:
        theirs = arms[other]
        made.append(row(f"bytes held, beside {other}", ours.held / 1e6, theirs.held / 1e6, "MB", less=True))
        for kind in KINDS:
            mine, his = (1e3 * seconds[name, kind] for name in ("int8", other))
            made.append(row(f"{kind}, beside {other}", mine, his, "ms", less=True))
            mine, his = (one.temporaries[kind] / 1e6 for one in (ours, theirs))
            made.append(row(f"{kind}, temporaries, beside {other}", mine, his, "MB", less=True))

    def error(one: Arm) -> float:
        return 100 * float(np.linalg.norm(one.scores - exact) / np.linalg.norm(exact))

    def agrees(one: Arm) -> float:
        return 100 * float((one.scores.argmax(-1) == exact.argmax(-1)).mean())

    theirs = arms["bfloat16_dots"]
    made.append(row("error of scores, beside bfloat16_dots", error(ours), error(theirs), "% by norm", less=True))
    made.append(row("same best word, beside bfloat16_dots", agrees(ours), agrees(theirs), "%"))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="minilm-l6", choices=tuple(SHAPES))
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = SHAPES[arguments.shape]
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=config.hidden_size, knowledge_dim=DIM)
    program, params = split_program(random_host(config, "masked_lm"), plugin, make_task("cloze"))
    batch = batch_of(program, arguments.rows, arguments.length, config.vocab_size)
    arms = {precision: arm(program, params, precision, batch) for precision in PRECISIONS}
    write(arguments.json, rows_of(arms, measure(arms, arguments.rounds)))


if __name__ == "__main__":
    main()
