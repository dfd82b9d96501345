"""Edits and the questions about them, as records: what is changed, and which questions measure what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kinject.data.records import Mention, Record, short
from kinject.errors import InputError, did_you_mean
from kinject.knowledge.growth import triples_of
from kinject.knowledge.stored import Entity
from kinject.knowledge.view import View
from kinject.linking import AliasLinker

EDIT, MEASURE, CHANGES, ENTITY = "edit", "measure", "changes", "entity"  # fields of a record
CHANGED = ("efficacy", "paraphrase", "portability")  # questions whose answers the edit is to change
KEPT = ("specificity", "neighbourhood")  # … that it is to leave alone: of the same entity, of others
MEASURES = (*CHANGED, *KEPT)
SHAPE = 'it must be [{"head": id, "relation": id, "tail": id}]; "head_label", "tail_label" where no id is known'
NEW = "name:"  # of a tail that is known by its name alone


@dataclass(frozen=True)
class FactChange:
    """One fact as it is to be: ids, and the name of a tail that may be new."""

    head: str
    relation: str
    tail: str
    tail_label: str = ""


@dataclass(frozen=True)
class Case:
    """One edit.

    Attributes:
      name: its id.
      changes: the facts that it makes.
      questions: places of its records.
    """

    name: str
    changes: tuple[FactChange, ...]
    questions: tuple[int, ...]


def linked(records: Sequence[Record], base: View) -> list[Record]:
    """The records, linked by the names of the knowledge base where they are not.

    A mention without an entity is named by them. A record without a mention gets one where the name of its `entity`
    stands; without such a field, where any name stands.
    """
    if not base.has_names or all(one.mentions and all(some.entity for some in one.mentions) for one in records):
        return list(records)
    linker = AliasLinker(base)
    return [_linked(record, base, linker) if isinstance(record.source, str) else record for record in records]


def _linked(record: Record, base: View, linker: AliasLinker) -> Record:
    text, mentions = str(record.source), list(record.mentions)
    one = record.fields.get(ENTITY)
    if mentions:
        spans = linker.link(text, [(some.start, some.end) for some in mentions])
        pairs = zip(mentions, spans, strict=True)
        mentions = [some if some.entity or span is None else replace(some, entity=span.entity) for some, span in pairs]
    elif isinstance(one, str):
        (row,) = base.rows([one])
        words = base.entity(int(row)) if row >= 0 else Entity(one)
        for name in (words.label, *words.aliases):
            at = text.find(name) if name else -1
            if at >= 0:
                mentions = [Mention(at, at + len(name), one)]
                break
    else:
        mentions = [Mention(span.start, span.end, span.entity) for span in linker(text)]
    return replace(record, mentions=tuple(mentions))


def cases_of(records: Sequence[Record], base: View, relations: Mapping[str, str]) -> tuple[list[Case], Counter[str]]:
    """The edits that can be made in a knowledge base, and why others cannot, counted.

    Args:
      records: linked questions.
      base: the knowledge base.
      relations: what relations are called there, where the records call them otherwise.

    Raises:
      InputError: a record that is no question about an edit, an edit without a question whose answer it changes, or
        whose records differ in what is changed.
    """
    questions: dict[str, list[int]] = {}
    for at, record in enumerate(records):
        questions.setdefault(_name(record), []).append(at)
    linker = AliasLinker(base) if base.has_names else None
    cases, left_out = [], Counter[str]()
    for name, places in questions.items():
        first = records[places[0]]
        for place in places[1:]:
            if records[place].fields[CHANGES] != first.fields[CHANGES]:
                problem = f"field {CHANGES!r} is not that of {first.where}, which is of the same edit"
                raise InputError(records[place].where, problem, "give every edit a name of its own")
        if not any(records[place].fields[MEASURE] in CHANGED for place in places):
            raise InputError(first.where, f"the edit {name!r} has no question that it changes", "ask for efficacy")
        every = (_change(given, linker, first.where) for given in first.fields[CHANGES])
        changes = tuple(replace(one, relation=relations.get(one.relation, one.relation)) for one in every)
        known = [one for one in changes if one.head and base.rows([one.head])[0] >= 0]
        if len(known) < len(changes):
            left_out["the knowledge base does not have the entity that is changed"] += 1
        else:
            cases.append(Case(name, changes, tuple(places)))
    return cases, left_out


def _name(record: Record) -> str:
    """The edit that a record is about, its fields checked."""
    name, measure = record.fields.get(EDIT), record.fields.get(MEASURE)
    if not isinstance(name, str) or not name:
        raise InputError(record.where, f"field {EDIT!r} is {short(name)}", "it must name the edit, in a string")
    if measure not in MEASURES:
        raise InputError(record.where, f"field {MEASURE!r} is {short(measure)}", did_you_mean(str(measure), MEASURES))
    changes = record.fields.get(CHANGES)
    if not isinstance(changes, list) or not changes:
        raise InputError(record.where, f"field {CHANGES!r} is {short(changes)}", SHAPE)
    return name


def _change(given: Any, linker: AliasLinker | None, where: str) -> FactChange:
    """One change; its head is "" where nobody has that name."""
    if not isinstance(given, Mapping):
        raise InputError(where, f"field {CHANGES!r} holds {short(given)}", SHAPE)
    if not isinstance(given.get("relation"), str) or not given["relation"]:
        raise InputError(where, f"field '{CHANGES}.relation' is {short(given.get('relation'))}", SHAPE)
    ends = {}
    for field in ("head", "tail"):
        one, label = given.get(field) or "", given.get(f"{field}_label") or ""
        if not isinstance(one, str) or not isinstance(label, str) or not (one or label):
            raise InputError(where, f"field '{CHANGES}.{field}' is {short(given.get(field))}", SHAPE)
        if not one and linker is not None:
            (found,) = linker.link(label, [(0, len(label))])
            one = "" if found is None or found.entity is None else found.entity
        ends[field] = one, label
    (head, _), (tail, label) = ends["head"], ends["tail"]
    return FactChange(head, given["relation"], tail or f"{NEW}{label}", label)


def rounds_of(cases: Sequence[Case], records: Sequence[Record]) -> list[list[Case]]:
    """Edits that can be made at once: in a round no question mentions what another edit changes.

    Each round is measured on the knowledge base as it was, so that every edit is measured as if it were the only one.
    """
    rounds: list[list[Case]] = []
    edited: list[set[str]] = []  # of each round the entities that are changed
    asked: list[set[str]] = []  # … and those that questions mention
    for case in cases:
        heads = {one.head for one in case.changes}
        mentions = {one.entity for at in case.questions for one in records[at].mentions if one.entity}
        for place, there in enumerate(edited):
            if not heads & (there | asked[place]) and not mentions & there:
                break
        else:
            place = len(rounds)
            rounds.append([])
            edited.append(set())
            asked.append(set())
        rounds[place].append(case)
        edited[place] |= heads
        asked[place] |= mentions
    return rounds


def swapped(cases: Sequence[Case], seed: int) -> list[Case]:
    """The control: each edit makes another's facts of its own entity, where another has other tails."""
    draw = np.random.default_rng(seed)
    found = []
    for case in cases:
        kind = tuple(one.relation for one in case.changes)
        others = [
            one
            for one in cases
            if tuple(change.relation for change in one.changes) == kind
            and all(a.tail != b.tail and a.head != b.tail for a, b in zip(case.changes, one.changes, strict=True))
        ]
        if others:
            other = others[draw.integers(len(others))]
            pairs = zip(case.changes, other.changes, strict=True)
            changes = tuple(replace(own, tail=one.tail, tail_label=one.tail_label) for own, one in pairs)
            found.append(replace(case, changes=changes))
    return found


def sharing(base: View, cases: Sequence[Case], records: Sequence[Record]) -> np.ndarray:
    """Whether each record is about another entity that has the fact of its edit, the old or the new one: bool [n]."""
    shared = np.zeros(len(records), bool)
    heads = [one.head for case in cases for one in case.changes]
    asked = {at: [one.entity for one in records[at].mentions if one.entity] for case in cases for at in case.questions}
    wanted = list(dict.fromkeys([*heads, *(one for some in asked.values() for one in some)]))
    facts = dict(zip(wanted, _facts_of(base, wanted), strict=True))
    for case in cases:
        theirs = {(one.relation, one.tail) for one in case.changes}
        theirs |= {fact for one in case.changes for fact in facts[one.head] if fact[0] == one.relation}
        for at in case.questions:
            if records[at].fields[MEASURE] == "neighbourhood":
                shared[at] = any(theirs & facts[one] for one in asked[at])
    return shared


def old_tails(base: View, changes: Sequence[FactChange]) -> Iterator[tuple[FactChange, list[str]]]:
    """Each change with the tails that the entity has by that relation now."""
    facts = _facts_of(base, [one.head for one in changes])
    for change, some in zip(changes, facts, strict=True):
        yield change, sorted(tail for relation, tail in some if relation == change.relation)


def _facts_of(base: View, ids: Sequence[str]) -> list[set[tuple[str, str]]]:
    """The (relation, tail) of each entity, as head; none of one that is unknown."""
    rows = base.rows(ids).tolist()
    held = triples_of(base, [row for row in dict.fromkeys(rows) if row >= 0])
    relations = [one["id"] for one in base.relations]
    found = []
    for row in rows:
        own = [triple for triple in held.get(row, ()) if triple[0] == row]
        tails = base.ids([tail for *_, tail in own]) if own else []
        found.append({(relations[triple[1]], tail) for triple, tail in zip(own, tails, strict=True)})
    return found
