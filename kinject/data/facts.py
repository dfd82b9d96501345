"""The facts of a record in words: its own, those of the entities that it links, then those that its words find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kinject.data.records import Record
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.facts import Facts, Form, TextIndex

Groups = list[list[str]]
"""The facts of one text, group by group: one group an entity, in order of preference."""


class FactReader:
    """Finds facts.

    Records that carry `facts` (a list of texts a choice, or one list for all) are taken at their word. For the others,
    each linked entity's facts make a group; BM25 fills up to `groups` with those of other entities.

    Args:
      knowledge: the knowledge base; None where records carry their own.
      form: which facts of an entity.
      groups: entities a text.
      retrieve: whether BM25 fills up; without it, a record that links fewer entities has fewer groups.
      drop_answers: leave out facts in which the record's answer (`label` or `answers`, a text) stands as it is.
    """

    def __init__(
        self,
        knowledge: KnowledgeBase | None,
        form: Form = "all",
        *,
        groups: int = 1,
        retrieve: bool = True,
        drop_answers: bool = False,
    ):
        self.knowledge, self.form, self.groups = knowledge, form, groups
        self.retrieve, self.drop_answers = retrieve, drop_answers
        self._facts = None if knowledge is None else Facts(knowledge, form)

    def read(self, records: Sequence[Record]) -> list[list[Groups]]:
        """For each record, for each of its choices (one where it has none), groups of facts.

        Raises:
          InputError: a malformed `facts`, or a record without facts where there is no knowledge base.
        """
        found = [_carried(record) for record in records]
        wanting = [i for i, one in enumerate(found) if one is None]
        if wanting:
            if self.knowledge is None:
                problem = "it carries no facts, and no knowledge base is named"
                raise InputError(records[wanting[0]].where, problem, "name knowledge, or give the field facts")
            for i, one in zip(wanting, self._looked_up([records[i] for i in wanting]), strict=True):
                found[i] = one
        if self.drop_answers:
            found = [_without(one, _answers(record)) for one, record in zip(found, records, strict=True)]
        return found

    def _looked_up(self, records: Sequence[Record]) -> list[list[Groups]]:
        ids = [list(dict.fromkeys(one.entity for one in record.mentions if one.entity)) for record in records]
        known = self.knowledge.rows([one for some in ids for one in some]).tolist()
        rows, done = [], 0
        for some in ids:
            rows.append([row for row in known[done : done + len(some)] if row >= 0][: self.groups])
            done += len(some)
        queries = [_queries(record) for record in records]
        hits = self._hits(queries, rows)
        each = [[_chosen(own, hit, self.groups) for hit in hit_rows] for own, hit_rows in zip(rows, hits, strict=True)]
        distinct = list(dict.fromkeys(row for choices in each for some in choices for row in some))
        facts = dict(zip(distinct, self._facts.of(distinct), strict=True))
        return [[[facts[row] for row in some] for some in choices] for choices in each]

    def _hits(self, queries: list[list[str]], rows: list[list[int]]) -> list[list[list[int]]]:
        """Rows that BM25 finds for each query of each record that links too few entities; none for the others."""
        hits: list[list[list[int]]] = [[[] for _ in some] for some in queries]
        short = [i for i, own in enumerate(rows) if len(own) < self.groups]
        if not (self.retrieve and short):
            return hits
        asked = [(i, j, text) for i in short for j, text in enumerate(queries[i])]
        found = TextIndex(self.knowledge, self.form).search([text for *_, text in asked], 2 * self.groups)
        for (i, j, _), some in zip(asked, found.tolist(), strict=True):
            hits[i][j] = [row for row in some if row >= 0]
        return hits


def _chosen(own: list[int], hits: list[int], count: int) -> list[int]:
    return list(dict.fromkeys([*own, *hits]))[:count]


def _carried(record: Record) -> list[Groups] | None:
    """The record's own `facts`, one group a choice; None where it has none."""
    facts = record.fields.get("facts")
    if facts is None:
        return None
    good = isinstance(facts, list) and all(
        isinstance(some, list) and all(isinstance(one, str) for one in some) for some in facts
    )
    choices = len(record.fields.get("choices", [None]))
    if not good or len(facts) not in (1, choices):
        problem = f"field facts is {facts!r}"[:200]
        raise InputError(record.where, problem, f"it must be a list of 1 or {choices} lists of texts")
    return [[some] for some in (facts * choices if len(facts) == 1 else facts)]


def _queries(record: Record) -> list[str]:
    """What BM25 is asked: the text, with the question and each choice where there are any."""
    text = " ".join(filter(None, [record.text, record.fields.get("question")])).replace("[MASK]", " ")
    choices = record.fields.get("choices")
    return [text] if choices is None else [f"{text} {choice}" for choice in choices]


def _answers(record: Record) -> list[str]:
    fields: list[Any] = [record.fields.get("label"), *(record.fields.get("answers") or ())]
    return [one.lower() for one in fields if isinstance(one, str) and one]


def _without(choices: list[Groups], answers: list[str]) -> list[Groups]:
    return [
        [[fact for fact in group if not any(answer in fact.lower() for answer in answers)] for group in groups]
        for groups in choices
    ]
