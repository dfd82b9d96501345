"""Every method on an accelerator beside the same on the CPU: outputs, loss and gradients of one training step.

    python benchmarks/device_parity.py --json OUT                         (bert-base's width, four layers)
    python benchmarks/device_parity.py --layers 2 --hidden 48 --json OUT  (small, for a machine without an accelerator)

One host with random weights, a batch of questions with a linked entity each, and every registered method and tuning
that can be trained on it. The CPU computes in float32. The accelerator computes the same step in float32 with products
of the highest precision, and as fine-tuning there computes, in bfloat16. Told is the largest distance of the logits and
of each trained leaf's gradient from the CPU's, relative to the largest number of the array that it is in. Without an
accelerator the CPU stands beside itself, so that the script can be tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from made_up import SPECIAL, random_host, shape_of
from measuring import options
from rows import row, write

from kinject.inference.mesh import place_params
from kinject.inference.program import Program, split_program
from kinject.models.config import EncoderConfig
from kinject.models.heads import HostModel
from kinject.models.precision import activations
from kinject.models.tuning import make_tuning
from kinject.models.tuning_base import attach, rules_for
from kinject.plugins.base import Plugin, make_plugin, plugin_names
from kinject.tasks.base import make_task
from kinject.training.partition import label_parameters, split
from kinject.tree import Flat

DIM, FACTS, PASSAGES = 100, 3, 64
BOUNDS = {"float32": 1e-4, "bfloat16": 0.1}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "kformer": {"layers": (1,), "start": "paper"},
    "pluglm": {"layers": (1,), "top_k": 5},
    "k_adapter": {"layers": (0, 1)},
}
WITHOUT_TRAINING = ("retrieved_text", "k_adapter_combination")  # text in the input; plugins that others have trained
TUNINGS = ("lora", "houlsby", "bitfit")


def batch_of(config: EncoderConfig, rows: int, length: int) -> dict[str, np.ndarray]:
    """Questions of random words with one entity and one blank each; some facts beside, for a method that reads them."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(length // 2, length + 1, rows)
    real = np.arange(length)[None] < lengths[:, None]
    words = draw.integers(len(SPECIAL), config.vocab_size, (rows, length))
    slot = np.full((rows, length), -1, np.int32)
    slot[:, 2] = 0
    return {
        "token_ids": np.where(real, words, config.pad_token_id).astype(np.int32),
        "segment_ids": real.astype(np.int32),
        "position_ids": np.where(real, np.arange(length), 0).astype(np.int32),
        "type_ids": np.zeros((rows, length), np.int32),
        "entity_slot": slot,
        "entity_ids": np.zeros((rows, 1), np.int32),
        "entity_vectors": draw.standard_normal((rows, 1, DIM)).astype(np.float32),
        "fact_ids": draw.integers(len(SPECIAL), config.vocab_size, (rows, FACTS, 6)).astype(np.int32),
        "positions": np.full((rows, 1), 4, np.int32),
        "labels": draw.integers(len(SPECIAL), config.vocab_size, (rows, 1)).astype(np.int32),
        "weights": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def plugged(name: str, config: EncoderConfig) -> Plugin:
    """A fresh plugin of a method; a memory gets passages."""
    plugin = make_plugin({"name": name, **SETTINGS.get(name, {})}, **config.plugin_sizes, knowledge_dim=DIM)
    if name == "pluglm":
        draw, size = np.random.default_rng(1), plugin.config.key_size or config.hidden_size
        keys, values = (draw.standard_normal((PASSAGES, one)).astype(np.float32) for one in (size, config.hidden_size))
        plugin.set_tables(jnp.asarray(keys), jnp.asarray(values), jnp.ones(PASSAGES, bool))
    return plugin


def models(
    config: EncoderConfig, dtype: DTypeLike = jnp.float32
) -> dict[str, tuple[HostModel, Plugin | None, list[tuple[str, str]]]]:
    """Every method and tuning: a host with activations of a dtype, the plugin, and what is trained."""
    rules = [("plugin/.*", "train"), (".*", "freeze")]
    made: dict[str, tuple[HostModel, Plugin | None, list[tuple[str, str]]]] = {}
    for name in plugin_names():
        if name not in WITHOUT_TRAINING:
            made[name] = random_host(config, "masked_lm", dtype=dtype), plugged(name, config), rules
    for name in TUNINGS:
        host, tuning = random_host(config, "masked_lm", dtype=dtype), make_tuning({"name": name})
        attach(host, tuning, nnx.Rngs(2))
        made[name] = host, None, list(rules_for(tuning, "masked_lm"))
    return made


def computed(
    program: Program, params: Flat, rules: list[tuple[str, str]], batch: Mapping[str, Any], device: jax.Device
) -> dict[str, np.ndarray]:
    """Logits, loss and the trained leaves' gradients of one step without dropout, on a device."""
    labels = label_parameters(params, rules, tables=program.tables)
    with jax.default_device(device):
        train, frozen = split(jax.device_put(dict(params), device), labels)
        train, frozen = place_params(train, frozen, program.precision, tables=program.tables)

        @jax.jit
        def step(train: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> tuple[Any, Flat]:
            def loss(train: Flat) -> tuple[jax.Array, jax.Array]:
                outputs = program.outputs({**frozen, **train}, batch, None)
                losses, weights = program.task.loss(outputs, batch)
                return jnp.sum(losses * weights) / jnp.sum(weights), outputs

            return jax.value_and_grad(loss, has_aux=True)(train)

        (loss, outputs), gradients = step(train, frozen, jax.device_put(dict(batch), device))
    found = {"loss": loss, "logits": outputs, **{f"gradient of {path}": leaf for path, leaf in gradients.items()}}
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def distance(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative distance of an array, and which one that is."""

    def apart(name: str) -> float:
        if not np.isfinite(found[name]).all():
            return float("inf")
        return float(np.abs(found[name] - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-6))

    return max((apart(name), name) for name in expected)


def main() -> None:
    arguments = options(__doc__, layers=4, hidden=768, vocabulary=30_522, rows=16, length=32).parse_args()
    config = shape_of(arguments.layers, arguments.hidden, arguments.vocabulary)
    batch, rows = batch_of(config, arguments.rows, arguments.length), []
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    made = {precision: models(config, activations(precision)) for precision in BOUNDS}
    for name, (host, plugin, rules) in made["float32"].items():
        program, params = split_program(host, plugin, make_task("cloze"))
        expected = computed(replace(program, micro_batch="whole"), params, rules, batch, cpu)
        for precision, bound in BOUNDS.items():
            program, _ = split_program(*made[precision][name][:2], make_task("cloze"))
            program = replace(program, micro_batch="whole", precision=precision)
            with jax.default_matmul_precision("highest" if precision == "float32" else "default"):
                found = computed(program, params, rules, batch, device)
            apart, where = distance(found, expected)
            what = f"{name}, {precision}: largest distance from the CPU's float32"
            goal = f"<= {bound}"
            rows.append(
                row(what, apart, None, "relative", less=True, goal=goal, where=where, device=device.device_kind)
            )
    write(arguments.json, rows)
    if not all(one["met"] for one in rows):
        raise SystemExit("some distances are larger than their bounds")


if __name__ == "__main__":
    main()
