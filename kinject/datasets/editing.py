"""Data sets of model editing: CounterFact and zsRE as ROME has them, MQuAKE, and RippleEdits.

Each edit becomes questions with one [MASK] that share `edit` and `changes` and say what they measure (docs/formats.md):
stage `edit` asks them. Answers of several pieces are chosen among `choices`, as CounterFact compares two.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from kinject.data.records import Record, parse_record
from kinject.data.tokenizer import MASK_LITERAL
from kinject.datasets.builder import RecordBuilder, Splits, expect
from kinject.datasets.files import check, need, read_objects, take, texts
from kinject.errors import InputError

ROME = "https://github.com/kmeng01/rome"
SLOT = "{}"


class EditData(RecordBuilder):
    """Records: text, `edit`, `measure`, `changes`, `label`, `choices`, `id`; a mention where the subject is named."""

    @classmethod
    def configs_for(cls, folder: Path) -> list[str]:
        there = [name for name, (file, _) in cls.FILES.items() if (folder / file).exists()]
        return there[:1] if len({cls.FILES[name][0] for name in there}) == 1 else there or list(cls.FILES)[:1]

    def files(self, folder: Path) -> list[Path]:
        return [need(folder, self.FILES[self.builder_config.name][0])]

    def splits(self, folder: Path) -> Splits:
        (path,) = self.files(folder)
        published = self.FILES[self.builder_config.name][1]
        if self.check and published:
            expect(path, "edits", sum(1 for _ in read_objects(path)), published)
        self.prepare_for(path)
        return {"test": partial(self._records, path)}

    def prepare_for(self, path: Path) -> None:
        """What must be known of the whole file before its first record is made."""

    def _records(self, path: Path) -> Iterator[Record]:
        for number, where, case in read_objects(path):
            changes, questions = self.edit(case, number, where)
            about = {"edit": str(number), "changes": changes}
            for at, question in enumerate(questions):
                if len(question["choices"]) < 2:
                    self.left_out["no second answer to choose from"] += 1
                else:
                    yield parse_record({**question, **about, "id": f"{number}/{at}"}, where)

    @abstractmethod
    def edit(
        self, case: dict[str, Any], number: int, where: str
    ) -> tuple[list[dict[str, Any]], Iterable[dict[str, Any]]]:
        """The changes of a case, and its questions.

        Raises:
          InputError: a missing field, a wrong type.
        """


def question(
    prompt: str, measure: str, label: str, others: Iterable[str], name: str = "", entity: str | None = None
) -> dict[str, Any]:
    """A prompt that the answer continues -> a record; the mention is the first place of `name`, if it is there."""
    text = f"{prompt.strip()} {MASK_LITERAL}"
    at = text.find(name) if name else -1
    mentions = [] if at < 0 else [{"start": at, "end": at + len(name), "entity": entity}]
    choices = sorted({label, *(one for one in others if one)})
    return {"text": text, "mentions": mentions, "measure": measure, "label": label, "choices": choices}


class Counterfact(EditData):
    """Which of two answers is likelier, the new or the true one; neighbours have the true or, `attribute`, the new."""

    DESCRIPTION = "CounterFact: 21,919 counterfactual edits with paraphrases and neighbours."
    HOMEPAGE = ROME
    CITATION = "Meng et al., Locating and Editing Factual Associations in GPT, NeurIPS 2022"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"counterfact.json, see {ROME}."
    FILES: ClassVar[dict[str, tuple[str, int]]] = {"counterfact": ("counterfact.json", 21_919)}

    def edit(
        self, case: dict[str, Any], number: int, where: str
    ) -> tuple[list[dict[str, Any]], Iterable[dict[str, Any]]]:
        rewrite = Rewrite.of(take(case, "requested_rewrite", dict, where), "requested_rewrite", where)
        prompts = {
            name: texts(take(case, name, list, where), name, where)
            for name in ("paraphrase_prompts", "neighborhood_prompts")
        }
        attribute = texts(check(case.get("attribute_prompts", []), list, "attribute_prompts", where), "", where)
        pair = (rewrite.new, rewrite.old)
        subject = rewrite.subject
        questions = [
            question(rewrite.prompt, "efficacy", rewrite.new, pair, subject),
            *(question(one, "paraphrase", rewrite.new, pair, subject) for one in prompts["paraphrase_prompts"]),
            *(question(one, "neighbourhood", rewrite.old, pair) for one in prompts["neighborhood_prompts"]),
            *(question(one, "neighbourhood", rewrite.new, pair) for one in attribute),
        ]
        return [rewrite.change(None)], questions


class Rewrite:
    """`requested_rewrite` of CounterFact and MQuAKE.

    Attributes:
      prompt: with the subject in it.
      subject, old, new: names.
    """

    def __init__(self, prompt: str, subject: str, relation: str, new: tuple[str, str], old: str):
        self.prompt, self.subject, self.relation = prompt, subject, relation
        (self.new, self.new_id), self.old = new, old

    @classmethod
    def of(cls, given: dict[str, Any], at: str, where: str) -> Rewrite:
        """Raises InputError for a missing field, a wrong type, a prompt without {}."""
        prompt, subject = take(given, "prompt", str, where, at), take(given, "subject", str, where, at)
        relation = take(given, "relation_id", str, where, at)
        if prompt.count(SLOT) != 1:
            problem = f"field '{at}.prompt' is {prompt!r}"
            raise InputError(where, problem, f"it must have one {SLOT}, for the subject")
        new, old = (take(given, name, dict, where, at) for name in ("target_new", "target_true"))
        named = [take(one, "str", str, where, f"{at}.target") for one in (new, old)]
        if not (subject.strip() and all(one.strip() for one in named)):
            raise InputError(where, f"field {at!r} names a subject or target that is empty", "drop the case")
        identity = take(new, "id", str, where, f"{at}.target_new")
        return cls(prompt.replace(SLOT, subject), subject, relation, (named[0], identity), named[1])

    def change(self, head: str | None) -> dict[str, Any]:
        """The change as records have it."""
        found = {"head": head, "head_label": self.subject, "relation": self.relation}
        return {**found, "tail": self.new_id, "tail_label": self.new}


class Mquake(EditData):
    """Portability: questions of several hops whose answer follows from one or several edits by other facts."""

    DESCRIPTION = "MQuAKE: edits and what follows from them in two to four steps."
    HOMEPAGE = "https://github.com/princeton-nlp/MQuAKE"
    CITATION = "Zhong et al., MQuAKE: Assessing Knowledge Editing via Multi-Hop Questions, EMNLP 2023"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Of {HOMEPAGE}, folder datasets, the file of the config."
    FILES: ClassVar[dict[str, tuple[str, int]]] = {
        "cf_3k_v2": ("MQuAKE-CF-3k-v2.json", 3_000),
        "cf_3k": ("MQuAKE-CF-3k.json", 3_000),
        "cf": ("MQuAKE-CF.json", 9_218),
        "t": ("MQuAKE-T.json", 1_825),
    }

    def edit(
        self, case: dict[str, Any], number: int, where: str
    ) -> tuple[list[dict[str, Any]], Iterable[dict[str, Any]]]:
        given = take(case, "requested_rewrite", list, where)
        rewrites = [
            Rewrite.of(check(one, dict, f"requested_rewrite[{i}]", where), f"requested_rewrite[{i}]", where)
            for i, one in enumerate(given)
        ]
        asked = [take(one, "question", str, where, f"requested_rewrite[{i}]") for i, one in enumerate(given)]
        origin = take(case, "orig", dict, where)
        edits = [_triple(one, "orig.edit_triples", where) for one in take(origin, "edit_triples", list, where, "orig")]
        heads = {(relation, tail): head for head, relation, tail in edits}
        changes, questions = [], []
        for rewrite, words in zip(rewrites, asked, strict=True):
            head = heads.get((rewrite.relation, rewrite.new_id))
            if head is None:
                problem = f"field 'orig.edit_triples' has no triple of {rewrite.relation} and {rewrite.new_id}"
                raise InputError(where, problem, "drop the case")
            changes.append(rewrite.change(head))
            pair = (rewrite.new, rewrite.old)
            questions.append(question(rewrite.prompt, "efficacy", rewrite.new, pair, rewrite.subject, head))
            questions.append(question(words, "paraphrase", rewrite.new, pair, rewrite.subject, head))
        if not changes:
            raise InputError(where, "field 'requested_rewrite' is empty", "drop the case")
        return changes, [*questions, *self._hops(case, origin, where)]

    def _hops(self, case: dict[str, Any], origin: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
        """The questions of several hops, which name the head of the first."""
        first = _triple((take(origin, "triples", list, where, "orig") or [None])[0], "orig.triples[0]", where)
        named = take(origin, "triples_labeled", list, where, "orig")
        name = _triple(named[0] if named else None, "orig.triples_labeled[0]", where)[0]
        new, old = take(case, "new_answer", str, where), take(case, "answer", str, where)
        for words in texts(take(case, "questions", list, where), "questions", where):
            yield question(words, "portability", new, (old,), name, first[0])


def _triple(value: Any, field: str, where: str) -> tuple[str, str, str]:
    given = texts(value, field, where)
    if len(given) != 3:
        raise InputError(where, f"field {field!r} has {len(given)} parts", "a triple is [head, relation, tail]")
    return given[0], given[1], given[2]


class Zsre(EditData):
    """Questions of zsRE. `mend` edits to the false answer `alt`, as MEND does; `rome` to the true one, as ROME does."""

    DESCRIPTION = "zsRE: questions whose answer is edited, a rephrased one, and one of Natural Questions beside it."
    HOMEPAGE = ROME
    CITATION = "Levy et al., Zero-Shot Relation Extraction via Reading Comprehension, CoNLL 2017; Mitchell et al. 2022"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"zsre_mend_eval.json, see {ROME}."
    FILES: ClassVar[dict[str, tuple[str, int]]] = {
        "mend": ("zsre_mend_eval.json", 19_086),
        "rome": ("zsre_mend_eval.json", 19_086),
    }

    def edit(
        self, case: dict[str, Any], number: int, where: str
    ) -> tuple[list[dict[str, Any]], Iterable[dict[str, Any]]]:
        subject, source, rephrased, false, beside, said = (
            take(case, name, str, where) for name in ("subject", "src", "rephrase", "alt", "loc", "loc_ans")
        )
        answers = texts(take(case, "answers", list, where), "answers", where)
        for name, value in (("subject", subject), ("alt", false), ("answers", answers[0] if answers else "")):
            if not value.strip():
                raise InputError(where, f"field {name!r} is empty", "drop the case")
        new = false if self.builder_config.name == "mend" else answers[0]
        pair = (false, answers[0])
        relation = source.replace(subject, SLOT)
        change = {"head": None, "head_label": subject, "relation": relation, "tail": None, "tail_label": new}
        return [change], [
            question(source, "efficacy", new, pair, subject),
            question(rephrased, "paraphrase", new, pair, subject),
            question(f"{beside.removeprefix('nq question: ')}?", "neighbourhood", said, (new,)),
        ]
