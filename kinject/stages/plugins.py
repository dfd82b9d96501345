"""Stage `plugins`: tunes the plugins of several domains at once through one frozen host; writes `<stage>/<domain>/`.

Same task, method and settings for all; each domain has its own knowledge base, data and start, and its plugin is the
one that a stage `plugin` called like the domain would make (to rounding: its rows lie beside those of others).
"""

from __future__ import annotations

from typing import Any, Literal

from flax import nnx
from pydantic import Field, field_validator

from kinject.config import Section, build
from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.host import HostBundle, knowledge_identity, open_host
from kinject.inference.program import split_program
from kinject.inference.vectors import Where
from kinject.models.precision import activations
from kinject.models.seams import Plugin
from kinject.plugins.store import save_plugin
from kinject.stages.base import Stage, StageConfig
from kinject.stages.plugin import PluginConfig, PluginStage
from kinject.stages.training import Rules, summary, take
from kinject.tasks.base import Task, make_task
from kinject.training.config import FitConfig
from kinject.training.domain_loop import DomainFit
from kinject.training.partition import describe
from kinject.tree import unflatten


class DomainConfig(Section):
    """What is a domain's own; see `PluginConfig` and `TrainingConfig`."""

    knowledge: str | None = None
    data: tuple[str, ...] = Field(min_length=1)
    dev_data: tuple[str, ...] = ()
    initialise: str = "random"


class PluginsConfig(StageConfig):
    """Which domains, and what they share; see `PluginConfig`. Domains take steps together: give `fit.steps`, or data
    sets of one size.
    """

    kind: Literal["plugins"] = "plugins"
    host: str
    domains: dict[str, DomainConfig] = Field(min_length=1)
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

    def of(self, domain: str, where: str) -> PluginConfig:
        """The settings of the `plugin` stage that would train one of the domains alone."""
        shared = {name: getattr(self, name) for name in PluginConfig.model_fields if name in type(self).model_fields}
        own = self.domains[domain].model_dump()
        return build(PluginConfig, {**shared, **own, "kind": "plugin"}, where)


class PluginsStage(Stage):
    """Tunes several plugins."""

    Config = PluginsConfig
    config: PluginsConfig

    def domain_stages(self) -> dict[str, PluginStage]:
        """For each domain the stage that would train it alone."""
        stages = {}
        for domain in self.config.domains:
            where = f"{self.where}.domains.{domain}"
            if not domain.isidentifier():
                raise InputError(where, "it cannot be a domain's name", "use a word of letters, digits and _")
            stages[domain] = PluginStage(domain, self.config.of(domain, where), self.run)
            stages[domain].where = where
        return stages

    def check(self) -> None:
        super().check()
        for stage in self.domain_stages().values():
            stage.check()

    def execute(self) -> dict[str, Any]:
        config, stages = self.config, self.domain_stages()
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        reference = self.run.model(config.host, f"{self.where}.host")
        dtype = activations(config.fit.compute_dtype)
        host = open_host(reference, head=task.head or "none", dropout=config.dropout, dtype=dtype)
        task = task.for_host(host.loaded, f"{self.where}.host")
        plugins, feeds = {}, {}
        for domain, stage in stages.items():
            plugins[domain], feeds[domain] = self._ready(stage, task, host)
        results = self._fit(task, host, plugins, feeds)
        folder = self.fresh_folder()
        for domain, stage in stages.items():
            nnx.update(plugins[domain], unflatten(take(results[domain], "plugin")))
            save_plugin(
                folder / domain,
                plugins[domain],
                host=host.identity,
                knowledge=knowledge_identity(stage.knowledge()),
                config=stage.config.model_dump(mode="json"),
                metrics=results[domain].metrics,
            )
        return {domain: summary(results[domain], feeds[domain][0]) for domain in stages}

    def _ready(self, stage: PluginStage, task: Task, host: HostBundle) -> tuple[Plugin, tuple[Feed, Feed | None]]:
        """A domain's plugin before the first step, and its data."""
        knowledge = stage.knowledge()
        plugin = stage.fresh_plugin(host, knowledge)
        feeds = stage.feeds(task, host, knowledge, plugin)
        stage.initialise(plugin, host, knowledge, feeds[0])
        return plugin, feeds

    def _fit(self, task: Task, host: HostBundle, plugins: dict[str, Plugin], feeds: dict[str, Any]) -> dict[str, Any]:
        split = {domain: split_program(host.loaded.host, plugin, task) for domain, plugin in plugins.items()}
        programs, params = zip(*split.values(), strict=True)
        self._check_same_form(dict(zip(split, params, strict=True)))
        fit = DomainFit(
            self.name,
            programs[0],
            dict(zip(split, params, strict=True)),
            list(self.config.train),
            self.config.fit,
            feeds,
            seeds={domain: self.run.seed_of(domain) for domain in split},
            workdir=self.run.workdir,
            reporter=self.run.reporter,
            placement=self.run.placement,
        )
        told = describe(params[0], fit.labels, programs[0].tables)
        self.run.reporter.say(f"{self.name}: {len(split)} domains at once, each with {told}")
        return fit.run()

    def _check_same_form(self, params: dict[str, Any]) -> None:
        """Raises InputError where a domain's plugin has other shapes than the first: their arrays are stacked."""
        first, *others = params
        for domain in others:
            for path, leaf in params[first].items():
                shape = params[domain][path].shape
                if shape != leaf.shape:
                    problem = f"{path} is {list(shape)}, of {first} {list(leaf.shape)}"
                    mend = "give domains that are trained at once entity vectors of one size"
                    raise InputError(f"{self.where}.domains.{domain}", problem, mend)
