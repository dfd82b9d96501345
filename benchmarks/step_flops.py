"""What a map-tuning step computes, by the compiler's own count, against full fine-tuning of the same model and batch.

    python benchmarks/step_flops.py --json flops.json

Nothing is run and no weights are made: the steps are compiled from shapes (bert-base, batch 32, 48 tokens, one mask a
row). The ratio is what the backward pass saves by computing no weight gradient.
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
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

BERT_BASE = EncoderConfig.from_hf(
    {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    },
    "bert-base",
)


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


def compiled_cost(rules: list, rows: int, length: int, dim: int) -> dict:
    def build():
        host = HostModel(Encoder(BERT_BASE, rngs=nnx.Rngs(0)), build_head("masked_lm", BERT_BASE, rngs=nnx.Rngs(0)))
        return host, make_plugin({"name": "map_tuning"}, hidden_size=768, knowledge_dim=dim)

    host, plugin = nnx.eval_shape(build)
    program, params = split_program(host, plugin, make_task("cloze"))
    program = replace(program, micro_batch="whole")  # the compiler counts a loop once
    labels = label_parameters(params, rules)
    train, frozen = split(params, labels)
    optimizer: optax.GradientTransformation = make_optimizer(OptimizerConfig(), labels, 100)
    state = jax.eval_shape(lambda leaves: initial_state(leaves, optimizer, labels), train)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    compiled = step.lower(state, frozen, shapes_of(rows, length, dim)).compile()
    return compiled.cost_analysis()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    size = arguments.rows, arguments.length, arguments.dim
    ours = compiled_cost([("plugin/.*", "train"), (".*", "freeze")], *size)["flops"]
    theirs = compiled_cost([(".*", "train")], *size)["flops"]
    row = {
        "name": "map_tuning_step_flops",
        "ratio": ours / theirs,
        "ours": ours / 1e9,
        "theirs": theirs / 1e9,
        "unit": "GFLOP a step (full fine-tuning is theirs)",
        "hardware": f"compiled for {jax.default_backend()} on {platform.machine()}, jax {jax.__version__}",
        "rows": arguments.rows,
        "length": arguments.length,
    }
    print(f"map-tuning {row['ours']:.1f}, full fine-tuning {row['theirs']:.1f} GFLOP a step: ratio {row['ratio']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row], indent=2) + "\n")


if __name__ == "__main__":
    main()
