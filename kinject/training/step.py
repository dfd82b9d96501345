"""The training step and the evaluation step: pure functions over flat parameter dicts.

NNX objects are split once; inside `jax.jit` they are merged from pure dicts. Frozen parameters are arguments (closed
over, they would become constants of the program) and only the trainable dict is differentiated, so XLA computes no
weight gradient for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kinject.inference.compiled import options
from kinject.inference.program import Program, accumulate_microbatches
from kinject.training.optimizer import mask_frozen
from kinject.tree import Flat


class TrainState(NamedTuple):
    """What a step changes, and all that a checkpoint must hold of it. The dropout key is a function of the step."""

    train: Flat
    optimizer: Any
    step: jax.Array


Logged = dict[str, jax.Array]


def make_train_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    labels: Mapping[str, str],
    *,
    seed: int,
    dropout: bool,
    shardings: TrainState | None = None,
) -> jax.stages.Wrapped:
    """The jitted step (state, frozen, batch [B, …]) -> (state, {"loss", "gradient_norm"} scalars).

    The state's buffers are donated. `shardings` are the state's on a mesh (`Placement.shardings`): pinned, or XLA might
    choose others for the new state.
    """
    step = partial(step_function(program, optimizer, labels, dropout=dropout), seed)
    out = None if shardings is None else (shardings, shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options(program.row_parts))


def step_function(
    program: Program, optimizer: optax.GradientTransformation, labels: Mapping[str, str], *, dropout: bool
) -> Callable[[int | jax.Array, TrainState, Flat, Mapping[str, jax.Array]], tuple[TrainState, Logged]]:
    """The step of one program as a pure function (seed, state, frozen, batch) -> (state, {"loss", "gradient_norm"}).

    The logged norm is that of the trainable gradients: asking for the norm of all would compute all.
    """

    def step(
        seed: int | jax.Array, state: TrainState, frozen: Flat, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, Logged]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
        batch = program.with_vectors(frozen, batch)

        def sums(train: Flat, rows: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            outputs = program.outputs({**frozen, **train}, rows, key)
            losses, weights = program.task.loss(outputs, rows)
            return jnp.sum(losses * weights), jnp.sum(weights)

        slope = partial(jax.value_and_grad(sums, has_aux=True), state.train)
        (loss, weight), gradients = accumulate_microbatches(slope, batch, key, program.micro_batch, program.row_parts)
        weight = jnp.maximum(weight, 1e-6)  # all of them may be 0
        loss, gradients = loss / weight, jax.tree.map(lambda leaf: leaf / weight, gradients)
        updates, optimizer_state = optimizer.update(
            mask_frozen(gradients, labels), state.optimizer, mask_frozen(state.train, labels)
        )
        train = {path: leaf + updates[path].astype(leaf.dtype) for path, leaf in state.train.items()}
        logged = {"loss": loss, "gradient_norm": optax.global_norm(gradients)}
        return TrainState(train, optimizer_state, state.step + 1), logged

    return step


def make_refresh(program: Program) -> Callable[[Flat], Flat]:
    """The jitted (params) -> the plugin's tables, by path, as `Plugin.refresh` makes them of all parameters."""

    def refresh(params: Flat) -> Flat:
        host, plugin = program.merge(params)
        if plugin is None:
            return {}
        return {f"plugin/{path}": table for path, table in plugin.refresh(host.encoder).items()}

    return jax.jit(refresh)


def initial_state(train: Flat, optimizer: optax.GradientTransformation, labels: Mapping[str, str]) -> TrainState:
    """The state before the first step."""
    return TrainState(train, optimizer.init(mask_frozen(train, labels)), jnp.zeros((), jnp.int32))
