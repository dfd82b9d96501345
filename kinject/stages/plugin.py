"""Stage `plugin`: tunes a knowledge plugin through a frozen host, and writes its folder `<stage>/`.

The task decides which use of the paper it is: the host's own task is task-specific map-tuning, `mention_masked_lm` on
the raw model is general map-tuning (`description_matching` where the raw model has no masked-LM head).

Rules over `host/head/.*` train the head too, which then travels in the plugin's folder; rules over `host/encoder/.*`
tune the encoder with the plugin, and write the host that comes of it into `<stage>/host`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flax import nnx
from pydantic import Field

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.host import HostBundle, as_it_is, knowledge_identity, open_host, trained_head
from kinject.inference.processes import on_first
from kinject.inference.vectors import (
    Choice,
    TableShape,
    VectorTable,
    Where,
    check_read,
    choose,
    device_memory,
    load_table,
)
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import activations
from kinject.models.saving import save_host
from kinject.models.seams import Plugin
from kinject.models.tuning import make_tuning
from kinject.plugins.base import make_plugin, read_method
from kinject.plugins.map_files import load_released_affine
from kinject.plugins.map_tuning import check_start, initialise, is_start, suited_start
from kinject.plugins.store import StoredPlugin, load_plugin, save_plugin
from kinject.stages.base import Rules, Run, TrainingConfig, TrainingStage, host_json, summary, trained_leaves
from kinject.tasks.base import Task, make_task
from kinject.training.loop import Fit, FitResult
from kinject.training.partition import TRAIN
from kinject.tree import Flat, flatten, unflatten


class PluginConfig(TrainingConfig):
    """Which plugin, on which host and knowledge base.

    `method` is `{"name": …, **its settings}`. `initialise` is "random" (the method's own), "zero", "normal", a
    closed-form start ("ridge_label": towards the word vector of the answer, which uses the training labels;
    "ridge_label_sum": towards the sum of the answers to all questions about the entity, as they differ from the mean;
    "ridge_mention": towards the mean word vector of the mention; `ridge_penalty` is that of the regression), or the
    folder of a plugin, or an authors' `Affine_*.bin`. "auto" is, for map-tuning, the closed form that suits the task
    ("zero" where none does), and "random" for every other method; the plugin's settings say which it was. `dropout`
    replaces the host's own rates in training. `parts` are the folders of the plugins that the method is made of, by
    name, where it is made of others. `fresh_head` puts a new head for the task on a host that has none; rules must
    train it.

    `vectors` says where entity vectors come from: gathered on the host with each batch, or looked up on the devices in
    a table whose rows are split over them ("auto": where it takes less than a quarter of each one's memory). As `mesh`,
    that is where, not what: a workdir's run may go on with another.
    """

    kind: Literal["plugin"] = "plugin"
    host: str
    knowledge: str | None = None
    method: dict[str, Any] = {"name": "map_tuning"}
    initialise: str = "auto"
    ridge_penalty: float = Field(0.1, ge=0)
    dropout: float | None = None
    parts: dict[str, str] = {}
    fresh_head: bool = False
    vectors: Where = Field("auto", exclude=True)
    train: Rules = (("plugin/.*", "train"), (".*", "freeze"))


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """All that a training is made of.

    Attributes:
      plugin: at the start that the config names.
      start: which that is.
      feeds: training data, and development data where there are any.
      vectors: where the entity vectors are; None where that was not asked.
      table: they themselves, where they are on the devices.
    """

    task: Task
    host: HostBundle
    knowledge: KnowledgeBase | None
    plugin: Plugin
    start: str
    feeds: tuple[Feed, Feed | None]
    vectors: Choice | None = None
    table: VectorTable | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared(Loaded):
    """A training that can begin, and the parameters that it was made of."""

    fit: Fit
    params: Flat


class PluginStage(TrainingStage[PluginConfig]):
    """Tunes a plugin.

    Attributes:
      host_where: config key of the host.
    """

    def __init__(self, name: str, config: PluginConfig, run: Run):
        super().__init__(name, config, run)
        self.host_where = f"{self.where}.host"

    def check(self) -> None:
        super().check()
        cls, _ = read_method(self.config.method, f"{self.where}.method")
        if cls.reads_slots and self.config.knowledge is None:
            raise InputError(f"{self.where}.knowledge", "it is missing", f"{cls.name} reads entity vectors: name it")
        check_read(self.config.vectors, cls, f"{self.where}.vectors")
        start = self.config.initialise
        if is_start(start):
            check_start(start, cls, f"{self.where}.initialise")
        elif start not in ("auto", "random"):
            self.run.check(start, f"{self.where}.initialise")
        for name, reference in self.config.parts.items():
            self.run.check(reference, f"{self.where}.parts.{name}")

    def execute(self) -> dict[str, Any]:
        made = self.prepare()
        return self.finish(made, made.fit.run())

    def load(self, beside: Sequence[Loaded] = (), *, share_head: bool = False) -> Loaded:
        """Loads host, knowledge and data, and makes the plugin.

        Args:
          beside: what other trainings on the same host have loaded; its encoder is taken from there.
          share_head: take the whole host from there.
        """
        config = self.config
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        host = beside[0].host if beside and share_head else self._host(task)
        if beside:
            host.loaded.host.encoder = beside[0].host.loaded.host.encoder
        if not host.loaded.fresh:
            task = task.for_host(host.loaded, self.host_where)
        knowledge = self.knowledge()
        plugin = self.fresh_plugin(host, knowledge)
        feeds = self.feeds(task, host, knowledge, plugin)
        start = self.initialise(plugin, host, knowledge, feeds[0], task.start)
        return Loaded(task=task, host=host, knowledge=knowledge, plugin=plugin, start=start, feeds=feeds)

    def prepare(self, beside: Sequence[Loaded] = ()) -> Prepared:
        """Loads and makes all that the training needs; of those `beside` encoder and table of vectors are taken."""
        loaded = self.load(beside)
        vectors, table = self._vectors(loaded.plugin, loaded.knowledge, beside)
        loaded = replace(loaded, vectors=vectors, table=table)
        fit, params = self.make_fit(loaded.task, loaded.host, loaded.plugin, loaded.feeds, table=table)
        return Prepared(**vars(loaded), fit=fit, params=params)

    def finish(self, made: Loaded, result: FitResult) -> dict[str, Any]:
        """Writes what was trained and returns what is to be reported."""
        nnx.update(made.plugin, unflatten(trained_leaves(result, "plugin")))
        nnx.update(made.host.loaded.host, unflatten(trained_leaves(result, "host")))
        on_first(lambda: self._write(made, result))
        return summary(result, made.feeds[0]) | ({} if made.vectors is None else {"vectors": vars(made.vectors)})

    def _vectors(
        self, plugin: Plugin, knowledge: KnowledgeBase | None, beside: Sequence[Loaded]
    ) -> tuple[Choice | None, VectorTable | None]:
        """Where the entity vectors are, which it says, and the table of them where that is on the devices."""
        if knowledge is None or not plugin.reads_slots:
            return None, None
        place = self.run.placement
        choice = choose(self.config.vectors, TableShape.of(knowledge), place, device_memory())
        self.run.reporter.say(f"{self.name}: {choice}")
        if choice.on == "host":
            return choice, None
        theirs = [one.table for one in beside if one.knowledge and one.knowledge.fingerprint == knowledge.fingerprint]
        there = next((table for table in theirs if table is not None), None)
        return choice, load_table(knowledge, place) if there is None else there

    def _write(self, made: Loaded, result: FitResult) -> None:
        config, host = self.config, made.host
        tuned = any(path.startswith("host/encoder/") for path in result.train)
        facts = {"labels": made.task.labels, "task": config.task, "task_options": config.task_options}
        head = any(path.startswith("host/head/") for path in result.train)
        folder = save_plugin(
            self.folder,
            made.plugin,
            host=(as_it_is(host) if tuned else host).identity,
            knowledge=knowledge_identity(made.knowledge),
            config=config.model_dump(mode="json") | {"initialise": made.start},
            metrics=result.metrics,
            head=trained_head(host.loaded.host, **facts) if head else None,
            replace=True,
        )
        if tuned:
            tuning = host.loaded.host.tuning or make_tuning({"name": "full"})
            described = host_json(config, config.host, made.task, host, tuning)
            save_host(host.loaded.host, folder / "host", tokenizer_files_from=host.loaded.folder, host_json=described)

    def _host(self, task: Task) -> HostBundle:
        config = self.config
        held = self.run.given.get(config.host)
        if held is not None and self._as_held(held, task):
            return held
        fresh = {"num_labels": task.num_labels, "fresh_head": True, "seed": self.seed} if config.fresh_head else {}
        reference = self.run.model(config.host, self.host_where)
        dtype = activations(config.fit.compute_dtype)
        return open_host(reference, head=task.head or "none", dropout=config.dropout, dtype=dtype, **fresh)

    def _as_held(self, held: HostBundle, task: Task) -> bool:
        """Whether the host that is at hand is the one that would be loaded, and stays as it is."""
        config, host = self.config, held.loaded.host
        head = None if host.head is None else host.head.kind
        trained = any(label == TRAIN and not regex.startswith("plugin/") for regex, label in config.train)
        alike = host.encoder.dtype == activations(config.fit.compute_dtype) and head == task.head
        return alike and not trained and not config.fresh_head and config.dropout is None

    def fresh_plugin(self, host: HostBundle, knowledge: KnowledgeBase | None) -> Plugin:
        """The plugin as the stage's seed draws it, with its parts loaded; see `initialise`."""
        parts = {
            name: load_plugin(
                self.run.path(reference, f"{self.where}.parts.{name}"),
                host=host.identity,
                knowledge=knowledge_identity(knowledge),
            ).plugin
            for name, reference in self.config.parts.items()
        }
        dim = 0 if knowledge is None else knowledge.dim
        return self.build_plugin(parts, **host.loaded.config.plugin_sizes, knowledge_dim=dim)

    def build_plugin(
        self, parts: Mapping[str, Plugin], *, hidden_size: int, knowledge_dim: int, embedding_size: int | None = None
    ) -> Plugin:
        """Draws the plugin for a host and vectors of these sizes, out of its parts where it is made of any."""
        method, where = self.config.method, f"{self.where}.method"
        sizes = {"hidden_size": hidden_size, "knowledge_dim": knowledge_dim}
        if not parts:
            return make_plugin(method, **sizes, embedding_size=embedding_size, seed=self.seed, where=where)
        cls, settings = read_method(method, where)
        return cls.from_parts(settings, parts, **sizes, rngs=nnx.Rngs(self.seed))

    def knowledge(self) -> KnowledgeBase | None:
        """The knowledge base, None where the method needs none."""
        if self.config.knowledge is None:
            return None
        return self.run.knowledge(self.config.knowledge, f"{self.where}.knowledge")

    def initialise(
        self, plugin: Plugin, host: HostBundle, knowledge: KnowledgeBase | None, feed: Feed, preferred: str
    ) -> str:
        """Sets a fresh plugin to the start that the config names, and returns which that is."""
        config, where, start = self.config, f"{self.where}.initialise", self.config.initialise
        if start == "auto":
            start = suited_start(plugin, preferred, feed)
            self.run.reporter.say(f"{self.name}: it starts from {start}")
        if start == "random":
            return start
        if is_start(start):
            initialise(plugin, start, feed, host.loaded.host, config.ridge_penalty, where, self.seed)
            return start
        path = self.run.path(start, where)
        if start.endswith(".bin"):
            load_released_affine(path, plugin, where)
        else:
            take_over(plugin, load_plugin(path, host=host.identity, knowledge=knowledge_identity(knowledge)), where)
        return start


def take_over(plugin: Plugin, stored: StoredPlugin, where: str) -> None:
    """Sets a fresh plugin to a stored one, whose leaves it must have; what it has beyond them stays as it is drawn.

    An affine map is thus a start of a residual one, which begins as its affine part.

    Raises:
      InputError: another method, or a leaf that the fresh one does not have in that shape.
    """
    if stored.manifest["method"] != plugin.name:
        raise InputError(where, f"{stored.folder} is a plugin of {stored.manifest['method']}, not of {plugin.name}")
    ours = flatten(nnx.to_pure_dict(nnx.state(plugin, nnx.Param)))
    for path, leaf in flatten(nnx.to_pure_dict(nnx.state(stored.plugin, nnx.Param))).items():
        has = f"has {tuple(ours[path].shape)}" if path in ours else "has none"
        if path not in ours or ours[path].shape != leaf.shape:
            problem = f"{stored.folder} has a parameter {path} of shape {tuple(leaf.shape)}, this plugin {has}"
            raise InputError(where, problem, "give the method the same settings")
    nnx.update(plugin, nnx.state(stored.plugin, nnx.Param))
