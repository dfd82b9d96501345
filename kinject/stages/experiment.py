"""An experiment: a config's stages in a workdir, each run once, with its results kept."""

from __future__ import annotations

import datetime
import fcntl
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from kinject.config import build
from kinject.errors import InputError, did_you_mean
from kinject.inference.mesh import MeshConfig, Placement
from kinject.inference.processes import alone, first, on_first
from kinject.inference.xla import cores
from kinject.json_file import open_lock, read_object, to_line, write_object
from kinject.plugins.store import library_versions
from kinject.reports.console import Reporter
from kinject.reports.results import NOTED, PROVENANCE, read_log
from kinject.stages.abstract import check_rules
from kinject.stages.base import Run, Stage, StageConfig, TrainingConfig
from kinject.stages.compare import CompareStage
from kinject.stages.corpus import CorpusStage
from kinject.stages.e_bert import EBertStage
from kinject.stages.edit import EditStage
from kinject.stages.edit_questions import EditQuestionsStage
from kinject.stages.evaluate import EvaluateStage
from kinject.stages.folds import FoldsStage
from kinject.stages.host import HostStage
from kinject.stages.joint import PluginsStage, TogetherStage
from kinject.stages.knowledge import ImportKnowledgeStage, KnowledgeStage, TriplesStage
from kinject.stages.living import LivingStage
from kinject.stages.memory import MemoryPluginStage, MemoryStage, PassagesStage
from kinject.stages.memory_evaluate import MemoryEvaluateStage, MemoryUpdateStage
from kinject.stages.pairs import PairsStage
from kinject.stages.plugin import PluginStage
from kinject.stages.propagation import PropagationStage
from kinject.stages.text_vectors import TextVectorsStage
from kinject.stages.typing_rivals import TypingRivalsStage

STAGES: dict[str, type[Stage]] = {
    "knowledge": KnowledgeStage,
    "import_knowledge": ImportKnowledgeStage,
    "triples": TriplesStage,
    "corpus": CorpusStage,
    "host": HostStage,
    "plugin": PluginStage,
    "e_bert": EBertStage,
    "text_vectors": TextVectorsStage,
    "propagation": PropagationStage,
    "plugins": PluginsStage,
    "together": TogetherStage,
    "passages": PassagesStage,
    "memory_plugin": MemoryPluginStage,
    "memory": MemoryStage,
    "memory_evaluate": MemoryEvaluateStage,
    "memory_update": MemoryUpdateStage,
    "evaluate": EvaluateStage,
    "compare": CompareStage,
    "pairs": PairsStage,
    "edit": EditStage,
    "edit_questions": EditQuestionsStage,
    "living": LivingStage,
    "typing_rivals": TypingRivalsStage,
    "folds": FoldsStage,
}
START = "initialise"  # of a plugin
TOP = ("name", "seed", "stages", "published", "mesh")
RESERVED = (
    "checkpoints",
    "encoded",
    "tensorboard",
    "wandb",
    "seconds",
    "total",
)  # other things in the workdir and in results.json


class Experiment:
    """A config bound to a workdir; `with experiment:` holds the workdir's lock."""

    def __init__(self, run: Run, config: Mapping[str, Any], command: str = ""):
        self.run, self.config, self.command = run, config, command
        self._lock: Any = None

    @classmethod
    def open(
        cls,
        config: Mapping[str, Any],
        workdir: Path,
        *,
        devices: int | None = None,
        quiet: bool = False,
        command: str = "",
        given: Mapping[str, Any] | None = None,
    ) -> Experiment:
        """Checks the whole config before anything is run or written.

        Args:
          config: as `get_config` of a config file returns it.
          workdir: where everything is written.
          devices: how many of them are used, None = all.
          quiet: print nothing.
          command: what is noted of how it was run.
          given: what the config's references name and is at hand already, see `Run`.

        Raises:
          InputError: a bad config, or a workdir that holds the run of another config.
        """
        workdir = Path(workdir).expanduser().absolute()
        stages = read_stages(with_starts_of(workdir, config))
        seed = config.get("seed", 0)
        if type(seed) is not int or seed < 0:  # True is an int to isinstance
            raise InputError("config.seed", f"it must be a whole number from 0, got {seed!r}")
        reporter = Reporter(quiet=quiet or not first())
        run = Run(workdir, seed, reporter, Placement.over(devices, read_mesh(config)), stages, given=given or {})
        settled = {
            "name": config.get("name", "experiment"),
            "seed": seed,
            "stages": {name: stage.model_dump(mode="json") for name, stage in stages.items()},
        }
        if "published" in config:
            settled["published"] = checked_published(config["published"], stages)
        check_workdir(workdir, settled)
        run.results = read_results(workdir)
        waiting = [name for name in stages if name not in run.results]
        for name in waiting:
            STAGES[stages[name].kind](name, stages[name], run).check()
        for name in waiting[1:]:  # the first one tells it at once
            if isinstance(stages[name], TrainingConfig):
                check_rules(name, stages)
        return cls(run, settled, command)

    def __enter__(self) -> Experiment:
        on_first(self._lock_workdir)  # of several processes the first holds it for all
        self.run.results = read_results(self.run.workdir)
        return self

    def _lock_workdir(self) -> None:
        try:
            self.run.workdir.mkdir(parents=True, exist_ok=True)
            self._lock = open_lock(self.run.workdir / ".lock")
        except OSError as error:
            raise InputError(f"--workdir {self.run.workdir}", f"it cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(self.run.workdir, "another run is using this workdir", "wait, or choose another") from None
        try:
            held = check_workdir(self.run.workdir, self.config)  # again: another run may have ended since `open`
            read_results(self.run.workdir)
            list(read_log(self.run.workdir / PROVENANCE, NOTED))  # a damaged line is told now, not after hours
            if not held:
                write_object(self.run.workdir / "config.json", self.config)
        except BaseException:
            self._lock.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def choose(self, names: Sequence[str] | None) -> list[str]:
        """The stages to run: those named, or all; without those that are done.

        Raises:
          InputError: the config has no stage of that name.
        """
        self.check_names(names)
        wanted = [name for name in self.run.stages if names is None or name in names]
        done = [name for name in wanted if name in self.run.results]
        if done:
            self.run.reporter.say(f"done already in {self.run.workdir}: {', '.join(done)}")
        return [name for name in wanted if name not in self.run.results]

    def check_names(self, names: Sequence[str] | None) -> None:
        """Raises InputError for a name that no stage of the config has."""
        for name in names or ():
            if name not in self.run.stages:
                raise InputError(f"--stage {name}", "the config has no such stage", did_you_mean(name, self.run.stages))

    def execute(self, name: str) -> None:
        """Runs one stage and keeps what it reports."""
        started = time.monotonic()
        kind, run = STAGES[self.run.stages[name].kind], self.run
        if not (kind.everywhere or alone()):
            run = replace(run, placement=Placement.single())  # process 0 alone, on a device of its own
        stage = kind(name, run.stages[name], run)
        found = stage.execute() if stage.everywhere else on_first(stage.execute)
        self.run.results[name] = found
        seconds = self.run.results.setdefault("seconds", {})
        seconds[name] = round(time.monotonic() - started, 2)
        seconds["total"] = round(sum(value for key, value in seconds.items() if key != "total"), 2)
        on_first(lambda: self._keep(name, seconds[name]))  # what follows may read it
        self.run.reporter.say(f"{name}: done in {seconds[name]:.1f} s")

    def _keep(self, stage: str, seconds: float) -> None:
        note_provenance(self.run.workdir, stage, self.command, seconds)  # first: a kill between runs the stage again
        write_object(self.run.workdir / "results.json", self.run.results)

    def report(self, seconds: float) -> None:
        """Prints and saves what a person wants to see at the end."""
        from kinject.reports.tables import Ended, report

        if first():
            run, kinds = self.run, {name: stage.kind for name, stage in self.run.stages.items()}
            report(Ended(self.config["name"], run.workdir, kinds, run.results, self.command, seconds), run.reporter)


def read_stages(config: Mapping[str, Any]) -> dict[str, StageConfig]:
    """The settings of a config's stages by name, checked as far as can be without looking at any file.

    Raises:
      InputError: a key that there is not, no stage, a bad one.
    """
    for key in config:
        if key not in TOP:
            raise InputError(f"config.{key}", f"unknown key {key}", did_you_mean(key, TOP))
    if not isinstance(config.get("stages"), Mapping) or not config["stages"]:
        raise InputError("config.stages", "there is no stage")
    return {name: _stage_config(name, values) for name, values in config["stages"].items()}


def read_mesh(config: Mapping[str, Any]) -> MeshConfig:
    """How a config arranges devices. That is where, not what: a workdir's run may go on with another."""
    return build(MeshConfig, config.get("mesh", {}), "mesh")


def _stage_config(name: str, values: Any) -> StageConfig:
    where = f"stages.{name}"
    if not str(name).isidentifier() or name in RESERVED:
        mend = f"use a word of letters, digits and _ other than {', '.join(RESERVED)}"
        raise InputError(where, "it cannot be a stage's name", mend)
    if not isinstance(values, Mapping) or "kind" not in values:
        raise InputError(f"{where}.kind", "it is missing", f"kinds are {', '.join(STAGES)}")
    if str(values["kind"]) not in STAGES:
        raise InputError(f"{where}.kind", f"unknown kind {values['kind']!r}", did_you_mean(str(values["kind"]), STAGES))
    return build(STAGES[values["kind"]].Config, values, where)


def checked_published(numbers: Any, stages: Mapping[str, Any]) -> dict[str, float]:
    """Others' numbers, which a sweep's table shows beside ours: {dotted place in results.json: number}.

    Raises:
      InputError: another form, or a place of a stage that there is not.
    """
    if not isinstance(numbers, Mapping):
        raise InputError("config.published", "it is no table of numbers", 'write {"evaluate.domain.row": 0.9}')
    for place, number in numbers.items():
        stage = str(place).partition(".")[0]
        if stage not in stages:
            raise InputError(f"config.published.{place}", f"there is no stage {stage}", did_you_mean(stage, stages))
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise InputError(f"config.published.{place}", f"it must be a number, got {number!r}")
    return {str(place): float(number) for place, number in numbers.items()}


def check_workdir(workdir: Path, config: Mapping[str, Any]) -> bool:
    """Whether the workdir holds a run of this config; its `config.json` then stays as it was written.

    Raises:
      InputError: it holds the run of another config: results of two would be mixed.
    """
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir {workdir}", "it is a file")
    if not path.exists():
        for name in (*config["stages"], "checkpoints", "results.json", "metrics.jsonl"):
            if (workdir / name).exists():
                raise InputError(workdir / name, "it is there, but not of a run of kinject", "choose another --workdir")
        return False
    if not any((workdir / name).exists() for name in ("results.json", "checkpoints")):
        return False  # nothing was made yet: the config may still be mended
    before = with_new_options(read_object(path, "choose another --workdir"))
    now = json.loads(json.dumps(config))
    difference = first_difference(before, now)
    if difference is not None:
        raise InputError(
            path,
            f"this workdir holds a run of another config: {difference}",
            "choose another --workdir, or give the config as it was",
        )
    return True


def with_starts_of(workdir: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the start of a run that has begun, for each plugin whose `initialise` it leaves to the default.

    That default was "random" once; such a run goes on as it began.
    """
    path = workdir / "config.json"
    if not path.is_file():
        return config

    def filled(now: Any, before: Any) -> Any:
        if not isinstance(now, Mapping) or not isinstance(before, Mapping):
            return now
        begun = {START: before[START]} if START in before and START not in now else {}
        return {**{key: filled(value, before.get(key)) for key, value in now.items()}, **begun}

    return filled(config, read_object(path, "choose another --workdir"))


def with_new_options(config: dict[str, Any]) -> dict[str, Any]:
    """A config as an earlier version wrote it, with the options that came since then at their defaults.

    That is how its run was made: an option's default is what was done before there was the option.
    """
    try:
        stages = {name: _stage_config(name, values) for name, values in config["stages"].items()}
    except (InputError, KeyError, AttributeError):
        return config  # not as this version would write it; what differs is told from what is there
    return {**config, "stages": {name: stage.model_dump(mode="json") for name, stage in stages.items()}}


def first_difference(before: Any, now: Any, place: str = "config") -> str | None:
    """Where two nested values differ first, in words; None when they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            if key not in before or key not in now:
                return f"{place}.{key} is only in {'the old' if key in before else 'the new'} one"
            found = first_difference(before[key], now[key], f"{place}.{key}")
            if found:
                return found
        return None
    return None if before == now else f"{place} was {before!r} and is {now!r}"


def read_results(workdir: Path) -> dict[str, Any]:
    """`results.json`, or {} where there is none yet."""
    path = workdir / "results.json"
    return read_object(path, "delete it to evaluate again") if path.exists() else {}


def note_provenance(workdir: Path, stage: str, command: str, seconds: float) -> None:
    """Sets a stage's line in `provenance.jsonl`: of the call that finished it, in a file that is always whole."""
    path = workdir / PROVENANCE
    kept = [one for one in read_log(path, NOTED) if one["stage"] != stage]
    line = {
        "stage": stage,
        "command": command,
        "seconds": round(seconds, 2),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **library_versions()},
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(to_line(one) + "\n" for one in (*kept, line)), encoding="utf-8")
    partial.replace(path)


def hardware() -> dict[str, Any]:
    """The processor, how many of its cores this process may use, and the devices of all processes by kind."""
    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return {
        "processor": _processor(),
        "cores": cores(),
        "devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "processes": jax.process_count(),
    }


def _processor() -> str:
    """The name by which a processor goes, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
