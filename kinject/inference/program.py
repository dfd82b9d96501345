"""The static half of a model, the evaluation step and what it finds over a data set, and microbatches.

Steps are pure functions over flat parameter dicts. NNX objects are split once; inside `jax.jit` they are merged from
pure dicts. Frozen parameters are arguments: closed over, they would become constants of the program.

Microbatches are a batch's rows computed a few at a time, inside one step. What a step computes of a row does not depend
on the other rows, so losses and gradients are summed over microbatches and predictions are concatenated. On an
accelerator that saves memory. On a CPU it saves time: the temporaries of a thousand or two tokens are soon used again,
those of ten thousand go to memory and come back. Microbatch j of m holds the rows j, j + m, j + 2 m, …, so that each is
spread over a mesh as the whole batch is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from pydantic import Field

from kinject.data.pipeline import Feed
from kinject.inference.mesh import Placement, fetch, place_params
from kinject.inference.vectors import TABLE, LookUp
from kinject.inference.xla import options
from kinject.models.heads import HostModel
from kinject.models.precision import Precision, multiplied
from kinject.models.seams import Plugin, table_paths
from kinject.tasks.base import Task
from kinject.tree import Flat, flatten, unflatten

MicroBatch = Annotated[int, Field(ge=1)] | Literal["auto", "whole"]  # tokens, all devices together
CPU_TOKENS = 2048
MODELS_KEPT = 4  # parameters of the host are shared by all of them


@dataclass(frozen=True)
class Program:
    """The static half of a model: structure without arrays, and what to compute with it.

    Attributes:
      tables: paths of the plugin's arrays that are no parameters (`kinject.models.seams.Table`).
      start: the hidden state from which layers are computed; below it, the batch holds what they yield (see prefix.py).
      precision: how the host's matrices are multiplied.
      micro_batch: how many tokens are computed at a time (see `map_microbatches`).
      row_parts: how many devices share the rows of a batch.
      batch_rows: how many rows of a training batch are examples, where it is filled up for the devices; None = all.
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
    batch_rows: int | None = None
    vectors: LookUp | None = None

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of all fields, taken once: that of a host's structure costs milliseconds, and every answer asks for it."""
        return hash(tuple(getattr(self, each.name) for each in fields(self)))

    def outputs(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
        """The task's outputs for a batch ([B, …], see `Task.outputs`), from flat parameters `host/…` and `plugin/…`."""
        host, plugin = self.merge(params)
        return self.task.outputs(host, plugin, batch, key, self.start)

    def losses(
        self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The task's losses and weights for a batch, [B] or [B, P] (see `Task.loss`), from the same parameters."""
        host, plugin = self.merge(params)
        return self.task.losses(host, plugin, batch, key, self.start)

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

    def merge_plugin(self, params: Mapping[str, Any]) -> Plugin:
        """Flat parameters `plugin/…` -> the plugin of a program that has one, as `merge` makes it."""
        if self.plugin is None:
            raise ValueError("the program has no plugin")
        tree = unflatten({path: multiplied(self.precision, path, leaf) for path, leaf in params.items()})
        return nnx.merge(self.plugin, tree.get("plugin", {}))

    def abstract(self, params: Mapping[str, Any]) -> tuple[HostModel, Plugin | None]:
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


class Model(NamedTuple):
    """A program, and the parameters that it is given: flat, on the devices."""

    program: Program
    params: Flat


class PlacedHost:
    """A host on the devices, and the models that plugins make of it; the last few are kept.

    The host is split and put onto the devices once, whatever is plugged in.

    Args:
      host: the host, with the head of the task.
      task: what is computed.
      precision: what the host is held and computed in.
      place: where arrays live.
    """

    def __init__(self, host: HostModel, task: Task, precision: Precision, place: Placement):
        self._host, self._task, self._precision, self._place = host, task, precision, place
        self._models: dict[int, tuple[Plugin | None, Model]] = {}

    @property
    def devices(self) -> int:
        """How many hold it."""
        return self._place.devices

    def model(self, plugin: Plugin | None) -> Model:
        """The host with a plugin, None = alone."""
        known = self._models.get(id(plugin))
        if known is not None and known[0] is plugin:
            return known[1]
        made = self._alone
        if plugin is not None:
            program, own = plugged_in(made.program, plugin)
            placed = place_params({}, own, self._precision, self._place, program.tables)[1]
            made = Model(program, made.params | placed)
        while len(self._models) >= MODELS_KEPT:
            self._models.pop(next(iter(self._models)))
        self._models[id(plugin)] = plugin, made
        return made

    @cached_property
    def _alone(self) -> Model:
        program, params = split_program(self._host, None, self._task)
        placed = place_params({}, params, self._precision, self._place)[1]
        return Model(replace(program, precision=self._precision), placed)


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


def portion_count(batch: Mapping[str, jax.Array], size: MicroBatch, row_parts: int = 1, rows: int | None = None) -> int:
    """Into how many portions a batch is cut: the least that divides its rows and leaves no more than `size` tokens.

    A portion is one row a device at least, however long that is.

    Args:
      batch: any that has `token_ids`, padding included, first axis = rows.
      size: tokens; "auto" is 2048 for each of `row_parts` on a CPU, and elsewhere, as "whole", no limit.
      row_parts: how many devices share the rows, each as many of every portion.
      rows: how many of the rows count, None = all.
    """
    if size == "auto":
        size = CPU_TOKENS * row_parts if jax.default_backend() == "cpu" else "whole"
    if size == "whole":
        return 1
    held, tokens = batch["token_ids"].shape[0], batch["token_ids"].size
    rows = rows or held
    tokens = tokens // held * rows
    most = max(rows // row_parts, 1)
    dividing = (count for count in range(1, most + 1) if most % count == 0)
    return next(count for count in dividing if tokens <= size * count or count == most)


def map_microbatches(
    compute: Callable[[Mapping[str, jax.Array]], Any],
    batch: Mapping[str, jax.Array],
    size: MicroBatch,
    row_parts: int = 1,
) -> Any:
    """What `compute` yields of the whole batch (a tree of arrays, first axis = rows), computed in portions."""
    count = portion_count(batch, size, row_parts)
    if count == 1:
        return compute(batch)
    found = lax.map(compute, _cut(batch, count))

    def join(parts: jax.Array) -> jax.Array:
        return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[0] * parts.shape[1], *parts.shape[2:])

    return jax.tree.map(join, found)


def accumulate_microbatches(
    compute: Callable[[Mapping[str, jax.Array], jax.Array | None], Any],
    batch: Mapping[str, jax.Array],
    key: jax.Array | None,
    size: MicroBatch,
    row_parts: int = 1,
    rows: int | None = None,
) -> Any:
    """The sum over portions of what `compute(portion, key)` yields, a tree of arrays.

    A portion's dropout key is its own; a batch that is not cut has the step's. With a key the portions are those of one
    device whatever `row_parts` is, so that the same is dropped on any number of devices; then `rows` says how many rows
    that device would have, where the batch was filled up with rows of weight 0 (None = all).
    """
    if key is None:
        count = portion_count(batch, size, row_parts)
    else:
        count = portion_count(batch, size, 1, rows)
        batch = _whole_portions(batch, count)
    if count == 1:
        return compute(batch, key)

    def add(total: Any, numbered: tuple[jax.Array, Mapping[str, jax.Array]]) -> tuple[Any, None]:
        number, portion = numbered
        found = compute(portion, None if key is None else jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, found), None

    parts = _cut(batch, count)
    like = jax.eval_shape(lambda portion: compute(portion, key), jax.tree.map(lambda leaf: leaf[0], parts))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(add, nothing, (jnp.arange(count), parts))[0]


def _whole_portions(batch: Mapping[str, jax.Array], count: int) -> Mapping[str, jax.Array]:
    """The batch, whose last row (filled up, of weight 0) is repeated until `count` divides the rows."""
    missing = -batch["token_ids"].shape[0] % count
    if not missing:
        return batch
    return {
        name: jnp.pad(rows, [(0, missing), *[(0, 0)] * (rows.ndim - 1)], mode="edge") for name, rows in batch.items()
    }


def _cut(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Every array [rows, …] -> [count, rows / count, …]; some may be empty, as without any entity."""

    def cut(values: jax.Array) -> jax.Array:
        return jnp.moveaxis(values.reshape(values.shape[0] // count, count, *values.shape[1:]), 1, 0)

    return {name: cut(values) for name, values in batch.items()}


def evaluate(
    program: Program, params: Flat, feed: Feed, batch_size: int, placement: Placement | None = None, step: Any = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and the task's predictions in the examples' given order, over a whole feed.

    Returns:
      ({"loss": …, and the task's metrics}, {name: array [examples, …]}).
    """
    place = placement or Placement.single()
    step = step or make_evaluation_step(program)
    read, rows = step_feed(feed, batch_size, place)
    loss, predictions = _computed(step, params, read, rows, place)
    if feed.examples.parts is not None:
        loss, predictions = feed.examples.parts.join(predictions, feed.examples)
    scored: dict[str, Any] = {**predictions, **feed.examples.references}
    return {"loss": loss, **program.task.score(scored)}, predictions


def step_feed(feed: Feed, batch_size: int, placement: Placement) -> tuple[Feed, int]:
    """(what the evaluation step reads, rows of a batch): the feed itself, or the parts of its examples."""
    rows, parts = placement.round_up(batch_size), feed.examples.parts
    if parts is None:
        return feed, rows
    rows *= parts.each
    return feed.with_examples(parts.make(feed.examples, rows)), rows


def _computed(
    step: Any, params: Flat, feed: Feed, batch_size: int, place: Placement
) -> tuple[float, dict[str, np.ndarray]]:
    """(mean loss, predictions) of a feed's examples, row by row."""
    parts: list[dict[str, np.ndarray]] = []
    loss = weight = 0.0
    for rows in feed.evaluation(batch_size, place.share(batch_size)):
        placed = place.batch(rows, batch_size)
        outputs, batch = fetch((step(params, placed), {key: placed[key] for key in ("index", "weights")}))
        losses, weights = outputs.pop("loss"), outputs.pop("loss_weights")
        loss, weight = loss + float((losses * weights).sum()), weight + float(weights.sum())
        real = batch["weights"].reshape(len(batch["index"]), -1).max(1) > 0
        parts.append({name: values[real] for name, values in {**outputs, "index": batch["index"]}.items()})
    index = np.concatenate([part["index"] for part in parts])
    order = np.argsort(index, kind="stable")
    predictions = {name: _joined([part[name] for part in parts])[order] for name in parts[0] if name != "index"}
    return loss / max(weight, 1e-6), predictions


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates arrays [n, …]; where the second axis differs between buckets, rows are filled up with -1."""
    widest = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    fill = [[(0, 0), (0, widest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)] for part in parts if part.ndim > 1]
    return np.concatenate(
        [np.pad(p, w, constant_values=-1) for p, w in zip(parts, fill, strict=True)] if fill else parts
    )


def named_seed(seed: int, name: str) -> int:
    """A seed of what goes by that name, drawn from a run's: so that one draws the same whichever others ran."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0] >> 1)
