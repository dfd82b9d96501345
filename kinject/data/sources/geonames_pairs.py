"""Questions about two cities, to be answered by yes or no, that neither the words nor one of the cities tells.

Questions come in blocks of four: two cities as X and two as Y, of which each X has exactly one Y that shares a fact
with it, in one wording. In every block each X, each Y and the wording have as many "yes" as "no"; two questions of a
block that share a city differ in the other alone, and have different answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kinject.data.sources import geonames_kinds
from kinject.data.sources.domain import SLOT, SPLIT_SIZES, ClozeQuestion, Domain, Pieces
from kinject.data.sources.kinds import SLASH, KindQuestion, KindsDomain, record
from kinject.data.sources.pair_wordings import LESSONS, PAIRS, TAUGHT
from kinject.data.sources.wordings import GEOGRAPHY
from kinject.errors import InputError

OTHER_SLOT = "[Y]"
DENIED = "not_"  # how the name of a kind begins whose "yes" is the other's "no"
FACTS = ("country", "continent", "size")
SIZES = ("small", "large")  # medium ones are near to both
BLOCKS: dict[str, int] = {"host_first": 300, "host": 400, "plugin": 750, "dev": 40, "test": 40}
"""Blocks of four questions, of each kind, a split."""
PART = {"host_first": "host", "host": "host", "plugin": "plugin", "dev": "dev", "test": "test"}
"""Whose cities a split of blocks asks about."""
SCORED = ("dev", "test")
FIRST_OTHERS, OTHERS = 0.25, 0.5  # how likely each fact that is not asked is told besides, in the host's lessons


@dataclass(frozen=True)
class City:
    """A city that is asked about: its row in the domain, its name in the text, and its facts by name."""

    entity: int
    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class PairQuestion(ClozeQuestion):
    """A question about `entity` and `other`; `hints` are known words that stand before either name, if any."""

    other: int
    other_name: str
    kind: str
    wording: str
    block: int
    hints: tuple[str, str] = ("", "")


class PairsDomain(KindsDomain):
    """A domain whose splits have questions about one entity, about two, or both."""

    def records(self, split: str) -> Iterator[dict]:
        for question in self._split(split):
            if isinstance(question, PairQuestion):
                yield pair_record(question, self.ids)
            else:
                assert isinstance(question, KindQuestion)  # `load` makes no others
                yield record(question, self.ids[question.entity])


def pair_record(question: PairQuestion, ids: Sequence[str]) -> dict:
    """The question as a record with two mentions, in the order of the text; `block` names its block of four."""
    named = {
        SLOT: (question.name, question.hints[0], question.entity),
        OTHER_SLOT: (question.other_name, question.hints[1], question.other),
    }
    text, mentions = question.wording, []
    for slot in sorted(named, key=question.wording.index):
        name, hint, entity = named[slot]
        before, after = text.split(slot)
        hint = hint and hint + SLASH
        start = len(before) + len(hint)
        text = f"{before}{hint}{name}{after}"
        mentions.append({"start": start, "end": start + len(name), "entity": ids[entity]})
    asked = {"kind": question.kind, "wording": question.wording, "block": question.block}
    return {"text": text, "mentions": mentions, "label": question.answer, **asked}


def load(
    pieces: Pieces,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = SPLIT_SIZES,
    blocks: Mapping[str, int] = BLOCKS,
    **options: Any,
) -> PairsDomain:
    """Loads the cities of `geonames_kinds.load` with questions about two of them; splits share no city.

    Every question of `host_first` and `host` has known words before the names, the fact that is asked and at times
    others: `host_first` asks what two equal words answer with yes, `host` denied forms too, those of `TAUGHT` among
    them. `who` asks each fact of each city of `plugin`, to say who a vector is; `plugin`, `dev` and `test` ask
    about two cities, and `dev_told` and `test_told` are those with the fact before the names, what a reader makes of
    them who is told.

    Args:
      pieces: the host's tokenizer, without special tokens.
      seed: which cities and wordings.
      sizes: cities a split.
      blocks: see `BLOCKS`.
      **options: for `geonames_kinds.load`.

    Raises:
      InputError: the package is missing or has too few cities, a split has too few for a kind of question, or blocks
        name other splits.
    """
    if set(blocks) != set(BLOCKS):
        raise InputError("source pairs", f"blocks name {sorted(blocks)}", f"give {', '.join(BLOCKS)}")
    base = geonames_kinds.load(pieces, seed=seed, sizes=sizes, **options)
    rng = np.random.default_rng([seed, 2])
    cities = _cities(base)
    dealt = {
        split: _asked(rng, split, [cities[row] for row in dict.fromkeys(base.rows(PART[split])) if row in cities], many)
        for split, many in blocks.items()
    }
    first = [_told(one, cities, rng, FIRST_OTHERS) for one in dealt["host_first"]]
    host = [_told(one, cities, rng, OTHERS) for one in dealt["host"]]
    splits = {
        "host_first": tuple(first[at] for at in rng.permutation(len(first))),
        "host": tuple(host[at] for at in rng.permutation(len(host))),
        "who": _who(rng, [cities[row] for row in dict.fromkeys(base.rows(PART["plugin"])) if row in cities]),
        "plugin": tuple(dealt["plugin"][at] for at in rng.permutation(len(dealt["plugin"]))),
        "dev": dealt["dev"],
        "test": dealt["test"],
        **{f"{split}_told": tuple(_told(one, cities, rng, 0.0) for one in dealt[split]) for split in SCORED},
    }
    fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return PairsDomain(**{**fields, "name": "pairs", "answers": ("no", "yes"), "splits": splits})


def _cities(base: Domain) -> dict[int, City]:
    """By row the cities that are asked about in some split and whose country, continent and size are known."""
    of_country = {row: base.labels[to].lower() for row, relation, to in base.triples if _is(base, relation, "country")}
    of_size = {row: base.labels[to] for row, relation, to in base.triples if _is(base, relation, "size")}
    asked = [one for split in base.splits.values() for one in split if isinstance(one, KindQuestion)]
    country_of = {one.entity: of_country[one.entity] for one in asked if one.entity in of_country}
    continent = {
        country_of[one.entity]: one.answer for one in asked if one.kind == "continent" and one.entity in country_of
    }
    found = {}
    for one in asked:
        country = country_of.get(one.entity)
        if country in continent and one.entity in of_size:
            facts = {"country": country, "continent": continent[country], "size": of_size[one.entity]}
            found[one.entity] = City(one.entity, one.name, facts)
    return found


def _is(base: Domain, relation: int, name: str) -> bool:
    return base.relations[relation] == name


def _asked(rng: np.random.Generator, split: str, cities: Sequence[City], blocks: int) -> tuple[PairQuestion, ...]:
    """So many blocks of each kind of a split."""
    stage = split if split in SCORED else "train"
    found: list[PairQuestion] = []
    for kind, wordings in {**PAIRS, **(TAUGHT if split == "host" else {})}.items():
        if split == "host_first" and kind.startswith(DENIED):
            continue
        fact = asked_fact(kind)
        choice = getattr(wordings, stage) + (LESSONS[kind] if stage == "train" else ())
        for _ in range(blocks):
            chosen = _square(rng, cities, fact, f"source pairs: {split}")
            found += _block(chosen, kind, choice[rng.integers(len(choice))], len(found) // 4)
    return tuple(found)


def _square(rng: np.random.Generator, cities: Sequence[City], fact: str, where: str) -> tuple[City, City, City, City]:
    """Two cities as X and two as Y; the first of each share one value of the fact, the second of each another."""
    of: dict[str, list[City]] = {}
    for city in cities:
        if fact != "size" or city.facts[fact] in SIZES:
            of.setdefault(city.facts[fact], []).append(city)
    values = [value for value, found in of.items() if len(found) > 1]
    if len(values) < 2:
        raise InputError(where, f"too few cities to ask for the same {fact}", "ask for more cities in sizes")
    one, other = (of[values[at]] for at in rng.permutation(len(values))[:2])
    (x, y), (also_x, also_y) = ([group[at] for at in rng.permutation(len(group))[:2]] for group in (one, other))
    return x, also_x, y, also_y


def _block(chosen: tuple[City, City, City, City], kind: str, wording: str, number: int) -> list[PairQuestion]:
    """The four questions of two X and two Y, in the order of X; those of the first and of the last are of one value."""
    left, right = chosen[:2], chosen[2:]
    answers = ("no", "yes") if kind.startswith(DENIED) else ("yes", "no")
    return [
        PairQuestion(x.entity, x.name, answers[i != j], y.entity, y.name, kind, wording, number)
        for i, x in enumerate(left)
        for j, y in enumerate(right)
    ]


def asked_fact(kind: str) -> str:
    """The fact of two cities that a kind of question compares."""
    return kind.removeprefix(DENIED).removeprefix("same_")


def _told(question: PairQuestion, cities: Mapping[int, City], rng: np.random.Generator, others: float) -> PairQuestion:
    """The question with the asked fact of each city before its name, and each other fact in a share `others`."""
    asked = asked_fact(question.kind)

    def words(row: int) -> str:
        said = [cities[row].facts[name] for name in FACTS if name == asked or rng.random() < others]
        return " ".join(said[at] for at in rng.permutation(len(said)))

    return replace(question, hints=(words(question.entity), words(question.other)))


def _who(rng: np.random.Generator, cities: Sequence[City]) -> tuple[KindQuestion, ...]:
    """A question about each fact of each city alone."""
    asked = []
    for city in cities:
        for fact in FACTS:
            wordings = GEOGRAPHY[fact].train
            asked.append(
                KindQuestion(city.entity, city.name, city.facts[fact], fact, wordings[rng.integers(len(wordings))])
            )
    return tuple(asked)
