"""What a task is: which head it reads, what its examples and batches look like, its loss and its metric."""

from __future__ import annotations

import importlib
import math
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.encode import Encoded, EntityEncoder, Passage, Rows, rows_with_vector
from kinject.errors import InputError, did_you_mean
from kinject.models.heads import Head, logits

if TYPE_CHECKING:
    from kinject.data.encode import EntityEncoder
    from kinject.data.pipeline import Examples
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.pretrained import LoadedHost
    from kinject.models.seams import Plugin


def slot_rows(knowledge: KnowledgeBase | None) -> Rows | None:
    """Entity ids -> knowledge rows, -1 for entities without a vector; None when the plugin is off."""
    return None if knowledge is None else rows_with_vector(knowledge)


def plain_passages(records: Sequence[Record]) -> list[Passage]:
    """The records' texts with their mentions, as they are."""
    return [Passage(record.source, record.mentions, where=record.where) for record in records]


def pad_rows(encoder: EntityEncoder, rows: Sequence[Encoded], length: int) -> dict[str, np.ndarray]:
    """The arrays of `EntityEncoder.pad`, with as many places for entities as the row with the most of them needs."""
    return encoder.pad(rows, length, max(len(one.entities) for one in rows))


def first_span(one: Encoded) -> np.ndarray:
    """int32 [2]: start and end of the first mention's pieces; (0, 0) where there is no mention."""
    return one.spans[0] if len(one.spans) else np.zeros(2, np.int32)


PER_EXAMPLE = ("labels", "weights", "index")  # all else in the batch of such a task has the axes of its token ids


def flat_rows(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch of examples of several texts, [B, N, L] or [B, N, K, L], as the encoder reads it: [rows, L].

    All axes of the token ids but the last become one, and what an example has once is left out. What a method's
    `prepare` adds to such examples has these axes too: knowledge of a choice stands with the choice.
    """
    axes = batch["token_ids"].ndim - 1
    count = math.prod(batch["token_ids"].shape[:-1])
    rows = {name: values for name, values in batch.items() if name not in PER_EXAMPLE}
    return {name: values.reshape(count, *values.shape[axes:]) for name, values in rows.items()}


Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Extent:
    """How large a batch is, for compiling a step ahead of time.

    Attributes:
      rows: B, over all devices.
      length: L, padded.
      entities: M of a row; how many a data set has is not known without it, and changes little.
      places: P, positions that are read, for tasks in which the data decides that.
      knowledge_dim: k of the entity vectors; None without knowledge.
      hidden_size: D of the host.
      outputs: of the host's head, where their number is the task's.
      choices: of an example of multiple choice, the most that the data set has.
    """

    rows: int
    length: int
    entities: int = 2
    places: int = 8
    knowledge_dim: int | None = None
    hidden_size: int = 0
    outputs: int = 0
    choices: int = 4

    def tokens(self, *axes: int) -> Shapes:
        """The arrays that every batch has: [B, …, L] tokens, [B, …, M] entities and their vectors, weights [B].

        Args:
          axes: axes between rows and positions, such as a few-shot example's N and K.
        """
        count = self.entities if self.knowledge_dim is not None else 0
        names = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")
        made = {name: self.whole(*axes, self.length) for name in names}
        made |= {"entity_ids": self.whole(*axes, count), "index": self.whole(), "weights": self.real()}
        if count and self.knowledge_dim is not None:
            made["entity_vectors"] = self.real(*axes, count, self.knowledge_dim)
        return made

    def whole(self, *axes: int) -> jax.ShapeDtypeStruct:
        """int32 [B, *axes]."""
        return jax.ShapeDtypeStruct((self.rows, *axes), jnp.int32)

    def real(self, *axes: int) -> jax.ShapeDtypeStruct:
        """float32 [B, *axes]."""
        return jax.ShapeDtypeStruct((self.rows, *axes), jnp.float32)


class Answer(NamedTuple):
    """One of the answers to a text that are found in it, best first or in the order of the text.

    Attributes:
      label: the label's name, or the answer's own words.
      score: 0 to 1.
      start, end: characters of the text, end exclusive; None where the text came in words, which have an answer each.
    """

    label: str
    score: float
    start: int | None = None
    end: int | None = None


H = TypeVar("H", bound=Head)


class Task(ABC):
    """One task. Instances are stateless but for what they were constructed with.

    Attributes:
      head: the kind of head that the host must have, or None when the task reads the bare encoder.
      required: record fields without which an example is an error.
      metric: the metric on which checkpoints are compared; larger is better.
      labels: names of the head's outputs, in their order; None for tasks whose outputs have no names.
      made_as: the registered name and the options that `make_task` made it of.
      multi_label: whether an example may have several answers at once, each for itself (see `choices`).
      start: the closed form from which map-tuning on this task starts best, see plugins/map_tuning.py.
      scores: what makes scores of `choices`: a "softmax" over them, a "sigmoid" of each, or nothing ("raw").
      answer: what is served: "labels", of which an example has one or more (`choices`), "spans" of a text with labels
        of their own (`spans`), or a "vector" of the text (`vector`).
      joins: whether a record is asked by several examples, whose predictions belong together (see `of_records`).
    """

    head: ClassVar[str | None]
    required: ClassVar[tuple[str, ...]] = ()
    metric: str = "accuracy"
    labels: tuple[str, ...] | None = None
    made_as: tuple[str, Mapping[str, Any]] = ("", {})
    multi_label: ClassVar[bool] = False
    start: ClassVar[str] = "ridge_mention"
    scores: Literal["softmax", "sigmoid", "raw"] = "softmax"
    answer: ClassVar[Literal["labels", "spans", "vector"]] = "labels"
    joins: ClassVar[bool] = False

    @property
    def num_labels(self) -> int | None:
        """How many outputs a host made for this task has; None where the head alone decides."""
        return None

    def for_host(self, loaded: LoadedHost, where: object) -> Task:
        """The task as this host was made for it: a task with labels takes the host's, or refuses another list.

        Raises:
          InputError: the task's labels are not those of the host.
        """
        del loaded, where
        return self

    def for_evaluation(self) -> Task:
        """The task as development and test data are measured; differs where training draws its examples."""
        return self

    @abstractmethod
    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """Records -> examples. With `knowledge`, entities that have a vector there get a slot; without, none do.

        Raises:
          InputError: a record that the task cannot use, naming its file and line; no record at all.
        """

    def bare_examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """The examples without any slot: what the host alone is compared on, which a task may choose by `knowledge`."""
        del knowledge
        return self.examples(records, encoder, None, buckets=buckets)

    def part(self) -> Task:
        """What the evaluation step computes: this task, unless an example is evaluated in parts (`Examples.parts`)."""
        return self

    def prepare(self, examples: Examples, records: Sequence[Record], host: Any, max_length: int | None) -> Examples:
        """Adds what must be computed by the frozen host before training (nothing, for most tasks)."""
        del records, host, max_length
        return examples

    def rows(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """The batch as the encoder reads it, [rows, L]; differs where an example has several texts (`flat_rows`)."""
        return batch

    def batch_shapes(self, extent: Extent) -> Shapes:
        """What a batch of this task holds, without data: the names, shapes and dtypes of `examples`.

        Raises:
          InputError: the task does not say.
        """
        del extent
        raise InputError(type(self).__name__, "this task does not tell the shapes of its batches", "give batch_shapes")

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """What the host computes for a batch: [B, C] for C classes of an example, [B, P, C] at P positions of it.

        `key` switches dropout on. With `start` > 0, the batch holds what `Encoder.prefix` makes, and the layers
        below are not computed again.
        """
        return logits(host, batch, plugin, key, start=start)

    @abstractmethod
    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(loss of each item, its weight), [B] or [B, P]; training takes their weighted mean over the whole batch."""

    def losses(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """`loss` of the `outputs`, [B] or [B, P] twice; a task may compute it without making these."""
        return self.loss(self.outputs(host, plugin, batch, key, start), batch)

    @abstractmethod
    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Arrays [B, …] with one row an example, from which `score` computes metrics."""

    @abstractmethod
    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics over a whole evaluation set, fractions in 0..1; holds `self.metric`.

        `predictions` are those of all n examples, [n, …], filled up with -1 where buckets differ in their second axis,
        and what the examples have for `references`.
        """

    def of_records(self, predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What is predicted of records, [records, …], where the task `joins` what is predicted of their examples."""
        return predictions

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        """What stands in a record's fields for the answer that nobody knows yet, so that `examples` takes it.

        This is what `kinject predict` needs of a task, and what `answer` says: `choices` and `choice_name`, `found` and
        `spans`, or `vector`.

        Raises:
          InputError: the task's answers are not labels.
        """
        del record, tokenizer
        raise self.not_served()

    def passage_texts(self, record: Record) -> Sequence[str] | None:
        """A record's text, or text and pair, where just their passage is read and each output is a choice; else None.

        Raises:
          InputError: a field of the wrong type.
        """
        del record
        return None

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The score of every possible answer before softmax: float32 [B, C].

        Where the task is `multi_label`, each is before a sigmoid of its own, and `predict` says which are `chosen`.
        What cannot be an answer has a score of -1e9 or less.

        Raises:
          InputError: the task's answers are not labels.
        """
        del outputs, batch
        raise self.not_served()

    def found(self, outputs: jax.Array, batch: Mapping[str, jax.Array], top: int) -> dict[str, jax.Array]:
        """What the devices make of a batch for `spans`: arrays [B, …], so that little is fetched.

        Args:
          outputs: see `outputs`.
          batch: the batch.
          top: how many answers a text may have.
        """
        del outputs, batch, top
        raise self.not_served()

    def spans(
        self, record: Record, rows: Sequence[tuple[Mapping[str, np.ndarray], Any]], top: int, tokenizer: HostTokenizer
    ) -> list[Answer]:
        """The answers to a record, of what `found` made of its examples.

        Args:
          record: as it was asked.
          rows: of each of its examples, in their order: its row of `found` ([…], without the batch's axis), and its
            item of `Examples.references` under "windows".
          top: how many answers a text may have, where they are ranked.
          tokenizer: the host's.
        """
        del record, rows, top, tokenizer
        raise self.not_served()

    def vector(self, outputs: jax.Array) -> jax.Array:
        """The vector of each text, float32 [B, D]."""
        del outputs
        raise self.not_served()

    @property
    def served(self) -> bool:
        """Whether `kinject predict` can answer this task."""
        method = {"labels": "choices", "spans": "spans", "vector": "vector"}[self.answer]
        return getattr(type(self), method) is not getattr(Task, method)

    def not_served(self) -> InputError:
        """What `kinject predict` says of a task whose answers are not labels."""
        name = next((name for name, made in _TASKS.items() if made is type(self)), type(self).__name__)
        problem = f"the task {name} cannot be served: its answers are neither labels, nor spans, nor a vector of a text"
        return InputError("task", problem, "evaluate it with kinject evaluate")

    def choice_name(self, number: int, record: Record, tokenizer: HostTokenizer) -> str:
        """What choice `number` is called: the label's name, unless the task says otherwise."""
        del record, tokenizer
        if self.labels is None:
            raise self.not_served()
        return self.labels[number]


def head_of(host: HostModel, kind: type[H]) -> H:
    """The head of a host that was made for a task; TypeError where it is of another class."""
    if not isinstance(host.head, kind):
        raise TypeError(f"the task reads a {kind.__name__}, the host has {type(host.head).__name__}")
    return host.head


_TASKS: dict[str, type[Task]] = {}


def register_task(name: str) -> Any:
    """Class decorator: the task is `name` in configs.

    Raises:
      ValueError: the class says `several`, as `multi_label` was called.
    """

    def wrap(cls: type[Task]) -> type[Task]:
        if hasattr(
            cls, "several"
        ):  # nothing reads it any more: its answers would be scored as if they excluded another
            raise ValueError(f"{cls.__qualname__}.several: the attribute is called multi_label now")
        _TASKS[name] = cls
        return cls

    return wrap


def make_task(name: str, where: str = "task", **options: Any) -> Task:
    """Makes the task that a config names.

    Raises:
      InputError: no such task, or options that it does not take.
    """
    if name not in _TASKS:
        _import_ours()
    if name not in _TASKS:
        raise InputError(where, f"there is no task {name!r}", did_you_mean(name, _TASKS))
    try:
        made = _TASKS[name](**options)
    except TypeError as error:
        raise InputError(where, f"the task {name} refuses its options: {error}") from None
    made.made_as = name, options
    return made


def _import_ours() -> None:
    """Imports the modules of this package, which registers the tasks in them."""
    for module in pkgutil.iter_modules(sys.modules[__package__].__path__):
        importlib.import_module(f"{__package__}.{module.name}")
