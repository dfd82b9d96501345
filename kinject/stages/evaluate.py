"""Stage `evaluate`: the result table. For each domain the host alone, with its plugins, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from kinject.config import Section
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import knowledge_identity, task_of
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import Precision, check_installed
from kinject.models.seams import Plugin
from kinject.plugins.store import load_plugin, read_head
from kinject.stages.base import Stage, StageConfig, check_plugin, check_references, open_plugin
from kinject.stages.comparison import Comparison, majority, nearest_neighbour


class DomainConfig(Section):
    """One domain's held-out data and the plugins that are compared on it; without any, the host alone.

    `plugins` maps a row's name to a plugin's folder, or to the settings of a method without parameters; the first that
    reads knowledge of each example is also run with that of others. A plugin that was trained without a knowledge base
    needs none here. With `reference_data` (the plugin's own training records) the table has the rows that use no
    language model.
    """

    knowledge: str | None = None
    data: tuple[str, ...] = Field(min_length=1)
    plugins: dict[str, str | dict[str, Any]] = {}
    reference_data: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _looked_up_in_knowledge(self) -> DomainConfig:
        if self.knowledge is None and self.reference_data:
            raise ValueError("reference_data needs knowledge, whose vectors are looked up")
        return self


class EvaluateConfig(StageConfig):
    """Which host is evaluated, on which domains; `examples` questions a domain are shown before and after.

    `heads` says whose head reads the plugins' rows: the host's own, or each plugin's, the one that was trained together
    with it and is in its folder. The row of the host alone is always read by its own.
    """

    kind: Literal["evaluate"] = "evaluate"
    host: str
    task: str
    task_options: dict[str, Any] = {}
    max_length: int | None = None
    batch_size: int = Field(100, ge=1)
    compute_dtype: Precision = "float32"
    examples: int = Field(3, ge=0)
    heads: Literal["host", "plugin"] = "host"
    domains: dict[str, DomainConfig]


class EvaluateStage(Stage):
    """Compares."""

    Config = EvaluateConfig
    everywhere = True

    def check(self) -> None:
        super().check()
        check_installed(self.config.compute_dtype, f"{self.where}.compute_dtype")
        for name, domain in self.config.domains.items():
            where = f"{self.where}.domains.{name}"
            check_references(self.run, domain, where)
            for row, reference in domain.plugins.items():
                check_plugin(self.run, reference, f"{where}.plugins.{row}")

    def execute(self) -> dict[str, Any]:
        config, where = self.config, f"{self.where}.host"
        comparison = Comparison.of(self.run, config, config.host, self.where, where, config.compute_dtype)
        return {name: self._domain(name, domain, comparison) for name, domain in config.domains.items()}

    def _domain(self, name: str, domain: DomainConfig, comparison: Comparison) -> dict[str, Any]:
        where = f"{self.where}.domains.{name}"
        knowledge = self.run.knowledge(domain.knowledge, f"{where}.knowledge") if domain.knowledge else None
        records = self.run.records(domain.data, comparison.task.required, f"{where}.data")
        metric = comparison.task.metric
        metrics, before = comparison.host_alone(records, knowledge)
        rows: dict[str, Any] = {"n": len(next(iter(before.values()))), "metric": metric, "host": metrics[metric]}
        after = None
        for row, reference in domain.plugins.items():
            plugin, plugged = self._plugged(reference, comparison, knowledge, f"{where}.plugins.{row}")
            metrics, predictions = plugged.with_plugin(plugin, knowledge, records)
            rows[row] = metrics[metric]
            if after is None:
                after = predictions
            if "shuffled" not in rows and plugin.reads_examples():
                seed = self.run.seed_of(self.name)
                metrics, swapped, donors = plugged.shuffled(plugin, knowledge, records, seed)
                rows["shuffled"] = metrics[metric]
                if "label" in predictions:
                    # the answer of the entity whose vector was put there: knowledge is read, not the name
                    followed = swapped["predicted"] == predictions["label"][donors]
                    moved = donors != np.arange(len(donors))
                    rows["shuffled_follows_vector"] = float(followed[moved].mean()) if moved.any() else 0.0
        if domain.reference_data and knowledge is not None:
            if "label" not in comparison.task.required:
                problem = f"the task {self.config.task} has no label to look up"
                raise InputError(f"{where}.reference_data", problem, "leave it out")
            train = self.run.records(domain.reference_data, comparison.task.required, f"{where}.reference_data")
            rows["nearest_neighbour"] = nearest_neighbour(knowledge, train, records)
            rows["majority"] = majority(train, records)
        if knowledge is not None:
            rows["coverage"] = comparison.coverage(knowledge, records)
        if "predicted" in before and after is not None:
            rows["examples"] = self._examples(comparison, knowledge, records, before, after)
        return rows

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

    def _examples(
        self,
        comparison: Comparison,
        knowledge: KnowledgeBase | None,
        records: Sequence[Record],
        before: dict[str, np.ndarray],
        after: dict[str, np.ndarray],
    ) -> list[dict[str, str]]:
        """A few questions as they are, not the flattering ones: drawn by the run's seed."""
        decode = comparison.host.tokenizer.decode
        chosen = np.random.default_rng(self.run.seed_of(self.name)).permutation(len(records))[: self.config.examples]
        return [
            {
                "text": records[i].text,
                "entity": _name(knowledge, records[i]),
                "label": str(records[i].fields["label"]),
                "host": decode([int(before["predicted"][i])]),
                "plugin": decode([int(after["predicted"][i])]),
            }
            for i in chosen
        ]


def _name(knowledge: KnowledgeBase | None, record: Record) -> str:
    """The label of a record's first entity; its id where the knowledge base does not know it, "" where it has none."""
    entity = (record.mentions[0].entity if record.mentions else None) or ""
    if knowledge is None:
        return entity
    (row,) = knowledge.rows([entity])
    return knowledge.entity(int(row)).label or entity if row >= 0 else entity
