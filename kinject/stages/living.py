"""Stage `living`: entities that nobody was trained with are added to a knowledge base, and removed again.

They were kept out of the knowledge base and of all training (stage `knowledge`, `withheld`). They are added from their
triples, from their descriptions, and from sentences that mention them, each time in a fresh copy; host and plugin stay
as they are. Beside these rows stand what training gives (the same entities in a knowledge base that was trained with
them, and its plugin), the evidence without the triples that hold the answer, and the evidence of another entity.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from pydantic import Field

from kinject.config import Section, build_dataclass
from kinject.data.records import Record, parse_record
from kinject.data.sources.withheld import as_in_training, sentences
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import HostBundle, derangement
from kinject.inference.mentions import read_mentions
from kinject.json_file import parse
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.graph import GraphConfig, train_rows
from kinject.knowledge.growth import Change
from kinject.knowledge.placement import parts_of
from kinject.models.precision import Precision
from kinject.models.seams import Plugin
from kinject.stages.base import Stage, open_plugin
from kinject.stages.comparison import AskingConfig, comparison_of, kinds_of, mean_of
from kinject.text_files import read_lines
from kinject.tree import digest, flatten

Withheld = dict[str, Any]
Adding = Callable[[KnowledgeBase, Mapping[str, Withheld]], Change]


class TrainedConfig(Section):
    """A knowledge base that was trained with the entities, and the plugin of it."""

    knowledge: str
    plugin: str


class LivingConfig(AskingConfig):
    """What is added, to what, and what is asked.

    `withheld` are the entities, `data` questions of several kinds, of which those about them are asked. `answers` maps
    a kind to the relations whose triples hold its answer. About the entities of `read_data`, known ones, `sentences`
    sentences each are read, beside those about the new ones; `domain` words them. `wordings="training"` asks each
    question in every wording that `domain` trains its kind with, so that what is new is the entity alone. With `graph`,
    the settings of the graph's training, a row `trained_alone` has vectors that its loss made, all else held.
    """

    kind: Literal["living"] = "living"
    task: str = "cloze"
    compute_dtype: Precision = "float32"
    knowledge: str
    plugin: str
    withheld: str
    data: tuple[str, ...] = Field(min_length=1)
    trained: TrainedConfig | None = None
    answers: dict[str, tuple[str, ...]] = {}
    domain: str = "geography"
    read_data: tuple[str, ...] = ()
    sentences: int = Field(3, ge=1)
    wordings: Literal["own", "training"] = "own"
    graph: dict[str, Any] = {}


@dataclass
class Grown:
    """One way of adding: the answers, and what adding took.

    Attributes:
      right: of each question, bool [n].
      predicted: int [n].
      seconds: of one entity.
      trust: mean.
      placed: how many got a vector.
    """

    right: np.ndarray
    predicted: np.ndarray
    seconds: float
    trust: float
    placed: int


class LivingStage(Stage[LivingConfig]):
    """Adds, asks and removes."""

    def check(self) -> None:
        super().check()
        for field in ("withheld", "read_data"):
            given = getattr(self.config, field)
            for reference in (given,) if isinstance(given, str) else given:
                self.run.check(reference, f"{self.where}.{field}")
        if self.config.graph:
            build_dataclass(GraphConfig, self.config.graph, f"{self.where}.graph")
        if self.config.trained is not None:
            for field, reference in self.config.trained.model_dump().items():
                self.run.check(reference, f"{self.where}.trained.{field}")

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        folder.mkdir(parents=True)
        where = f"{self.where}.host"
        comparison = comparison_of(self.run, config, config.host, self.where, where, config.compute_dtype)
        base = self.run.knowledge(config.knowledge, f"{self.where}.knowledge")
        plugin = open_plugin(self.run, config.plugin, comparison.host, base, f"{self.where}.plugin")
        told = read_withheld(self.run.path(config.withheld, f"{self.where}.withheld"))
        every = self.run.records(config.data, (*comparison.task.required, "kind"), f"{self.where}.data")
        records = [one for one in every if one.mentions and one.mentions[0].entity in told]
        if not records:
            raise InputError(f"{self.where}.data", "none of them asks about an entity that is withheld", "name others")
        if config.wordings == "training":
            records = self._reworded(records)
        self.asked = WithheldQuestions(comparison, plugin, base, records, folder)
        before = self._hashes(comparison.host, plugin)
        rows, grown = self._rows(told)
        found = self.asked.table(rows)
        if before != self._hashes(comparison.host, plugin):
            raise AssertionError("host or plugin changed")  # nothing here may write to them
        shutil.rmtree(folder)
        about = {"entities": len(told), "n": len(records), "host_and_plugin": before}
        costs = {
            way: {"seconds_an_entity": one.seconds, "trust": one.trust, "placed": one.placed}
            for way, one in grown.items()
        }
        means = ", ".join(f"{row} {100 * values['mean']:.1f}" for row, values in found["rows"].items())
        self.run.reporter.say(f"{self.name}: {len(records)} questions about {len(told)} entities: {means}")
        return {**about, **found, "ways": costs}

    def _reworded(self, records: Sequence[Record]) -> list[Record]:
        """The questions in the wordings of training."""
        called = names_of(records)
        asked = ((one.mentions[0].entity or "", one.fields["kind"], one.fields["label"]) for one in records)
        made = as_in_training(self.config.domain, ((entity, called[entity], *rest) for entity, *rest in asked))
        return [parse_record(one, f"{self.name}: wordings") for one in made]

    def _rows(self, told: Mapping[str, Withheld]) -> tuple[dict[str, np.ndarray], dict[str, Grown]]:
        """How right each row answers, float [n] (not a number where it says nothing), and the ways of adding."""
        asked, config = self.asked, self.config
        alone = asked.comparison.host_alone(asked.records, asked.base)[1]
        rows = {"host": asked.right(alone), "before": asked.right(asked.answered(asked.base))}
        if config.trained is not None:
            base = self.run.knowledge(config.trained.knowledge, f"{self.where}.trained.knowledge")
            reference, where = config.trained.plugin, f"{self.where}.trained.plugin"
            plugin = open_plugin(self.run, reference, asked.comparison.host, base, where)
            rows["trained"] = asked.right(asked.answered(base, plugin))
        if config.graph:
            graph = build_dataclass(GraphConfig, config.graph, f"{self.where}.graph")
            rows["trained_alone"] = asked.after(lambda grows: added_by_training(grows, told, graph, self.seed)).right
        others = dict(
            zip(told, np.array(list(told))[derangement(np.arange(len(told)), self.seed)].tolist(), strict=True)
        )
        grown: dict[str, Grown] = {}
        for way, add in self._ways(told).items():
            grown[way] = asked.after(partial(_add, add, told))
            rows[way] = grown[way].right
            wrong = {one: {**told[others[one]], "id": one, "label": told[one]["label"]} for one in told}
            control = asked.after(partial(_add, add, wrong))
            rows[f"{way}_of_another"] = control.right
            rows[f"{way}_of_another_followed"] = asked.followed(control.predicted, others)
            if way == "triples":
                rows["triples_without_answer"] = self._without_answer(told, add)
        gone = asked.after(partial(_add, added_by_triples, told), then=lambda grows: grows.remove(list(told)))
        rows["removed"] = gone.right
        rows["removed_same_as_host"] = (gone.predicted == np.asarray(alone["predicted"])).astype(float)
        return rows, grown

    def _ways(self, told: Mapping[str, Withheld]) -> dict[str, Adding]:
        ways: dict[str, Adding] = {"triples": added_by_triples}
        if any(one["description"] for one in told.values()):
            ways["description"] = added_by_descriptions
        if self.config.read_data:
            known = self.run.records(self.config.read_data, (), f"{self.where}.read_data")
            teachers = self._read(self.asked.base, names_of(known), None)
            called = names_of(self.asked.records)

            def by_sentences(base: KnowledgeBase, some: Mapping[str, Withheld]) -> Change:
                new = self._read(base, {one: called[one] for one in some if one in called}, some)
                words = [{"id": one, "label": facts["label"]} for one, facts in some.items()]
                return base.add(words, read={**teachers, **new})

            ways["sentences"] = by_sentences
        return ways

    def _read(
        self, base: KnowledgeBase, named: Mapping[str, str], some: Mapping[str, Withheld] | None
    ) -> dict[str, np.ndarray]:
        """What the host puts out where sentences tell facts of entities: known ones', or those of withheld ones."""
        config, host = self.config, self.asked.comparison.host
        if some is None:
            triples, relations = np.asarray(base.triples), [one["id"] for one in base.relations]
            rows = dict(zip(base.rows(list(named)).tolist(), named, strict=True))
            found = [one for one in triples.tolist() if one[0] in rows]
            told = [(rows[head], relations[relation], *base.ids([tail])) for head, relation, tail in found]
        else:
            told = [(one, relation, tail) for one, facts in some.items() for head, relation, tail in facts["triples"]
                    if head == facts.get("of", one)]  # fmt: skip
        tails = list(dict.fromkeys(tail for *_, tail in told))
        labels = {tail: base.entity(row).label for tail, row in zip(tails, base.rows(tails).tolist(), strict=True)}
        made = sentences(config.domain, named, iter(told), labels, config.sentences, self.seed)
        records = [parse_record(one, f"{self.name}: sentences") for one in made]
        return read_mentions(host, records, batch_size=config.batch_size)

    def _without_answer(self, told: Mapping[str, Withheld], add: Adding) -> np.ndarray:
        """As from triples, each kind asked without the triples that hold its answer."""
        right = np.full(len(self.asked.records), np.nan)
        for relations in dict.fromkeys(self.config.answers.values()):
            kinds = [kind for kind, given in self.config.answers.items() if given == relations]
            some = {
                one: {**facts, "triples": [triple for triple in facts["triples"] if triple[1] not in relations]}
                for one, facts in told.items()
            }
            here = np.isin(self.asked.kinds, kinds)
            right[here] = self.asked.after(partial(_add, add, some)).right[here]
        return right

    def _hashes(self, host: HostBundle, plugin: Plugin) -> dict[str, str]:
        """SHA-256 over all numbers of host and plugin."""
        models = {"host": host.loaded.host, "plugin": plugin}
        return {name: digest(flatten(nnx.to_pure_dict(nnx.state(one, nnx.Param)))) for name, one in models.items()}


class WithheldQuestions:
    """The questions, and who answers them.

    Attributes:
      comparison: the host.
      plugin: of the knowledge base.
      base: without the entities.
      records: questions about them.
      folder: where copies grow.
      kinds: of the questions, str [n].
    """

    def __init__(
        self, comparison: Comparison, plugin: Plugin, base: KnowledgeBase, records: Sequence[Record], folder: Path
    ):
        self.comparison, self.plugin, self.base, self.records, self.folder = comparison, plugin, base, records, folder
        self.kinds = kinds_of(records)

    def answered(self, base: KnowledgeBase, plugin: Plugin | None = None) -> Mapping[str, np.ndarray]:
        """What is predicted with a knowledge base."""
        return self.comparison.with_plugin(self.plugin if plugin is None else plugin, base, self.records)[1]

    def right(self, predictions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which answers are right, float [n]."""
        if "label" not in predictions or len(predictions["label"]) != len(self.records):
            raise InputError("task", "it does not give one answer a question", "choose cloze or cloze_choices")
        self.labels = np.asarray(predictions["label"])
        return (np.asarray(predictions["predicted"]) == self.labels).astype(float)

    def after(
        self, grow: Callable[[KnowledgeBase], Change], then: Callable[[KnowledgeBase], Change] | None = None
    ) -> Grown:
        """Answers after a copy of the knowledge base has grown."""
        place = self.folder / "knowledge"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.base.folder, place)
        base = KnowledgeBase.open(place, self.base.revision)
        started = time.perf_counter()
        change = grow(base)
        seconds = time.perf_counter() - started
        if then is not None:
            then(base)
        predictions = self.answered(base)
        shutil.rmtree(place)
        trusts = [one.trust for one in change.placed if one.trust is not None]
        placed = sum(bool(one.by) for one in change.placed)
        return Grown(
            self.right(predictions),
            np.asarray(predictions["predicted"]),
            seconds / max(len(change.entities), 1),
            float(np.mean(trusts)) if trusts else 0.0,
            placed,
        )

    def followed(self, predicted: np.ndarray, others: Mapping[str, str]) -> np.ndarray:
        """Whether the control answers as is right of the entity whose evidence it got, float [n]; NaN where alike."""
        answers = {(one.mentions[0].entity, one.fields["kind"]): self.labels[i] for i, one in enumerate(self.records)}
        found = np.full(len(self.records), np.nan)
        for i, record in enumerate(self.records):
            theirs = answers.get((others[record.mentions[0].entity or ""], record.fields["kind"]))
            if theirs is not None and theirs != self.labels[i]:
                found[i] = predicted[i] == theirs
        return found

    def table(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """`kinds` {kind: {"n", row: mean}}; `rows` {row: {"mean" over the kinds, "least_share_of_…" a trained row}}."""
        kinds: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(self.kinds.tolist()):
            here = self.kinds == kind
            means = {row: mean_of(values[here]) for row, values in rows.items()}
            kinds[kind] = {"n": int(here.sum()), **{row: mean for row, mean in means.items() if mean is not None}}
        found: dict[str, dict[str, float]] = {}
        for row in rows:
            means_of_row = [one[row] for one in kinds.values() if row in one]
            found[row] = {"mean": float(np.mean(means_of_row)) if means_of_row else float("nan")}
            for name in ("trained", "trained_alone"):
                shares = [one[row] / one[name] for one in kinds.values() if row in one and one.get(name)]
                if shares and row != name:
                    found[row][f"least_share_of_{name}"] = float(min(shares))
        return {"kinds": kinds, "rows": found}


def _add(add: Adding, some: Mapping[str, Withheld], base: KnowledgeBase) -> Change:
    return add(base, some)


def added_by_triples(base: KnowledgeBase, told: Mapping[str, Withheld]) -> Change:
    """Adds entities from their triples alone."""
    words = [{"id": one, "label": facts["label"], "aliases": facts["aliases"]} for one, facts in told.items()]
    return base.add(words, triples=[triple for one in told for triple in _own(one, told[one])])


def added_by_training(base: KnowledgeBase, told: Mapping[str, Withheld], config: GraphConfig, seed: int) -> Change:
    """Adds entities with vectors that are trained on their triples by the graph's loss; nothing else moves."""
    parts, relations = parts_of(base), {one["id"]: index for index, one in enumerate(base.relations)}
    if [part.kind for part in parts] != [config.method]:
        problem = f"it is not made by {config.method} alone"
        raise InputError(base.folder, problem, "leave `graph` out, or give what the graph was trained with")
    arrays, count = parts[0].arrays, base.size
    scale, mean = np.float32(arrays["deviation"]), arrays["mean"]
    new = {one: count + number for number, one in enumerate(told)}
    named = [triple for one in told for triple in _own(one, told[one])]
    ends = [end for head, _, tail in named for end in (head, tail)]
    rows = np.array([new.get(end, row) for end, row in zip(ends, base.rows(ends).tolist(), strict=True)], np.int64)
    which = np.array([relations.get(relation, -1) for _, relation, _ in named], np.int64)
    triples = np.stack([rows[::2], which, rows[1::2]], axis=1)
    triples = triples[(triples >= 0).all(axis=1) & (which < len(arrays["relations"]))]
    known, relations_there = base.gather(np.arange(count))[0] * scale + mean, arrays["relations"]
    made = (train_rows(known, relations_there, triples, len(told), config, seed) - mean) / scale
    return base.add({"id": one, "label": told[one]["label"], "vector": made[i]} for i, one in enumerate(told))


def added_by_descriptions(base: KnowledgeBase, told: Mapping[str, Withheld]) -> Change:
    """Adds entities from their descriptions alone."""
    return base.add(
        {"id": one, "label": facts["label"], "description": facts["description"]} for one, facts in told.items()
    )


def _own(one: str, facts: Withheld) -> list[tuple[str, str, str]]:
    """The triples of an entity, under this id: another's in the control."""
    theirs = facts.get("of", one)
    return [
        (one if head == theirs else head, relation, one if tail == theirs else tail)
        for head, relation, tail in facts["triples"]
    ]


def names_of(records: Sequence[Record]) -> dict[str, str]:
    """By entity what the text of its first record calls it."""
    found: dict[str, str] = {}
    for record in records:
        for mention in record.mentions:
            if mention.entity is not None and isinstance(record.source, str):
                found.setdefault(mention.entity, record.source[mention.start : mention.end])
    return found


def read_withheld(path: Path) -> dict[str, Withheld]:
    """The entities of `withheld.jsonl`, by id; `of` is the id that their triples name.

    Raises:
      InputError: a line that stage `knowledge` does not write.
    """
    found: dict[str, Withheld] = {}
    for number, line in read_lines(path):
        try:
            one = parse(line)
            found[one["id"]] = {
                "of": one["id"],
                **{name: one[name] for name in ("label", "aliases", "description", "triples")},
            }
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number}", f"it is no withheld entity ({error})", "make it with stage knowledge"
            ) from None
    return found
