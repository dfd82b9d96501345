"""Stage `evaluate`: the result table. For each domain the host alone, with its plugins, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from kinject.config import Section
from kinject.data.records import Record, drawn
from kinject.errors import InputError
from kinject.inference.comparison import Comparison, followed
from kinject.inference.host import knowledge_identity, open_host, task_of
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import Precision
from kinject.models.seams import Plugin
from kinject.plugins.store import load_plugin, read_head
from kinject.reports.results import CONTROL
from kinject.stages.base import Stage, check_labels, check_plugin, check_references, open_plugin
from kinject.stages.comparison import (
    AskingConfig,
    Rows,
    by_kind,
    comparison_of,
    first_entities,
    follows,
    kinds_of,
    majority,
    majority_of_kind,
    mean_of,
    nearest_neighbour,
    nearest_of_kind,
)
from kinject.stages.rivals import NameSubstituted, TextAndVector

SUBSTITUTED = "name_substituted"  # the row of the rival that puts a known name where the entity's stands


class RivalsConfig(Section):
    """What is tried in the place of a plugin (see rivals.py), on data with kinds.

    `encoder` is the pretrained model that makes sentence vectors. `classifiers` maps a row's name to the records that
    its classifier is trained with; `facets` are the records that the name to be substituted is learned from.
    `dev_data` chooses the settings of the ones and the facet of the other.
    """

    encoder: str
    classifiers: dict[str, tuple[str, ...]] = {}
    facets: tuple[str, ...] = ()
    dev_data: tuple[str, ...] = Field(min_length=1)


class DomainConfig(Section):
    """One domain's held-out data and the plugins that are compared on it; without any, the host alone.

    `plugins` maps a row's name to a plugin's folder, or to the settings of a method without parameters. Each that
    reads knowledge of each example is also run with that of others: row `shuffled` of the first, `<name>_shuffled` of
    the rest. A plugin that was trained without a knowledge base needs none here. With `reference_data` (the plugin's
    own training records) the table has the rows that use no language model. With `by_kind` every row is told for each
    kind of question too; the records name theirs. `added` is the first plugin's row with all entities asked about
    taken as new: vectors made of their triples alone. `examples` is the stage's, unless it is given here.
    """

    knowledge: str | None = None
    data: tuple[str, ...] = Field(min_length=1)
    plugins: dict[str, str | dict[str, Any]] = {}
    reference_data: tuple[str, ...] = ()
    by_kind: bool = False
    added: bool = False
    examples: int | None = Field(None, ge=0)
    rivals: RivalsConfig | None = None

    @model_validator(mode="after")
    def _looked_up_in_knowledge(self) -> DomainConfig:
        if self.knowledge is None and self.reference_data:
            raise ValueError("reference_data needs knowledge, whose vectors are looked up")
        if self.added and self.knowledge is None:
            raise ValueError("added needs knowledge, whose triples tell of the entities")
        if self.rivals is not None and not (self.knowledge and self.by_kind):
            raise ValueError("rivals need knowledge and by_kind")
        return self


class EvaluateConfig(AskingConfig):
    """Which host is evaluated, on which domains; `examples` questions a domain are shown before and after.

    `heads` says whose head reads the plugins' rows: the host's own, or each plugin's, the one that was trained together
    with it and is in its folder. The row of the host alone is always read by its own.
    """

    kind: Literal["evaluate"] = "evaluate"
    compute_dtype: Precision = "float32"
    examples: int = Field(3, ge=0)
    heads: Literal["host", "plugin"] = "host"
    domains: dict[str, DomainConfig]


class AskedDomain(NamedTuple):
    """What a domain's rows are rows of; `where` is its config key."""

    comparison: Comparison
    knowledge: KnowledgeBase
    records: Sequence[Record]
    where: str


class EvaluateStage(Stage[EvaluateConfig]):
    """Compares."""

    everywhere = True

    def check(self) -> None:
        super().check()
        for name, domain in self.config.domains.items():
            where = f"{self.where}.domains.{name}"
            check_references(self.run, domain, where)
            check_labels(self.run, self.config, domain.data, f"{where}.data")
            for row, reference in domain.plugins.items():
                check_plugin(self.run, reference, f"{where}.plugins.{row}")
            if domain.rivals is not None:
                check_references(self.run, domain.rivals, f"{where}.rivals")
                files = {f"classifiers.{row}": given for row, given in domain.rivals.classifiers.items()}
                for field, given in {**files, "facets": domain.rivals.facets}.items():
                    for reference in given:
                        self.run.check(reference, f"{where}.rivals.{field}")

    def execute(self) -> dict[str, Any]:
        config, where = self.config, f"{self.where}.host"
        comparison = comparison_of(self.run, config, config.host, self.where, where, config.compute_dtype)
        return {name: self._domain(name, domain, comparison) for name, domain in config.domains.items()}

    def _domain(self, name: str, domain: DomainConfig, comparison: Comparison) -> dict[str, Any]:
        where = f"{self.where}.domains.{name}"
        knowledge = self.run.knowledge(domain.knowledge, f"{where}.knowledge") if domain.knowledge else None
        records = self.run.records(domain.data, comparison.task.required, f"{where}.data")
        metric = comparison.task.metric
        kinds = kinds_of(records) if domain.by_kind else None
        metrics, before = comparison.host_alone(records, knowledge)
        rows: dict[str, Any] = {"n": len(next(iter(before.values()))), "metric": metric, "host": metrics[metric]}
        right: Rows = {"host": right_of(before)}
        after = None
        for row, reference in domain.plugins.items():
            plugin, plugged = self._plugged(reference, comparison, knowledge, f"{where}.plugins.{row}")
            metrics, predictions = plugged.with_plugin(plugin, knowledge, records)
            rows[row], right[row] = metrics[metric], right_of(predictions)
            if after is None:
                after = predictions
                if domain.added and knowledge is not None:
                    metrics, found = plugged.with_added(plugin, knowledge, records)
                    rows["added"], right["added"] = metrics[metric], right_of(found)
            if plugin.reads_examples():
                seed = self.run.seed_of(self.name)
                metrics, swapped, donors = plugged.shuffled(plugin, knowledge, records, seed)
                control = CONTROL if CONTROL not in rows else f"{row}_{CONTROL}"
                rows[control], right[control] = metrics[metric], right_of(swapped)
                if "label" in predictions and control == CONTROL:
                    # the answer of the entity whose vector was put there: knowledge is read, not the name
                    theirs = followed(predictions, swapped, donors)
                    if kinds is not None:
                        theirs = follows(records, predictions["label"], swapped["predicted"], donors)
                        right[f"{CONTROL}_follows_vector"] = theirs
                    rows[f"{CONTROL}_follows_vector"] = (mean_of(theirs.astype(float)) or 0.0) if theirs.size else 0.0
        if knowledge is not None:
            asked = AskedDomain(comparison, knowledge, records, where)
            self._without_model(domain, asked, rows, right)
            rows["coverage"] = comparison.coverage(knowledge, records)
            if domain.rivals is not None:
                self._rivals(domain.rivals, asked, rows, right)
        if kinds is not None:
            rows["kinds"] = by_kind(right, kinds)
        if "predicted" in before and after is not None:
            wanted = self.config.examples if domain.examples is None else domain.examples
            chosen = self._drawn(records, wanted, domain.by_kind)
            rows["examples"] = self._examples(comparison, knowledge, records, before, after, chosen)
        return rows

    def _without_model(self, domain: DomainConfig, asked: AskedDomain, rows: dict[str, Any], right: Rows) -> None:
        """Adds the rows of look-ups that use no language model, where there is data to look up in."""
        comparison, knowledge, records, where = asked
        if not domain.reference_data:
            return
        if "label" not in comparison.task.required:
            problem = f"the task {self.config.task} has no label to look up"
            raise InputError(f"{where}.reference_data", problem, "leave it out")
        train = self.run.records(domain.reference_data, comparison.task.required, f"{where}.reference_data")
        right["nearest_neighbour"] = nearest_neighbour(knowledge, train, records)
        rows["nearest_neighbour"] = float(right["nearest_neighbour"].mean())
        rows["majority"] = majority(train, records)
        if domain.by_kind:  # the same, told which kind of question it is
            vectors, found = first_entities(knowledge, train)
            theirs, _ = first_entities(knowledge, records)
            right["nearest_neighbour_of_kind"] = nearest_of_kind(vectors, found, train, theirs, records)
            right["majority"] = majority_of_kind(train, records)
            for row in ("nearest_neighbour_of_kind", "majority"):
                rows[row] = float(right[row].mean())

    def _rivals(self, rivals: RivalsConfig, asked: AskedDomain, rows: dict[str, Any], right: Rows) -> None:
        """Adds what a practitioner would try first, and `settings`: what development data chose for each."""
        comparison, knowledge, records, where = asked
        required, settings = comparison.task.required, {}
        dev = self.run.records(rivals.dev_data, required, f"{where}.rivals.dev_data")
        encoder = open_host(self.run.model(rivals.encoder, f"{where}.rivals.encoder"), head="none")
        classifier = TextAndVector(encoder, knowledge)
        for row, files in rivals.classifiers.items():
            train = self.run.records(files, required, f"{where}.rivals.classifiers.{row}")
            right[row], settings[row] = classifier.right(train, dev, records, self.run.seed)
        if rivals.facets:
            train = self.run.records(rivals.facets, required, f"{where}.rivals.facets")
            named = NameSubstituted(knowledge, lambda asked: right_of(comparison.host_alone(asked)[1]))
            right[SUBSTITUTED], settings[SUBSTITUTED] = named.right(train, dev, records)
        for row in settings:
            rows[row] = float(right[row].mean())
        rows["settings"] = settings

    def _plugged(
        self, reference: str | Mapping[str, Any], comparison: Comparison, knowledge: KnowledgeBase | None, where: str
    ) -> tuple[Plugin, Comparison]:
        """A row's plugin, and what it is evaluated with: the host under its own head or under the plugin's."""
        if self.config.heads == "host":
            return open_plugin(self.run, reference, comparison.host, knowledge, where), comparison
        if not isinstance(reference, str):
            raise InputError(where, "a method without a folder brings no head along", "set heads to host")
        folder = self.run.path(reference, where)
        stored = load_plugin(folder, host=comparison.host.identity, knowledge=knowledge_identity(knowledge))
        return stored.plugin, comparison.with_head(task_of(read_head(stored), self.config.task, folder), folder)

    def _drawn(self, records: Sequence[Record], wanted: int, of_kinds: bool) -> list[int]:
        """Which questions are shown, not the flattering ones: drawn by the run's seed."""
        seed = self.run.seed_of(self.name)
        if of_kinds:
            return drawn(records, wanted, seed)
        return np.random.default_rng(seed).permutation(len(records))[:wanted].tolist()

    def _examples(
        self,
        comparison: Comparison,
        knowledge: KnowledgeBase | None,
        records: Sequence[Record],
        before: dict[str, np.ndarray],
        after: dict[str, np.ndarray],
        chosen: Sequence[int],
    ) -> list[dict[str, str]]:
        """Questions as they are, with the answers of the host alone and of the host with the first plugin."""
        tokenizer, name = comparison.host.tokenizer, comparison.task.choice_name
        return [
            {
                "text": records[i].text,
                "entity": _name(knowledge, records[i]),
                "label": str(records[i].fields["label"]),
                "host": name(int(before["predicted"][i]), records[i], tokenizer),
                "plugin": name(int(after["predicted"][i]), records[i], tokenizer),
            }
            for i in chosen
        ]


def right_of(predictions: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each example 1.0 where it was answered rightly, 0.0 where not; NaN where the task predicts no one label."""
    if "label" not in predictions:
        return np.full(len(next(iter(predictions.values()))), np.nan)
    return (predictions["predicted"] == predictions["label"]).astype(float)


def _name(knowledge: KnowledgeBase | None, record: Record) -> str:
    """The label of a record's first entity; its id where the knowledge base does not know it, "" where it has none."""
    entity = (record.mentions[0].entity if record.mentions else None) or ""
    if knowledge is None:
        return entity
    (row,) = knowledge.rows([entity])
    return knowledge.entity(int(row)).label or entity if row >= 0 else entity
