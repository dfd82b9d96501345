"""Finds the names of a knowledge base's entities in text, longest match first from the left.

At each word the trie of all names (aliases.py, library marisa-trie) gives those that begin there; the longest one that
ends at a word's end, and whose case fits, is a mention, and the search goes on behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.base import KnowledgeBase
from kinject.linking.aliases import Aliases
from kinject.linking.context import Candidates, choose
from kinject.linking.span import Span
from kinject.linking.surface import boundary, fold, units

Case = Literal["auto", "ignore", "exact"]
Ambiguity = Literal["prior", "context"]
CASES, AMBIGUITIES = ("auto", "ignore", "exact"), ("prior", "context")
REMEMBERED = 1 << 16  # names whose owners are kept in memory


class AliasLinker:
    """Links the labels and aliases of a knowledge base; `linker(text)` gives its spans in order.

    Args:
      base: the knowledge base; the index of its names is made beside it when it is first used.
      case: "auto": upper and lower case are alike, but a name of at most `capitals` characters that is written in
        capitals only ("US", "WHO") must stand so in the text; "ignore": always alike; "exact": never.
      capitals: see `case`.
      ambiguous: who is meant by a name that several entities have: "prior": the likeliest beforehand (aliases.py says
        what that is); "context": the one whose vector fits the other entities of the text (context.py).
      strength: of the context against the prior.
      shortest: characters that a name must have at least, so that one-letter names do not link every "a".

    Raises:
      InputError: a setting of another name; what `Aliases` raises.
    """

    def __init__(
        self,
        base: KnowledgeBase,
        *,
        case: Case = "auto",
        capitals: int = 5,
        ambiguous: Ambiguity = "prior",
        strength: float = 10.0,
        shortest: int = 2,
    ):
        for setting, value, known in (("case", case, CASES), ("ambiguous", ambiguous, AMBIGUITIES)):
            if value not in known:
                raise InputError(f"linker {setting}", f"there is no {value!r}", did_you_mean(str(value), known))
        self.base, self.ambiguous, self.strength, self.shortest = base, ambiguous, strength, shortest
        self.capitals = capitals if case == "auto" else 0
        self.aliases = Aliases(base, cases=case != "exact")
        self._owners = lru_cache(REMEMBERED)(self._look_up)  # texts name the same few again and again

    def __call__(self, text: str) -> list[Span]:
        """The mentions of a text, in order, none overlapping another."""
        surface = fold(text, cases=self.aliases.cases)
        folded, original, end = surface.text, surface.original, 0
        longest, shortest, prefixes = self.aliases.longest, self.shortest, self.aliases.trie.prefixes
        found = []
        for unit in units(folded):
            start = unit.start()
            if start < end:
                continue
            for name in reversed(prefixes(folded[start : start + longest])):
                after = start + len(name)
                if len(name) < shortest or not boundary(folded, after):
                    continue
                written = original(start), original(after)
                candidates = self._candidates(name, text[slice(*written)])
                if candidates is not None:
                    found.append((*written, candidates))
                    end = after
                    break
        return self._decide(found)

    def link(self, text: str, mentions: Iterable[tuple[int, int]]) -> list[Span | None]:
        """Names the entities of mentions that are given as characters [start, end); None for one that no entity has.

        Word boundaries and the shortest length are not asked for: who gave the mention knows that it is one.
        """
        mentions = list(mentions)
        found, places = [], []
        for place, (start, end) in enumerate(mentions):
            written = text[start:end]
            candidates = self._candidates(self.aliases.fold(written), written)
            if candidates is not None:
                found.append((start, end, candidates))
                places.append(place)
        linked: list[Span | None] = [None] * len(mentions)
        for place, span in zip(places, self._decide(found), strict=True):
            linked[place] = span
        return linked

    def _candidates(self, name: str, written: str) -> Candidates | None:
        """Who may be meant by a folded name as it is written; None where nobody has it, or the case fits nobody."""
        anyhow, in_lower_case = self._owners(name)
        return anyhow if written.isupper() else in_lower_case

    def _look_up(self, name: str) -> tuple[Candidates | None, Candidates | None]:
        """Who has a name: all, and those who have it where it is not written in capitals."""
        owners = self.aliases.owners(name)
        if owners is None:
            return None, None
        rows, weights, capitals = owners
        everybody = _shared(name, rows, weights)
        if not any(capitals) or len(name) > self.capitals:
            return everybody, everybody
        kept = [place for place, only in enumerate(capitals) if not only]
        others = _shared(name, [rows[place] for place in kept], [weights[place] for place in kept]) if kept else None
        return everybody, others

    def _decide(self, found: list[tuple[int, int, Candidates]]) -> list[Span]:
        """Spans with the entities that are meant."""
        if not found:
            return []
        mentions = [candidates for _, _, candidates in found]
        if self.ambiguous == "context":
            chosen = choose(self.base, mentions, self.strength)
        else:
            chosen = [(one.rows[0], one.shares[0]) for one in mentions]
        entities = self.base.ids([row for row, _ in chosen])
        return [
            Span(start, end, entity, score)
            for (start, end, _), entity, (_, score) in zip(found, entities, chosen, strict=True)
        ]


def _shared(name: str, rows: list[int], weights: list[float]) -> Candidates:
    total = sum(weights)
    return Candidates(name, rows, [weight / total for weight in weights])
