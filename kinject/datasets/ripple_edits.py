"""RippleEdits (Cohen et al. 2023): edits with six kinds of tests, of which each measures one thing here.

Logical generalisation and both kinds of composition are portability, other names of the subject paraphrase, other
relations of it and other objects of the same relation specificity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from kinject.datasets.editing import EditData, question
from kinject.datasets.files import check, read_objects, take
from kinject.errors import InputError

TESTS = {
    "Logical_Generalization": "portability",
    "Compositionality_I": "portability",
    "Compositionality_II": "portability",
    "Subject_Aliasing": "paraphrase",
    "Relation_Specificity": "specificity",
    "Relation_Specifity": "specificity",  # as the published description spells it
    "Forgetfulness": "specificity",
}
BEFORE = ("original_fact", "previous_fact")
BETWEEN = (" is ", " are ", " follows ", " followed by ")  # what stands before a prompt's answer
OTHERS = 9  # further answers of the same relation to choose from


class RippleEdits(EditData):
    """Answers are chosen among ten: the right one, the old one, and others of the same relation in the file.

    `entity` is the subject of a question; stage `edit` finds its name in the text. Of a test with several questions
    each is asked.
    """

    DESCRIPTION = "RippleEdits: what an edit must change beside itself, and what it must not."
    HOMEPAGE = "https://github.com/edenbiran/RippleEdits"
    CITATION = "Cohen et al., Evaluating the Ripple Effects of Knowledge Editing in Language Models, TACL 2024"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Of {HOMEPAGE}, data/benchmark: recent.json, random.json, popular.json."
    FILES: ClassVar[dict[str, tuple[str, int]]] = {
        "recent": ("recent.json", 0),
        "random": ("random.json", 0),
        "popular": ("popular.json", 0),
    }

    def prepare_for(self, path: Path) -> None:
        answers: dict[str, dict[str, None]] = {}
        for _, where, case in read_objects(path):
            for _, query in _queries(case, where):
                for value in _answers(query, where)[:1]:
                    answers.setdefault(_relation(query, where), {})[value[0]] = None
        self._others = {relation: list(found)[: 2 * OTHERS] for relation, found in answers.items()}

    def edit(
        self, case: dict[str, Any], number: int, where: str
    ) -> tuple[list[dict[str, Any]], Iterable[dict[str, Any]]]:
        fact = take(case, "edit", dict, where)
        head, relation, tail = (
            take(fact, name, str, where, "edit") for name in ("subject_id", "relation", "target_id")
        )
        stem, new = _cut(take(fact, "prompt", str, where, "edit"), "edit.prompt", where)
        before = next((fact[name] for name in BEFORE if fact.get(name)), None)
        old = ""
        if before is not None:
            given = take(check(before, dict, "edit.original_fact", where), "prompt", str, where, "edit.original_fact")
            old = given.strip().removesuffix(".").removeprefix(stem).strip()
        change = {"head": head, "relation": relation, "tail": tail, "tail_label": new}
        asked = question(stem, "efficacy", new, self._choices(relation, {new}, old))
        return [change], [{**asked, "entity": head}, *self._tests(case, where)]

    def _tests(self, case: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
        for measure, query in _queries(case, where):
            answers = _answers(query, where)
            if not answers:
                self.left_out["a question without an answer"] += 1
                continue
            known = {one for some in answers for one in some}
            choices = self._choices(_relation(query, where), known, "")
            asked = question(take(query, "prompt", str, where), measure, answers[0][0], choices)
            yield {**asked, "entity": take(query, "subject_id", str, where)}

    def _choices(self, relation: str, right: set[str], old: str) -> list[str]:
        """The old answer and others of the relation, none of them right."""
        others = dict.fromkeys([old, *self._others.get(relation, ())])
        return [one for one in others if one and one not in right][:OTHERS]


def _queries(case: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what it measures, query) of all tests of a case."""
    for name, measure in TESTS.items():
        for i, test in enumerate(check(case.get(name, []), list, name, where)):
            at = f"{name}[{i}]"
            for query in take(check(test, dict, at, where), "test_queries", list, where, at):
                yield measure, check(query, dict, f"{at}.test_queries", where)


def _relation(query: dict[str, Any], where: str) -> str:
    """The relation whose object is asked for: the second of two."""
    return take(query, "second_relation" if query.get("query_type") == "two_hop" else "relation", str, where)


def _answers(query: dict[str, Any], where: str) -> list[list[str]]:
    """Names of each right answer, its own first."""
    found = []
    for i, one in enumerate(take(query, "answers", list, where)):
        at = f"answers[{i}]"
        value = take(check(one, dict, at, where), "value", str, where, at)
        aliases = [check(name, str, f"{at}.aliases", where) for name in take(one, "aliases", list, where, at)]
        if value.strip():
            found.append([value, *aliases])
    return found


def _cut(prompt: str, field: str, where: str) -> tuple[str, str]:
    """`The capital of Peru is Lima.` -> stem, answer."""
    at, word = max((prompt.rfind(word), word) for word in BETWEEN)
    stem, answer = prompt[: at + len(word)].strip(), prompt[at + len(word) :].strip().removesuffix(".").strip()
    if at < 0 or not answer:
        raise InputError(where, f"field {field!r} is {prompt!r}", "it must end with the new fact's object")
    return stem, answer
