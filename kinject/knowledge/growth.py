"""What a revision of a knowledge base holds: entities that come, change or go, and where those without a vector lie.

`add`, `edit` and `remove` work out a `Change` and touch no file; `commit` writes it behind the newest revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.arrivals import Arrivals, Spot
from kinject.knowledge.manifest import blocks
from kinject.knowledge.moves import moves, told_of
from kinject.knowledge.overlay import Overlay
from kinject.knowledge.placement import Placed
from kinject.knowledge.revisions import HEAD, Revision, move_head, write_record
from kinject.knowledge.view import View

Named = tuple[str, str, str]
FIELDS = ("id", "label", "aliases", "description", "vector", "triples")


@dataclass
class Change:
    """What a revision does.

    Attributes:
      kind: "add", "edit" or "remove".
      note: kept in the log.
      entities: by id, what came or changed.
      removed, triples, dropped, relations: as in a record (docs/formats.md).
      vectors: by id; None where an entity has lost its own.
      placed: how each vector came to be, in the order of the entities.
      revision: its number, once it is written.
    """

    kind: str
    note: str = ""
    entities: dict[str, dict[str, Any]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    triples: list[Named] = field(default_factory=list)
    dropped: list[Named] = field(default_factory=list)
    relations: list[dict[str, str]] = field(default_factory=list)
    vectors: dict[str, np.ndarray | None] = field(default_factory=dict)
    placed: list[Placed] = field(default_factory=list)
    revision: int = 0

    @property
    def summary(self) -> dict[str, Any]:
        """What the log says of it."""
        counts = {"entities": len(self.entities), "removed": len(self.removed), "triples": len(self.triples)}
        counts |= {"dropped": len(self.dropped), "waiting": sum(not one.by for one in self.placed)}
        said = {"kind": self.kind, **{name: count for name, count in counts.items() if count}}
        return {**said, "note": self.note} if self.note else said


def add(
    view: View,
    entities: Iterable[Mapping[str, Any] | str],
    triples: Iterable[Named],
    vectors: Mapping[str, np.ndarray],
    descriptions: Mapping[str, str],
    read: Mapping[str, np.ndarray],
    note: str,
) -> Change:
    """The change that adds entities and triples; see `KnowledgeBase.add`."""
    change = Change("add", note)
    given = _take(view, change, entities, vectors, descriptions)
    there = view.rows(list(change.entities))
    for one, row in zip(change.entities, there.tolist(), strict=True):
        if row >= 0:
            raise InputError(f"entity {one!r}", "it is there already", "change it with edit (kinject knowledge edit)")
    named = [*given, *_named(triples)]
    _take_triples(view, change, named)
    if not change.entities and not change.triples:
        raise InputError("add", "there is nothing to add", "give entities, or triples")
    placing = Arrivals(view, change.relations)
    spots = {one: Spot(one, facts.get("description", "")) for one, facts in change.entities.items()}
    _settle(view, change, placing, spots, read)
    return change


def edit(
    view: View,
    entities: Iterable[Mapping[str, Any]],
    triples: Iterable[Named],
    drop: Iterable[Named],
    vectors: Mapping[str, np.ndarray],
    note: str,
) -> Change:
    """The change that edits entities and facts; see `KnowledgeBase.edit`."""
    change = Change("edit", note)
    given = [*_take(view, change, entities, vectors, {}), *_named(triples)]
    dropped = _named(drop)
    for one in [*change.entities, *(head for head, _, _ in given)]:
        _known(view, one)
    heads = list(dict.fromkeys([*(one[0] for one in given), *(one[0] for one in dropped)]))
    asked = list(dict.fromkeys([*change.entities, *heads]))
    now = triples_of(view, [row for row in view.rows(asked).tolist() if row >= 0])
    names = _NamedTriples(view)
    held = {names.of(triple) for row in view.rows(heads).tolist() for triple in now.get(row, ())}
    for triple in dropped:
        if triple not in held and not any(triple in some for some in view.overlay.waiting.values()):
            raise InputError(f"triple {' '.join(triple)}", "it is not there", "see them: kinject knowledge inspect")
    replaced = {one[:2] for one in given}
    stale = [one for one in held if one[:2] in replaced and one not in given]
    stale += [one for some in view.overlay.waiting.values() for one in some if one[:2] in replaced and one not in given]
    change.dropped = list(dict.fromkeys([*dropped, *stale]))
    _take_triples(view, change, [one for one in given if one not in held])
    if not change.entities and not change.triples and not change.dropped:
        raise InputError("edit", "there is nothing to change", "give entities, triples, or triples to drop")
    placing = Arrivals(view, change.relations)
    told = told_of(change.triples, change.dropped, held)
    bare = [one for one, there in zip(heads, view.present(view.rows(heads)), strict=True) if not there]
    moving = [one for one in heads if one not in bare and one not in change.vectors]
    moved = moves(view, placing.parts, moving, told) if placing.by_graph else {}
    gone, spots = set(change.dropped), {}
    for one in asked:
        facts, row = change.entities.setdefault(one, {}), int(view.rows([one])[0])
        of_words = placing.by_words or view.overlay.placed.get(row, {}).get("by") == "description"
        by_facts, by_words = one in heads and placing.by_graph, "description" in facts and of_words
        if one in moved and not by_words:
            if (found := moved[one]) is not None:
                change.placed.append(found[0])
                change.vectors[one] = found[1]
        elif one not in change.vectors and (by_facts or by_words):
            kept = [names.of(triple) for triple in now[row]]
            described = facts.get("description", view.entity(row).description)
            spots[one] = Spot(one, described, [triple for triple in kept if triple not in gone])
    _settle(view, change, placing, spots, {})
    return change


def remove(view: View, ids: Iterable[str], note: str) -> Change:
    """The change that removes entities; see `KnowledgeBase.remove`."""
    change = Change("remove", note)
    change.removed = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
    for one in change.removed:
        _known(view, one)
    if not change.removed:
        raise InputError("remove", "there is nothing to remove", "give ids")
    return change


def commit(view: View, change: Change) -> Overlay:
    """Writes a change as the revision after `view`, which is the newest, and moves the pointer to it; returns that."""
    before = view.overlay.head
    numbers = {one: vector for one, vector in change.vectors.items() if vector is not None}
    place = {one: index for index, one in enumerate(numbers)}
    dtype = view.stored.vectors.dtype
    table = np.stack(list(numbers.values())) if numbers else np.empty((0, view.dim))
    placed = {one.id: one for one in change.placed}
    entities = []
    for one in dict.fromkeys([*change.entities, *change.vectors]):
        facts = {"id": one, **change.entities.get(one, {})}
        if one in change.vectors:
            facts["vector"] = place.get(one)
        if one in placed:
            facts["placed"] = {name: value for name, value in placed[one]._asdict().items() if name != "id"}
        if len(facts) > 1:
            entities.append(facts)
    facts = {
        "revision": before.revision + 1,
        "parent": before.hash,
        "space": view.space["id"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": change.summary,
        "entities": entities,
        "removed": change.removed,
        "triples": change.triples,
        "dropped": change.dropped,
        "relations": change.relations,
    }
    table = table.astype(dtype)
    if not (view.folder / HEAD).exists():
        move_head(view.folder, before)  # first of all: records without a pointer have lost theirs
    digest = write_record(view.folder, facts, table)
    overlay = view.overlay.after(
        [Revision(facts, table, digest)]
    )  # before it counts: what cannot be read is not written
    move_head(view.folder, overlay.head)
    change.revision = overlay.head.revision
    return overlay


def triples_of(view: View, rows: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
    """The triples that each row stands in, at either end, those of the files first; reads the files' once."""
    found: dict[int, list[tuple[int, int, int]]] = {row: [] for row in rows}
    stored, wanted = view.stored.triples, np.array(sorted(found), np.int64)
    old = wanted[wanted < view.stored.size]
    if stored is not None and len(old):
        for some in blocks(len(stored), 12):
            block = np.asarray(stored[some])
            hit = np.isin(block[:, 0], old) | np.isin(block[:, 2], old)
            for triple in map(tuple, block[hit].tolist()):
                if view.overlay.holds(triple):
                    for row in {triple[0], triple[2]} & found.keys():
                        found[row].append(triple)
    for row in found:
        found[row] += view.overlay.triples_of(row)
    return found


def _settle(
    view: View, change: Change, placing: Arrivals, spots: dict[str, Spot], read: Mapping[str, np.ndarray]
) -> None:
    """Places those that have no vector of their own, and writes down how each was placed."""
    told = {one.id for one in change.placed}
    for one, vector in change.vectors.items():
        placing.give(one, vector)
        if one not in told:
            change.placed.append(Placed(one, "given"))
    spots = {one: spot for one, spot in spots.items() if one not in change.vectors}
    for placed, made in placing.place(spots, change.triples, read):
        if made is not None or view.present(view.rows([placed.id]))[0]:
            change.vectors[placed.id] = made
        change.placed.append(placed)


def _take(
    view: View,
    change: Change,
    entities: Iterable[Mapping[str, Any] | str],
    vectors: Mapping[str, np.ndarray],
    descriptions: Mapping[str, str],
) -> list[Named]:
    """Takes words and vectors into the change, checked; returns the triples that stood with them."""
    triples: list[Named] = []
    for number, given in enumerate([entities] if isinstance(entities, str | Mapping) else entities):
        facts = {"id": given} if isinstance(given, str) else dict(given)
        where = f"entity {facts.get('id', number)!r}"
        for name in facts:
            if name not in FIELDS:
                raise InputError(where, f"there is no field {name!r}", did_you_mean(str(name), FIELDS))
        one = facts.pop("id", None)
        if not isinstance(one, str) or not one or "\n" in one or "\0" in one:
            raise InputError(where, f"id {one!r} is unusable", "ids are non-empty one-line strings")
        if one in change.entities:
            raise InputError(where, "it stands twice", "give every entity its own id")
        vector = facts.pop("vector", None)
        if vector is not None and len(vector):
            change.vectors[one] = _vector(view, where, vector)
        for pair in facts.pop("triples", None) or ():
            triples += _named([(one, *pair)])
        change.entities[one] = {name: _words(where, name, value) for name, value in facts.items() if value is not None}
    for one, text in descriptions.items():
        change.entities.setdefault(one, {})["description"] = _words(f"entity {one!r}", "description", text)
    for one, vector in vectors.items():
        if one not in change.entities:
            _known(view, one)
        change.vectors[one] = _vector(view, f"entity {one!r}", vector)
    return triples


def _words(where: str, name: str, value: Any) -> Any:
    if name == "aliases":
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise InputError(where, f"field 'aliases' is {value!r}, not a list of strings")
        return list(value)
    if not isinstance(value, str):
        raise InputError(where, f"field {name!r} is {value!r}, not a string")
    return value


def _vector(view: View, where: str, vector: Any) -> np.ndarray:
    try:
        numbers = np.asarray(vector, np.float32)
    except (ValueError, TypeError) as error:
        raise InputError(where, f"the vector is not made of numbers: {error}") from None
    if numbers.shape != (view.dim,):
        raise InputError(
            where, f"the vector has shape {numbers.shape}", f"those of {view.name} have {view.dim} numbers"
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(numbers.astype(view.stored.vectors.dtype)).all():
            raise InputError(where, f"the vector is not finite as {view.stored.vectors.dtype}")
    return numbers


def _named(triples: Iterable[Sequence[str]]) -> list[Named]:
    found = []
    for triple in triples:
        if len(triple) != 3 or not all(isinstance(one, str) and one for one in triple):
            raise InputError(f"triple {triple!r}", "it is not (head, relation, tail) of ids")
        found.append((triple[0], triple[1], triple[2]))
    return found


def _take_triples(view: View, change: Change, named: Sequence[Named]) -> None:
    """Takes triples into the change: new relations are made, those of two unknown entities refused, none twice."""
    made = dict.fromkeys(one["id"] for one in change.relations)
    names = list(dict.fromkeys(end for head, _, tail in named for end in (head, tail)))
    rows = dict(zip(names, view.rows(names).tolist(), strict=True))
    relations = {one["id"]: index for index, one in enumerate(view.relations)} if named else {}
    both_old = []
    for head, relation, tail in named:
        if all(rows[one] < 0 and one not in change.entities for one in (head, tail)):
            problem = "neither of its entities is known"
            raise InputError(f"triple {head} {relation} {tail}", problem, "add one of them as an entity")
        if relation not in relations and relation not in made:
            made[relation] = None
        elif min(rows[head], rows[tail]) >= 0 and relation in relations:
            both_old.append((rows[head], relations[relation], rows[tail]))
    there = _there(view, both_old)
    for one in dict.fromkeys(named):
        if (rows[one[0]], relations.get(one[1], -1), rows[one[2]]) not in there:
            change.triples.append(one)
    change.relations = [{"id": one, "label": ""} for one in made]


def _there(view: View, triples: Sequence[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """Which triples are in the base already."""
    found = {one for one in triples if one in view.overlay.triples}
    asked = [one for one in triples if max(one[0], one[2]) < view.stored.size]
    if asked and view.stored.triples is not None:
        wanted = np.unique(np.array(asked)[:, 0])
        for some in blocks(len(view.stored.triples), 12):
            block = np.asarray(view.stored.triples[some])
            held = set(map(tuple, block[np.isin(block[:, 0], wanted)].tolist()))
            found |= {one for one in asked if one in held and view.overlay.holds(one)}
    return found


def _known(view: View, one: str) -> int:
    row = int(view.rows([one])[0])
    if row < 0:
        raise InputError(f"entity {one!r}", f"it is not in {view.name}", "add it first (kinject knowledge add)")
    return row


class _NamedTriples:
    """Triples of rows -> of ids."""

    def __init__(self, view: View):
        self._view, self._relations = view, [one["id"] for one in view.relations]

    def of(self, triple: tuple[int, int, int]) -> Named:
        head, tail = self._view.ids([triple[0], triple[2]])
        return head, self._relations[triple[1]], tail
