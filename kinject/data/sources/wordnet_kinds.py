"""Biology in six kinds of question about animals and plants of WordNet.

What kind it is and its kingdom follow from the hypernyms, the family of a plant from its genus. Where it lives, its
size and its colour are said in its definition and nowhere else: they become triples here, where a definition says one
answer and no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinject.data.sources import wordnet
from kinject.data.sources.domain import Domain, Pieces, is_single_piece
from kinject.data.sources.kinds import Dealing, KindsDomain, Nodes, Subject, deal_fairly
from kinject.data.sources.wordings import BIOLOGY

WHERE = "source biology_kinds"
RELATIONS = (*wordnet.RELATIONS, "found_in", "size", "colour", "kind", "kingdom", "family")
TOLD_BY = {
    "region": "found_in",
    "size": "size",
    "colour": "colour",
    "kind": "kind",
    "realm": "kingdom",
    "family": "family",
}

_REGIONS = {
    "america": r"Americas?n?|United States|U\.S\.|Californian?|Mexic\w+|Brazil\w*|Texas|Florida|Canad\w+|West Indies|"
    r"West Indian|Caribbean|Chile\w*|Peru\w*|Andes|Andean|Alaska|Argentin\w+|New England",
    "europe": r"Europ\w+|Mediterranean|Britain|British|Alps|Spain|Italy|Scandinavian?",
    "asia": r"Asian?|Asiatic|China|Chinese|Japan\w*|India|Himalayas?n?|Malay\w*|Philippines?|East Ind\w+|"
    r"Siberian?|Burma",
    "africa": r"Africa\w*|Madagascar|Ethiopia\w*|Sahara",
    "australia": r"Australian?|New Zealand|Tasmanian?|Queensland",
}
_SIZES = {"small": r"small|tiny|dwarf|low|minute", "large": r"large|tall|giant|huge|big"}
_COLOURS = {
    **{colour: colour for colour in ("white", "yellow", "red", "purple", "blue", "pink", "green", "black", "brown")},
    "orange": "orange",
    "grey": "gr[ea]y",
}
_SAID = {
    kind: {word: re.compile(rf"\b(?:{pattern})\b") for word, pattern in words.items()}
    for kind, words in (("region", _REGIONS), ("size", _SIZES), ("colour", _COLOURS))
}
_FAMILY = re.compile(r"(\w+) family")
_CLASSES = {
    "mammal",
    "bird",
    "fish",
    "arthropod",
    "reptile",
    "amphibian",
    "mollusk",
    "bacteria",
    "protoctist",
    "plant",
    "fungus",
}
_TAXON = re.compile(r"[A-Z]|(?:genus|family|order|class|phylum|suborder|subfamily|tribe|division) ")


def load(pieces: Pieces, *, one_kind: str = "kind", per_answer: int = 400, least: int = 3, **dealing: Any) -> Domain:
    """Loads the animals and plants of `wordnet.load` with questions of six kinds; the graph holds what they ask.

    Args:
      pieces: the host's tokenizer, without special tokens.
      one_kind: see `kinds.Dealing`.
      per_answer: see there.
      least: see there.
      dealing: all else that is told there; the graph is the same for every seed.

    Raises:
      InputError: the package is missing or has too few entities for the sizes.
    """
    synsets = wordnet.animals_and_plants()
    triples = wordnet.hierarchy(synsets)
    facts = _facts(synsets, triples, pieces)
    nodes = Nodes([f"wordnet:{synset.offset}-n" for synset in synsets], [synset.words[0] for synset in synsets])
    extra = [
        (row, RELATIONS.index(TOLD_BY[kind]), nodes.row(f"{TOLD_BY[kind]}:{word}", word))
        for row, answers in enumerate(facts)
        for kind, word in answers.items()
    ]
    subjects = [
        Subject(row, synsets[row].words[0].lower(), answers, dict(answers))
        for row, answers in enumerate(facts)
        if answers
    ]
    names = [word for synset in synsets for word in {word.lower() for word in synset.words}]
    how = Dealing.of(WHERE, one_kind=one_kind, per_answer=per_answer, least=least, **dealing)
    spare = len(nodes.ids) - len(synsets)
    return KindsDomain.of_questions(
        deal_fairly(subjects, names, [], pieces, BIOLOGY, how, WHERE),
        name="biology",
        ids=nodes.ids,
        labels=nodes.labels,
        aliases=[synset.words[1:] for synset in synsets] + [()] * spare,
        descriptions=[synset.gloss for synset in synsets] + [""] * spare,
        triples=np.concatenate([triples, np.array(extra, np.int32).reshape(-1, 3)]),
        relations=RELATIONS,
        source=wordnet.SOURCE,
        license=wordnet.LICENSE,
    )


def _facts(synsets: Sequence[wordnet.Synset], triples: np.ndarray, pieces: Pieces) -> list[dict[str, str]]:
    """For each synset its answers by kind; none of a genus, family or other taxon, whose name is a proper one."""
    nearest = wordnet.nearest_kinds(synsets, triples, pieces)
    kingdoms, families = _kingdoms(synsets, triples), _families(synsets, triples, pieces)
    facts: list[dict[str, str]] = []
    for row, synset in enumerate(synsets):
        found: dict[str, str] = {}
        if not _TAXON.match(synset.words[0]):
            for kind, by_row in (("kind", nearest), ("realm", kingdoms), ("family", families)):
                if row in by_row:
                    found[kind] = by_row[row]
            found |= said(synset.gloss)
        facts.append(found)
    return facts


def said(definition: str) -> dict[str, str]:
    """What a definition says of region, size and colour, where it says one answer and no other."""
    found = {}
    for kind, words in _SAID.items():
        here = [word for word, pattern in words.items() if pattern.search(definition)]
        if len(here) == 1:
            found[kind] = here[0]
    return found


def _above(triples: np.ndarray, relations: tuple[int, ...], count: int) -> list[list[int]]:
    up: list[list[int]] = [[] for _ in range(count)]
    for head, relation, tail in triples.tolist():
        if relation in relations:
            up[head].append(tail)
    return up


def _kingdoms(synsets: Sequence[wordnet.Synset], triples: np.ndarray) -> dict[int, str]:
    """Animal, plant or fungus, by row: the lexicographers' files, which have fungi among the plants."""
    fungi = _below(wordnet.row_of_kind(synsets, "fungus"), _above(triples, (0, 1), len(synsets)))
    return {
        row: "animal" if synset.is_animal else "fungus" if row in fungi else "plant"
        for row, synset in enumerate(synsets)
    }


def _below(root: int, up: Sequence[Sequence[int]]) -> set[int]:
    """The rows from which a row is reached, itself among them."""
    down: dict[int, list[int]] = {}
    for row, above in enumerate(up):
        for one in above:
            down.setdefault(one, []).append(row)
    found, left = {root}, [root]
    while left:
        left = [row for one in left for row in down.get(one, ()) if row not in found]
        found.update(left)
    return found


def _families(synsets: Sequence[wordnet.Synset], triples: np.ndarray, pieces: Pieces) -> dict[int, str]:
    """The word of the nearest `… family` above each row, through hypernyms and what it is a member of."""
    up = _above(triples, (0, 1, 2), len(synsets))
    named = {}
    for row, synset in enumerate(synsets):
        matches = [_FAMILY.fullmatch(word) for word in synset.words]
        words = [match[1] for match in matches if match is not None and match[1].islower()]
        words = [word for word in words if word not in _CLASSES and is_single_piece(pieces, word)]
        if words:
            named[row] = words[0]
    found: dict[int, str] = {}
    for row in range(len(synsets)):
        level, seen = {row}, {row}
        while level and not level & named.keys():
            level = {above for below in level for above in up[below]} - seen
            seen |= level
        reached = {named[one] for one in level & named.keys()}
        if len(reached) == 1 and row not in named:
            found[row] = reached.pop()
    return found
