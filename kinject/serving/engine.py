"""Queries -> answers, window by window: encoded, sorted into batches, computed, and put back into their order.

While the devices compute one window the next is read and encoded. Memory is bounded by the window, in texts and in
characters, however long the input is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np

from kinject.data.encode import EntityEncoder
from kinject.data.passage import SlotForm
from kinject.data.pipeline import Examples
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import HostBundle, attach_knowledge, record_of, task_examples
from kinject.inference.mesh import Placement
from kinject.inference.passages import tagged
from kinject.inference.program import Model, PlacedHost
from kinject.models.precision import Precision
from kinject.models.seams import Plugin
from kinject.serving.choose import choose
from kinject.serving.plugin import ActivePlugins
from kinject.serving.programs import EXPLAINED, PACKED, Cores, Programs, Shapes, Step
from kinject.serving.queries import Explanation, Label, Labels, Prediction, Query, Refused, windows
from kinject.serving.runtime import JAX, Either, EngineName, fills_slots
from kinject.serving.single import SingleTexts
from kinject.tasks.base import Task

RANKED = ("numbers", "scores", "possible")  # what an answer step yields of labels
MakeExamples = Callable[[Sequence[Record]], Examples]


@dataclass(frozen=True)
class Asked:
    """A window that was given to the devices.

    Attributes:
      results: (numbers of the examples int [n], what a step yields or will yield for their batch, first n rows theirs).
      refused: {number of a record: what is wrong with it}.
      made_of: the number of the record that an example was made of, int [examples].
      windows: what the task knows of each example beside its arrays (`Examples.references`), where it has windows.
      shortened: `where` of the records whose texts were too long for the host.
    """

    results: list[tuple[np.ndarray, Any]]
    refused: dict[int, InputError]
    made_of: np.ndarray
    windows: Sequence[Any] = ()
    shortened: frozenset[str] = frozenset()

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(number of the record, its row of what the step yields), on the host."""
        for index, row in self._examples():
            yield int(self.made_of[index]), row

    def parts(self) -> dict[int, list[tuple[Any, Any]]]:
        """For each record its examples' rows and windows, in the order of the examples."""
        made: dict[int, list[tuple[Any, Any]]] = {}
        for index, row in sorted(self._examples(), key=lambda one: one[0]):
            made.setdefault(int(self.made_of[index]), []).append((row, self.windows[index]))
        return made

    def give_up(self) -> None:
        """Takes back what no core has begun: nobody wants it any more."""
        for _, made in self.results:
            if isinstance(made, Future):
                made.cancel()

    def _examples(self) -> Iterator[tuple[int, Any]]:
        for numbers, made in self.results:
            leaves, form = jax.tree.flatten(made.result() if isinstance(made, Future) else made)
            fetched = [np.asarray(leaf) for leaf in leaves]
            for row, number in enumerate(numbers.tolist()):
                yield number, jax.tree.unflatten(form, [leaf[row] for leaf in fetched])


class Explains(Protocol):
    """What says why answers are what they are; `kinject.serving.explain.Explainer` does."""

    def explain(
        self, records: Sequence[Record], found: Mapping[int, Mapping[str, np.ndarray]]
    ) -> dict[int, Explanation]:
        """Explanations by number of the record, for those that have an answer (`found`, rows of an answer step)."""


class Engine:
    """One host, one task, and the programs that are compiled for them.

    Args:
      host: the host, with the head of the task.
      task: made for it.
      max_length: tokens a text, None = the host's maximum.
      rows: texts a batch.
      window: texts that are sorted and held at a time.
      precision: what the host is held and computed in.
      place: where arrays live.
      engine: who runs the host's layers, see runtime.py.

    Attributes:
      told: who runs them, in one line, with what "auto" measured.
    """

    def __init__(
        self,
        host: HostBundle,
        task: Task,
        *,
        max_length: int | None = None,
        rows: int = 32,
        window: int = 1024,
        precision: Precision = "float32",
        place: Placement | None = None,
        engine: EngineName = "jax",
    ):
        self.task, self.max_length, self.window, self.precision = task, max_length, window, precision
        self.place = place or Placement.single()
        self.rows, self._hosts = rows, {"": host}  # by the tag that stands before texts
        self._placed = PlacedHost(host.loaded.host, task, precision, self.place)
        self.layers, self.told = choose(
            engine, host.loaded.host, self._placed, precision, host.loaded.folder, host.tokenizer.vocab_size
        )
        self.programs, self._cores = Programs(self.layers), Cores()
        self._shapes: dict[bool, Shapes] = {}
        self._single_texts: dict[bool, SingleTexts] = {}
        self._encoders: dict[tuple[str, SlotForm], EntityEncoder] = {}

    def host(self, active: ActivePlugins) -> HostBundle:
        """The host, with the tokenizer that reads texts for what is plugged in."""
        tag, plain = active.tag, self._hosts[""]
        if tag not in self._hosts:
            self._hosts[tag] = replace(plain, tokenizer=tagged(plain.tokenizer, tag))
        return self._hosts[tag]

    def check_plugin(self, plugin: Plugin, where: object) -> None:
        """Raises InputError for a plugin that the engine asked for cannot run."""
        if self.layers is not None and self.layers.strict and not fills_slots(plugin):
            raise InputError(where, f"{plugin.name} speaks inside the layers, which onnxruntime runs", JAX)

    def answer(
        self,
        queries: Iterable[Query | Refused],
        active: ActivePlugins,
        *,
        top: int,
        compare: bool,
        explainer: Explains | None = None,
    ) -> Iterator[Prediction | Refused]:
        """Answers in the order of the queries; `compare` adds the host alone, `explainer` what the knowledge did."""
        model = self.model(active.plugin)
        step = self.programs.answer(model.program, top)
        bare = self.model(None) if compare else None
        at_once = None if compare or explainer else self._texts(active, model, step)
        waiting, given = None, list[Asked]()
        try:
            for window in windows(queries, self.window):
                alone = at_once if len(window) == 1 and waiting is None else None
                if alone is not None and (made := alone.predict(window[0], top)):
                    yield made
                    continue
                records = [one.record for one in window if isinstance(one, Query)]
                asked = self.ask(records, active, model, step)
                before = None
                if bare is not None:
                    before = self.ask(records, active.alone, bare, self.programs.answer(bare.program, top))
                given = [*given[-2:], asked, *([] if before is None else [before])]
                if waiting is not None:
                    yield from self._collect(*waiting, active, explainer, top)
                waiting = window, asked, before
            if waiting is not None:
                yield from self._collect(*waiting, active, explainer, top)
        finally:
            for each in given:
                each.give_up()

    def model(self, plugin: Plugin | None) -> Model:
        """The program of the host with a plugin, and the parameters on the devices."""
        return self._placed.model(plugin)

    def ask(
        self,
        records: Sequence[Record],
        active: ActivePlugins,
        model: Model,
        step: Step,
        explained: np.ndarray | None = None,
    ) -> Asked:
        """Gives records to the devices; `explained` int [n] goes along into the batches."""
        made_of = np.empty(0, np.int64)
        if not records:
            return Asked([], {}, made_of)
        if len(records) == 1 and (made := self._single(records[0], active, model, step)):
            return made
        encoder = self._encoder(active)
        examples, numbers, refused = sift(lambda some: self.examples(some, active, encoder), records)
        results: list[tuple[np.ndarray, Any]] = []
        known: Sequence[Any] = ()
        if examples is not None:
            known = examples.references.get("windows", ())
            made_of = numbers[record_of(examples, numbers)]
            if explained is not None:
                examples = examples.with_arrays(
                    lambda bucket: {EXPLAINED: explained[made_of[bucket["index"]]].astype(np.int32)}
                )
            gather = active.knowledge.gather if active.reads_slots else None
            pad, many = self._hosts[""].tokenizer.pad_id, len(records) >= PACKED * self.rows
            packs = many and self._packs(active.plugin)
            if packs:
                shared = self._cores.shared(step, examples)
                packs = shared is not step or self.layers is None or not self.layers.many
                step = shared
            for index, batch in self._dealer(active).batches(examples, gather, pad, packs):
                filled = (len(index),) if isinstance(step, Either) else ()
                given = self.place.given(batch, len(batch["weights"]))
                results.append((index, step(model.params, given, *filled)))
            unasked = set(numbers.tolist()) - set(made_of.tolist())
            refused |= {one: _no_example(records[one], examples) for one in unasked}
        return Asked(results, refused, made_of, known, frozenset(encoder.shortened))

    def _single(self, record: Record, active: ActivePlugins, model: Model, step: Step) -> Asked | None:
        """One text without batches of examples; None where it takes these."""
        texts = self._texts(active, model, step)
        made = texts(record, step) if texts is not None and isinstance(step, Either) else None
        if made is None:
            return None
        one = np.zeros(1, np.int64)
        return Asked([(one, made[0])], {}, one, (), frozenset([record.where] * made[1]))

    def _texts(self, active: ActivePlugins, model: Model, step: Step) -> SingleTexts | None:
        """Answers single texts with what is plugged in; None where these are a batch like any other."""
        if not (isinstance(step, Either) and step.embeds and SingleTexts.takes(active.plugin)):
            return None
        alone = active.plugin is None
        single = self._single_texts.get(alone)
        if single is None or single.active is not active:
            encoder = partial(self._encoder, active)
            try:
                single = SingleTexts(self.task, active, model, step.layers, self.programs, encoder)
            except InputError:
                return None  # each text is refused for it
            self._single_texts[alone] = single
        return single

    def examples(
        self, records: Sequence[Record], active: ActivePlugins, encoder: EntityEncoder | None = None
    ) -> Examples:
        """The task's examples of records without answers, with what the plugin prepares."""
        task, host = self.task, self.host(active)
        tokenizer = host.tokenizer
        records = [replace(one, fields={**one.fields, **task.unanswered(one, tokenizer)}) for one in records]
        made = task_examples(
            task,
            active.plugin,
            records,
            host,
            active.knowledge,
            max_length=self.max_length,
            buckets=1,
            encoder=encoder,
        )
        several = made.record_index is not None and len(set(made.record_index.tolist())) < len(made.record_index)
        if several and task.answer != "spans":
            raise InputError(type(task).__name__, "it makes several examples of a text", "such a task cannot be served")
        return attach_knowledge(made, active.plugin, records, host, active.knowledge)

    def labels(self, made: Any, record: Record, top: int) -> Labels:
        """What an answer step yields of a record -> its labels: one row, or the parts of one with spans."""
        name, tokenizer = self.task.choice_name, self._hosts[""].tokenizer
        if self.task.answer == "spans":
            return tuple(Label(*one) for one in self.task.spans(record, made, top, tokenizer))
        if self.task.answer == "vector":
            return ()
        if self.task.multi_label:
            order = np.argsort(-made["scores"], kind="stable")
            return tuple(
                Label(name(int(i), record, tokenizer), float(made["scores"][i])) for i in order if made["chosen"][i]
            )
        return tuple(
            Label(name(number, record, tokenizer), score)
            for number, score, keep in zip(*(made[of].tolist() for of in RANKED), strict=True)
            if keep
        )

    def _collect(
        self,
        window: Sequence[Query | Refused],
        asked: Asked,
        before: Asked | None,
        active: ActivePlugins,
        explainer: Explains | None,
        top: int,
    ) -> Iterator[Prediction | Refused]:
        found, alone = self._answers(asked), {} if before is None else self._answers(before)
        refused = asked.refused | (before.refused if before is not None else {})
        records = [one.record for one in window if isinstance(one, Query)]
        entities = active.linked(records)
        explained = {} if explainer is None else explainer.explain(records, found)
        number = -1
        for one in window:
            if isinstance(one, Refused):
                yield one
                continue
            number += 1
            if number in refused:
                yield Refused.because_of(refused[number], one.line, one.id)
                continue
            if not _finite(found[number]) or (before is not None and not _finite(alone[number])):
                mend = "a weight, a vector or the texts' numbers are too large: look at the host and the plugins"
                cause = InputError(one.record.where, "the scores are not finite, so there is no answer", mend)
                yield Refused.because_of(cause, one.line, one.id)
                continue
            yield Prediction(
                one.line,
                self.labels(found[number], one.record, top),
                entities[number],
                self.labels(alone[number], one.record, top) if before is not None else None,
                explained.get(number),
                one.id,
                one.record.where in asked.shortened,
                found[number]["vector"] if self.task.answer == "vector" else None,
                alone[number]["vector"] if self.task.answer == "vector" and before is not None else None,
                active.leaves_alone(entities[number]),
            )

    def _answers(self, asked: Asked) -> dict[int, Any]:
        """By number of the record, its row; of a task with spans, its parts."""
        return asked.parts() if self.task.answer == "spans" else dict(asked.rows())

    def _packs(self, plugin: Plugin | None) -> bool:
        """Whether batches can be without their padding: on one CPU, of layers that XLA runs and no plugin enters."""
        plain = type(self.task).outputs is Task.outputs and type(self.task).rows is Task.rows
        ours = self._placed.devices == 1 and not (self.layers is not None and self.layers.windows)
        fits = self._hosts[""].loaded.host.encoder.packs and (plugin is None or fills_slots(plugin))
        return jax.default_backend() == "cpu" and plain and ours and fits

    def _encoder(self, active: ActivePlugins) -> EntityEncoder:
        """What encodes the texts of one window: made once, but for the list of those that it shortens."""
        name = active.tag, "before" if active.plugin is None else active.plugin.slot_form
        if name not in self._encoders:
            self._encoders[name] = self.host(active).encoder(self.max_length, name[1])
        made = copy(self._encoders[name])
        made.shortened = set()
        return made

    def _dealer(self, active: ActivePlugins) -> Shapes:
        alone = active.plugin is None
        if alone not in self._shapes:
            longest = self._hosts[""].tokenizer.max_length
            self._shapes[alone] = Shapes(longest, self.rows, self.place.row_parts)
        return self._shapes[alone]


def _finite(answer: Any) -> bool:
    """Whether no number of an answer step's row, or of the parts of one with spans, is NaN or infinite."""
    parts = [row for row, _ in answer] if isinstance(answer, list | tuple) else [answer]
    leaves = (leaf for row in parts for leaf in row.values())
    return all(np.isfinite(leaf).all() for leaf in leaves if leaf.dtype.kind == "f")


def sift(make: MakeExamples, records: Sequence[Record]) -> tuple[Examples | None, np.ndarray, dict[int, InputError]]:
    """Makes examples of those records that can be used.

    Returns:
      (the examples, None where no record can be used; the numbers of the records that they were made of int [n]; what
      is wrong with the others, by number).
    """
    try:
        return make(records), np.arange(len(records)), {}
    except InputError:
        refused = _faults(make, records, 0)
    good = np.array([number for number in range(len(records)) if number not in refused], np.int64)
    if not len(good):
        return None, good, refused
    return make([records[number] for number in good]), good, refused


def _faults(make: MakeExamples, records: Sequence[Record], first: int) -> dict[int, InputError]:
    """What is wrong with each bad record, by number; finding one among n takes about log2(n) attempts."""
    try:
        make(records)
    except InputError as error:
        if len(records) == 1:
            return {first: error.with_traceback(None)}
        half = len(records) // 2
        return _faults(make, records[:half], first) | _faults(make, records[half:], first + half)
    return {}


def _no_example(record: Record, examples: Examples) -> InputError:
    return InputError(record.where, "the task makes no example of it", "; ".join(examples.notes))
