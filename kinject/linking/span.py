"""What a linker finds, and what a linker is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Span(NamedTuple):
    """A stretch of text that names an entity.

    Attributes:
      start: its first character.
      end: the character after its last.
      entity: id in the knowledge base.
      score: how sure the linker is, 0 to 1.
    """

    start: int
    end: int
    entity: str
    score: float = 1.0


class Linker(Protocol):
    """Finds the entities that a text names; any callable of this form is one."""

    def __call__(self, text: str) -> Iterable[Span | tuple[int, int, str]]: ...
