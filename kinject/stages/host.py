"""Stage `host`: makes a host, that is, tunes a pretrained model for a task and then never again.

With `plugin` and `knowledge`, it is fine-tuning with a frozen mapping network (map-tuning paper, section 3.3): the
plugin's slots are there, its parameters are not trained. Writes the host folder `<stage>/`.
"""

from __future__ import annotations

from typing import Any, Literal

from flax import nnx

from kinject.models.pretrained import save_host
from kinject.plugins.store import load_plugin
from kinject.stages.base import knowledge_identity, open_host
from kinject.stages.training import Rules, TrainingConfig, TrainingStage, summary, take
from kinject.tasks.base import make_task
from kinject.tree import unflatten


class HostConfig(TrainingConfig):
    """Which model is tuned, and with which frozen plugin, if any.

    `base` is a folder or hub id in Hugging Face's form. `dropout` replaces the model's own rates in training.
    """

    kind: Literal["host"] = "host"
    base: str
    dropout: float | None = None
    train: Rules = (("host/.*", "train"), ("plugin/.*", "freeze"))
    plugin: str | None = None
    knowledge: str | None = None


class HostStage(TrainingStage):
    """Tunes a host."""

    Config = HostConfig

    def execute(self) -> dict[str, Any]:
        config = self.config
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        base = open_host(
            self.run.model(config.base, f"{self.where}.base"),
            head=task.head,
            fresh_head=True,
            dropout=config.dropout,
            seed=self.run.seed_of(self.name),
        )
        knowledge = plugin = None
        if config.plugin is not None and config.knowledge is not None:
            knowledge = self.run.knowledge(config.knowledge, f"{self.where}.knowledge")
            folder = self.run.path(config.plugin, f"{self.where}.plugin")
            plugin = load_plugin(folder, host=base.identity, knowledge=knowledge_identity(knowledge)).plugin
        feeds = self.feeds(task, base, knowledge)
        result = self.fit(task, base, plugin, feeds)
        host = base.loaded.host
        nnx.update(host, unflatten(take(result, "host")))
        save_host(
            host,
            self.fresh_folder(),
            tokenizer_files_from=base.loaded.folder,
            host_json={
                "base": config.base,
                "task": config.task,
                "extra": {"lineage": list(base.identity.lineage), "task_options": config.task_options},
            },
        )
        return summary(result, feeds[0])
