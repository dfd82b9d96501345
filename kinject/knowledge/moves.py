"""How far a changed fact moves its entity: by the difference between what the new fact and the old one say.

An entity's other facts may speak for the old one (its region and its neighbours lie in the old country). The mean of
all that its facts say would therefore hardly move; the difference takes it as far as the fact asks, and what else its
vector holds stays. Of several old or new facts of a relation the mean counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kinject.knowledge.arrivals import Named
from kinject.knowledge.placement import Evidence, Placed, by_triples
from kinject.knowledge.space import GRAPHS, Part, votes
from kinject.knowledge.view import View

Told = dict[tuple[str, str], tuple[list[str], list[str]]]  # (head, relation): its tails before and after


def moves(
    view: View, parts: Sequence[Part], heads: Iterable[str], told: Mapping[tuple[str, str], tuple[list[str], list[str]]]
) -> dict[str, tuple[Placed, np.ndarray] | None]:
    """Moves the entities whose facts all replace others.

    Args:
      view: the base before the change.
      parts: of its space.
      heads: entities that have a vector.
      told: by entity and relation the tails before and after, for each relation of it that changes.

    Returns:
      By id how each was placed, and its vector [k]; None where it stays where it is, since the space knows none of the
      relations. An entity is missing that cannot be moved so: it gains or loses a fact, or a tail has no vector.
    """
    graphs = [part for part in parts if part.kind in GRAPHS]
    relations = {one["id"]: index for index, one in enumerate(view.relations)}
    of_head: dict[str, list[tuple[str, list[str], list[str]]]] = {one: [] for one in heads}
    for (head, relation), (old, new) in told.items():
        if head in of_head:
            of_head[head].append((relation, old, new))
    names = list(dict.fromkeys(tail for old, new in told.values() for tail in (*old, *new)))
    if not names or not graphs:
        return {}
    vectors, there = view.gather(view.rows(names))
    at = {one: place for place, one in enumerate(names) if there[place]}
    known = np.zeros(len(relations) + 1, bool)  # the last is for relations that only come with the change
    for part in graphs:
        spread = part.arrays["spread"][1]
        known[: len(spread)] |= np.isfinite(spread)
    found: dict[str, tuple[Placed, np.ndarray] | None] = {}
    for head, every in of_head.items():
        changes = [(relations[one], old, new) for one, old, new in every if known[relations.get(one, -1)]]
        if every and not changes:
            found[head] = None
        elif changes and all(old and new and all(one in at for one in (*old, *new)) for _, old, new in changes):
            (vector,), _ = view.gather(view.rows([head]))
            for index, old, new in changes:
                for part in graphs:
                    vector[part.start : part.stop] += _says(part, index, vectors[[at[one] for one in new]])
                    vector[part.start : part.stop] -= _says(part, index, vectors[[at[one] for one in old]])
            facts = [(index, vectors[at[one]]) for index, _, new in changes for one in new]
            found[head] = _placed(parts, view.dim, head, facts), vector
    return found


def _says(part: Part, relation: int, tails: np.ndarray) -> np.ndarray:
    """Where a head lies by the mean of some facts of a relation, [d]; zeros where the part does not know that."""
    if relation >= part.arrays["spread"].shape[1] or not np.isfinite(part.arrays["spread"][1, relation]):
        return np.zeros(part.stop - part.start, np.float32)
    return votes(part, np.full(len(tails), relation), tails[:, part.start : part.stop], True).mean(axis=0)


def _placed(parts: Sequence[Part], dim: int, head: str, facts: Sequence[tuple[int, np.ndarray]]) -> Placed:
    """Says of an entity that it rests on the facts that changed, and how far those can be trusted."""
    count = len(facts)
    relations, tails = np.array([one for one, _ in facts]), np.stack([tail for _, tail in facts])
    evidence = Evidence(np.zeros(count, np.int64), relations, tails, np.ones(count, bool))
    trust = float(by_triples(parts, dim, 1, evidence).trust[0])
    return Placed(head, "changed triples", count, 0, round(trust, 4))


def told_of(change: Sequence[Named], dropped: Sequence[Named], held: Iterable[Named]) -> Told:
    """By entity and relation the tails before and after a change, for each (head, relation) that it touches.

    Args:
      change: triples that come.
      dropped: triples that go.
      held: triples that are there already.
    """
    told: Told = {(head, relation): ([], []) for head, relation, _ in (*change, *dropped)}
    gone = set(dropped)
    for triple in held:
        if triple[:2] in told:
            told[triple[:2]][0].append(triple[2])
            if triple not in gone:
                told[triple[:2]][1].append(triple[2])
    for triple in change:
        told[triple[:2]][1].append(triple[2])
    return told
