"""Queries and answers: what is asked, read and linked; and what is answered, or why there is no answer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kinject.data.records import Mention, Record, bounded_lines, check_mentions, decode_line, decode_text, parse_record
from kinject.errors import InputError
from kinject.linking import Linker, Span

WINDOW_CHARACTERS = 1 << 20
Labels = tuple["Label", ...]


@dataclass(frozen=True)
class Query:
    """One text to be answered.

    Attributes:
      line: its place in the input, from 1.
      record: the text with its mentions.
      id: the record's own.
    """

    line: int
    record: Record
    id: Any = None


def read_lines(stream: io.BufferedIOBase, name: str, *, plain: bool = False) -> Iterator[tuple[int, Any]]:
    """Streams (line number, what stands there): decoded JSON, or with `plain` the text itself, or an InputError.

    Lines that hold nothing but white space are passed over. No line longer than `LONGEST_LINE` is held.
    """
    for number, line in bounded_lines(stream, name):
        if isinstance(line, InputError):
            yield number, line
            continue
        where = f"{name}:{number}"
        try:
            yield number, decode_text(line, where) if plain else decode_line(line, where)
        except InputError as error:
            yield number, error


def read_queries(inputs: Iterable[tuple[int, Any]], name: str, linkers: Sequence[Linker]) -> Iterator[Query | Refused]:
    """Numbered inputs (a text, a dict as a line of JSON has it, a `Record`, or an InputError) -> queries."""
    for number, value in inputs:
        identity = value.get("id") if isinstance(value, Mapping) else None
        try:
            if isinstance(value, InputError):
                raise value
            record, given = _record(value, f"{name}:{number}")
            if linkers and isinstance(record.source, str):
                record = link(record, linkers, given)
        except InputError as error:
            yield Refused.because_of(error, number, identity)
            continue
        identity = record.fields.get("id")
        if "id" in record.fields:  # two questions may have one id; of a data set's records none may
            record = replace(record, fields={name: one for name, one in record.fields.items() if name != "id"})
        yield Query(number, record, identity)


def _record(value: Any, where: str) -> tuple[Record, bool]:
    """The record, and whether it says itself where its mentions are."""
    if isinstance(value, Record):
        return value, bool(value.mentions)
    if isinstance(value, str):
        return parse_record({"text": value}, where), False
    record = parse_record(value, where)
    return record, "mentions" in value


def link(record: Record, linkers: Sequence[Linker], given: bool) -> Record:
    """The record with the mentions that the linkers find.

    Where two overlap the longer one stays, then the earlier linker's. Where the record says itself where its mentions
    are, none is added: those without an entity get that of a span with the same characters, or what
    `linker.link` names.

    Raises:
      InputError: a span outside of the text.
    """
    if given:
        return _filled(record, linkers)
    spans = [Span(*one) for linker in linkers for one in linker(record.text)]
    kept: list[Span] = []
    for span in sorted(spans, key=lambda one: one.start - one.end):  # the sort is stable: earlier linkers first
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    mentions = tuple(Mention(one.start, one.end, one.entity) for one in sorted(kept))
    check_mentions(mentions, len(record.source), record.where, "characters", "linked")
    return replace(record, mentions=mentions)


def _filled(record: Record, linkers: Sequence[Linker]) -> Record:
    """The record whose mentions have the entity of the first linker that knows one for just these characters."""
    bare = [(one.start, one.end) for one in record.mentions if one.entity is None]
    if not bare:
        return record
    known: dict[tuple[int, int], str] = {}
    for linker in reversed(linkers):
        asked = getattr(linker, "link", None)  # a linker of whole texts may know how to name a given mention
        found = linker(record.text) if asked is None else asked(record.source, bare)
        known |= {(one[0], one[1]): one[2] for one in found if one is not None}
    filled = (
        one if one.entity is not None else replace(one, entity=known.get((one.start, one.end)))
        for one in record.mentions
    )
    return replace(record, mentions=tuple(filled))


def short(number: float) -> float:
    """A float32 as JSON should show it: six digits, no more than there are."""
    return float(f"{number:.6g}")


class Label(NamedTuple):
    """One answer and its score.

    Attributes:
      label: the label's name, the word at the blank, the choice's text.
      score: probability, 0 to 1: of a softmax over all answers, or of a sigmoid of its own where several may hold.
      start, end: characters of the text where it stands, end exclusive: of a name that is tagged there, of an answer to
        a question; None of any other.
    """

    label: str
    score: float
    start: int | None = None
    end: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As in a line of `kinject predict`."""
        made: dict[str, Any] = {"label": self.label, "score": short(self.score)}
        return made if self.start is None else {**made, "start": self.start, "end": self.end}


@dataclass(frozen=True)
class Linked:
    """One mention, as it was used.

    Attributes:
      start, end: characters of the text (or tokens of a record that brings tokens), end exclusive.
      entity: id, None for a mention that nobody linked.
      name: the entity's label in the knowledge base that knows it, "" where none does.
      plugin: the name of the plugin that read the entity: whose slot stood before the mention, or which read facts of
        it. None where no plugin is on or reads entities, or where no knowledge base of theirs knows this one.
    """

    start: int
    end: int
    entity: str | None
    name: str = ""
    plugin: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As in a line of `kinject predict`."""
        return {
            "start": self.start,
            "end": self.end,
            "entity": self.entity,
            **({"name": self.name} if self.name else {}),
            "plugin": self.plugin,
        }


@dataclass(frozen=True)
class Contribution:
    """What one entity did to the first answer.

    Attributes:
      entity: its id.
      without: how much lower the answer's score is when the entity has no slot (its facts are not read, for a method
        without slots): score - score without it.
      gradient: gradient times input: the derivative of the answer's raw score (before softmax or sigmoid) by the mapped
        slot vectors of the entity, times those vectors; None for a method without slots.
    """

    entity: str
    without: float
    gradient: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As in a line of `kinject predict --explain`."""
        gradient = None if self.gradient is None else short(self.gradient)
        return {"entity": self.entity, "without": short(self.without), "gradient": gradient}


@dataclass(frozen=True)
class Explanation:
    """Why the first answer is what it is.

    Attributes:
      contributions: one an entity that the plugin reads, in the order of the text.
      passages: (text, entity, weight) of the passages that the position of the answer read in the last memory layer,
        heaviest first; None for a method without a memory.
    """

    contributions: tuple[Contribution, ...] = ()
    passages: tuple[tuple[str, str, float], ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """As in a line of `kinject predict --explain`."""
        made: dict[str, Any] = {"entities": [one.to_json() for one in self.contributions]}
        if self.passages is not None:
            made["passages"] = [
                {"text": text, "entity": of, "weight": short(weight)} for text, of, weight in self.passages
            ]
        return made


@dataclass(frozen=True, repr=False)
class Prediction:
    """The answer to one text.

    Attributes:
      line: its place in the input, from 1.
      id: the record's own, None where it has none.
      labels: best first; where several may hold, those that do; for a tagged text, its names, or one a word where it
        came in words.
      entities: the mentions, given or linked.
      before: as `labels`, of the host alone; None unless asked for.
      explanation: None unless asked for.
      truncated: whether the text was too long for the host, and lost what is farthest from its mentions.
      vector: float32 [D], of a task that answers with a vector; there are no labels then.
      vector_before: the same of the host alone; None unless asked for.
      host_alone: whether plugins are in that read entities, and none of them read any here: the answer is the host's.
    """

    line: int
    labels: Labels
    entities: tuple[Linked, ...] = ()
    before: Labels | None = None
    explanation: Explanation | None = None
    id: Any = None
    truncated: bool = False
    vector: np.ndarray | None = None
    vector_before: np.ndarray | None = None
    host_alone: bool = False

    def __repr__(self) -> str:
        told = [_shown(self.labels) if self.vector is None else f"a vector of {len(self.vector)} numbers"]
        if self.before is not None and self.vector is None:
            told.append(f"before {_shown(self.before)}")
        told += [f"{one.name or one.entity!r} read by {one.plugin}" for one in self.entities if one.plugin is not None]
        nobody = sum(one.plugin is None for one in self.entities)
        told += [f"{nobody} mention{'s' if nobody > 1 else ''} read by nobody"] if nobody else []
        told += ["no plugin read anything: the host's own answer"] if self.host_alone else []
        told += ["truncated"] if self.truncated else []
        return f"Prediction({', '.join(told)})"

    @property
    def label(self) -> str | None:
        """The best answer; None where several may hold and none does."""
        return self.labels[0].label if self.labels else None

    @property
    def score(self) -> float | None:
        """The best answer's score; None where there is no answer."""
        return self.labels[0].score if self.labels else None

    def to_json(self) -> dict[str, Any]:
        """The output line of `kinject predict`, see docs/formats.md."""
        made: dict[str, Any] = {} if self.id is None else {"id": self.id}
        if self.vector is None:
            made["labels"] = [one.to_json() for one in self.labels]
        else:
            made["vector"] = [short(one) for one in self.vector.tolist()]
        made["entities"] = [one.to_json() for one in self.entities]
        if self.vector_before is not None:
            made["before"] = [short(one) for one in self.vector_before.tolist()]
        elif self.before is not None:
            made["before"] = [one.to_json() for one in self.before]
        if self.explanation is not None:
            made["explain"] = self.explanation.to_json()
        if self.host_alone:
            made["host_alone"] = True
        if self.truncated:
            made["truncated"] = True
        return made


def _shown(labels: Labels) -> str:
    """The first answers, for a person."""
    told = " | ".join(f"{one.label!r} {one.score:.3f}" for one in labels[:2])
    return (told or "no answer") + (" | …" if len(labels) > 2 else "")


@dataclass(frozen=True)
class Refused:
    """A line that could not be answered.

    Attributes:
      line: its place in the input, from 1.
      error: what is wrong with it, naming file, line and field.
      id: the record's own, where that much could be read.
      cause: the error that says so in one line. It is no field: `dataclasses.asdict` yields JSON-like values only.
    """

    line: int
    error: str
    id: Any = None
    cause: ClassVar[InputError | None] = None

    @classmethod
    def because_of(cls, cause: InputError, line: int, id: Any = None) -> Refused:
        """A line refused by an error, which loses the frames that it passed: they would hold a window of records."""
        made = cls(line, str(cause), id)
        object.__setattr__(made, "cause", cause.with_traceback(None))
        return made

    def to_json(self) -> dict[str, Any]:
        """The output line of `kinject predict` in the place of an answer."""
        return {**({} if self.id is None else {"id": self.id}), "error": self.error, "line": self.line}


def windows(queries: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Cuts a stream into lists of at most `size`, and of few more than `WINDOW_CHARACTERS` characters."""
    window: list[Any] = []
    characters = 0
    for one in queries:
        window.append(one)
        if isinstance(one, Query):
            characters += len(one.record.text)
        if len(window) >= size or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window
