"""The static half of a model, and the evaluation step: pure functions over flat parameter dicts.

NNX objects are split once; inside `jax.jit` they are merged from pure dicts. Frozen parameters are arguments: closed
over, they would become constants of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from kinject.inference.compiled import options
from kinject.inference.micro_batches import MicroBatch, map_microbatches
from kinject.inference.vectors import TABLE, LookUp
from kinject.models.heads import HostModel
from kinject.models.precision import Precision, multiplied
from kinject.models.seams import Plugin, table_paths
from kinject.tasks.base import Task
from kinject.tree import Flat, flatten, unflatten


@dataclass(frozen=True)
class Program:
    """The static half of a model: structure without arrays, and what to compute with it.

    Attributes:
      tables: paths of the plugin's arrays that are no parameters (`kinject.models.seams.Table`).
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

    def merge(self, params: Mapping[str, Any]) -> tuple[HostModel, Plugin | None]:
        """Flat parameters -> the host and the plugin as modules, the plugin None where there is none.

        They hold what a step multiplies (`multiplied`), of a host in 8 bits a copy: made within compiled programs only.
        """
        tree = unflatten({path: multiplied(self.precision, path, leaf) for path, leaf in params.items()})
        host = nnx.merge(self.host, tree["host"])
        return host, None if self.plugin is None else nnx.merge(self.plugin, tree.get("plugin", {}))

    def outline(self, params: Mapping[str, Any]) -> tuple[HostModel, Plugin | None]:
        """As `merge`, with shapes in the place of arrays: for what modules say without computing."""
        return nnx.eval_shape(self.merge, dict(params))


def split_program(host: HostModel, plugin: Plugin | None, task: Task) -> tuple[Program, Flat]:
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

        return map_microbatches(of, program.with_vectors(params, batch), program.micro_batch, program.row_parts)

    return jax.jit(step, compiler_options=options(program.row_parts))
