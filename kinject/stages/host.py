"""Stage `host`: makes a host, that is, tunes a pretrained model for a task and then never again.

With `plugin` and `knowledge`, it is fine-tuning with a frozen mapping network (map-tuning paper, section 3.3): the
plugin's slots are there, its parameters are not trained. `tuning` says how it is made: full fine-tuning, LoRA, Houlsby
adapters or BitFit (see models/tuning.py). Writes the host folder `<stage>/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from flax import nnx
from pydantic import field_validator, model_validator

from kinject.errors import InputError
from kinject.inference.host import HostBundle, open_host
from kinject.inference.processes import on_first
from kinject.models.heads import HostModel
from kinject.models.lora import Lora, merge_lora
from kinject.models.precision import activations
from kinject.models.saving import save_host
from kinject.models.tuning import make_tuning
from kinject.models.tuning_base import Tuning, attach, rules_for
from kinject.stages.base import Rules, TrainingConfig, TrainingStage, host_json, open_plugin, summary, trained_leaves
from kinject.tasks.base import Task, make_task
from kinject.tree import unflatten


class HostConfig(TrainingConfig):
    """Which model is tuned, and with which frozen plugin, if any.

    `base` is a folder or hub id in Hugging Face's form. `dropout` replaces the model's own rates in training. `plugin`
    is a folder, or the settings of a method without parameters: {"name": "retrieved_text"} tunes a host with texts.
    `tuning` is `{"name": "full" | "lora" | "houlsby" | "bitfit", **its settings}`; without `train` it says what trains.
    `merge` writes a host tuned by LoRA as a plain one, in which the low-rank matrices are part of the weights.
    """

    kind: Literal["host"] = "host"
    base: str
    dropout: float | None = None
    tuning: dict[str, Any] = {"name": "full"}
    merge: bool = False
    train: Rules | None = None
    plugin: str | dict[str, Any] | None = None
    knowledge: str | None = None

    @field_validator("tuning")
    @classmethod
    def _known_tuning(cls, settings: dict[str, Any]) -> dict[str, Any]:
        try:
            make_tuning(settings)
        except InputError as error:  # before any stage runs, and with the name of this one
            raise ValueError(str(error)) from None
        return settings

    @model_validator(mode="after")
    def _mergeable(self) -> HostConfig:
        if self.merge and self.tuning["name"] != Lora.name:
            raise ValueError(f"merge is for lora, and tuning is {self.tuning['name']}")
        return self

    @model_validator(mode="after")
    def _plugin_with_knowledge(self) -> HostConfig:
        if self.plugin is None and self.knowledge is not None:
            raise ValueError("plugin and knowledge go together: a host alone reads none")
        return self


class HostStage(TrainingStage[HostConfig]):
    """Tunes a host."""

    def execute(self) -> dict[str, Any]:
        config = self.config
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        base = open_host(
            self.run.model(config.base, f"{self.where}.base"),
            head=task.head,
            num_labels=task.num_labels,
            fresh_head=True,
            dropout=config.dropout,
            dtype=activations(config.fit.compute_dtype),
            seed=self.seed,
        )
        if not base.loaded.fresh:
            task = task.for_host(base.loaded, f"{self.where}.base")
        tuning = self.tune(base.loaded.host)
        knowledge = plugin = None
        if config.plugin is not None:
            if config.knowledge is not None:
                knowledge = self.run.knowledge(config.knowledge, f"{self.where}.knowledge")
            plugin = open_plugin(self.run, config.plugin, base, knowledge, f"{self.where}.plugin")
        feeds = self.feeds(task, base, knowledge, plugin)
        fit, _ = self.make_fit(task, base, plugin, feeds, self.rules(tuning, task, base.loaded.fresh))
        result = fit.run()
        host = base.loaded.host
        nnx.update(host, unflatten(trained_leaves(result, "host")))
        on_first(lambda: self._write(host, base, task, tuning))
        return summary(result, feeds[0])

    def tune(self, host: HostModel) -> Tuning:
        """Adds to a loaded host what the config's tuning adds, in place."""
        tuning = make_tuning(self.config.tuning, f"{self.where}.tuning")
        attach(host, tuning, nnx.Rngs(self.run.seed_of(f"{self.name}.tuning")))
        return tuning

    def rules(self, tuning: Tuning, task: Task, fresh: Sequence[str] = ()) -> Rules:
        """What trains: as the config says, or else the tuning; `fresh` are paths of the head's drawn parameters."""
        return rules_for(tuning, task.head, fresh) if self.config.train is None else self.config.train

    def _write(self, host: HostModel, base: HostBundle, task: Task, tuning: Tuning) -> None:
        config = self.config
        save_host(
            merge_lora(host) if config.merge else host,
            self.fresh_folder(),
            tokenizer_files_from=base.loaded.folder,
            host_json=host_json(config, config.base, task, base, tuning),
        )
