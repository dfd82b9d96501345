"""One map-tuning step on an accelerator: its time, what part of the peak that is, and a trace of some steps.

    python benchmarks/device_profile.py --profile FOLDER --json OUT

bert-base's shape, products and activations in bfloat16, a frozen host, mention-masked language modelling at one place a
row. FLOPs and bytes are the compiler's count for the compiled step; beside them stands the time of one product of
8,192 x 8,192 matrices in bfloat16, as what the device reaches at best.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from device_parity import DIM, batch_of
from made_up import random_host, shape_of
from measuring import options
from rows import row, write

from kinject.inference.mesh import place_params
from kinject.inference.program import split_program
from kinject.models.precision import activations
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

STEPS = 20


def seconds_of(call: Callable[[], Any], times: int = STEPS) -> float:
    """The median time of a call, of which the first compiles."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    parser = options(__doc__, layers=12, hidden=768, vocabulary=30_522, rows=256, length=32)
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="gets a trace of five steps")
    arguments = parser.parse_args()
    config = shape_of(arguments.layers, arguments.hidden, arguments.vocabulary)
    host = random_host(config, "masked_lm", dtype=activations("bfloat16"))
    plugin = make_plugin({"name": "map_tuning"}, **config.plugin_sizes, knowledge_dim=DIM)
    program, params = split_program(host, plugin, make_task("cloze"))
    program = replace(program, precision="bfloat16")
    labels = label_parameters(params, [("plugin/.*", "train"), (".*", "freeze")], tables=program.tables)
    train, frozen = place_params(*split(params, labels), program.precision, tables=program.tables)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4), labels, 1000)
    state = initial_state(train, optimizer, labels)
    batch = jax.device_put(batch_of(config, arguments.rows, arguments.length))
    compiled = make_train_step(program, optimizer, labels, seed=0, dropout=False).lower(state, frozen, batch).compile()
    counted = compiled.cost_analysis() or {}
    held = [state]

    def step() -> Any:
        held[0], logged = compiled(held[0], frozen, batch)
        return logged

    size = 8192 if jax.default_backend() != "cpu" else 512
    matrix = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    best = 2 * size**3 / seconds_of(lambda: product(matrix, matrix), 5)
    taken = seconds_of(step)
    if arguments.profile is not None:
        with jax.profiler.trace(str(arguments.profile)):
            for _ in range(5):
                jax.block_until_ready(step())
    more = {
        "device": jax.devices()[0].device_kind,
        "gflop": counted.get("flops", 0.0) / 1e9,
        "gigabytes": counted.get("bytes accessed", 0.0) / 1e9,
        "product_tflops": best / 1e12,
        "share_of_product": counted.get("flops", 0.0) / taken / best,
    }
    what = f"map-tuning step, {arguments.rows} x {arguments.length}, bfloat16"
    write(arguments.json, [row(what, 1e3 * taken, None, "ms", less=True, **more)])


if __name__ == "__main__":
    main()
