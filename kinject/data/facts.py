"""Knowledge as text: the facts of a record in words, and texts put behind encoded examples.

A record's facts are its own, those of the entities that it links, then those that its words find. Behind an example a
text stands as `[CLS] input [SEP] text [SEP]`; the input stays as it is, piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from kinject.data.pipeline import TOKENS, Examples
from kinject.data.records import Record
from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.facts import Facts, Form, TextIndex

Groups = list[list[str]]
"""The facts of one text, group by group: one group an entity, in order of preference."""


class _Settings(Protocol):
    """What the `Config` of a method that reads facts says of them; see `FactReader`, whose `groups` are `entities`."""

    @property
    def form(self) -> Form: ...
    @property
    def entities(self) -> int: ...
    @property
    def retrieve(self) -> bool: ...
    @property
    def drop_answers(self) -> bool: ...


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

    @classmethod
    def of(cls, config: _Settings, knowledge: KnowledgeBase | None) -> FactReader:
        """The reader that a method's settings describe."""
        chosen = {"retrieve": config.retrieve, "drop_answers": config.drop_answers}
        return cls(knowledge, config.form, groups=config.entities, **chosen)

    def read(self, records: Sequence[Record]) -> list[list[Groups]]:
        """For each record, for each of its choices (one where it has none), groups of facts.

        Raises:
          InputError: a malformed `facts`, or a record without facts where there is no knowledge base.
        """
        carried = [_carried(record) for record in records]
        wanting = [record for record, one in zip(records, carried, strict=True) if one is None]
        looked_up: Iterator[list[Groups]] = iter(())
        if wanting:
            if self.knowledge is None or self._facts is None:
                problem = "it carries no facts, and no knowledge base is named"
                raise InputError(wanting[0].where, problem, "name knowledge, or give the field facts")
            looked_up = iter(self._looked_up(wanting, self.knowledge, self._facts))
        found = [next(looked_up) if one is None else one for one in carried]
        if self.drop_answers:
            found = [_without(one, _answers(record)) for one, record in zip(found, records, strict=True)]
        return found

    def _looked_up(self, records: Sequence[Record], knowledge: KnowledgeBase, facts: Facts) -> list[list[Groups]]:
        ids = [list(dict.fromkeys(one.entity for one in record.mentions if one.entity)) for record in records]
        known = knowledge.rows([one for some in ids for one in some]).tolist()
        rows, done = [], 0
        for some in ids:
            rows.append([row for row in known[done : done + len(some)] if row >= 0][: self.groups])
            done += len(some)
        queries = [_queries(record) for record in records]
        hits = self._hits(queries, rows, knowledge)
        each = [[_chosen(own, hit, self.groups) for hit in hit_rows] for own, hit_rows in zip(rows, hits, strict=True)]
        distinct = list(dict.fromkeys(row for choices in each for some in choices for row in some))
        texts = dict(zip(distinct, facts.of(distinct), strict=True))
        return [[[texts[row] for row in some] for some in choices] for choices in each]

    def _hits(self, queries: list[list[str]], rows: list[list[int]], knowledge: KnowledgeBase) -> list[list[list[int]]]:
        """Rows that BM25 finds for each query of each record that links too few entities; none for the others."""
        hits: list[list[list[int]]] = [[[] for _ in some] for some in queries]
        short = [i for i, own in enumerate(rows) if len(own) < self.groups]
        if not (self.retrieve and short):
            return hits
        asked = [(i, j, text) for i in short for j, text in enumerate(queries[i])]
        found = TextIndex(knowledge, self.form).search([text for *_, text in asked], 2 * self.groups)
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


def append_texts(
    examples: Examples, texts: Sequence[Sequence[Sequence[str]]], tokenizer: HostTokenizer, *, budget: int, longest: int
) -> Examples:
    """Appends texts to every row of tokens.

    Args:
      examples: whose token arrays are [n, L] or [n, C, L].
      texts: for each example, for each of its rows, texts in order of preference; a single row's list serves all.
      tokenizer: the host's.
      budget: pieces a text may take, its separator not counted; what is beyond is cut.
      longest: positions a row may take; texts that do not fit are cut or left out, the input never is.

    Raises:
      InputError: examples whose tokens are only made when they are dealt.
    """
    if examples.complete is not None:
        raise InputError("task", "its rows are made as they are dealt", "retrieved text serves tasks with fixed rows")
    pieces = _text_pieces(texts, tokenizer, budget)
    buckets = tuple(
        _appended(bucket, [pieces[i] for i in bucket["index"]], tokenizer, longest) for bucket in examples.buckets
    )
    lengths = tuple(bucket["token_ids"].shape[-1] for bucket in buckets)
    return replace(examples, buckets=buckets, lengths=lengths)


def mean_length(examples: Examples) -> float:
    """Mean number of tokens of a row that is no padding."""
    real = [(bucket["segment_ids"] > 0).sum(-1).reshape(-1) for bucket in examples.buckets]
    lengths = np.concatenate(real)
    return float(lengths[lengths > 0].mean())


def _text_pieces(texts: Sequence, tokenizer: HostTokenizer, budget: int) -> list[list[list[list[int]]]]:
    """The ids of every text, cut to the budget, in one call of the tokenizer."""
    distinct = list(dict.fromkeys(text for rows in texts for row in rows for text in row))
    ids = {text: one.ids[:budget] for text, one in zip(distinct, tokenizer.pieces(distinct), strict=True)}
    return [[[ids[text] for text in row if ids[text]] for row in rows] for rows in texts]


def _appended(
    bucket: Mapping[str, np.ndarray], texts: list[list[list[list[int]]]], tokenizer: HostTokenizer, longest: int
) -> dict[str, np.ndarray]:
    axes = bucket["token_ids"].shape[:-1]
    flat = {name: bucket[name].reshape(-1, bucket[name].shape[-1]) for name in TOKENS}
    each = int(np.prod(axes[1:], dtype=int))
    sizes = (flat["segment_ids"] > 0).sum(1)
    before = tokenizer.between[len(tokenizer.after) :]  # the input ends with a separator already
    added = []
    for row, size in enumerate(sizes.tolist()):
        own = texts[row // each]
        some = own[row % each] if len(own) > 1 else own[0]
        added.append(_joined(some, before, tokenizer.after, longest - size) if size else [])
    length = int(max(size + len(more) for size, more in zip(sizes.tolist(), added, strict=True)))
    fills = {"token_ids": tokenizer.pad_id, "entity_slot": -1}
    wide = {name: _widened(values, length, fills.get(name, 0)) for name, values in flat.items()}
    for row, (size, more) in enumerate(zip(sizes.tolist(), added, strict=True)):
        here = slice(size, size + len(more))
        wide["token_ids"][row, here] = more
        wide["segment_ids"][row, here] = wide["segment_ids"][row, size - 1] if size else 0
        wide["position_ids"][row, here] = np.arange(size, size + len(more))
        wide["type_ids"][row, here] = tokenizer.pair_type
    return {**bucket, **{name: values.reshape(*axes, length) for name, values in wide.items()}}


def _joined(texts: list[list[int]], before: Sequence[int], after: Sequence[int], room: int) -> list[int]:
    """`before text after` of each text that fits; the last one may be cut."""
    made: list[int] = []
    for ids in texts:
        left = room - len(made) - len(before) - len(after)
        if left < 1:
            break
        made += [*before, *ids[:left], *after]
    return made


def _widened(values: np.ndarray, length: int, fill: int) -> np.ndarray:
    wide = np.full((len(values), length), fill, values.dtype)
    kept = min(length, values.shape[1])
    wide[:, :kept] = values[:, :kept]
    return wide
