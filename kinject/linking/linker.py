"""Finds the names of a knowledge base's entities in text, longest match first from the left.

At each word the trie of all names (aliases.py, library marisa-trie) gives those that begin there; the longest one that
ends at a word's end, and whose case fits, is a mention, and the search goes on behind it. Which of several entities a
name means is decided by how likely each is beforehand, or by the context (`disambiguate`). `NamesLinker` is what links
where nobody asked for it: it is made when a text first needs it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, partial
from typing import Literal, NamedTuple, Protocol

import numpy as np

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.view import View
from kinject.linking.aliases import Aliases
from kinject.linking.surface import boundary, fold, units

Case = Literal["auto", "ignore", "exact"]
Ambiguity = Literal["prior", "context"]
CASES, AMBIGUITIES = ("auto", "ignore", "exact"), ("prior", "context")
REMEMBERED = 1 << 16  # names whose owners are kept in memory
MOST_CANDIDATES = 32  # candidates of a mention that are looked at: the likeliest beforehand


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


class AliasLinker:
    """Links the labels and aliases of a knowledge base; `linker(text)` gives its spans in order.

    Args:
      base: the knowledge base; the index of its names is made beside it when it is first used.
      case: "auto": upper and lower case are alike, but a name of at most `capitals` characters that is written in
        capitals only ("US", "WHO") must stand so in the text; "ignore": always alike; "exact": never.
      capitals: see `case`.
      ambiguous: who is meant by a name that several entities have: "prior": the likeliest beforehand (aliases.py says
        what that is); "context": the one whose vector fits the other entities of the text (`disambiguate`).
      strength: of the context against the prior.
      shortest: characters that a name must have at least, so that one-letter names do not link every "a".

    Raises:
      InputError: a setting of another name; what `Aliases` raises.
    """

    def __init__(
        self,
        base: View,
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
        self.base, self.ambiguous, self.strength, self.shortest = base.snapshot(), ambiguous, strength, shortest
        self.capitals = capitals if case == "auto" else 0
        self.aliases = Aliases(base, cases=case != "exact")
        self._owners = _remembered(self.aliases, self.capitals)

    def __call__(self, text: str) -> list[Span]:
        """The mentions of a text, in order, none overlapping another."""
        surface = fold(text, cases=self.aliases.cases)
        folded, original, end = surface.text, surface.original, 0
        shortest, names_at = self.shortest, self.aliases.names_at
        found = []
        for unit in units(folded):
            start = unit.start()
            if start < end:
                continue
            for name in names_at(folded, start, unit.group()):
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

    def refreshed(self, base: View) -> AliasLinker:
        """The linker of another revision of its knowledge base; itself where it is that of this one."""
        if base.overlay is self.base.overlay:
            return self
        new = copy.copy(self)
        new.base, new.aliases = base.snapshot(), self.aliases.refreshed(base)
        new._owners = _remembered(new.aliases, new.capitals)
        return new

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

    def _decide(self, found: list[tuple[int, int, Candidates]]) -> list[Span]:
        """Spans with the entities that are meant."""
        if not found:
            return []
        mentions = [candidates for _, _, candidates in found]
        if self.ambiguous == "context":
            chosen = disambiguate(self.base, mentions, self.strength)
        else:
            chosen = [(one.rows[0], one.shares[0]) for one in mentions]
        entities = self.base.ids([row for row, _ in chosen])
        return [
            Span(start, end, entity, score)
            for (start, end, _), entity, (_, score) in zip(found, entities, chosen, strict=True)
        ]


def _remembered(aliases: Aliases, capitals: int) -> Callable[[str], tuple[Candidates | None, Candidates | None]]:
    """`_look_up`, remembered: texts name the same few again and again.

    It does not hold the linker, so that a linker goes, and its files with it, when nobody holds it any more.
    """
    return lru_cache(REMEMBERED)(partial(_look_up, aliases, capitals))


def _look_up(aliases: Aliases, longest: int, name: str) -> tuple[Candidates | None, Candidates | None]:
    """Who has a name: all, and those who have it where it is not written in capitals."""
    owners = aliases.owners(name)
    if owners is None:
        return None, None
    rows, weights, capitals = owners
    everybody = _shared(name, rows, weights)
    if not any(capitals) or len(name) > longest:
        return everybody, everybody
    kept = [place for place, only in enumerate(capitals) if not only]
    others = _shared(name, [rows[place] for place in kept], [weights[place] for place in kept]) if kept else None
    return everybody, others


def _shared(name: str, rows: list[int], weights: list[float]) -> Candidates:
    total = sum(weights)
    return Candidates(name, rows, [weight / total for weight in weights])


class Candidates(NamedTuple):
    """The entities that one mention may mean.

    Attributes:
      name: what stands in the text, folded; a name is no context of itself.
      rows: rows of the knowledge base, the likeliest first.
      shares: how likely each is beforehand; they sum to 1.
    """

    name: str
    rows: Sequence[int]
    shares: Sequence[float]


def disambiguate(base: View, mentions: Sequence[Candidates], strength: float) -> list[tuple[int, float]]:
    """Chooses an entity for each mention of a text by its context; returns rows, and how likely they are.

    Each mention expects a vector: the mean of its candidates' unit vectors, weighted by their prior shares. The context
    of a mention is the direction of the sum of the vectors expected by the mentions with another name. A candidate's
    logit is the logarithm of its prior share plus `strength` times the cosine of its vector and the context: one step
    of mean-field inference of a model in which linked entities attract each other. A candidate without a vector has the
    cosine 0.
    """
    if len(mentions) < 2 or all(len(one.rows) == 1 for one in mentions):
        return [(one.rows[0], one.shares[0]) for one in mentions]
    kept = [one._replace(rows=one.rows[:MOST_CANDIDATES], shares=one.shares[:MOST_CANDIDATES]) for one in mentions]
    ends = np.cumsum([len(one.rows) for one in kept])
    units = _unit_vectors(base, np.concatenate([one.rows for one in kept]))
    shares = np.concatenate([one.shares for one in kept]).astype(np.float32)
    expected = np.add.reduceat(units * shares[:, None], np.concatenate([[0], ends[:-1]]))
    names = {one.name: number for number, one in enumerate(kept)}  # of several mentions with one name the last
    total = expected[list(names.values())].sum(0)
    chosen = []
    for one, end in zip(kept, ends.tolist(), strict=True):
        context = total - expected[names[one.name]]
        length = float(np.linalg.norm(context))
        if len(one.rows) == 1 or length < 1e-6:
            chosen.append((one.rows[0], one.shares[0]))
            continue
        first = end - len(one.rows)
        logits = np.log(shares[first:end]) + strength * (units[first:end] @ context) / length
        odds = np.exp(logits - logits.max())
        best = int(odds.argmax())
        chosen.append((one.rows[best], float(odds[best] / odds.sum())))
    return chosen


def _unit_vectors(base: View, rows: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32 [n, k]; zeros where there is none."""
    vectors, _ = base.gather(rows)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


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
