"""Entities of a domain that are kept out of its graph, and what is known of them: to be added later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kinject.data.sources.domain import SLOT, Domain
from kinject.data.sources.edits import FACTS, WORDINGS
from kinject.data.sources.kinds import KindQuestion, record
from kinject.errors import InputError


def withhold(domain: Domain, split: str, count: int, seed: int) -> tuple[Domain, list[dict[str, Any]]]:
    """Takes entities out of a domain's graph; its questions stay, under the same ids.

    Args:
      domain: with the split.
      split: whose entities are taken, those first that are asked most kinds of question.
      count: how many.
      seed: which of those that are asked alike.

    Returns:
      (the domain without them; of each `{"id", "label", "aliases", "description", "triples"}`, the triples of ids and
      with entities that stay).

    Raises:
      InputError: the split asks about fewer entities.
    """
    asked = Counter(question.entity for question in domain.splits[split])
    order = np.random.default_rng(seed).permutation(sorted(asked)).tolist()
    chosen = sorted(order, key=lambda row: -asked[row])[:count]
    if len(chosen) < count:
        raise InputError("withheld", f"{split} asks about {len(chosen)} entities, {count} were asked for", "take fewer")
    gone = np.zeros(len(domain.ids), bool)
    gone[chosen] = True
    of_gone: dict[int, list[list[str]]] = {row: [] for row in chosen}
    touched = gone[domain.triples[:, 0]] | gone[domain.triples[:, 2]]
    for head, relation, tail in domain.triples[touched].tolist():
        if not (gone[head] and gone[tail]):
            named = [domain.ids[head], domain.relations[relation], domain.ids[tail]]
            of_gone[head if gone[head] else tail].append(named)
    told = [
        {
            "id": domain.ids[row],
            "label": domain.labels[row],
            "aliases": list(domain.aliases[row]),
            "description": domain.descriptions[row],
            "triples": of_gone[row],
        }
        for row in chosen
    ]
    return _without(domain, gone, touched), told


def _without(domain: Domain, gone: np.ndarray, touched: np.ndarray) -> Domain:
    """The domain's graph without some rows; questions about them are left to `Domain.ids` of before."""
    kept = np.flatnonzero(~gone).tolist()
    row = np.full(len(gone), -1, np.int32)
    row[kept] = np.arange(len(kept), dtype=np.int32)
    triples = domain.triples[~touched]
    triples = np.stack([row[triples[:, 0]], triples[:, 1], row[triples[:, 2]]], axis=1)
    return replace(
        domain,
        ids=[domain.ids[one] for one in kept],
        labels=[domain.labels[one] for one in kept],
        aliases=[domain.aliases[one] for one in kept],
        descriptions=[domain.descriptions[one] for one in kept],
        triples=triples,
        splits={},
    )


def sentences(
    domain: str,
    named: Mapping[str, str],
    triples: Iterator[tuple[str, str, str]],
    labels: Mapping[str, str],
    count: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Sentences that tell facts of entities, in wordings of training, up to `count` of each; records with a mention.

    Args:
      domain: see `edits.FACTS`; facts of its relations are told.
      named: by id what an entity is called in a text.
      triples: of ids.
      labels: by id the names of tails.
      count: sentences an entity.
      seed: which facts, and wordings.
    """
    draw = np.random.default_rng(seed)
    kinds = {fact.relation: fact.kind for fact in FACTS[domain]}
    facts: dict[str, dict[str, str]] = {one: {} for one in named}
    for head, relation, tail in triples:
        if head in facts and relation in kinds and tail in labels:
            facts[head].setdefault(kinds[relation], labels[tail].lower())
    for one, told in facts.items():
        order = [list(told)[at] for at in draw.permutation(len(told))[:count]]
        for kind in order:
            choice = WORDINGS[domain][kind].train
            before, after = choice[draw.integers(len(choice))].replace("[MASK]", told[kind]).split(SLOT)
            mention = {"start": len(before), "end": len(before) + len(named[one]), "entity": one}
            yield {"text": f"{before}{named[one]}{after}", "mentions": [mention]}


def as_in_training(domain: str, asked: Iterable[tuple[str, str, str, str]]) -> Iterator[dict[str, Any]]:
    """Questions in each of the wordings that train a kind, as records: what is new in them is the entity alone.

    Args:
      domain: see `edits.WORDINGS`.
      asked: of each question the entity's id, what the text calls it, the kind and the answer.

    Raises:
      InputError: no such domain, or a kind that it has no wordings of.
    """
    if domain not in WORDINGS:
        raise InputError(f"domain {domain!r}", "there are no wordings of it", f"there are {', '.join(WORDINGS)}")
    for entity, name, kind, answer in asked:
        if kind not in WORDINGS[domain]:
            known = ", ".join(WORDINGS[domain])
            raise InputError(f"kind {kind!r}", f"{domain} has no wordings of it", f"there are {known}")
        for wording in WORDINGS[domain][kind].train:
            yield record(KindQuestion(0, name, answer, kind, wording), entity)
