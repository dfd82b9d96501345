"""The training step and the evaluation step: pure functions over flat parameter dicts.

NNX objects are split once; inside `jax.jit` they are merged from pure dicts. Frozen parameters are arguments (closed
over, they would become constants of the program) and only the trainable dict is differentiated, so XLA computes no
weight gradient for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kinject.models.heads import Host
from kinject.models.precision import Precision, multiplied
from kinject.plugins.base import Plugin, table_paths
from kinject.tasks.base import Task
from kinject.training.compiled import options
from kinject.training.optimizer import mask_frozen
from kinject.training.portions import MicroBatch, added_up, side_by_side
from kinject.training.vectors import TABLE, LookUp
from kinject.tree import Flat, flatten, unflatten


class TrainState(NamedTuple):
    """What a step changes, and all that a checkpoint must hold of it. The dropout key is a function of the step."""

    train: Flat
    optimizer: Any
    step: jax.Array


@dataclass(frozen=True)
class Program:
    """The static half of a model: structure without arrays, and what to compute with it.

    Attributes:
      tables: paths of the plugin's arrays that are no parameters (`kinject.plugins.base.Table`).
      start: the hidden state from which layers are computed; below it, the batch holds what they yield (see prefix.py).
      precision: how the host's matrices are multiplied.
      micro_batch: how many tokens are computed at a time (see portions.py).
      row_parts: how many devices share the rows of a batch.
      vectors: how entity vectors are looked up in a table on the devices; None = the batch brings them.
    """

    host: nnx.GraphDef
    plugin: nnx.GraphDef | None
    task: Task
    tables: frozenset[str] = frozenset()
    start: int = 0
    precision: Precision = "float32"
    micro_batch: MicroBatch = "auto"
    row_parts: int = 1
    vectors: LookUp | None = None

    def outputs(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """The task's outputs for a batch ([B, …], see `Task.outputs`), from flat parameters `host/…` and `plugin/…`."""
        host, plugin = self.merge(params)
        return self.task.outputs(host, plugin, batch, key, self.start)

    def with_vectors(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """The batch ([B, …] each) as a plugin sees it, wherever its entity vectors were: once a step, first of all."""
        return batch if self.vectors is None else self.vectors.give(params[TABLE], batch)

    def merge(self, params: Mapping[str, Any]) -> tuple[Host, Plugin | None]:
        """Flat parameters -> the host and the plugin as modules, the plugin None where there is none.

        They hold what a step multiplies (`multiplied`), of a host in 8 bits a copy: made within compiled programs only.
        """
        tree = unflatten({path: multiplied(self.precision, path, leaf) for path, leaf in params.items()})
        host = nnx.merge(self.host, tree["host"])
        return host, None if self.plugin is None else nnx.merge(self.plugin, tree.get("plugin", {}))

    def outline(self, params: Mapping[str, Any]) -> tuple[Host, Plugin | None]:
        """As `merge`, with shapes in the place of arrays: for what modules say without computing."""
        return nnx.eval_shape(self.merge, dict(params))


def split_program(host: Host, plugin: Plugin | None, task: Task) -> tuple[Program, Flat]:
    """NNX modules -> (program, flat parameters `host/…`, `plugin/…`)."""
    graph, state = nnx.split(host)
    program, params = Program(graph, None, task), flatten(nnx.to_pure_dict(state), "host")
    if plugin is None:
        return program, params
    program, own = plugged_in(program, plugin)
    return program, params | own


def plugged_in(program: Program, plugin: Plugin) -> tuple[Program, Flat]:
    """(The program with this plugin in the place of its own, the plugin's flat parameters `plugin/…`)."""
    graph, state = nnx.split(plugin)
    tables = frozenset(f"plugin/{path}" for path in table_paths(state))
    return replace(program, plugin=graph, tables=tables), flatten(nnx.to_pure_dict(state), "plugin")


Logged = dict[str, jax.Array]


def make_train_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    labels: Mapping[str, str],
    *,
    seed: int,
    dropout: bool,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Flat, Mapping[str, jax.Array]], tuple[TrainState, Logged]]:
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
        (loss, weight), gradients = added_up(slope, batch, key, program.micro_batch, program.row_parts)
        weight = jnp.maximum(weight, 1e-6)  # all of them may be 0
        loss, gradients = loss / weight, jax.tree.map(lambda leaf: leaf / weight, gradients)
        updates, optimizer_state = optimizer.update(
            mask_frozen(gradients, labels), state.optimizer, mask_frozen(state.train, labels)
        )
        train = {path: leaf + updates[path].astype(leaf.dtype) for path, leaf in state.train.items()}
        logged = {"loss": loss, "gradient_norm": optax.global_norm(gradients)}
        return TrainState(train, optimizer_state, state.step + 1), logged

    return step


def make_evaluation_step(
    program: Program,
) -> Callable[[Flat, Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """The jitted step (params, batch) -> per-item "loss" and "loss_weights" and the task's predictions, no dropout.

    Where the task evaluates examples in parts, those of the parts. Parameters are an argument: evaluating another
    plugin of the same shape compiles nothing.
    """
    program = replace(program, task=program.task.part())

    def step(params: Flat, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        def of(rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            outputs = program.outputs(params, rows, None)
            losses, weights = program.task.loss(outputs, rows)
            return {"loss": losses, "loss_weights": weights, **program.task.predict(outputs, rows)}

        return side_by_side(of, program.with_vectors(params, batch), program.micro_batch, program.row_parts)

    return jax.jit(step, compiler_options=options(program.row_parts))


def make_refresh(program: Program) -> Callable[[Flat], Flat]:
    """The jitted (params) -> the plugin's tables, by path, as `Plugin.refresh` makes them of all parameters."""

    def refresh(params: Flat) -> Flat:
        host, plugin = program.merge(params)
        return {f"plugin/{path}": table for path, table in plugin.refresh(host.encoder).items()}

    return jax.jit(refresh)


def initial_state(train: Flat, optimizer: optax.GradientTransformation, labels: Mapping[str, str]) -> TrainState:
    """The state before the first step."""
    return TrainState(train, optimizer.init(mask_frozen(train, labels)), jnp.zeros((), jnp.int32))
