"""What every stage has: its settings, the run it belongs to, and how it refers to what other stages made.

And what the stages that train have beside it: task, data, rules and the loop's settings.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_args

from pydantic import Field

from kinject.config import Section
from kinject.data.pipeline import Examples, Feed
from kinject.data.records import Record, read_records
from kinject.data.sources.package_data import package_file
from kinject.datasets.records import find_dataset, is_dataset, parse_reference, read_datasets
from kinject.errors import InputError, did_you_mean
from kinject.hf_folder import stated_config
from kinject.inference.host import HostBundle, attach_knowledge, knowledge_identity, task_examples
from kinject.inference.host import open_host as open_host  # pages and notebooks imported it from here
from kinject.inference.mesh import Placement
from kinject.inference.program import named_seed, split_program
from kinject.inference.vectors import VectorTable
from kinject.knowledge.base import KnowledgeBase
from kinject.models.heads import AttachedTuning
from kinject.models.manifest import read_host_manifest
from kinject.models.precision import check_installed
from kinject.models.seams import Plugin
from kinject.plugins.base import method_without_parameters, read_method
from kinject.plugins.store import load_plugin
from kinject.reports.console import Reporter
from kinject.stages.encoded import FOLDER, Kept
from kinject.tasks.base import Task, make_task
from kinject.tasks.labels import UNNAMED, SingleLabelTask, read_labels
from kinject.training.config import FitConfig
from kinject.training.loop import Fit, FitResult
from kinject.training.metrics import check_trackers
from kinject.training.partition import describe
from kinject.tree import Flat

OUTPUT_MARK, PACKAGE_MARK = "@", "package:"
# fields of settings that refer to files: one, several, or several by name
RECORDS = ("data", "dev_data", "test_data", "reference_data", "known_data", "told_data", "exclude", "specificity")
FILES = (*RECORDS, "texts", "passages", "memories", "memory", "files", "words", "knowledge", "plugin")
MODELS = ("host", "base", "tokenizer_of")  # … to models, which may have a hub id


class StageConfig(Section):
    """Settings that every stage has."""

    kind: str


@dataclass
class Run:
    """One run of a config: where it writes, its seed, and what is shared by its stages.

    Attributes:
      stages: settings by stage name, in order.
      results: what finished stages reported; `results.json`.
      given: what is at hand already, by the reference that names it: a `HostBundle`, a `KnowledgeBase`, or a list of
        `Record`s. Nothing is read for those.
    """

    workdir: Path
    seed: int
    reporter: Reporter
    placement: Placement
    stages: Mapping[str, StageConfig]
    results: dict[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Where a stage puts what it makes."""
        return self.workdir / stage

    def seed_of(self, stage: str) -> int:
        """A seed of the stage's own, so that stages draw independently of which others ran."""
        return named_seed(self.seed, stage)

    def check(self, reference: str, where: str) -> None:
        """Raises InputError where `path` is sure to do so, before any stage has run."""
        if reference in self.given:
            return
        if reference.startswith(OUTPUT_MARK):
            self._stage_of(reference, where)
        elif is_dataset(reference):
            name, data_dir, _ = parse_reference(reference)
            find_dataset(name, data_dir, reference)
        elif not reference.startswith(PACKAGE_MARK):
            self.path(reference, where)

    def _stage_of(self, reference: str, where: str) -> tuple[str, str]:
        """`@stage/file` -> stage, file."""
        stage, _, rest = reference.removeprefix(OUTPUT_MARK).partition("/")
        if stage not in self.stages:
            raise InputError(where, f"{reference} names no stage", did_you_mean(stage, self.stages))
        return stage, rest

    def path(self, reference: str, where: str) -> Path:
        """`@stage/file` -> what that stage of this run wrote; `package:name/folder` -> a model's folder in a package.

        Anything else is a path as it stands.

        Raises:
          InputError: no such stage, or it has not run; no such file.
        """
        if reference.startswith(OUTPUT_MARK):
            stage, rest = self._stage_of(reference, where)
            if stage not in self.results:
                raise InputError(where, f"the stage {stage} has not run yet", f"run it first: --stage {stage}")
            path = self.folder(stage) / rest
        elif reference.startswith(PACKAGE_MARK):
            name, _, rest = reference.removeprefix(PACKAGE_MARK).partition("/")
            return package_file(name, f"{rest}/config.json").parent
        else:
            path = Path(reference).expanduser()
        if not path.exists():
            raise InputError(where, f"there is no {path}", "check the path")
        return path

    def model(self, reference: str, where: str) -> Path | str:
        """A model's folder as `path` finds it, or a hub id as it stands."""
        return self.path(reference, where) if _is_path(reference) else reference

    def records(self, references: tuple[str, ...], require: tuple[str, ...], where: str) -> list[Record]:
        """All records of some JSON-lines files and TFDS splits (`tfds:…`, see datasets/records.py)."""
        if any(one in self.given for one in references):
            return [record for one in references for record in self.given[one]]
        return list(read_datasets(self.sources(references, where), require))

    def sources(self, references: tuple[str, ...], where: str) -> list[str | Path]:
        """The files and data sets that references to records name."""
        return [one if is_dataset(one) else self.path(one, where) for one in references]

    def knowledge(self, reference: str, where: str) -> KnowledgeBase:
        """Opens the knowledge base that a reference names; raises InputError where there is none."""
        given = self.given.get(reference)
        return KnowledgeBase.open(self.path(reference, where)) if given is None else given


def open_plugin(
    run: Run, reference: str | Mapping[str, Any], host: HostBundle, knowledge: KnowledgeBase | None, where: str
) -> Plugin:
    """The plugin of a folder, or one without parameters by its settings.

    Raises:
      InputError: see `load_plugin` and `method_without_parameters`.
    """
    if not isinstance(reference, str):
        return method_without_parameters(reference, hidden_size=host.identity.hidden_size, where=where)
    folder = run.path(reference, where)
    return load_plugin(folder, host=host.identity, knowledge=knowledge_identity(knowledge)).plugin


def check_references(run: Run, settings: Section, where: str) -> None:
    """Raises InputError for the first file, model or stage that some settings name and that there is not."""
    for name in (*FILES, *MODELS):
        given = getattr(settings, name, None) or ()
        if name == "plugin" and isinstance(given, Mapping):
            check_plugin(run, given, f"{where}.{name}")
            continue
        rows = given.items() if isinstance(given, Mapping) else [("", given)]
        for row, references in rows:
            for reference in (references,) if isinstance(references, str) else references:
                if name in FILES or _is_path(reference):
                    run.check(reference, ".".join(filter(None, (where, name, row))))


def check_plugin(run: Run, reference: str | Mapping[str, Any], where: str) -> None:
    """Raises InputError for a folder that there is not, or a method or settings of one that nobody knows."""
    if isinstance(reference, str):
        run.check(reference, where)
    else:
        read_method(reference, where)


LOOKED_AT = 10_000  # records of a file whose labels are checked before anything runs


def check_labels(run: Run, settings: Any, references: Sequence[str], where: str) -> None:
    """Raises InputError for the first record, of those that are there already, whose label is none of the host's.

    Args:
      run: the run whose stages may be referred to.
      settings: of a stage with a task, and the host that it is asked of.
      references: the records.
      where: config key of the records.
    """
    task = make_task(settings.task, where, **settings.task_options)
    if not isinstance(task, SingleLabelTask) or "label" not in task.required:
        return
    names = task.labels or _labels_of_host(run, getattr(settings, "host", None)) or ()
    files = [one for one in references if not (one in run.given or one.startswith(OUTPUT_MARK) or is_dataset(one))]
    for reference in files:
        for record in islice(read_records(run.path(reference, where)), LOOKED_AT):
            label = record.fields.get("label")
            if names and isinstance(label, str) and label not in names:
                problem = f"field label is {label!r}, which is none of the labels"
                raise InputError(record.where, problem, did_you_mean(label, names)[:200])


def _labels_of_host(run: Run, reference: str | None) -> tuple[str, ...] | None:
    """The labels that a stage's host has or will have, where that can be told without loading it."""
    if reference is None or reference in run.given:
        return None
    if reference.startswith(OUTPUT_MARK):
        made_by = run.stages.get(reference.removeprefix(OUTPUT_MARK))
        options = getattr(made_by, "task_options", {})
        return read_labels(options["labels"]) if options.get("labels") else None
    folder = Path(reference).expanduser()
    if not (folder / "config.json").is_file():
        return None
    named = read_host_manifest(folder).get("labels") or list((stated_config(folder).get("id2label") or {}).values())
    return None if not named or all(UNNAMED.fullmatch(str(one)) for one in named) else tuple(map(str, named))


def _is_path(reference: str) -> bool:
    """Whether the name of a model is a place on this machine, not a hub id."""
    return reference.startswith((OUTPUT_MARK, PACKAGE_MARK, ".", "/", "~")) or Path(reference).exists()


AnyConfig = TypeVar("AnyConfig", bound=StageConfig)


class Stage(ABC, Generic[AnyConfig]):
    """One stage of one run: a subclass names its settings, `class EvaluateStage(Stage[EvaluateConfig])`.

    Attributes:
      everywhere: all processes of a run execute it together, and process 0 alone writes; else process 0 executes it
        alone and the others wait.
    """

    Config: ClassVar[type[StageConfig]]
    everywhere: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for base in getattr(cls, "__orig_bases__", ()):
            for given in get_args(base):
                if isinstance(given, type) and issubclass(given, StageConfig):
                    cls.Config = given

    def __init__(self, name: str, config: AnyConfig, run: Run):
        self.name, self.config, self.run = name, config, run
        self.where = f"stages.{name}"
        self.folder = run.folder(name)

    @property
    def seed(self) -> int:
        """The stage's own; a member of a stage of several has that of its own name."""
        return self.run.seed_of(self.name.rpartition("/")[2])

    def check(self) -> None:
        """Raises InputError for what is wrong whatever the stages before this one will make."""
        config: Any = self.config
        if hasattr(config, "task"):
            make_task(config.task, f"{self.where}.task", **config.task_options)
        if hasattr(config, "compute_dtype"):
            check_installed(config.compute_dtype, f"{self.where}.compute_dtype")
        check_references(self.run, self.config, self.where)

    @abstractmethod
    def execute(self) -> dict[str, Any]:
        """Does the work and returns what goes into `results.json` under the stage's name.

        Writes into `self.fresh_folder()` only, so that a stage that was cut short starts over (or from its
        checkpoints) and one that is done stays as it is.
        """

    def fresh_folder(self) -> Path:
        """The stage's folder, without what an unfinished earlier attempt left there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.folder


Rules = tuple[tuple[str, str], ...]


class TrainingConfig(StageConfig):
    """Settings of a stage that trains something.

    `data` and `dev_data` are JSON-lines files of records. `train` are (regex, "train" | "freeze") rules over parameter
    paths, first match wins; `.*` is matched against the whole path. `max_length` is in tokens, special ones included.
    `keep_encoded` keeps the encoded examples in the workdir: a run that goes on encodes nothing, and several processes
    share one encoding. It changes no result, and a workdir's run may go on with and without it.
    """

    task: str
    task_options: dict[str, Any] = {}
    data: tuple[str, ...] = Field(min_length=1)
    dev_data: tuple[str, ...] = ()
    max_length: int | None = Field(None, ge=4)
    keep_encoded: bool = Field(False, exclude=True)
    train: Rules | None
    fit: FitConfig


AnyTraining = TypeVar("AnyTraining", bound=TrainingConfig)


class TrainingStage(Stage[AnyTraining]):
    """A stage that runs the loop once."""

    everywhere = True

    def check(self) -> None:
        super().check()
        check_trackers(self.config.fit.trackers, f"{self.where}.fit.trackers")
        check_installed(self.config.fit.compute_dtype, f"{self.where}.fit.compute_dtype")
        for key in ("data", "dev_data"):
            check_labels(self.run, self.config, getattr(self.config, key), f"{self.where}.{key}")

    def feeds(
        self, task: Task, host: HostBundle, knowledge: KnowledgeBase | None, plugin: Plugin | None
    ) -> tuple[Feed, Feed | None]:
        """The encoded training and development data; the latter None where the config has none."""
        length, buckets = self.config.max_length, self.config.fit.buckets

        def feed(task: Task, references: tuple[str, ...], field: str) -> Feed:
            def make(records: Sequence[Record]) -> Examples:
                examples = task_examples(task, plugin, records, host, knowledge, max_length=length, buckets=buckets)
                return attach_knowledge(examples, plugin, records, host, knowledge)

            where, of = f"{self.where}.{field}", ""  # of how many records
            if self.config.keep_encoded and not any(one in self.run.given for one in references):
                folder, sources = self.run.folder(FOLDER) / f"{self.name}.{field}", self.run.sources(references, where)
                kept = Kept(folder, sources, task, plugin, host, knowledge, length, buckets)
                examples = kept.examples(make, self.run.reporter, f"{self.where}.keep_encoded")
            else:
                records = self.run.records(references, task.required, where)
                examples, of = make(records), f" of {len(records)}"
            for note, count in examples.notes.items():
                self.run.reporter.say(f"{self.name}.{field}: {count}{of} {note}")
            return Feed(examples, None if knowledge is None else knowledge.gather)

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
        self.run.reporter.say_folded(f"{self.name}: {describe(params, fit.labels, program.tables)}")
        if fit.place.devices > 1:
            self.run.reporter.say("\n  ".join([fit.place.describe(), *fit.place.notes(params)]))
        return fit, params


def host_json(
    config: TrainingConfig, base: str, task: Task, made_from: HostBundle, tuning: AttachedTuning
) -> dict[str, Any]:
    """What `host.json` says of a host that a stage tuned from another."""
    extra = {"lineage": list(made_from.lineage), "task_options": config.task_options}
    extra["tuning"] = tuning.to_json()
    return {"base": base, "task": config.task, "labels": task.labels, "extra": extra}


def summary(result: FitResult, feed: Feed) -> dict[str, Any]:
    """What a training stage reports."""
    return {"steps": result.steps, "examples": feed.examples.size, **result.metrics}


def trained_leaves(result: FitResult, prefix: str) -> Mapping[str, Any]:
    """The trained leaves below `prefix/`, without it."""
    start = len(prefix) + 1
    return {path[start:]: leaf for path, leaf in result.train.items() if path.startswith(f"{prefix}/")}
