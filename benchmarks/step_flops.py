"""What a map-tuning step computes, by the compiler's own count, against full fine-tuning of the same model and batch.

    python benchmarks/step_flops.py --json flops.json                                 # bert-base
    python benchmarks/step_flops.py --shapes ModernBERT-base deberta-v3-base          # other models, by name

Nothing is run and no weights are made: the steps are compiled from shapes (batch 32, 48 tokens, one mask a row). The
ratio is what the backward pass saves by computing no weight gradient.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kinject.inference.program import split_program
from kinject.models.config import EncoderConfig
from kinject.models.pretrained import abstract_host
from kinject.models.shapes import SHAPES
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step


def shapes_of(rows: int, length: int, dim: int) -> dict:
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    names = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")
    return {
        **dict.fromkeys(names, tokens),
        "entity_ids": jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        "entity_vectors": jax.ShapeDtypeStruct((rows, 1, dim), jnp.float32),
        "positions": jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        "labels": jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        "weights": jax.ShapeDtypeStruct((rows,), jnp.float32),
    }


def compiled_cost(config: EncoderConfig, rules: list, rows: int, length: int, dim: int) -> dict:
    sizes = {**config.plugin_sizes, "knowledge_dim": dim}
    host = abstract_host(config, "masked_lm")
    plugin = nnx.eval_shape(lambda: make_plugin({"name": "map_tuning"}, **sizes))
    program, params = split_program(host, plugin, make_task("cloze"))
    program = replace(program, micro_batch="whole")  # the compiler counts a loop once
    labels = label_parameters(params, rules)
    train, frozen = split(params, labels)
    optimizer: optax.GradientTransformation = make_optimizer(OptimizerConfig(), labels, 100)
    state = jax.eval_shape(lambda leaves: initial_state(leaves, optimizer, labels), train)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    quick = {"xla_backend_optimization_level": 0}  # FLOPs are counted before LLVM sees anything
    compiled = step.lower(state, frozen, shapes_of(rows, length, dim)).compile(quick)
    return compiled.cost_analysis()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["bert-base"], choices=sorted(SHAPES), metavar="NAME")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = arguments.rows, arguments.length, arguments.dim
    rows = []
    for shape in arguments.shapes:
        ours = compiled_cost(SHAPES[shape], [("plugin/.*", "train"), (".*", "freeze")], *size)["flops"]
        theirs = compiled_cost(SHAPES[shape], [(".*", "train")], *size)["flops"]
        row = {
            "name": f"map_tuning_step_flops, {shape}",
            "ratio": ours / theirs,
            "ours": ours / 1e9,
            "theirs": theirs / 1e9,
            "unit": "GFLOP a step (full fine-tuning is theirs)",
            "hardware": f"compiled for {jax.default_backend()} on {platform.machine()}, jax {jax.__version__}",
            "rows": arguments.rows,
            "length": arguments.length,
        }
        rows.append(row)
        told = f"map-tuning {row['ours']:.1f}, full fine-tuning {row['theirs']:.1f} GFLOP a step"
        print(f"{shape}: {told}: ratio {row['ratio']:.3f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
