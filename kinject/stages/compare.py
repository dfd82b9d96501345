"""Stage `compare`: methods beside each other on the same frozen host, data and budget, with what each of them costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from pydantic import Field, model_validator

from kinject.config import Section
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import knowledge_identity
from kinject.inference.passages import attach, exchange_values, open_memory_plugin
from kinject.knowledge.base import KnowledgeBase
from kinject.memory.store import PassageMemory
from kinject.models.heads import HostModel
from kinject.models.precision import Precision
from kinject.models.seams import Plugin
from kinject.plugins.pluglm import PlugLM
from kinject.stages.base import OUTPUT_MARK, Stage, check_plugin, check_references, open_plugin
from kinject.stages.comparison import AskingConfig, by_kind, comparison_of, kinds_of
from kinject.stages.evaluate import CONTROL, right_of
from kinject.tree import flatten

HOST_ROW = "host"


class MethodConfig(Section):
    """One row: a plugin's folder or a method without parameters, and the host that it sits in.

    `host` is another one than the stage's where the method comes with a host of its own, `knowledge` another base than
    the domain's. `memory` is the folder of passages that a memory plugin reads; its control exchanges what they say.
    """

    plugin: str | dict[str, Any]
    host: str | None = None
    knowledge: str | None = None
    memory: str | None = None

    @model_validator(mode="after")
    def _a_memory_has_a_reader(self) -> MethodConfig:
        if self.memory is not None and not isinstance(self.plugin, str):
            raise ValueError("memory needs the folder of the plugin that reads it")
        return self


class MethodsConfig(Section):
    """One domain's held-out data, and the methods that are compared on it.

    `by_kind` adds each kind of question (the records' field `kind`), and a score is then the mean over the kinds.
    """

    knowledge: str
    by_kind: bool = False
    data: tuple[str, ...] = Field(min_length=1)
    methods: dict[str, MethodConfig] = Field(min_length=1)


class CompareConfig(AskingConfig):
    """Which host, on which domains. Times are medians of `repeats` runs over `timed` examples, methods taking turns."""

    kind: Literal["compare"] = "compare"
    compute_dtype: Precision = "float32"
    repeats: int = Field(9, ge=1)
    timed: int = Field(200, ge=1)
    domains: dict[str, MethodsConfig]


class CompareStage(Stage[CompareConfig]):
    """Compares methods."""

    def check(self) -> None:
        super().check()
        for name, domain in self.config.domains.items():
            where = f"{self.where}.domains.{name}"
            check_references(self.run, domain, where)
            for row, method in domain.methods.items():
                check_plugin(self.run, method.plugin, f"{where}.methods.{row}.plugin")
                check_references(self.run, method, f"{where}.methods.{row}")

    def execute(self) -> dict[str, Any]:
        self._comparisons: dict[str, Comparison] = {}
        return {name: self._domain(name, domain) for name, domain in self.config.domains.items()}

    def _comparison(self, reference: str, where: str) -> Comparison:
        """The host's, which compiles each program once."""
        if reference not in self._comparisons:
            made = comparison_of(self.run, self.config, reference, self.where, where, self.config.compute_dtype)
            self._comparisons[reference] = made
        return self._comparisons[reference]

    def _domain(self, name: str, domain: MethodsConfig) -> dict[str, Any]:
        where = f"{self.where}.domains.{name}"
        alone = self._comparison(self.config.host, f"{self.where}.host")
        knowledge = self.run.knowledge(domain.knowledge, f"{where}.knowledge")
        records = self.run.records(domain.data, alone.task.required, f"{where}.data")
        score = Score(alone.task.metric, kinds_of(records) if domain.by_kind else None)
        timed, seed = records[: self.config.timed], self.run.seed_of(self.name)
        asked = alone.host_alone(records, knowledge)
        rows: dict[str, Any] = {HOST_ROW: {**score(asked), "parameters": 0}}
        timers = {HOST_ROW: alone.timer(None, knowledge, timed)}
        self._say(name, HOST_ROW, score.metric, rows[HOST_ROW])
        for row, method in domain.methods.items():
            at = f"{where}.methods.{row}"
            comparison = self._comparison(method.host or self.config.host, f"{at}.host")
            base = self.run.knowledge(method.knowledge, f"{at}.knowledge") if method.knowledge else knowledge
            moved = moved_parameters(alone.host.loaded.host, comparison.host.loaded.host)
            plugin = self._plugin(method, comparison, base, at)
            found, trained = comparison.with_plugin(plugin, base, records), count_parameters(plugin) + moved
            rows[row] = {**score(found), "parameters": trained, **self._seconds(method)}
            timers[row] = comparison.timer(plugin, base, timed)
            if isinstance(plugin, PlugLM):
                exchange_values(plugin, seed)
                rows[row] |= score(comparison.with_plugin(plugin, base, records), CONTROL)
            elif plugin.reads_examples():
                rows[row] |= score(comparison.shuffled(plugin, base, records, seed)[:2], CONTROL)
            self._say(name, row, score.metric, rows[row])
        self.run.reporter.say(f"{self.name}: {name}: timing, {self.config.repeats} turns of {len(timed)} examples")
        for row, cost in costs(timers, len(timed), self.config.repeats).items():
            rows[row] |= cost
        return {
            "n": len(next(iter(asked[1].values()))),
            "metric": score.metric,
            "knowledge": knowledge_identity(knowledge)["name"],
            **score.counts(),
            "methods": rows,
        }

    def _say(self, domain: str, row: str, metric: str, values: Mapping[str, Any]) -> None:
        """Tells a row's scores as soon as they are there: all rows take minutes."""
        control = f", with others' knowledge {100 * values[CONTROL]:.1f}%" if CONTROL in values else ""
        self.run.reporter.say(f"{self.name}: {domain}: {row}: {metric} {100 * values['score']:.1f}%{control}")

    def _plugin(self, method: MethodConfig, comparison: Comparison, knowledge: KnowledgeBase, where: str) -> Plugin:
        """A row's plugin, with its memory where it has one."""
        named = f"{where}.plugin"
        if method.memory is None or not isinstance(method.plugin, str):  # a memory's reader is a folder
            return open_plugin(self.run, method.plugin, comparison.host, knowledge, named)
        plugin = open_memory_plugin(self.run.path(method.plugin, named), comparison.host, named)
        memory = PassageMemory.open(self.run.path(method.memory, f"{where}.memory"))
        if memory.manifest["tag"]:
            problem = f"its passages have the tag {memory.manifest['tag']!r}, and the questions have none"
            raise InputError(f"{where}.memory", problem, "build it without")
        attach(plugin, [memory], comparison.host.identity)
        return plugin

    def _seconds(self, method: MethodConfig) -> dict[str, float]:
        """Seconds of the stages of this run that made the plugin and, where it has one, its host.

        Nothing where one of them was made elsewhere; 0 of a method that is given by its settings, as none trains it.
        """
        taken = {f"{OUTPUT_MARK}{stage}": seconds for stage, seconds in self.run.results.get("seconds", {}).items()}
        made_in = [one.partition("/")[0] for one in (method.plugin, method.host) if isinstance(one, str)]
        if not taken.keys() >= set(made_in):
            return {}
        return {"training_seconds": sum(taken[stage] for stage in made_in)}


@dataclass(frozen=True)
class Score:
    """What is reported of an evaluation: its metric or, with the kind of each question, the mean over the kinds."""

    metric: str
    kinds: np.ndarray | None

    def __call__(
        self, found: tuple[Mapping[str, float], Mapping[str, np.ndarray]], row: str = "score"
    ) -> dict[str, Any]:
        """{row: float}, and {row + "_kinds": {kind: float}} where there are kinds."""
        metrics, predictions = found
        if self.kinds is None:
            return {row: metrics[self.metric]}
        kinds = {kind: one[row] for kind, one in by_kind({row: right_of(predictions)}, self.kinds).items()}
        return {row: float(np.mean(list(kinds.values()))), f"{row}_kinds": kinds}

    def counts(self) -> dict[str, dict[str, int]]:
        """{"kinds": {kind: questions}} where there are kinds."""
        if self.kinds is None:
            return {}
        return {"kinds": {kind: int((self.kinds == kind).sum()) for kind in dict.fromkeys(self.kinds.tolist())}}


def count_parameters(plugin: Plugin) -> int:
    """Numbers in a plugin that training can change."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(plugin, nnx.Param)))


def moved_parameters(host: HostModel, other: HostModel) -> int:
    """Numbers of another host in arrays that are not those of the first: what a host of its own had trained."""
    if other is host:
        return 0
    first, theirs = (flatten(nnx.to_pure_dict(nnx.state(one, nnx.Param))) for one in (host, other))

    def same(path: str, leaf: jax.Array) -> bool:
        return path in first and first[path].shape == leaf.shape and bool((first[path] == leaf).all())

    return sum(int(leaf.size) for path, leaf in theirs.items() if not same(path, leaf))


def costs(
    timers: Mapping[str, tuple[Callable[[], float], float, float]], examples: int, repeats: int
) -> dict[str, dict[str, float]]:
    """What each row costs beside the host: the rows take turns, so that what else the machine does falls on all.

    Args:
      timers: see `Comparison.timer`; the host's under `HOST_ROW`.
      examples: how many each evaluates.
      repeats: turns.

    Returns:
      By row: `latency_ratio` (median over turns of its seconds by the host's of that turn), `milliseconds` an example
      (median), `prepare_milliseconds` an example, `tokens` a row of the batch.
    """
    turns = [{row: run() for row, (run, _, _) in timers.items()} for _ in range(repeats)]
    return {
        row: {
            "latency_ratio": statistics.median(turn[row] / turn[HOST_ROW] for turn in turns),
            "milliseconds": 1e3 * statistics.median(turn[row] for turn in turns) / examples,
            "prepare_milliseconds": 1e3 * prepared / examples,
            "tokens": tokens,
        }
        for row, (_, tokens, prepared) in timers.items()
    }
