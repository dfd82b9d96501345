"""Stage `plugin`: tunes a knowledge plugin through a frozen host, and writes its folder `<stage>/`.

The task decides which use of the paper it is: the host's own task is task-specific map-tuning, `mention_masked_lm` on
the raw model is general map-tuning (`description_matching` where the raw model has no masked-LM head).
"""

from __future__ import annotations

from typing import Any, Literal

from flax import nnx
from pydantic import Field

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import activations
from kinject.plugins.base import Plugin
from kinject.plugins.store import StoredPlugin, load_plugin, make_plugin, read_method, save_plugin
from kinject.plugins.thunlp import load_released_affine
from kinject.stages.base import ReadyHost, knowledge_identity, open_host
from kinject.stages.initialise import initialise
from kinject.stages.training import Rules, TrainingConfig, TrainingStage, summary, take
from kinject.tasks.base import make_task
from kinject.training.loop import FitResult
from kinject.training.processes import on_first
from kinject.tree import flatten, unflatten


class PluginConfig(TrainingConfig):
    """Which plugin, on which host and knowledge base.

    `method` is `{"name": …, **its settings}`. `initialise` is "random", a closed-form start ("ridge_label": towards the
    word vector of the answer, which uses the training labels; "ridge_mention": towards the mean word vector of the
    mention), or the folder of a plugin, or an authors' `Affine_*.bin`.
    """

    kind: Literal["plugin"] = "plugin"
    host: str
    knowledge: str | None = None
    method: dict[str, Any] = {"name": "map_tuning"}
    initialise: str = "random"
    ridge_penalty: float = Field(0.1, ge=0)
    dropout: float | None = None
    train: Rules = (("plugin/.*", "train"), (".*", "freeze"))


class PluginStage(TrainingStage):
    """Tunes a plugin."""

    Config = PluginConfig

    def check(self) -> None:
        super().check()
        cls, _ = read_method(self.config.method, f"{self.where}.method")
        if cls.reads_slots and self.config.knowledge is None:
            raise InputError(f"{self.where}.knowledge", "it is missing", f"{cls.name} reads entity vectors: name it")
        start = self.config.initialise
        if start != "random" and not start.startswith("ridge_"):
            self.run.check(start, f"{self.where}.initialise")

    def execute(self) -> dict[str, Any]:
        config = self.config
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        reference = self.run.model(config.host, f"{self.where}.host")
        host = open_host(
            reference, head=task.head or "none", dropout=config.dropout, dtype=activations(config.fit.compute_dtype)
        )
        task = task.for_host(host.loaded, f"{self.where}.host")
        knowledge = self.knowledge()
        plugin = make_plugin(
            config.method,
            hidden_size=host.loaded.config.hidden_size,
            knowledge_dim=0 if knowledge is None else knowledge.dim,
            seed=self.run.seed_of(self.name),
            where=f"{self.where}.method",
        )
        feeds = self.feeds(task, host, knowledge, plugin)
        self.initialise(plugin, host, knowledge, feeds[0])
        result = self.fit(task, host, plugin, feeds)
        nnx.update(plugin, unflatten(take(result, "plugin")))
        on_first(lambda: self._write(plugin, host, knowledge, result))
        return summary(result, feeds[0])

    def _write(self, plugin: Plugin, host: ReadyHost, knowledge: KnowledgeBase | None, result: FitResult) -> None:
        save_plugin(
            self.run.folder(self.name),
            plugin,
            host=host.identity,
            knowledge=knowledge_identity(knowledge),
            config=self.config.model_dump(mode="json"),
            metrics=result.metrics,
            replace=True,
        )

    def knowledge(self) -> KnowledgeBase | None:
        """The knowledge base, None where the method needs none."""
        return self.config.knowledge and self.run.knowledge(self.config.knowledge, f"{self.where}.knowledge")

    def initialise(self, plugin: Plugin, host: ReadyHost, knowledge: KnowledgeBase | None, feed: Feed) -> None:
        """Sets a fresh plugin to the start that the config names."""
        config = self.config
        if config.initialise.startswith("ridge_"):
            initialise(
                plugin, config.initialise, feed, host.loaded.host, config.ridge_penalty, f"{self.where}.initialise"
            )
        elif config.initialise.endswith(".bin"):
            path = self.run.path(config.initialise, f"{self.where}.initialise")
            load_released_affine(path, plugin, f"{self.where}.initialise")
        elif config.initialise != "random":
            path = self.run.path(config.initialise, f"{self.where}.initialise")
            stored = load_plugin(path, host=host.identity, knowledge=knowledge_identity(knowledge))
            take_over(plugin, stored, f"{self.where}.initialise")


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
