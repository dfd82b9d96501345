"""What every stage has: its settings, the run it belongs to, and how it refers to what other stages made."""

from __future__ import annotations

import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kinject.config import Section
from kinject.data.records import Record
from kinject.data.sources.package_data import package_file
from kinject.datasets.records import find_dataset, is_dataset, parse_reference, read_datasets
from kinject.errors import InputError, did_you_mean
from kinject.inference.host import HostBundle, knowledge_identity
from kinject.inference.mesh import Placement
from kinject.knowledge.base import KnowledgeBase
from kinject.models.seams import Plugin
from kinject.plugins.base import method_without_parameters, read_method
from kinject.plugins.store import load_plugin
from kinject.reports.console import Reporter
from kinject.tasks.base import make_task

OUTPUT_MARK, PACKAGE_MARK = "@", "package:"
FILES = ("data", "dev_data", "reference_data", "knowledge", "plugin")  # fields of settings that refer to files
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
    """

    workdir: Path
    seed: int
    reporter: Reporter
    placement: Placement
    stages: Mapping[str, StageConfig]
    results: dict[str, Any] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Where a stage puts what it makes."""
        return self.workdir / stage

    def seed_of(self, stage: str) -> int:
        """A seed of the stage's own, so that stages draw independently of which others ran."""
        return int(np.random.SeedSequence([self.seed, zlib.crc32(stage.encode())]).generate_state(1)[0] >> 1)

    def check(self, reference: str, where: str) -> None:
        """Raises InputError where `path` is sure to do so, before any stage has run."""
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
        found = [one if is_dataset(one) else self.path(one, where) for one in references]
        return list(read_datasets(found, require))

    def knowledge(self, reference: str, where: str) -> KnowledgeBase:
        """Opens the knowledge base that a reference names; raises InputError where there is none."""
        return KnowledgeBase.open(self.path(reference, where))


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
        if isinstance(given, Mapping):
            check_plugin(run, given, f"{where}.{name}")
            continue
        for reference in (given,) if isinstance(given, str) else given:
            if name in FILES or _is_path(reference):
                run.check(reference, f"{where}.{name}")


def check_plugin(run: Run, reference: str | Mapping[str, Any], where: str) -> None:
    """Raises InputError for a folder that there is not, or a method or settings of one that nobody knows."""
    if isinstance(reference, str):
        run.check(reference, where)
    else:
        read_method(reference, where)


def _is_path(reference: str) -> bool:
    """Whether the name of a model is a place on this machine, not a hub id."""
    return reference.startswith((OUTPUT_MARK, PACKAGE_MARK, ".", "/", "~")) or Path(reference).exists()


class Stage(ABC):
    """One stage of one run.

    Attributes:
      everywhere: all processes of a run execute it together, and process 0 alone writes; else process 0 executes it
        alone and the others wait.
    """

    Config: ClassVar[type[StageConfig]]
    everywhere: ClassVar[bool] = False

    def __init__(self, name: str, config: Any, run: Run):
        self.name, self.config, self.run = name, config, run
        self.where = f"stages.{name}"
        self.folder = run.folder(name)

    @property
    def seed(self) -> int:
        """The stage's own; a member of a stage of several has that of its own name."""
        return self.run.seed_of(self.name.rpartition("/")[2])

    def check(self) -> None:
        """Raises InputError for what is wrong whatever the stages before this one will make."""
        if hasattr(self.config, "task"):
            make_task(self.config.task, f"{self.where}.task", **self.config.task_options)
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
