"""Stage `edit`: facts are changed and nothing is trained, measured as model editing is.

Efficacy: the new fact is told, asked as it was told. Paraphrase: in other words. Portability: so are answers that
follow from it by another fact. Specificity: other answers about the same entity stay. Neighbourhood: all answers about
other entities stay, those among them too that have the same fact. (The measures of CounterFact, Meng et al. 2022, and
RippleEdits, Cohen et al. 2023.)

For what reads vectors or facts the edit is `KnowledgeBase.edit`; for what reads passages it is another passage.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.passages import PassageEncoder, attach, open_memory_plugin, tagged
from kinject.knowledge.base import KnowledgeBase
from kinject.memory.store import Passage, PassageMemory
from kinject.models.precision import Precision
from kinject.models.seams import Plugin
from kinject.plugins.pluglm import PlugLM
from kinject.stages.base import Stage, check_plugin, check_references, open_plugin
from kinject.stages.compare import MethodConfig
from kinject.stages.comparison import AskingConfig, comparison_of
from kinject.stages.edit_cases import (
    CHANGED,
    KEPT,
    MEASURE,
    MEASURES,
    Case,
    FactChange,
    cases_of,
    linked,
    old_tails,
    rounds_of,
    sharing,
    swapped,
)
from kinject.stages.memory import HEAD, TAIL

SHARING = "neighbourhood_sharing"


class EditConfig(AskingConfig):
    """Which edits, and the methods that are compared on them.

    `data` are questions with the fields `edit` (its name), `measure` (efficacy, paraphrase, portability, specificity,
    neighbourhood) and `changes` (the facts that the edit makes); docs/formats.md. `label` is the answer that is right
    after the edit. `templates` words facts as passages, a sentence a relation with [head] and [tail], for methods with
    a `memory`. `relations` says what the knowledge base calls relations that the questions call otherwise. The
    knowledge base and memories stay as they are: copies are edited.
    """

    kind: Literal["edit"] = "edit"
    task: str = "cloze"
    compute_dtype: Precision = "float32"
    knowledge: str
    data: tuple[str, ...] = Field(min_length=1)
    methods: dict[str, MethodConfig] = Field(min_length=1)
    templates: dict[str, str] = {}
    relations: dict[str, str] = {}


class EditStage(Stage[EditConfig]):
    """Edits and asks."""

    def check(self) -> None:
        super().check()
        for row, method in self.config.methods.items():
            where = f"{self.where}.methods.{row}"
            check_plugin(self.run, method.plugin, f"{where}.plugin")
            check_references(self.run, method, where)
            if method.memory is not None and not self.config.templates:
                raise InputError(f"{self.where}.templates", "it is missing", f"{row} reads facts as passages")

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        folder.mkdir(parents=True)
        comparisons: dict[str, Comparison] = {}
        for row, host in {
            "": config.host,
            **{row: one.host or config.host for row, one in config.methods.items()},
        }.items():
            if host not in comparisons:
                where = f"{self.where}.methods.{row}.host" if row else f"{self.where}.host"
                comparisons[host] = comparison_of(self.run, config, host, self.where, where, config.compute_dtype)
        alone = comparisons[config.host]
        base = self.run.knowledge(config.knowledge, f"{self.where}.knowledge")
        records = linked(self.run.records(config.data, alone.task.required, f"{self.where}.data"), base)
        cases, left_out = cases_of(records, base, config.relations)
        if not cases:
            problem = f"none of its edits can be made: {'; '.join(left_out)}"
            raise InputError(f"{self.where}.data", problem, "name the knowledge base that has these entities")
        edits = Edits(base, cases, records, folder)
        asked = [records[at] for at in edits.asked.tolist()]
        rows: dict[str, Any] = {"host": edits.right_of(_said(alone.host_alone(asked, base)[1], asked))}
        for row, method in config.methods.items():
            answering = self._answering(method, comparisons[method.host or config.host], edits, row)
            rows[row] = edits.of_method(answering, self.run.seed_of(self.name))
            self.run.reporter.say(f"{self.name}: {row}: {told(rows[row])}")
        shutil.rmtree(folder)  # what was edited were copies
        questions = {name: int((edits.measures == name).sum()) for name in MEASURES}
        about = {"edits": len(cases), "rounds": len(edits.rounds), "left_out": dict(left_out), "questions": questions}
        return {**about, "methods": rows}

    def _answering(self, method: MethodConfig, comparison: Comparison, edits: Edits, row: str) -> Answering:
        named = f"{self.where}.methods.{row}.plugin"
        if method.memory is None or not isinstance(method.plugin, str):
            return Answering(comparison, open_plugin(self.run, method.plugin, comparison.host, edits.base, named))
        plugin = open_memory_plugin(self.run.path(method.plugin, named), comparison.host, named)
        memory = self.run.path(method.memory, f"{self.where}.methods.{row}.memory")
        words = Worded(self.config.templates, f"{self.where}.templates")
        return AnsweringFromPassages(comparison, plugin, memory, edits, words)


class Worded:
    """Facts as passages: a sentence a relation."""

    def __init__(self, templates: Mapping[str, str], where: str):
        self.templates, self.where = templates, where

    def __call__(self, relation: str, head: str, tail: str) -> str:
        if relation not in self.templates:
            raise InputError(self.where, f"there is none for {relation!r}", "an edit changes it: give it a sentence")
        return self.templates[relation].replace(HEAD, head).replace(TAIL, tail)


class Answering:
    """A method that reads the knowledge base."""

    def __init__(self, comparison: Comparison, plugin: Plugin):
        self.comparison, self.plugin = comparison, plugin

    def __call__(self, base: KnowledgeBase, records: Sequence[Record], edited: Sequence[Case] = ()) -> np.ndarray:
        """What is answered and what is right, int [n, 2]; `edited` has been done to the knowledge base already."""
        return _said(self.comparison.with_plugin(self.plugin, base, records)[1], records)


class AnsweringFromPassages(Answering):
    """A method that reads passages: an edit puts another in the place of the one that says the old fact.

    Args:
      comparison: the host.
      plugin: PlugLM.
      memory: its folder; a copy is edited.
      edits: whose knowledge base has the old facts.
      words: facts as passages.
    """

    def __init__(self, comparison: Comparison, plugin: PlugLM, memory: Path, edits: Edits, words: Worded):
        super().__init__(comparison, plugin)
        self.memory, self.edits, self.words = memory, edits, words

    def __call__(self, base: KnowledgeBase, records: Sequence[Record], edited: Sequence[Case] = ()) -> np.ndarray:
        host, place, plugin = self.comparison.host, self.edits.folder / "memory", self.plugin
        assert isinstance(plugin, PlugLM)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.memory, place, ignore=shutil.ignore_patterns(".lock"))
        with PassageMemory.open(place, write=True) as memory:
            if edited:
                encoder = PassageEncoder(host, plugin, memory.manifest["length"], memory.manifest["tag"])
                self._edit(memory, encoder, base, [one for case in edited for one in case.changes])
            attach(plugin, [memory], host.identity)
            tokenizer = tagged(host.tokenizer, memory.manifest["tag"])
            comparison = replace(self.comparison, host=replace(host, tokenizer=tokenizer))
            said = _said(comparison.with_plugin(plugin, None, records)[1], records)
        shutil.rmtree(place)
        return said

    def _edit(
        self, memory: PassageMemory, encoder: PassageEncoder, base: KnowledgeBase, changes: Sequence[FactChange]
    ) -> None:
        stale: list[int] = []
        fresh = []
        for change, tails in old_tails(self.edits.base, changes):
            head = _label(base, change.head)
            old = {self.words(change.relation, head, _label(base, tail)) for tail in tails}
            stale += [row for row in memory.rows_about(change.head) if memory.passage(row).text in old]
            fresh.append(Passage(self.words(change.relation, head, _label(base, change.tail)), change.head))
        memory.delete(list(dict.fromkeys(stale)))  # a copy: its rows may be used again at once
        memory.add(fresh, encoder)


class Edits:
    """Edits, the questions about them, and what comes of it when a method answers.

    Attributes:
      base: the knowledge base as it was.
      cases: the edits.
      records: all questions; those of edits that cannot be made are not asked.
      folder: where copies are edited.
      rounds: edits that can be made at once.
      asked: places of the questions that are asked.
      measures, relations: of each question what it measures, and what its edit changes; "" of those not asked.
      sharing: whether it is about another entity with the same fact, bool.
    """

    def __init__(self, base: KnowledgeBase, cases: Sequence[Case], records: Sequence[Record], folder: Path):
        self.base, self.cases, self.records, self.folder = base, cases, records, folder
        self.rounds = rounds_of(cases, records)
        self.measures = np.array([""] * len(records), object)
        self.relations = self.measures.copy()
        for case in cases:
            for at in case.questions:
                self.measures[at] = records[at].fields[MEASURE]
                self.relations[at] = " + ".join(dict.fromkeys(one.relation for one in case.changes))
        self.asked = np.flatnonzero(self.measures != "")
        self.sharing = sharing(base, cases, records)

    def of_method(self, answering: Answering, seed: int) -> dict[str, Any]:
        """Asks before and after, and with the facts of other edits in the place of the right ones.

        Returns:
          The measures over all edits (`measured`), and by `relations` where edits change several.
        """
        before, after, wrong = (np.full((len(self.records), 2), -1, np.int64) for _ in range(3))
        before[self.asked] = answering(self.base, [self.records[at] for at in self.asked.tolist()])
        seconds = 0.0
        for cases in self.rounds:
            asked = [at for case in cases for at in case.questions]
            with self.edited(cases) as (grown, taken):
                after[asked] = answering(grown, [self.records[at] for at in asked], cases)
                seconds += taken
        for cases in rounds_of(swapped(self.cases, seed), self.records):
            asked = [at for case in cases for at in case.questions if self.measures[at] == "efficacy"]
            if asked:
                with self.edited(cases) as (grown, _):
                    wrong[asked] = answering(grown, [self.records[at] for at in asked], cases)
        found: dict[str, Any] = self.measured(before, after, wrong, self.measures != "")
        found["seconds_an_edit"] = seconds / len(self.cases)
        relations = list(dict.fromkeys(one for one in self.relations if one))
        if len(relations) > 1:
            found["relations"] = {one: self.measured(before, after, wrong, self.relations == one) for one in relations}
        return found

    def measured(self, before: np.ndarray, after: np.ndarray, wrong: np.ndarray, of: np.ndarray) -> dict[str, Any]:
        """The measures over the questions `of`, bool [n], of answers int [n, 2].

        `efficacy`, `paraphrase`, `portability`: share of the answers that are right after the edit, and `…_before`;
        `efficacy_of_another_edit`: the same where the entity got another edit's fact. `specificity`, `neighbourhood`,
        `neighbourhood_sharing`: share of the answers that stay, and which of them are right before and after.
        """
        said, said_before = after[:, 0] == after[:, 1], before[:, 0] == before[:, 1]
        found: dict[str, float | None] = {}
        for name in CHANGED:
            here = of & (self.measures == name)
            found |= {name: _share(said[here]), f"{name}_before": _share(said_before[here])}
        here = of & (wrong[:, 0] >= 0)
        found["efficacy_of_another_edit"] = _share((wrong[:, 0] == wrong[:, 1])[here])
        for name in (*KEPT, SHARING):
            here = of & (self.sharing if name == SHARING else self.measures == name)
            found[name] = _share((before[:, 0] == after[:, 0])[here])
            found |= {f"{name}_right_before": _share(said_before[here]), f"{name}_right": _share(said[here])}
        return {name: value for name, value in found.items() if value is not None} | self._kinds(before, after, of)

    def _kinds(self, before: np.ndarray, after: np.ndarray, of: np.ndarray) -> dict[str, Any]:
        """`kinds`, where questions have any: of those about what is edited, how many are right before and after.

        Right is what is right after the edit: an answer that changes by it is wrong before.
        """
        of = of & ~np.isin(self.measures, ["", "neighbourhood"])
        kinds = np.array([str(record.fields.get("kind", "")) for record in self.records], object)
        found = {}
        for kind in dict.fromkeys(one for one in kinds[of] if one):
            here = of & (kinds == kind)
            said = [float((one[here, 0] == one[here, 1]).mean()) for one in (before, after)]
            found[kind] = {"n": int(here.sum()), "before": said[0], "after": said[1]}
        return {"kinds": found} if found else {}

    def right_of(self, said: np.ndarray) -> dict[str, float]:
        """By measure the share of right answers among those to all that is asked, int [m, 2]."""
        measures = self.measures[self.asked]
        right = said[:, 0] == said[:, 1]
        return {name: float(right[measures == name].mean()) for name in MEASURES if (measures == name).any()}

    @contextmanager
    def edited(self, cases: Sequence[Case]) -> Iterator[tuple[KnowledgeBase, float]]:
        """A copy of the knowledge base in which edits have been made, and the seconds that making them took."""
        place = self.folder / "knowledge"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.base.folder, place)
        grown = KnowledgeBase.open(place, self.base.revision)
        started = time.perf_counter()
        make_changes(grown, [one for case in cases for one in case.changes])
        yield grown, time.perf_counter() - started
        shutil.rmtree(place)


def make_changes(base: KnowledgeBase, changes: Sequence[FactChange]) -> None:
    """Makes facts true in a knowledge base; tails that it does not have come first, by name."""
    tails = {one.tail: one.tail_label for one in changes}
    rows = base.rows(list(tails)).tolist()
    new = [{"id": one, "label": tails[one]} for one, row in zip(tails, rows, strict=True) if row < 0]
    if new:
        base.add(new)
    base.edit(triples=[(one.head, one.relation, one.tail) for one in changes])


def told(found: Mapping[str, Any]) -> str:
    """The measures for a person, in percent."""
    return ", ".join(f"{name} {100 * found[name]:.1f}" for name in (*MEASURES, SHARING) if name in found)


def _said(predictions: Mapping[str, np.ndarray], records: Sequence[Record]) -> np.ndarray:
    """What is answered and what is right, int64 [n, 2].

    Raises:
      InputError: a task that does not answer each question with one of several answers.
    """
    if "label" not in predictions or len(predictions["label"]) != len(records):
        raise InputError("task", "it does not give one answer a question", "choose cloze or cloze_choices")
    return np.stack([predictions["predicted"], predictions["label"]], axis=1).astype(np.int64)


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None


def _label(base: KnowledgeBase, one: str) -> str:
    return base.entity(int(base.rows([one])[0])).label or one
