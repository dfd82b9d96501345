"""The names of a knowledge base as the linker that nobody had to ask for: made when a text first needs it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cached_property

from kinject.errors import InputError
from kinject.knowledge.view import View
from kinject.linking.linker import AliasLinker, Span

log = logging.getLogger("kinject")


class NamesLinker:
    """Links by a knowledge base's names; where they cannot be indexed it links nothing, and says so once.

    Args:
      base: whose names.
    """

    def __init__(self, base: View):
        self.base = base.snapshot()

    def __call__(self, text: str) -> list[Span]:
        """The mentions of a text, in order."""
        return [] if self._aliases is None else self._aliases(text)

    def link(self, text: str, mentions: Iterable[tuple[int, int]]) -> list[Span | None]:
        """Names the entities of mentions that are given as characters [start, end)."""
        return [None for _ in mentions] if self._aliases is None else self._aliases.link(text, mentions)

    def refreshed(self, base: View) -> NamesLinker:
        """The linker of another revision of its knowledge base."""
        new = NamesLinker(base)
        if self.__dict__.get("_aliases") is not None:
            new.__dict__["_aliases"] = self.__dict__["_aliases"].refreshed(new.base)
        return new

    @cached_property
    def _aliases(self) -> AliasLinker | None:
        try:
            return AliasLinker(self.base)
        except InputError as error:
            log.warning("texts are not linked by names: %s", error)
            return None
