"""A host's layers run by ONNX Runtime: `Host.load(…, engine=…)`; choose.py says which batches are its.

Everything else stays the compiled program that it is: embeddings, the plugin's slots, the head, and what becomes of its
outputs. It is cut in two where the encoder is asked: the first half says what the layers read, the second takes what
they yield. So a plugin is swapped and a knowledge base revised as ever, and no graph knows of either. Records, buckets
and calls of JAX would take a fifth of the time in which a single text is answered, or more. So one text goes to a
classifier as ids and slots (single.py): the graph begins at these and yields logits, and NumPy ranks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from kinject.errors import InputError
from kinject.inference.program import Program
from kinject.inference.xla import cores
from kinject.models.encoder import Encoder, EncoderOutput
from kinject.models.heads import HostModel, PooledHead
from kinject.models.seams import Plugin
from kinject.serving.layer_graph import IDS, SCORES, LayerGraph, check_layers, embeds_words, scores_classes
from kinject.tasks.base import Task
from kinject.tree import Flat

Slots = tuple[np.ndarray, np.ndarray]
EngineName = Literal["jax", "onnxruntime", "auto"]
JAX = 'take engine "jax"'
FIRST = np.zeros((1, 1), np.int64)
INNER = "host/encoder/layers/"


class LayerInput(NamedTuple):
    """What the layers read: hidden state 0 [B, L, D], `segment_ids` [B, L], where the head reads [B, P] (None: all)."""

    hidden: jax.Array
    segments: jax.Array
    positions: jax.Array | None


class NotCut(Exception):
    """A program that cannot be cut at its encoder."""


class _Asked(Exception):
    """Ends the first half of a program where it asks the encoder."""

    def __init__(self, read: LayerInput):
        self.read = read


@dataclass
class _Half:
    """Stands in for the encoder in one half of a program; `last` [B, P, D] is what the layers yield, None in the first.

    It is asked once: a task that reads an encoder twice would be given one answer for both.
    """

    encoder: Encoder
    last: jax.Array | None = None
    asked: bool = False

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        plugin: Plugin | None = None,
        key: jax.Array | None = None,
        *,
        positions: jax.Array | None = None,
        start: int = 0,
    ) -> EncoderOutput:
        if self.asked or start or key is not None:
            raise NotCut("the task reads the encoder more than once")
        if plugin is not None and not fills_slots(plugin):
            raise NotCut(f"{plugin.name} speaks inside the layers, or reads them")
        self.asked = True
        if self.last is not None:
            return EncoderOutput(self.last, ())
        batch = batch if plugin is None else plugin.before(self.encoder, batch)
        raise _Asked(LayerInput(self.encoder.embed(batch, plugin).astype(jnp.float32), batch["segment_ids"], positions))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)


def halves(
    program: Program, inner: Iterable[str], finish: Callable[[jax.Array, Mapping[str, jax.Array]], Any]
) -> tuple[Callable[[Flat, Mapping[str, Any]], LayerInput], Callable[[Flat, Mapping[str, Any], Any], Any]]:
    """Cuts a program, at whose end `finish` makes of the task's outputs and the batch what the step yields.

    Args:
      program: of the host, and perhaps a plugin.
      inner: paths of the parameters that only the layers read; the halves are not given them.
      finish: of the task's outputs and the batch.

    Returns:
      (params, batch) -> what the layers read; (params, batch, what they yield [B, P, D]) -> what the step yields.
    """
    nobodys = dict.fromkeys(inner, np.zeros((), np.float32))

    def host(params: Flat, last: jax.Array | None) -> tuple[HostModel, Plugin | None]:
        merged, plugin = program.merge({**nobodys, **params})
        stand_in = SimpleNamespace(encoder=_Half(merged.encoder, last), head=merged.head, tuning=merged.tuning)
        return cast(HostModel, stand_in), plugin

    def before(params: Flat, batch: Mapping[str, jax.Array]) -> LayerInput:
        try:
            program.task.outputs(*host(params, None), batch, None)
        except _Asked as asked:
            return asked.read
        raise NotCut("the task does not read the encoder")

    def after(params: Flat, batch: Mapping[str, jax.Array], last: jax.Array) -> Any:
        return finish(program.task.outputs(*host(params, last), batch, None), batch)

    return before, after


class Either:
    """A step that `layers` runs where the batch is theirs, and XLA where it is not.

    Args:
      layers: who runs a host's layers.
      cut: paths of parameters that only the layers read -> the compiled halves of the program, without them: each
        argument costs time in each call.
      whole: the compiled program.
      program: what the others are made of.
      scored: (logits [B, P, C], batch, their softmax where it is known) -> what the step yields, in NumPy; None = the
        task has no such end.
    """

    def __init__(
        self,
        layers: Layers,
        cut: Callable[[Iterable[str]], tuple[Any, Any]],
        whole: Any,
        program: Program,
        scored: Callable[..., Any] | None = None,
    ):
        self.layers, self.cut, self.whole = layers, cut, whole
        plain = type(program.task).outputs is Task.outputs and layers.scores
        self._scored = scored if plain else None
        self._bare = program.plugin is None and type(program.task).rows is Task.rows
        self._halves: tuple[Any, Any] | None = None
        self._cut = True
        self._outer: tuple[Flat, Flat] = ({}, {})  # the parameters given last, and what the halves are given of them

    def __call__(self, params: Flat, batch: Mapping[str, Any], filled: int | None = None) -> Any:
        """As of any step: (params, batch of B rows) -> a tree of arrays [B, …].

        Args:
          params: flat, of host and plugin.
          batch: arrays [B, …].
          filled: how many of the rows are asked for, None = all; of the others anything is yielded.

        Raises:
          InputError: ONNX Runtime was asked for, and the task or the plugin does something inside of the layers.
        """
        if self._cut and self.layers.takes(len(batch["weights"])):
            try:
                return self._run(params, batch, filled)
            except NotCut as error:
                if self.layers.strict:
                    raise InputError("engine", f"onnxruntime cannot run this: {error}", JAX) from None
                self._cut = False
        return self.whole(params, batch)

    def _run(self, params: Flat, batch: Mapping[str, Any], filled: int | None) -> Any:
        share = 1.0 if filled is None else filled / len(batch["weights"])  # an example may be several rows
        if self._bare and self._scored is not None and self.layers.embeds:
            return self._scored(self.layers.bare(batch, share), batch)
        if self._outer[0] is not params:
            self._outer = params, {path: leaf for path, leaf in params.items() if not path.startswith(INNER)}
        given = self._outer[1]
        if self._halves is None:
            self._halves = self.cut(params.keys() - given.keys())
        before, after = self._halves
        if self._scored is None:
            return after(given, batch, self.layers.run(before(given, batch), share))
        return self._scored(self.layers.run(before(given, batch), share, "logits"), batch)

    @property
    def embeds(self) -> bool:
        """Whether one row is answered without JAX where its slots are known."""
        return self._scored is not None and self.layers.embeds and self.layers.takes(1)

    def one(self, batch: Mapping[str, Any], slots: Slots | None = None) -> Any:
        """What the step yields of one row, see `Layers.scores_of`. Only where it `embeds`."""
        assert self._scored is not None
        logits, probabilities = self.layers.scores_of(batch, slots)
        return self._scored(logits, batch, probabilities)


class Layers:
    """A host's layers in a session of ONNX Runtime.

    Args:
      host: in float32.
      int8: whether products are taken in int8 with int8 (see layer_graph.py).
      where: what messages name.
      vocabulary: texts have ids below it.

    Attributes:
      scores: whether the graph yields the head's logits, too.
      embeds: whether it can begin at the ids of a text and end with its logits.
      one, many: whether a batch of one row, and any other, is its.
      windows: whether batches are its even where there is enough for all cores.
      strict: whether what it cannot run is refused; else XLA runs that.

    Raises:
      InputError: the extra is not installed, or the graph does not compute such layers.
    """

    def __init__(self, host: HostModel, *, int8: bool, where: object, vocabulary: int = 0):
        missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
        if missing:
            problem = f"onnxruntime needs {' and '.join(missing)}"
            raise InputError("engine", problem, f"pip install 'kinject[onnx]', or {JAX}")
        check_layers(host.encoder, where)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = cores(), 1
        options.log_severity_level = 3  # errors
        self.scores = scores_classes(host.head)
        head = cast(PooledHead, host.head) if self.scores else None
        table = np.asarray(host.encoder.embeddings.word.embedding[...])
        self.embeds = self.scores and embeds_words(host.encoder) and 0 < vocabulary <= len(table)
        self._nothing: dict[str, np.ndarray] = {}
        if self.embeds:
            no_slots = {"slots": table[:0], "slot_cells": np.zeros((0, 2), np.int64)}
            no_hidden, no_ids = np.zeros((0, 0, table.shape[1]), np.float32), np.zeros((0, 0), np.int32)
            self._bare = {"words": table, "hidden": no_hidden, "positions": FIRST, **no_slots}
            self._nothing = {**dict.fromkeys(IDS, no_ids), **no_slots, "words": table[:0]}
        model = LayerGraph(host.encoder, head, embeds=self.embeds, int8=int8).model()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.one = self.many = self.windows = self.strict = True

    def run(self, read: LayerInput, share: float = 1.0, output: str = "last") -> np.ndarray:
        """What the last layer yields where it is read, float32 [B, P, D], or the head there: `logits` [B, P, C].

        What is padding in all rows is not computed, nor are rows behind the first `share` of them: zeros stand there.
        """
        segments = np.asarray(read.segments)
        rows, longest = extent(segments, share)
        places = np.arange(longest)[None].repeat(len(segments), 0) if read.positions is None else read.positions
        given = {
            "hidden": np.ascontiguousarray(np.asarray(read.hidden)[:rows, :longest]),
            "segments": np.ascontiguousarray(segments[:rows, :longest]),
            "positions": np.minimum(np.asarray(places, np.int64)[:rows], longest - 1),  # one beyond means nothing
            **self._nothing,
        }
        made = self._session.run([output], given)[0]
        missing = segments.shape[1] - longest if read.positions is None else 0
        if rows == len(segments) and not missing:
            return made
        return np.pad(made, [(0, len(segments) - rows), (0, missing), (0, 0)])

    def bare(self, batch: Mapping[str, np.ndarray], share: float = 1.0) -> np.ndarray:
        """As `run`, the head's logits [B, P, C] of a batch of the host alone. Only where it `embeds`."""
        segments = batch["segment_ids"]
        rows, longest = extent(segments, share)
        positions = np.minimum(batch.get("positions", np.zeros((len(segments), 1), np.int64)), longest - 1)
        cut = {name: np.ascontiguousarray(batch[name][:rows, :longest]) for name in ("segment_ids", *IDS)}
        logits, _ = self.scores_of({**cut, "positions": positions[:rows]})
        return np.pad(logits, [(0, len(segments) - rows), (0, 0), (0, 0)]) if rows < len(segments) else logits

    def scores_of(self, batch: Mapping[str, np.ndarray], slots: Slots | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The head's logits of a batch [B, L], and their softmax, float32 [B, P, C]. Only where it `embeds`.

        Args:
          batch: of a host alone, or of one with a plugin that maps entities; one row is read at its first position.
          slots: what such a plugin puts in the place of words: vectors float32 [n, D], rows and positions int64 [n, 2].
        """
        given = {**self._bare, "segments": batch["segment_ids"], **{name: batch[name] for name in IDS}}
        if "positions" in batch:
            given["positions"] = np.asarray(batch["positions"], np.int64)
        if slots is not None:
            given |= {"slots": slots[0], "slot_cells": slots[1]}
        return self._session.run(SCORES, given)

    def takes(self, rows: int) -> bool:
        """Whether it runs a batch of so many rows."""
        return self.one if rows == 1 else self.many


def extent(segments: np.ndarray, share: float) -> tuple[int, int]:
    """(how many rows are the first `share` of segments [B, L], where the longest row ends)."""
    return round(share * len(segments)), 1 + int(np.max(np.flatnonzero((segments > 0).any(0)), initial=0))


def fills_slots(plugin: Plugin) -> bool:
    """Whether a plugin neither speaks inside the layers nor reads what they yield."""
    return all(getattr(type(plugin), one) is getattr(Plugin, one) for one in ("feed_forward", "outputs"))
