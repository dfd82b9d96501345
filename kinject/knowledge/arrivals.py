"""Who gets a vector in a revision: entities that come or change, and those that waited for them, in rounds.

In a round every entity is placed that has a triple whose other end has a vector: in the base, or since an earlier
round. What is left when a round places nobody waits for a later revision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kinject.knowledge.placement import Evidence, Placed, by_descriptions, by_sentences, by_triples, parts_of
from kinject.knowledge.readings import readings_of
from kinject.knowledge.regressed import by_words
from kinject.knowledge.space import GRAPHS
from kinject.knowledge.view import View

Named = tuple[str, str, str]


@dataclass
class Spot:
    """An entity that is to be placed.

    Attributes:
      id: its id.
      description: what its description will be.
      triples: what it stands in already and goes on standing in.
      asked: whether it is told of where it cannot be placed; else it only waited.
    """

    id: str
    description: str = ""
    triples: list[Named] = field(default_factory=list)
    asked: bool = True


class Arrivals:
    """Places the entities of one change.

    Args:
      view: the base before the change.
      relations: relations that come with it; the space does not know them.
    """

    def __init__(self, view: View, relations: Sequence[Mapping[str, str]]):
        self.view = view
        self.parts = parts_of(view)
        self.by_graph = any(part.kind in GRAPHS for part in self.parts)
        self.by_words = any(part.kind == "descriptions" for part in self.parts)
        names = [one["id"] for one in (*view.relations, *relations)]
        self._relation_of = {name: index for index, name in enumerate(names)}
        self._ready: dict[str, np.ndarray] = {}

    def give(self, one: str, vector: np.ndarray | None) -> None:
        """Takes a vector that was given."""
        if vector is not None:
            self._ready[one] = vector

    def place(
        self, spots: Mapping[str, Spot], triples: Sequence[Named], read: Mapping[str, np.ndarray]
    ) -> list[tuple[Placed, np.ndarray | None]]:
        """Places what can be placed.

        Args:
          spots: by id.
          triples: that come with the change; they may name entities that are unknown.
          read: by id, what a host put out where sentences mention an entity, float [n, D].

        Returns:
          For each spot, and then each entity that waited and has been placed, how, and its vector (None = it waits).
        """
        spots = dict(spots)
        waiting = [triple for one in self._ends(spots, triples) for triple in self.view.overlay.waiting.get(one, ())]
        every = list(dict.fromkeys([*triples, *waiting, *(t for spot in spots.values() for t in spot.triples)]))
        if self.by_graph:
            self._wake(spots, every)
        found: dict[str, tuple[np.ndarray, int, float]] = {}
        unready = self._rounds(spots, every, found) if self.by_graph else {}
        words = self._by_words(spots, found)
        late = [one for one in spots if one in read and one not in found and one not in words]
        heard = by_sentences(self.view, read, late) if late else None
        made: list[tuple[Placed, np.ndarray | None]] = []
        for one, spot in spots.items():
            ways = [(way, *some[one]) for way, some in (("triples", found), ("description", words)) if one in some]
            if heard is not None and one in late:
                at = late.index(one)
                ways = [("sentences", heard.vectors[at], int(heard.counts[at]), float(heard.trust[at]))]
            if not ways and not spot.asked:
                continue
            vector = sum((way[1] for way in ways), np.zeros(self.view.dim, np.float32)) if ways else None
            by, count = " and ".join(way[0] for way in ways), sum(way[2] for way in ways if way[0] != "description")
            trust = round(min(way[3] for way in ways), 4) if ways else None
            made.append((Placed(one, by, count, unready.get(one, 0), trust), vector))
        return made

    def _ends(self, spots: Mapping[str, Spot], triples: Sequence[Named]) -> list[str]:
        """The entities that come: whom triples may have waited for."""
        if not self.view.overlay.waiting:
            return []
        return [one for one in dict.fromkeys([*spots, *self._ready]) if one in self.view.overlay.waiting]

    def _wake(self, spots: dict[str, Spot], triples: list[Named]) -> None:
        """Adds entities without a vector that the triples reach, and the triples that those stand in."""
        view, reached, seen = self.view, list(triples), set(triples)
        while reached:
            names = list(dict.fromkeys(end for head, _, tail in reached for end in (head, tail)))
            rows = view.rows(names)
            bare = (rows >= 0) & ~view.present(rows)
            reached = []
            for one, row in zip(np.array(names, object)[bare].tolist(), rows[bare].tolist(), strict=True):
                if one in spots or one in self._ready:
                    continue
                spots[one] = Spot(one, asked=False)
                for head, relation, tail in view.overlay.triples_of(row):
                    ends = view.ids([head, tail])
                    triple = (ends[0], view.relations[relation]["id"], ends[1])
                    if triple not in seen:
                        seen.add(triple)
                        reached.append(triple)
            triples += reached

    def _rounds(
        self, spots: Mapping[str, Spot], triples: Sequence[Named], found: dict[str, tuple[np.ndarray, int, float]]
    ) -> dict[str, int]:
        """Places round by round; returns how many triples of each spot name what has no vector in the end."""
        number = {one: index for index, one in enumerate(spots)}
        own, relations, ends, as_head = [], [], [], []
        for head, relation, tail in triples:
            for one, other, is_head in ((head, tail, True), (tail, head, False)):
                if one in number and one != other:
                    own.append(number[one])
                    relations.append(self._relation_of[relation])
                    ends.append(other)
                    as_head.append(is_head)
        names = list(dict.fromkeys(ends))
        at = {one: index for index, one in enumerate(names)}
        vectors, ready = self.view.gather(self.view.rows(names)) if names else (np.zeros((0, self.view.dim)), None)
        ready = np.zeros(0, bool) if ready is None else ready.copy()
        for one, vector in self._ready.items():
            if one in at:
                vectors[at[one]], ready[at[one]] = vector, True
        table = np.array([own, relations, [at[one] for one in ends], as_head], np.int64).reshape(4, -1)
        ids, open_ = list(spots), np.ones(len(spots), bool)
        readings = readings_of(self.view, self.parts) if table.size else {}
        while True:
            usable = table[:, ready[table[2]] & open_[table[0]]]
            evidence = Evidence(usable[0], usable[1], vectors[usable[2]], usable[3].astype(bool))
            made = by_triples(self.parts, self.view.dim, len(ids), evidence, readings)
            placed = np.flatnonzero((made.counts > 0) & open_)
            if not len(placed):
                break
            open_[placed] = False
            for index in placed.tolist():
                one = ids[index]
                found[one] = made.vectors[index], int(made.counts[index]), float(made.trust[index])
                if one in at:
                    vectors[at[one]], ready[at[one]] = made.vectors[index], True
        waits = np.bincount(table[0][~ready[table[2]]], minlength=len(ids))
        return {one: int(count) for one, count in zip(ids, waits.tolist(), strict=True) if count}

    def _by_words(
        self, spots: Mapping[str, Spot], found: Mapping[str, tuple[np.ndarray, int, float]]
    ) -> dict[str, tuple[np.ndarray, int, float]]:
        """Places by descriptions; in a space that is not made of any, what triples have not placed, by regression."""
        told = [one for one, spot in spots.items() if spot.description and spot.asked]
        if not self.by_words:
            told = [one for one in told if one not in found]
        texts = [spots[one].description for one in told]
        if not told:
            return {}
        if self.by_words:
            made = by_descriptions(self.parts, self.view.dim, texts)
            vectors, trust = made.vectors, made.trust
        else:
            vectors, trust = by_words(self.view, texts)
        return {one: (vectors[index], 0, float(trust[index])) for index, one in enumerate(told) if trust[index] > 0}
