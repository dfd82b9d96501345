"""A domain: entities, the triples between them, and cloze questions that a host is asked about them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinject.errors import InputError, did_you_mean

SLOT = "[X]"
MAX_PIECES = 5  # longer names make rows of very unequal length, and the quickstart has three minutes

SPLIT_SIZES: dict[str, int] = {"host": 1000, "plugin": 1000, "dev": 300, "test": 500}
"""Questions a split: `host` trains the downstream model, `plugin` the plugin, `dev` chooses, `test` is scored once."""

Pieces = Callable[[str], Sequence[str]]
"""The host's tokenizer: a text, without special tokens, as the pieces of the vocabulary."""


@dataclass(frozen=True)
class ClozeQuestion:
    """One cloze question: the `entity` (row of the domain), the `name` it is asked by, and the `answer` word."""

    entity: int
    name: str
    answer: str


@dataclass(frozen=True)
class Domain:
    """Entities (row order), triples and questions of one domain.

    Attributes:
      name: "geography", "biology", …
      ids: N entity ids.
      labels: N names, as the source writes them.
      aliases: N tuples of further names.
      descriptions: N texts, "" where the source has none.
      triples: int32 [T, 3], columns head row, relation, tail row.
      relations: names of the relations.
      template: the question; `[X]` stands for the name, `[MASK]` for the answer.
      answers: every answer there is.
      splits: for each split its questions; no entity is in two of them.
      source: what the data is and where it comes from.
      license: under which licence the data stands.
    """

    name: str
    ids: list[str]
    labels: list[str]
    aliases: list[tuple[str, ...]]
    descriptions: list[str]
    triples: np.ndarray
    relations: tuple[str, ...]
    template: str
    answers: tuple[str, ...]
    splits: Mapping[str, tuple[ClozeQuestion, ...]]
    source: str
    license: str

    def rows(self, split: str) -> np.ndarray:
        """Returns int32 [n], the entity row of every question of a split. Raises InputError for an unknown split."""
        return np.array([question.entity for question in self._split(split)], np.int32)

    def records(self, split: str) -> Iterator[dict]:
        """Yields the questions of a split as records (docs/architecture.md, "Records"), label = the answer word."""
        start = self.template.index(SLOT)
        for question in self._split(split):
            mention = {"start": start, "end": start + len(question.name), "entity": self.ids[question.entity]}
            text = self.template.replace(SLOT, question.name)
            yield {"text": text, "mentions": [mention], "label": question.answer}

    def write_questions(self, folder: str | Path) -> dict[str, Path]:
        """Writes `<split>.jsonl` for every split into a new folder, all of them or none.

        Returns the file of each split. Raises InputError when the folder holds something already.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(folder, "is there already and not empty", "choose another folder or remove it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for split in self.splits:
                with (unfinished / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records(split))
            unfinished.chmod(0o755)  # mkdtemp makes it private
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return {split: folder / f"{split}.jsonl" for split in self.splits}

    def _split(self, split: str) -> tuple[ClozeQuestion, ...]:
        if split not in self.splits:
            raise InputError(f"split {split!r}", f"the domain {self.name} has none", did_you_mean(split, self.splits))
        return self.splits[split]


def is_single_piece(pieces: Pieces, word: str) -> bool:
    """Whether the vocabulary holds the word whole, so that one masked position can answer it.

    An unknown word is one piece too, but not its own; `Ġ` and `▁` are how byte-level and sentence pieces mark a space.
    """
    found = pieces(word)
    return len(found) == 1 and found[0].lstrip("Ġ▁") == word


def split_questions(
    candidates: Iterable[ClozeQuestion],
    names: Iterable[str],
    pieces: Pieces,
    *,
    where: str,
    per_answer: int,
    sizes: Mapping[str, int] = SPLIT_SIZES,
    seed: int = 0,
) -> dict[str, tuple[ClozeQuestion, ...]]:
    """Chooses the questions that can be asked fairly and deals them into disjoint splits, the same for the same seed.

    Left out are names that contain their answer, that several entities share, or that have more than five pieces.

    Args:
      candidates: at most one question an entity.
      names: every name of every entity of the source, repeated when entities share it; in lower case.
      pieces: the host's tokenizer.
      where: the source, named in errors.
      per_answer: at most so many questions with the same answer.
      sizes: questions a split.
      seed: which of the fair questions are taken, and into which split.

    Raises InputError when there are too few questions for the sizes.
    """
    if not sizes or min(sizes.values()) < 0:
        raise InputError(
            where, f"sizes={dict(sizes)} is no table of split sizes", "give each split a count of 0 or more"
        )
    shared = {name for name, count in Counter(names).items() if count > 1}
    pool = [question for question in candidates if question.name not in shared and question.answer not in question.name]
    wanted = sum(sizes.values())
    taken: Counter[str] = Counter()
    seen: set[tuple[str, ...]] = set()
    asked_by: list[ClozeQuestion] = []
    rng = np.random.default_rng(seed)
    for at in rng.permutation(len(pool)):
        question = pool[at]
        if taken[question.answer] >= per_answer:
            continue
        spelt = tuple(pieces(question.name))
        if len(spelt) > MAX_PIECES or spelt in seen:  # the host cannot tell `são paulo` from `sao paulo`
            continue
        taken[question.answer] += 1
        seen.add(spelt)
        asked_by.append(question)
    if len(asked_by) < wanted:
        mend = "ask for fewer in sizes, or raise per_answer"
        raise InputError(where, f"has {len(asked_by)} fair questions, {wanted} were asked for in sizes", mend)
    # Dealt anew: in the order of choosing, answers that reached their limit would be missing from the last splits.
    dealt = [asked_by[at] for at in rng.permutation(len(asked_by))]
    ends = np.cumsum([0, *sizes.values()])
    return {name: tuple(dealt[ends[i] : ends[i + 1]]) for i, name in enumerate(sizes)}
