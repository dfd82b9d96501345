"""What prediction gives back: an answer with its labels and entities, or why a line has none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Labels = tuple["Label", ...]


def short(number: float) -> float:
    """A float32 as JSON should show it: six digits, no more than there are."""
    return float(f"{number:.6g}")


class Label(NamedTuple):
    """One answer and its score.

    Attributes:
      label: the label's name, the word at the blank, the choice's text.
      score: probability, 0 to 1: of a softmax over all answers, or of a sigmoid of its own where several may hold.
    """

    label: str
    score: float

    def to_json(self) -> dict[str, Any]:
        """As in a line of `kinject predict`."""
        return {"label": self.label, "score": short(self.score)}


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


@dataclass(frozen=True)
class Prediction:
    """The answer to one text.

    Attributes:
      line: its place in the input, from 1.
      id: the record's own, None where it has none.
      labels: best first; where several may hold, those that do; for a tagged text, one a word.
      entities: the mentions, given or linked.
      before: as `labels`, of the host alone; None unless asked for.
      explanation: None unless asked for.
    """

    line: int
    labels: Labels
    entities: tuple[Linked, ...] = ()
    before: Labels | None = None
    explanation: Explanation | None = None
    id: Any = None

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
        made["labels"] = [one.to_json() for one in self.labels]
        made["entities"] = [one.to_json() for one in self.entities]
        if self.before is not None:
            made["before"] = [one.to_json() for one in self.before]
        if self.explanation is not None:
            made["explain"] = self.explanation.to_json()
        return made


@dataclass(frozen=True)
class Refused:
    """A line that could not be answered.

    Attributes:
      line: its place in the input, from 1.
      error: what is wrong with it, naming file, line and field.
      id: the record's own, where that much could be read.
    """

    line: int
    error: str
    id: Any = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The output line of `kinject predict` in the place of an answer."""
        return {**({} if self.id is None else {"id": self.id}), "error": self.error, "line": self.line}
