"""Edits of a domain with kinds of questions, and the questions that measure what comes of each.

A fact of an entity (its country) becomes another, drawn from those that others have. Asked are the kind of question
that it answers, in a wording of training (efficacy) and in wordings of the test (paraphrase); kinds whose answers
follow from it by what is known of the new tail (portability); other kinds about the same entity (specificity); and
other entities, one that has the old fact, one that has the new one, one that has neither (neighbourhood).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kinject.data.records import Record
from kinject.data.sources.domain import SLOT
from kinject.data.sources.wordings import BIOLOGY, GEOGRAPHY, Wordings
from kinject.errors import InputError
from kinject.knowledge.view import View


class Fact(NamedTuple):
    """A relation whose tail answers a kind of question, and the kinds that follow from the tail."""

    relation: str
    kind: str
    follows: tuple[str, ...] = ()


FACTS: Mapping[str, tuple[Fact, ...]] = {
    "geography": (
        Fact("country", "country", ("continent", "capital", "currency", "language")),
        Fact("size", "size"),
        Fact("part_of_country", "part"),
        Fact("nearest_large_city", "metropolis"),
    ),
    "biology": (Fact("found_in", "region"), Fact("size", "size"), Fact("colour", "colour"), Fact("family", "family")),
}
WORDINGS: Mapping[str, Mapping[str, Wordings]] = {"geography": GEOGRAPHY, "biology": BIOLOGY}
PARAPHRASES = 2  # wordings of the test that ask for the new fact


class KnownAnswers(NamedTuple):
    """An entity of a domain with what is known to answer questions about it."""

    id: str
    name: str
    answers: dict[str, str]


class Editor:
    """Makes edits and their questions.

    Args:
      base: the knowledge base that holds the facts.
      domain: "geography" or "biology".
      subjects: records about entities that are edited, or are neighbours of those.
      known: records about tails (countries), which say what follows from them.
      seed: which entities, new facts, wordings.

    Raises:
      InputError: no such domain.
    """

    def __init__(self, base: View, domain: str, subjects: Sequence[Record], known: Sequence[Record], seed: int):
        if domain not in FACTS:
            raise InputError(
                "domain", f"there is no domain {domain!r} with facts to edit", f"choose {', '.join(FACTS)}"
            )
        self.base, self.domain, self.draw = base, domain, np.random.default_rng(seed)
        self.subjects = _gathered(subjects)
        self.tails_known = _gathered(known)
        self.wordings = WORDINGS[domain]
        triples = base.triples
        self._triples = np.empty((0, 3), np.int32) if triples is None else np.asarray(triples)
        self._relations = {one["id"]: index for index, one in enumerate(base.relations)}

    def questions(self, counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        """The questions of so many edits of each relation, as records; docs/formats.md.

        Raises:
          InputError: a relation that the domain does not edit.
        """
        facts = {fact.relation: fact for fact in FACTS[self.domain]}
        for relation, count in counts.items():
            if relation not in facts:
                raise InputError("edits", f"{relation!r} is no fact that is edited", f"there is {', '.join(facts)}")
            yield from self._of_fact(facts[relation], count)

    def _of_fact(self, fact: Fact, count: int) -> Iterator[dict[str, Any]]:
        tails = self._tails(fact)
        holders = [one for one in self.subjects if one in tails and fact.kind in self.subjects[one].answers]
        answers = {tails[one]: self.subjects[one].answers[fact.kind] for one in holders}
        order = [holders[at] for at in self.draw.permutation(len(holders))]
        edited, others = order[:count], order[count:]
        for number, one in enumerate(edited):
            options = sorted(tail for tail in answers if tail != tails[one] and answers[tail] not in self._name(one))
            if not options:
                continue
            new = options[self.draw.integers(len(options))]
            change = {"head": one, "relation": fact.relation, "tail": new}
            about = {"edit": f"{fact.relation}/{number}", "changes": [change]}
            for question in self._asked(fact, one, new, answers[new], tails, others):
                yield {**question, **about}

    def _asked(
        self, fact: Fact, one: str, new: str, answer: str, tails: Mapping[str, str], others: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        yield self._question(one, fact.kind, answer, "efficacy", "train")
        for wording in self._drawn(fact.kind, "test", PARAPHRASES):
            yield self._worded(one, fact.kind, answer, "paraphrase", wording)
        follow = self.tails_known.get(new)
        for kind in fact.follows:
            if follow is not None and kind in follow.answers and follow.answers[kind] not in self._name(one):
                yield self._question(one, kind, follow.answers[kind], "portability", "test")
        own = self.subjects[one].answers
        for kind in own:
            if kind != fact.kind and kind not in fact.follows:
                yield self._question(one, kind, own[kind], "specificity", "test")
        groups = [
            [other for other in others if tails[other] == tails[one]],
            [other for other in others if tails[other] == new],
            [other for other in others if tails[other] not in (tails[one], new)],
        ]
        for group in groups:
            if group:
                other = group[self.draw.integers(len(group))]
                kinds = [kind for kind in (fact.kind, *fact.follows) if kind in self.subjects[other].answers]
                kind = kinds[self.draw.integers(len(kinds))]
                yield self._question(other, kind, self.subjects[other].answers[kind], "neighbourhood", "test")

    def _tails(self, fact: Fact) -> dict[str, str]:
        """The tail of each subject that has exactly one by the fact's relation."""
        rows = dict(zip(self.base.rows(list(self.subjects)).tolist(), self.subjects, strict=True))
        found = self._triples[self._triples[:, 1] == self._relations.get(fact.relation, -1)]
        tails: dict[str, list[int]] = {}
        for head, _, tail in found.tolist():
            if head in rows:
                tails.setdefault(rows[head], []).append(tail)
        single = {one: some[0] for one, some in tails.items() if len(some) == 1}
        return dict(zip(single, self.base.ids(list(single.values())), strict=True))

    def _name(self, one: str) -> str:
        return self.subjects[one].name

    def _drawn(self, kind: str, stage: str, count: int) -> list[str]:
        choice = getattr(self.wordings[kind], stage)
        return [choice[at] for at in self.draw.permutation(len(choice))[:count]]

    def _question(self, one: str, kind: str, answer: str, measure: str, stage: str) -> dict[str, Any]:
        (wording,) = self._drawn(kind, stage, 1)
        return self._worded(one, kind, answer, measure, wording)

    def _worded(self, one: str, kind: str, answer: str, measure: str, wording: str) -> dict[str, Any]:
        before, after = wording.split(SLOT)
        name = self._name(one)
        mention = {"start": len(before), "end": len(before) + len(name), "entity": one}
        text = f"{before}{name}{after}"
        return {"text": text, "mentions": [mention], "label": answer, "kind": kind, "measure": measure}


def _gathered(records: Sequence[Record]) -> dict[str, KnownAnswers]:
    """By entity its name in the text and its answers by kind of question."""
    found: dict[str, KnownAnswers] = {}
    for record in records:
        if len(record.mentions) != 1 or not isinstance(record.source, str) or "kind" not in record.fields:
            raise InputError(record.where, "it is no question of a kind about one entity", "name records of a domain")
        mention = record.mentions[0]
        if mention.entity is not None:
            name = record.source[mention.start : mention.end]
            one = found.setdefault(mention.entity, KnownAnswers(mention.entity, name, {}))
            one.answers.setdefault(record.fields["kind"], record.fields["label"])
    return found
