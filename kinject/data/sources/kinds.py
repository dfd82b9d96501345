"""Questions of several kinds about the same entities, in several wordings: who is asked what, in which words, where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from kinject.data.sources.domain import MAX_PIECES, SLOT, SPLIT_SIZES, ClozeQuestion, Domain, Pieces, is_single_piece
from kinject.data.sources.wordings import Wordings
from kinject.errors import InputError, did_you_mean

SLASH = " / "  # how a text puts a known word before a name, as the paper puts an entity: `germany / kassel`


@dataclass(frozen=True)
class Subject:
    """Something to ask about.

    Attributes:
      entity: its row in the domain.
      name: what it is called in the text.
      answers: by kind of question the word that answers it; kinds that cannot be asked are left out.
      hints: by kind of question the known word that settles the answer.
      longer: by kind of question the answer where it has several pieces; only `choices` asks for these.
    """

    entity: int
    name: str
    answers: Mapping[str, str]
    hints: Mapping[str, str]
    longer: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KindQuestion(ClozeQuestion):
    """A question of some kind, in one of its wordings; `hint` are words that stand before the name, if any.

    `choices` are the answers to choose from, where there are such.
    """

    kind: str
    wording: str
    hint: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dealing:
    """How many questions are made of the subjects.

    Attributes:
      one_kind: the kind that `plugin_<kind>` and `dev_<kind>` ask alone.
      per_answer: at most so many subjects with the same answer to that kind are asked about.
      seed: which subjects, kinds, wordings.
      sizes: subjects a split: `host`, `plugin`, `dev`, `test`.
      host_questions: of each subject of `host`, kinds drawn.
      plugin_questions: of each subject of `plugin`, kinds drawn.
      hinted: share of the host's questions in which known words stand before the name.
      asked: at most so many questions a kind in `dev` and `test`.
      repeated: how often `host` holds each question about what is known, in each wording of training.
      least: questions that there must be about a subject.
    """

    one_kind: str
    per_answer: int
    seed: int = 0
    sizes: Mapping[str, int] = field(default_factory=lambda: SPLIT_SIZES)
    host_questions: int = 2
    plugin_questions: int = 3
    hinted: float = 0.5
    asked: int = 200
    repeated: int = 1
    least: int = 2

    @classmethod
    def of(cls, where: str, **values: Any) -> Dealing:
        """Of options of a source. Raises InputError for one that there is not."""
        names = [one.name for one in fields(cls)]
        for name in values:
            if name not in names:
                raise InputError(where, f"there is no option {name!r}", did_you_mean(name, names))
        return cls(**values)


class KindsDomain(Domain):
    """A domain that is asked questions of several kinds; each `KindQuestion` has its own wording."""

    @classmethod
    def of_questions(cls, splits: Mapping[str, tuple[KindQuestion, ...]], **about: Any) -> KindsDomain:
        """A domain of these questions, and all else that `Domain` is told but template and answers."""
        answers = sorted({question.answer for split in splits.values() for question in split})
        return cls(template="", answers=tuple(answers), splits=splits, **about)

    def records(self, split: str) -> Iterator[dict]:
        for question in self._split(split):
            assert isinstance(question, KindQuestion)  # `deal` makes no others
            yield record(question, self.ids[question.entity])


def record(question: KindQuestion, entity: str) -> dict:
    """The question as a record (docs/architecture.md, "Records"), label = the answer word."""
    before, after = question.wording.split(SLOT)
    start = len(before) + (len(question.hint) + len(SLASH) if question.hint else 0)
    hint = question.hint and question.hint + SLASH
    choices = {"choices": list(question.choices)} if question.choices else {}
    return {
        "text": f"{before}{hint}{question.name}{after}",
        "mentions": [{"start": start, "end": start + len(question.name), "entity": entity}],
        "label": question.answer,
        "kind": question.kind,
        "wording": question.wording,
        **choices,
    }


def fair_subjects(
    subjects: Iterable[Subject],
    names: Iterable[str],
    pieces: Pieces,
    kinds: Iterable[str],
    *,
    least: int = 2,
    seed: int,
) -> list[Subject]:
    """The subjects that can be asked about fairly, with the questions that can be, in an order drawn by the seed.

    Left out are names that several entities share or that have more than five pieces, answers that are not one piece or
    stand in the name, and subjects with less than `least` questions left; an answer of several pieces is kept apart.
    """
    shared = {name for name, count in Counter(names).items() if count > 1}
    kinds, seen, fair = tuple(kinds), set(), []
    pool = list(subjects)
    single: dict[str, bool] = {}
    for at in np.random.default_rng(seed).permutation(len(pool)):
        subject = pool[at]
        spelt = tuple(pieces(subject.name))
        if subject.name in shared or len(spelt) > MAX_PIECES or spelt in seen:
            continue
        answers = {kind: subject.answers[kind] for kind in kinds if kind in subject.answers}
        for word in answers.values():
            single.setdefault(word, is_single_piece(pieces, word))
        answers = {kind: word for kind, word in answers.items() if word not in subject.name}
        longer = {kind: word for kind, word in answers.items() if not single[word]}
        answers = {kind: word for kind, word in answers.items() if single[word]}
        if len(answers) < least:
            continue
        seen.add(spelt)
        fair.append(Subject(subject.entity, subject.name, answers, subject.hints, longer))
    return fair


def limit(subjects: Iterable[Subject], kind: str, most: int) -> list[Subject]:
    """The subjects in their order, of those with the same answer to one kind of question the first `most`."""
    taken: Counter[str | None] = Counter()
    kept = []
    for subject in subjects:
        answer = subject.answers.get(kind)
        taken[answer] += 1
        if answer is None or taken[answer] <= most:
            kept.append(subject)
    return kept


def deal_fairly(
    pool: Iterable[Subject],
    names: Iterable[str],
    known: Sequence[Subject],
    pieces: Pieces,
    wordings: Mapping[str, Wordings],
    how: Dealing,
    where: str,
) -> dict[str, tuple[KindQuestion, ...]]:
    """`deal` of the fair subjects of a pool; see `fair_subjects` for `names`, and `Dealing` for how many."""
    fair = fair_subjects(pool, names, pieces, wordings, least=how.least, seed=how.seed)
    return deal(limit(fair, how.one_kind, how.per_answer), known, wordings, how, where)


def deal(
    subjects: Sequence[Subject], known: Sequence[Subject], wordings: Mapping[str, Wordings], how: Dealing, where: str
) -> dict[str, tuple[KindQuestion, ...]]:
    """Deals subjects into disjoint splits and asks about them.

    Args:
      subjects: fair ones, in the order in which they are taken.
      known: what the host is to know by itself (countries, …), asked about in `host` alone.
      wordings: by kind.
      how: how many.
      where: the source, named in errors.

    Returns:
      The splits. `choices` asks the entities of `test`, in its wordings, the kinds that have answers of several pieces,
      and says which answers there are; it is missing where there are no such kinds.

    Raises:
      InputError: fewer subjects than the sizes ask for, or no such kind.
    """
    wanted = sum(how.sizes.values())
    if len(subjects) < wanted:
        raise InputError(where, f"has {len(subjects)} fair subjects, {wanted} were asked for", "ask for fewer in sizes")
    if set(how.sizes) != set(SPLIT_SIZES):
        raise InputError(where, f"sizes name {sorted(how.sizes)}", f"give {', '.join(SPLIT_SIZES)}")
    if how.one_kind not in wordings:
        raise InputError(where, f"there is no kind {how.one_kind!r}", f"kinds: {', '.join(wordings)}")
    rng = np.random.default_rng([how.seed, 1])
    dealt = [subjects[at] for at in rng.permutation(wanted)]
    ends = np.cumsum([0, *how.sizes.values()])
    part = {name: dealt[ends[i] : ends[i + 1]] for i, name in enumerate(how.sizes)}
    asker = Asker(wordings, rng)
    splits = {
        "host": asker.shuffled(
            asker.drawn(part["host"], how.host_questions, how.hinted) + asker.all_of(known, "train") * how.repeated
        ),
        "plugin": asker.shuffled(asker.drawn(part["plugin"], how.plugin_questions)),
        f"plugin_{how.one_kind}": asker.one_kind(part["plugin"], how.one_kind, "train"),
        "dev": asker.every_kind(part["dev"], "dev", how.asked),
        f"dev_{how.one_kind}": asker.one_kind(part["dev"], how.one_kind, "dev"),
        "test": asker.every_kind(part["test"], "test", how.asked),
    }
    choices = asker.with_choices(part["test"], subjects, "test", how.asked)  # drawn last: the others stay as they are
    return {**splits, "choices": choices} if choices else splits


def one_piece(questions: Iterable[ClozeQuestion], pieces: Pieces) -> dict[str, float]:
    """By kind of question the share of the questions whose answer is one piece of the host's vocabulary."""
    found: dict[str, list[bool]] = {}
    for question in questions:
        if isinstance(question, KindQuestion):
            found.setdefault(question.kind, []).append(is_single_piece(pieces, question.answer))
    return {kind: float(np.mean(single)) for kind, single in found.items()}


class Asker:
    """Makes questions of subjects, drawing from one stream of random numbers."""

    def __init__(self, wordings: Mapping[str, Wordings], rng: np.random.Generator):
        self.wordings, self.rng = wordings, rng

    def ask(self, subject: Subject, kind: str, stage: str, hinted: float = 0.0) -> KindQuestion:
        """One question in a wording of the stage, with known words before the name in a share `hinted` of the cases."""
        choice = getattr(self.wordings[kind], stage)
        wording = choice[self.rng.integers(len(choice))]
        hint = ""
        if hinted and kind in subject.hints and self.rng.random() < hinted:
            others = sorted(set(subject.hints.values()) - {subject.hints[kind]})
            words = [subject.hints[kind], *(word for word in others if self.rng.random() < 0.5)]
            hint = " ".join(words[at] for at in self.rng.permutation(len(words)))
        return KindQuestion(subject.entity, subject.name, subject.answers[kind], kind, wording, hint)

    def drawn(self, subjects: Iterable[Subject], each: int, hinted: float = 0.0) -> list[KindQuestion]:
        """So many questions about each subject, or all there are, of the kinds that were asked least so far."""
        asked: list[KindQuestion] = []
        count: Counter[str] = Counter()
        for subject in subjects:
            kinds = list(subject.answers)
            order = sorted(self.rng.permutation(len(kinds)), key=lambda at: count[kinds[at]])
            for at in order[:each]:
                count[kinds[at]] += 1
                asked.append(self.ask(subject, kinds[at], "train", hinted))
        return asked

    def all_of(self, subjects: Iterable[Subject], stage: str) -> list[KindQuestion]:
        """Every kind of every subject in every wording."""
        return [
            KindQuestion(subject.entity, subject.name, answer, kind, wording)
            for subject in subjects
            for kind, answer in subject.answers.items()
            for wording in getattr(self.wordings[kind], stage)
        ]

    def one_kind(self, subjects: Iterable[Subject], kind: str, stage: str) -> tuple[KindQuestion, ...]:
        """One kind of every subject that it can be asked about."""
        return tuple(self.ask(subject, kind, stage) for subject in subjects if kind in subject.answers)

    def every_kind(self, subjects: Sequence[Subject], stage: str, most: int) -> tuple[KindQuestion, ...]:
        """Up to so many questions of each kind, none of whose answers has more than twice an equal share of them."""
        asked: list[KindQuestion] = []
        for kind in self.wordings:
            able = [subject for subject in subjects if kind in subject.answers]
            share = max(1, 2 * min(len(able), most) // max(1, len({subject.answers[kind] for subject in able})))
            asked += [self.ask(subject, kind, stage) for subject in limit(able, kind, share)[:most]]
        return tuple(asked)

    def with_choices(
        self, subjects: Sequence[Subject], every: Iterable[Subject], stage: str, most: int
    ) -> tuple[KindQuestion, ...]:
        """Kinds with answers of several pieces as `every_kind` asks them; choices are all answers of `every`."""
        answers: dict[str, set[str]] = {}
        for subject in every:
            for kind, word in (*subject.answers.items(), *subject.longer.items()):
                answers.setdefault(kind, set()).add(word)
        kinds = {kind for subject in subjects for kind in subject.longer}
        merged = [
            Subject(one.entity, one.name, {k: w for k, w in {**one.answers, **one.longer}.items() if k in kinds}, {})
            for one in subjects
        ]
        asked = self.every_kind(merged, stage, most)
        return tuple(replace(one, choices=tuple(sorted(answers[one.kind]))) for one in asked)

    def shuffled(self, questions: Sequence[KindQuestion]) -> tuple[KindQuestion, ...]:
        """The questions in an order that is drawn."""
        return tuple(questions[at] for at in self.rng.permutation(len(questions)))


class Nodes:
    """The nodes of a graph by id; a new one gets the next row."""

    def __init__(self, ids: list[str], labels: list[str]):
        self.ids, self.labels = ids, labels
        self.row_of = {key: row for row, key in enumerate(ids)}

    def row(self, key: str, label: str) -> int:
        """The row of the node with this id, which is made if there is none yet."""
        if key not in self.row_of:
            self.row_of[key] = len(self.ids)
            self.ids.append(key)
            self.labels.append(label)
        return self.row_of[key]
