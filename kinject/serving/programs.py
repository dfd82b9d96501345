"""The compiled programs of prediction: what is answered, how probable one answer is, and what its slots did for it.

Parameters are arguments, so another plugin of the same shape runs the same programs; a program is compiled once for
each shape of batch (see batches.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kinject.inference.micro_batches import map_microbatches
from kinject.inference.program import Program
from kinject.models.seams import Plugin
from kinject.tasks.base import Task
from kinject.tree import Flat

EXPLAINED = "explained"  # int32 [B]: in a batch, the number of the answer that is explained
POSSIBLE = -1e8  # an answer with a lower raw score is none

Step = Callable[[Flat, Mapping[str, jax.Array]], Any]


class Programs:
    """Compiled steps by program; `compiled` counts how often one was traced, and so compiled, for a new shape."""

    def __init__(self) -> None:
        self.compiled = 0
        self._steps: dict[Any, Step] = {}

    def answer(self, program: Program, top: int) -> Step:
        """(params, batch) -> {"scores", "numbers", "possible"}, each [B, (W,) top], best answers first.

        Where the task is multi-label, "scores" and "chosen" [B, C] of all.
        """

        def of(params: Flat, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            outputs = program.outputs(params, rows, None)
            raw = program.task.choices(outputs, rows)
            scores = probabilities(program.task, raw)
            if program.task.multi_label:
                return {"scores": scores, "chosen": program.task.predict(outputs, rows)["chosen"]}
            found, numbers = jax.lax.top_k(scores, min(top, scores.shape[-1]))
            possible = jnp.take_along_axis(raw, numbers, axis=-1) > POSSIBLE
            return {"scores": found, "numbers": numbers, "possible": possible}

        def step(params: Flat, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return map_microbatches(partial(of, params), batch, program.micro_batch)

        return self._step(("answer", program, top), step)

    def probability(self, program: Program) -> Step:
        """(params, batch) -> float32 [B]: the score of the answer that `batch["explained"]` names."""

        def of(params: Flat, rows: Mapping[str, jax.Array]) -> jax.Array:
            raw = program.task.choices(program.outputs(params, rows, None), rows)
            return _of(probabilities(program.task, raw), rows)

        def step(params: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
            return map_microbatches(partial(of, params), batch, program.micro_batch)

        return self._step(("probability", program), step)

    def gradient(self, program: Program) -> Step:
        """(params, batch) -> float32, of the shape of `entity_ids`: gradient times input of each entity's slots.

        The derivative of the answer's raw score by a factor on what stands in the slots of one entity, at the factor 1:
        the sum over its slots of (gradient by the slot's vector) . (the vector).
        """

        def step(params: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
            host, plugin = program.merge(params)

            def total(factors: jax.Array) -> jax.Array:
                outputs = program.task.outputs(host, _Scaled(plugin, factors), batch)
                return _of(program.task.choices(outputs, batch), batch).sum()  # rows do not touch each other

            return jax.grad(total)(jnp.ones(batch["entity_ids"].shape, jnp.float32))

        return self._step(("gradient", program), step)

    def _step(self, name: Any, step: Step) -> Step:
        if name not in self._steps:

            def counted(params: Flat, batch: Mapping[str, jax.Array]) -> Any:
                self.compiled += 1  # runs while JAX traces, which it does once a shape
                return step(params, batch)

            self._steps[name] = jax.jit(counted)
        return self._steps[name]


def probabilities(task: Task, raw: jax.Array) -> jax.Array:
    """Raw scores [..., C] -> 0 to 1, float32: each for itself where several may hold, else of one among all."""
    raw = raw.astype(jnp.float32)
    return jax.nn.sigmoid(raw) if task.multi_label else jax.nn.softmax(raw, axis=-1)


def _of(scores: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.take_along_axis(scores, batch[EXPLAINED][:, None], axis=1)[:, 0]


class _Scaled:
    """A plugin whose slots are multiplied by a factor each; stands in for it in one forward pass."""

    def __init__(self, plugin: Plugin, factors: jax.Array):
        self.plugin, self.factors = plugin, factors.reshape(-1, factors.shape[-1])  # [rows, M]
        self.name, self.reads_sequence = plugin.name, plugin.reads_sequence
        self.before, self.feed_forward, self.outputs = plugin.before, plugin.feed_forward, plugin.outputs

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: Any = None) -> jax.Array:
        made, slot = self.plugin.embed(embeddings, batch, key), batch["entity_slot"]
        here = jnp.take_along_axis(self.factors, jnp.maximum(slot, 0), axis=1)
        return jnp.where((slot >= 0)[:, :, None], made * here[:, :, None].astype(made.dtype), made)
