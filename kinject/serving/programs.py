"""The compiled programs of prediction: what is answered, how probable one answer is, and what its slots did for it.

Parameters are arguments, so another plugin of the same shape runs the same programs; a program is compiled once for
each shape of batch. So `Shapes` makes batches of few shapes of a window's examples: sorted by length and padded to the
rungs of a ladder, which lie an eighth to a quarter apart (a half at its foot). Sorted rows pad little that way, and 19
rungs reach 512 positions. Rows and the other axes that vary are rounded up too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.pipeline import NOWHERE, PER_POSITION, Batch, Examples, Feed, Gather
from kinject.inference.program import Program, map_microbatches
from kinject.inference.xla import ONE_CORE, cores
from kinject.models.packing import CELLS
from kinject.models.seams import DelegatingPlugin, Plugin
from kinject.serving.runtime import Either, Layers, halves
from kinject.tasks.base import Task
from kinject.tree import Flat

EXPLAINED = "explained"  # int32 [B]: in a batch, the number of the answer that is explained
POSSIBLE = -1e8  # an answer with a lower raw score is none
PACKED = 2  # batches of texts from which on padding is left out: fewer would not be worth a program of their own
MOST_POSITIONS = 1024  # of such a batch: temporaries of more leave a CPU's caches
MULTIPLIED = "jax_default_matmul_precision"  # of JAX's settings the one that a thread may well have its own of
BATCHES_A_CORE = 2  # at least, of most positions, or a core would wait for another's last batch too long
LEAST_LENGTH, FULL_LENGTH, LEAST_ENTITIES = 16, 64, 8
ENTITIES = ("entity_ids", "entity_vectors")

Step = Callable[[Flat, Mapping[str, jax.Array]], Any]
Finish = Callable[[jax.Array, Mapping[str, jax.Array]], Any]


class Programs:
    """Compiled steps by program; `compiled` counts how often one was traced, and so compiled, for a new shape.

    Args:
      layers: who runs a host's layers where it is not XLA; None = nobody.
    """

    def __init__(self, layers: Layers | None = None) -> None:
        self.compiled, self.layers = 0, layers
        self._steps: dict[Any, Any] = {}

    def answer(self, program: Program, top: int) -> Step:
        """(params, batch) -> {"scores", "numbers", "possible"}, each [B, top], best answers first.

        Where the task is multi-label, "scores" and "chosen" [B, C] of all; where its answers are no labels, what
        `Task.found` yields, or {"vector"} [B, D].
        """
        task = program.task

        def of(outputs: jax.Array, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            if task.answer == "spans":
                return task.found(outputs, rows, top)
            if task.answer == "vector":
                return {"vector": task.vector(outputs)}
            raw = task.choices(outputs, rows)
            scores = probabilities(task, raw)
            if task.multi_label:
                return {"scores": scores, "chosen": task.predict(outputs, rows)["chosen"]}
            found, numbers = jax.lax.top_k(scores, min(top, scores.shape[-1]))
            possible = jnp.take_along_axis(raw, numbers, axis=-1) > POSSIBLE
            return {"scores": found, "numbers": numbers, "possible": possible}

        def scored(outputs: Any, rows: Mapping[str, Any], softmax: Any = None) -> dict[str, np.ndarray]:
            raw = np.asarray(task.choices(outputs, rows), np.float32)
            if task.scores == "raw":
                return rank(raw, raw, top)
            return rank(raw, _softmax(raw) if softmax is None else np.asarray(task.choices(softmax, rows)), top)

        ranked = task.answer == "labels" and not task.multi_label and task.scores != "sigmoid"
        return self._finished(("answer", program, top), program, of, scored if ranked else None)

    def probability(self, program: Program) -> Step:
        """(params, batch) -> float32 [B]: the score of the answer that `batch["explained"]` names."""

        def of(outputs: jax.Array, rows: Mapping[str, jax.Array]) -> jax.Array:
            return _of(probabilities(program.task, program.task.choices(outputs, rows)), rows)

        return self._finished(("probability", program), program, of)

    def gradient(self, program: Program) -> Step:
        """(params, batch) -> float32, of the shape of `entity_ids`: gradient times input of each entity's slots.

        The derivative of the answer's raw score by a factor on what stands in the slots of one entity, at the factor 1:
        the sum over its slots of (gradient by the slot's vector) . (the vector).
        """

        def step(params: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
            host, merged = program.merge(params)
            if merged is None:
                raise ValueError("a host without a plugin has no slots")
            plugin = merged

            def total(factors: jax.Array) -> jax.Array:
                outputs = program.task.outputs(host, _Scaled(plugin, factors), batch)
                return _of(program.task.choices(outputs, batch), batch).sum()  # rows do not touch each other

            return jax.grad(total)(jnp.ones(batch["entity_ids"].shape, jnp.float32))

        name = ("gradient", program)
        if name not in self._steps:
            self._steps[name] = self._compiled(step)
        return self._steps[name]

    def slots(self, program: Program) -> Callable[[Flat, np.ndarray, np.ndarray], jax.Array]:
        """(parameters `plugin/…`, rows int32 [1, M], vectors float32 [1, M, k]) -> what fills their slots, [M, E]."""

        def step(params: Flat, rows: jax.Array, vectors: jax.Array) -> jax.Array:
            plugin = program.merge_plugin(params)
            slot = jnp.arange(rows.shape[1], dtype=jnp.int32)[None]
            batch = {"entity_slot": slot, "entity_ids": rows, "entity_vectors": vectors}
            return plugin.embed(jnp.zeros((*rows.shape, plugin.embedding_size), jnp.float32), batch)[0]

        name = ("slots", program)
        if name not in self._steps:
            self._steps[name] = self._compiled(step)
        return self._steps[name]

    def _finished(self, name: Any, program: Program, finish: Finish, scored: Any = None) -> Step:
        """The step that yields what `finish` makes of the task's outputs and the batch; `scored` does so in NumPy."""
        if name in self._steps:
            return self._steps[name]

        def of(params: Flat, rows: Mapping[str, jax.Array]) -> Any:
            return finish(program.outputs(params, rows, None), rows)

        def step(params: Flat, batch: Mapping[str, jax.Array]) -> Any:
            size = "whole" if CELLS in batch else program.micro_batch  # cells are told of the batch as it is
            return map_microbatches(partial(of, params), batch, size)

        made = self._compiled(step)
        if self.layers is not None:
            made = Either(self.layers, partial(self._halves, program, finish), made, program, scored)
        self._steps[name] = made
        return made

    def _halves(self, program: Program, finish: Finish, inner: Iterable[str]) -> tuple[Any, Any]:
        before, after = halves(program, inner, finish)
        return jax.jit(before), self._compiled(after)

    def _compiled(self, step: Callable[..., Any]) -> Any:
        def counted(*arguments: Any) -> Any:
            self.compiled += 1  # runs while JAX traces, which it does once a shape
            return step(*arguments)

        return jax.jit(counted)


class Cores:
    """A CPU's cores, each of which computes batches by itself: they wait for each other at the end, not in each step.

    What is between the large products (attention's small ones, GELU, norms) does not keep two threads busy.
    """

    def __init__(self) -> None:
        self._alone: dict[Any, Any] = {}
        self._compiled: dict[Any, Any] = {}
        self._threads: ThreadPoolExecutor | None = None

    def shared(self, step: Step, examples: Examples) -> Step:
        """The step as (params, batch) -> what will be its result, where there is enough for all cores; else itself.

        Args:
          step: a compiled one, or what makes other calls, which stays as it is.
          examples: all that are about to be given to it, in batches without their padding.
        """
        positions = sum(int((bucket["segment_ids"] > 0).sum()) for bucket in examples.buckets)
        whole: Any = step.whole if isinstance(step, Either) else step
        if cores() == 1 or positions < BATCHES_A_CORE * cores() * MOST_POSITIONS or not hasattr(whole, "lower"):
            return step
        if whole not in self._alone:
            self._alone[whole] = jax.jit(whole.__wrapped__, compiler_options=ONE_CORE)
        self._threads = self._threads or ThreadPoolExecutor(cores(), "kinject")
        return partial(self._submit, self._threads, self._alone[whole])

    def _submit(
        self, threads: ThreadPoolExecutor, step: Any, params: Flat, batch: Mapping[str, Any], filled: int | None = None
    ) -> Any:
        del filled  # all rows are computed
        leaves, form = jax.tree.flatten((params, dict(batch)))
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        asked = step, form, shapes, getattr(jax.config, MULTIPLIED)
        if asked not in self._compiled:  # here: two threads would compile it twice, and without the caller's settings
            self._compiled[asked] = step.lower(params, batch).compile()
        program = self._compiled[asked]
        try:
            return threads.submit(lambda: jax.block_until_ready(program(params, batch)))
        except RuntimeError:  # the interpreter ends, and starts no thread any more
            return program(params, batch)


def probabilities(task: Task, raw: jax.Array) -> jax.Array:
    """Raw scores [..., C] -> float32, 0 to 1: each for itself where several may hold, else of one among all.

    Those of a host that was trained on numbers stay as they are.
    """
    raw = raw.astype(jnp.float32)
    if task.scores == "raw":
        return raw
    return jax.nn.sigmoid(raw) if task.multi_label or task.scores == "sigmoid" else jax.nn.softmax(raw, axis=-1)


def rank(raw: np.ndarray, scores: np.ndarray, top: int) -> dict[str, np.ndarray]:
    """What `Programs.answer` yields, in NumPy, of raw scores and probabilities [B, C]: in the order of `lax.top_k`."""
    order = -scores
    if scores is raw:  # a NaN comes first, so that the answer is refused; of a softmax all are NaN then
        order[np.isnan(order)] = -np.inf
    numbers = order.argsort(axis=-1, kind="stable")[:, :top]
    rows = np.arange(len(raw))[:, None]
    return {"scores": scores[rows, numbers], "numbers": numbers, "possible": raw[rows, numbers] > POSSIBLE}


def _softmax(raw: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # of infinite scores: NaN, which is refused
        powers = np.exp(raw - raw.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)


def _of(scores: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.take_along_axis(scores, batch[EXPLAINED][:, None], axis=1)[:, 0]


class _Scaled(DelegatingPlugin):
    """A plugin whose slots are multiplied by a factor each."""

    def __init__(self, plugin: Plugin, factors: jax.Array):
        super().__init__(plugin)
        self.factors = factors.reshape(-1, factors.shape[-1])  # [rows, M]

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        made, slot = self.plugin.embed(embeddings, batch, key), batch["entity_slot"]
        here = jnp.take_along_axis(self.factors, jnp.maximum(slot, 0), axis=1)
        return jnp.where((slot >= 0)[:, :, None], made * here[:, :, None].astype(made.dtype), made)


def ladder(longest: int) -> tuple[int, ...]:
    """The padded lengths: 16, 24, 32, …, 64, 80, 96, 112, 128, 160, … and `longest` at the end."""
    rungs, rung = [], LEAST_LENGTH
    while rung < longest:
        rungs.append(rung)
        rung += max(8, (1 << rung.bit_length() - 1) // 4)  # steps of 8, then of a quarter of the power of two below
    return (*rungs, longest)


def filled(sizes: np.ndarray, rung: tuple[int, int], positions: int) -> tuple[int, int, int]:
    """How the longest of some examples fill a batch that is computed without its padding.

    Args:
      sizes: positions of each, int [n], ascending.
      rung: the padded length below that of the batch (0 = none), and L of the batch.
      positions: T that it computes; half of that, or a quarter, where the last of them need no more.

    Returns:
      (how many of the examples, B, T).
    """
    below, length = rung
    positions, least = max(positions, length), max(below + 1, length // 2)
    most = positions // least  # attention has B rows of L positions: no more than examples of this rung can need
    running = np.cumsum(sizes[::-1][:most])
    taken = int(np.searchsorted(running, positions, side="right"))
    while taken == len(sizes) and 2 * max(running[-1], length) <= positions and 2 * taken <= most:
        positions, most = positions // 2, most // 2
    return taken, most, positions


def power_of_two(number: int) -> int:
    """The next power of two, 1 for 0."""
    return 1 << max(number - 1, 0).bit_length()


class Shapes:
    """Deals batches, and remembers how wide each array has been, so that shapes seldom change.

    Args:
      longest: positions that the host has.
      rows: B of a batch of short texts; see `rows_of`.
      parts: rows are a multiple of this (devices that share them).
    """

    def __init__(self, longest: int, rows: int, parts: int = 1):
        self.lengths, self.rows, self.parts = ladder(longest), rows, parts
        self._widths: dict[str, tuple[int, ...]] = {}

    def batches(
        self, examples: Examples, gather: Gather | None, pad_id: int, packs: bool = False
    ) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields (numbers of the examples int [n], batch of B >= n rows), longest examples first.

        Where padding is to be left out (`packs`), a batch has as many as fill its positions, and says which of its
        cells these are (`cells`).
        """
        feed = Feed(examples.with_arrays(_with_entities), gather)
        for number, bucket in enumerate(feed.examples.buckets):
            real = (bucket["segment_ids"] > 0).sum(-1)
            sizes = real.reshape(len(real), -1).max(1)
            order = np.argsort(sizes, kind="stable")
            stop = len(order)
            while stop:
                rung = bisect_left(self.lengths, sizes[order[stop - 1]])
                below, length = (self.lengths[rung - 1] if rung else 0), self.lengths[rung]
                rows, positions = self.rows_of(length, len(order)), 0
                taken = min(rows, stop)
                if packs and real.ndim == 1:
                    full = min(self.rows * FULL_LENGTH // 2, MOST_POSITIONS)
                    taken, rows, positions = filled(sizes[order[:stop]], (below, length), full)
                chosen = order[stop - taken : stop]
                if rows == len(chosen):
                    batch = feed.batch(number, chosen)
                else:
                    batch = feed.batch(number, np.pad(chosen, (0, rows - len(chosen)), mode="edge"))
                    batch["weights"] = np.copy(batch["weights"])
                    batch["weights"][len(chosen) :] = 0
                fitted = self._fit(batch, length, pad_id)
                if positions:
                    cells = np.flatnonzero(fitted["segment_ids"][:taken])
                    beyond = np.full(positions - len(cells), rows * length)
                    fitted[CELLS] = np.concatenate([cells, beyond]).astype(np.int32)
                yield bucket["index"][chosen], fitted
                stop -= len(chosen)

    def rows_of(self, length: int, count: int) -> int:
        """B of a batch of this length: fewer rows the longer it is beyond `FULL_LENGTH`, and no more than are there."""
        most = self.rows
        if length > FULL_LENGTH:
            most = 1 << max(1, self.rows * FULL_LENGTH // length).bit_length() - 1
        rows = min(most, power_of_two(count))
        return -(-rows // self.parts) * self.parts

    def _fit(self, batch: Batch, length: int, pad_id: int) -> Batch:
        several = self._width("several", batch["token_ids"].shape[1:-1])  # such as the choices of a question
        fitted = {}
        for name, values in batch.items():
            if name in PER_POSITION:
                shape = (*several, length)
            elif name in ENTITIES:
                shape = (*several, *values.shape[1 + len(several) :])
            else:
                shape = self._width(name, values.shape[1:])
            fitted[name] = _fitted(values, shape, pad_id if name == "token_ids" else NOWHERE.get(name, 0))
        return fitted

    def _width(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape an array gets: what it had before where that is enough, else rounded up and remembered."""
        known = self._widths.get(name)
        if known is None:
            self._widths[name] = shape
        elif any(new > old for new, old in zip(shape, known, strict=True)):
            grown = (old if new <= old else power_of_two(new) for new, old in zip(shape, known, strict=True))
            self._widths[name] = tuple(grown)
        return self._widths[name]


def _with_entities(bucket: Batch) -> Batch:
    """`entity_ids` [..., M] with M one of few numbers, also where no example has an entity."""
    ids = bucket["entity_ids"]
    most = max(LEAST_ENTITIES, power_of_two(ids.shape[-1]))
    return {"entity_ids": _fitted(ids, (*ids.shape[1:-1], most), -1)}


def _fitted(values: np.ndarray, shape: tuple[int, ...], fill: int) -> np.ndarray:
    """The array, cut or widened behind its first axis."""
    if values.shape[1:] == shape:
        return values
    made = np.full((len(values), *shape), fill, values.dtype)
    inside = tuple(slice(0, min(one, other)) for one, other in zip(values.shape[1:], shape, strict=True))
    made[(slice(None), *inside)] = values[(slice(None), *inside)]
    return made
