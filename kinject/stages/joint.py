"""Stages `plugins` and `together`: several plugins through one frozen host at the same time, each into its own folder.

Each plugin is the one that a `plugin` stage of its name would make (up to rounding: it is computed beside others), and
is written into `<stage>/<name>/`. In `plugins` all have the same task, method and settings, so that their parameters
are stacked and mapped over (training/domains.py); each domain has its own knowledge base, data and start. In `together`
the members have their own tasks, data and orders of batches, and one compiled step moves them all (training/joint.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from kinject.config import Section, build
from kinject.errors import InputError
from kinject.inference.processes import alone
from kinject.inference.program import split_program
from kinject.inference.vectors import Where
from kinject.stages.base import Rules, Stage, StageConfig
from kinject.stages.plugin import Loaded, PluginConfig, PluginStage, Prepared
from kinject.training.config import FitConfig
from kinject.training.domains import DomainFit
from kinject.training.joint import fit_jointly, hold_once
from kinject.training.loop import FitResult
from kinject.training.partition import TRAIN, describe
from kinject.tree import Flat


class JointConfig(StageConfig):
    """A host, and the plugins that are trained through it."""

    host: str

    @abstractmethod
    def plugin_configs(self, where: str) -> dict[str, PluginConfig]:
        """For each plugin the settings of the `plugin` stage that would train it alone.

        Raises:
          InputError: what cannot be a plugin's name, or settings that no `plugin` stage has.
        """


class DomainPluginConfig(Section):
    """What is a domain's own; see `PluginConfig` and `TrainingConfig`."""

    knowledge: str | None = None
    data: tuple[str, ...] = Field(min_length=1)
    dev_data: tuple[str, ...] = ()
    initialise: str = "auto"


class PluginsConfig(JointConfig):
    """Which domains, and what they share; see `PluginConfig`. Domains take steps together: give `fit.steps`, or data
    sets of one size.
    """

    kind: Literal["plugins"] = "plugins"
    domains: dict[str, DomainPluginConfig] = Field(min_length=1)
    task: str
    task_options: dict[str, Any] = {}
    max_length: int | None = Field(None, ge=4)
    method: dict[str, Any] = {"name": "map_tuning"}
    ridge_penalty: float = Field(0.1, ge=0)
    dropout: float | None = None
    vectors: Where = Field("auto", exclude=True)
    train: Rules = (("plugin/.*", "train"), (".*", "freeze"))
    fit: FitConfig

    @field_validator("vectors")
    @classmethod
    def _from_the_host(cls, asked: Where) -> Where:
        if asked == "device":
            raise ValueError("domains trained at once take their vectors from the host: use stages of kind plugin")
        return asked

    def plugin_configs(self, where: str) -> dict[str, PluginConfig]:
        shared = {
            name: getattr(self, name)
            for name in PluginConfig.__pydantic_fields__
            if name in type(self).__pydantic_fields__
        }
        configs = {}
        for name, domain in self.domains.items():
            place = f"{where}.domains.{name}"
            if not name.isidentifier():
                raise InputError(place, "it cannot be a domain's name", "use a word of letters, digits and _")
            configs[name] = build(PluginConfig, {**shared, **domain.model_dump(), "kind": "plugin"}, place)
        return configs


class TogetherConfig(JointConfig):
    """Which plugins, by name: settings as of a `plugin` stage, without the host, which is theirs in common.

    They may differ in all but the `dropout` of the host and `fit.compute_dtype`.
    """

    kind: Literal["together"] = "together"
    members: dict[str, PluginConfig] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_host(cls, values: Any) -> Any:
        members = values.get("members") if isinstance(values, dict) else None
        if not isinstance(members, dict) or not all(isinstance(one, dict) for one in members.values()):
            return values
        host = values.get("host")
        for name, one in members.items():
            if not str(name).isidentifier():
                raise ValueError(f"{name!r} cannot be a member's name: use a word of letters, digits and _")
            if one.get("host", host) != host:
                raise ValueError(f"{name} names a host of its own, {one['host']}: members share one")
        return {**values, "members": {name: {"kind": "plugin", **one, "host": host} for name, one in members.items()}}

    @model_validator(mode="after")
    def _one_computation(self) -> TogetherConfig:
        if len({(one.dropout, one.fit.compute_dtype) for one in self.members.values()}) > 1:
            raise ValueError("members share a host: give all the same dropout and fit.compute_dtype")
        if any(one.fit.profile is not None for one in self.members.values()):
            raise ValueError("a profile is of one training: take it in a plugin stage")
        return self

    def plugin_configs(self, where: str) -> dict[str, PluginConfig]:
        return self.members


AnyJoint = TypeVar("AnyJoint", bound=JointConfig)


class JointStage(Stage[AnyJoint]):
    """Tunes several plugins at once.

    Attributes:
      members_key: the config's section that holds the plugins; messages call them by it.
    """

    members_key: ClassVar[str]

    def member_stages(self) -> dict[str, PluginStage]:
        """For each plugin the stage that would train it alone, writing into this stage's folder."""
        stages = {}
        for name, config in self.config.plugin_configs(self.where).items():
            stage = stages[name] = PluginStage(name, config, self.run)
            stage.folder = self.folder / name
            stage.where, stage.host_where = f"{self.where}.{self.members_key}.{name}", f"{self.where}.host"
        return stages

    def check(self) -> None:
        super().check()
        if not alone():
            problem = f"{self.members_key} are trained together by one process"
            raise InputError(self.where, problem, "start one process, or use stages of kind plugin")
        for stage in self.member_stages().values():
            stage.check()

    def execute(self) -> dict[str, Any]:
        stages = self.member_stages()
        made, results = self.train(stages)
        return {name: stage.finish(made[name], results[name]) for name, stage in stages.items()}

    @abstractmethod
    def train(self, stages: Mapping[str, PluginStage]) -> tuple[Mapping[str, Loaded], Mapping[str, FitResult]]:
        """Loads what each member needs, the host once, and trains all to their ends."""


class PluginsStage(JointStage[PluginsConfig]):
    """Tunes plugins of one shape, stacked: one loop for all."""

    members_key = "domains"

    def train(self, stages: Mapping[str, PluginStage]) -> tuple[Mapping[str, Loaded], Mapping[str, FitResult]]:
        made: dict[str, Loaded] = {}
        for name, stage in stages.items():
            made[name] = stage.load(list(made.values()), share_head=True)
        split = {name: split_program(one.host.loaded.host, one.plugin, one.task) for name, one in made.items()}
        params = {name: own for name, (_, own) in split.items()}
        self._check_shapes(params)
        program, own = next(iter(split.values()))
        fit = DomainFit(
            self.name,
            program,
            params,
            list(self.config.train),
            self.config.fit,
            {name: one.feeds for name, one in made.items()},
            seeds={name: stage.seed for name, stage in stages.items()},
            workdir=self.run.workdir,
            reporter=self.run.reporter,
            placement=self.run.placement,
        )
        described = describe(own, fit.labels, program.tables)
        self.run.reporter.say(f"{self.name}: {len(made)} domains at once, each with {described}")
        return made, fit.run_all()

    def _check_shapes(self, params: Mapping[str, Flat]) -> None:
        """Raises InputError where a domain's plugin has other shapes than the first: their arrays are stacked."""
        first, *others = params
        for domain in others:
            for path, leaf in params[first].items():
                shape = params[domain][path].shape
                if shape != leaf.shape:
                    problem = f"{path} is {list(shape)}, of {first} {list(leaf.shape)}"
                    fix = "give domains that are trained at once entity vectors of one size"
                    raise InputError(f"{self.where}.domains.{domain}", problem, fix)


class TogetherStage(JointStage[TogetherConfig]):
    """Tunes plugins of any shapes: a loop each, one compiled step for all."""

    members_key = "members"

    def member_stages(self) -> dict[str, PluginStage]:
        stages = super().member_stages()
        for name, stage in stages.items():
            stage.name = f"{self.name}/{name}"  # each has checkpoints and lines of metrics of its own
        return stages

    def train(self, stages: Mapping[str, PluginStage]) -> tuple[Mapping[str, Loaded], Mapping[str, FitResult]]:
        made: dict[str, Prepared] = {}
        for name, stage in stages.items():
            made[name] = stage.prepare(list(made.values()))
            labels = made[name].fit.labels
            if any(path.startswith("host/encoder/") and label == TRAIN for path, label in labels.items()):
                fix = "train one in a plugin stage, or freeze host/encoder/.*"
                raise InputError(f"{stage.where}.train", "it moves the encoder that the members share", fix)
        fits = [one.fit for one in made.values()]
        hold_once(fits, [one.params for one in made.values()])
        return made, dict(zip(made, fit_jointly(fits), strict=True))
