"""What the two stages that train have in common: task, data, rules and the loop's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.examples import attach_knowledge, task_examples
from kinject.inference.host import HostBundle
from kinject.inference.program import split_program
from kinject.inference.vectors import VectorTable
from kinject.knowledge.base import KnowledgeBase
from kinject.models.heads import AttachedTuning
from kinject.models.precision import check_installed
from kinject.models.seams import Plugin
from kinject.stages.base import Stage, StageConfig
from kinject.tasks.base import Task
from kinject.training.config import FitConfig
from kinject.training.loop import Fit, FitResult
from kinject.training.metrics import check_trackers
from kinject.training.partition import describe
from kinject.tree import Flat

Rules = tuple[tuple[str, str], ...]


class TrainingConfig(StageConfig):
    """Settings of a stage that trains something.

    `data` and `dev_data` are JSON-lines files of records. `train` are (regex, "train" | "freeze") rules over parameter
    paths, first match wins; `.*` is matched against the whole path. `max_length` is in tokens, special ones included.
    """

    task: str
    task_options: dict[str, Any] = {}
    data: tuple[str, ...] = Field(min_length=1)
    dev_data: tuple[str, ...] = ()
    max_length: int | None = Field(None, ge=4)
    train: Rules | None
    fit: FitConfig


class TrainingStage(Stage):
    """A stage that runs the loop once."""

    everywhere = True
    config: TrainingConfig

    def check(self) -> None:
        super().check()
        check_trackers(self.config.fit.trackers, f"{self.where}.fit.trackers")
        check_installed(self.config.fit.compute_dtype, f"{self.where}.fit.compute_dtype")

    def feeds(
        self, task: Task, host: HostBundle, knowledge: KnowledgeBase | None, plugin: Plugin | None
    ) -> tuple[Feed, Feed | None]:
        """The encoded training and development data; the latter None where the config has none."""
        gather = None if knowledge is None else knowledge.gather

        def feed(task: Task, references: tuple[str, ...], field: str) -> Feed:
            records = self.run.records(references, task.required, f"{self.where}.{field}")
            length, buckets = self.config.max_length, self.config.fit.buckets
            examples = task_examples(task, plugin, records, host, knowledge, max_length=length, buckets=buckets)
            for note, count in examples.notes.items():
                self.run.reporter.say(f"{self.name}.{field}: {count} of {len(records)} {note}")
            return Feed(attach_knowledge(examples, plugin, records, host, knowledge), gather)

        train = feed(task, self.config.data, "data")
        return train, feed(task.for_evaluation(), self.config.dev_data, "dev_data") if self.config.dev_data else None

    def make_fit(
        self,
        task: Task,
        host: HostBundle,
        plugin: Plugin | None,
        feeds: tuple[Feed, Feed | None],
        rules: Rules | None = None,
        table: VectorTable | None = None,
    ) -> tuple[Fit, Flat]:
        """The training, and the parameters that it was made of; says what will be trained.

        With a `table`, entity vectors are looked up in it; see inference/vectors.py.
        """
        rules = self.config.train if rules is None else rules
        if rules is None:
            raise InputError(f"{self.where}.train", "it is missing")
        program, params = split_program(host.loaded.host, plugin, task)
        fit = Fit(
            self.name,
            program,
            params,
            list(rules),
            self.config.fit,
            *feeds,
            seed=self.seed,
            workdir=self.run.workdir,
            reporter=self.run.reporter,
            placement=self.run.placement,
            table=table,
        )
        self.run.reporter.say(f"{self.name}: {describe(params, fit.labels, program.tables)}")
        if fit.place.devices > 1:
            self.run.reporter.say("\n  ".join([fit.place.describe(), *fit.place.notes(params)]))
        return fit, params

    def fit(self, *args: Any, **options: Any) -> FitResult:
        """Trains; takes what `make_fit` takes."""
        return self.make_fit(*args, **options)[0].run()


def host_json(
    config: TrainingConfig, base: str, task: Task, made_from: HostBundle, tuning: AttachedTuning
) -> dict[str, Any]:
    """What `host.json` says of a host that a stage tuned from another."""
    extra = {"lineage": list(made_from.identity.lineage), "task_options": config.task_options}
    extra["tuning"] = tuning.to_json()
    return {"base": base, "task": config.task, "labels": task.labels, "extra": extra}


def summary(result: FitResult, feed: Feed) -> dict[str, Any]:
    """What a training stage reports."""
    return {"steps": result.steps, "examples": feed.examples.size, **result.metrics}


def trained_leaves(result: FitResult, prefix: str) -> Mapping[str, Any]:
    """The trained leaves below `prefix/`, without it."""
    start = len(prefix) + 1
    return {path[start:]: leaf for path, leaf in result.train.items() if path.startswith(f"{prefix}/")}
