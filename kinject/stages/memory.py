"""Stages that make passage memories: `passages` writes texts, `memory_plugin` trains PlugLM, `memory` encodes anew.

`passages` writes what a knowledge base says as text, `<stage>/passages.jsonl`, {"text", "entity", "mentions"} a line;
the head is linked, so that they are records too.
`memory_plugin` writes `<stage>/plugin/`, `<stage>/memory/` (the passages, encoded by the trained plugin) and, where its
rules train the host, `<stage>/host/`. `memory` encodes passages by a trained plugin, to be plugged in beside others,
into `<stage>/memory/`. Nothing is trained there: this is how a model gets the knowledge of a domain that it has not
seen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, model_validator

from kinject.data.records import decode_line
from kinject.errors import InputError
from kinject.inference.host import HostBundle, open_host
from kinject.inference.passages import PassageEncoder, open_memory_plugin, tagged
from kinject.inference.processes import on_first
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.stored import Entity
from kinject.memory.store import BATCH, Passage, PassageMemory, build_memory
from kinject.models.precision import activations
from kinject.models.saving import save_host
from kinject.plugins.base import make_plugin, read_method
from kinject.plugins.pluglm import PlugLM
from kinject.plugins.store import load_plugin, save_plugin
from kinject.stages.base import Rules, Stage, StageConfig, TrainingConfig, TrainingStage, summary, trained_leaves
from kinject.stages.plugin import take_over
from kinject.tasks.base import make_task
from kinject.text_files import read_lines
from kinject.training.loop import FitResult
from kinject.tree import unflatten

HEAD, TAIL = "[head]", "[tail]"


class PassagesConfig(StageConfig):
    """What is said: `templates` has a sentence a relation, with [head] and [tail]; a passage is about its head.

    `descriptions` writes each entity's description too, as "label: description".
    """

    kind: Literal["passages"] = "passages"
    knowledge: str
    templates: dict[str, str] = {}
    descriptions: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> PassagesConfig:
        for relation, template in self.templates.items():
            if HEAD not in template:
                raise ValueError(f"templates.{relation} has no {HEAD}")
        if not self.templates and not self.descriptions:
            raise ValueError("give templates, or descriptions=True")
        return self


class PassagesStage(Stage[PassagesConfig]):
    """Says what a knowledge base knows."""

    def execute(self) -> dict[str, Any]:
        knowledge = self.run.knowledge(self.config.knowledge, f"{self.where}.knowledge")
        names = [relation["id"] for relation in knowledge.relations or ()]
        for relation in self.config.templates:
            if relation not in names:
                known = ", ".join(names) or "none"
                problem = f"the knowledge base has no relation {relation!r}"
                raise InputError(f"{self.where}.templates", problem, f"there is {known}")
        folder = self.fresh_folder()
        folder.mkdir(parents=True)
        count = 0
        with (folder / "passages.jsonl").open("w", encoding="utf-8") as file:
            for passage in self._passages(knowledge, names):
                file.write(json.dumps(passage, ensure_ascii=False) + "\n")
                count += 1
        return {"passages": count}

    def _passages(self, knowledge: KnowledgeBase, names: list[str]) -> Iterator[dict[str, Any]]:
        templates = {names.index(relation): text for relation, text in self.config.templates.items()}
        triples = () if knowledge.triples is None or not templates else knowledge.triples
        for head, relation, tail in triples:
            if int(relation) in templates:
                of, to = knowledge.entity(int(head)), knowledge.entity(int(tail))
                yield linked_passage(templates[int(relation)].replace(TAIL, to.label), of)
        if self.config.descriptions:
            for row in range(knowledge.size):
                entity = knowledge.entity(row)
                if entity.description:
                    yield linked_passage(f"{HEAD}: {entity.description}", entity)


def linked_passage(sentence: str, entity: Entity) -> dict[str, Any]:
    """A sentence with an entity's label for each `[head]`, and where the first of them stands."""
    start = sentence.index(HEAD)
    mention = {"start": start, "end": start + len(entity.label), "entity": entity.id}
    text = sentence.replace(HEAD, entity.label)
    return {"text": text, "entity": entity.id, "mentions": [mention] if entity.label else []}


def read_passages(path: Path) -> Iterator[Passage]:
    """Reads {"text", "entity"} a line, naming file and line of a bad one."""
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        given = decode_line(line.encode(), where)
        if not isinstance(given, dict) or not isinstance(given.get("text"), str):
            raise InputError(where, "it has no field text", 'a passage is {"text": str, "entity": str}')
        entity = given.get("entity") or ""
        if not isinstance(entity, str):
            raise InputError(where, f"the field entity is {entity!r}, not a string")
        yield Passage(given["text"], entity)


class MemoryPluginConfig(TrainingConfig):
    """Which passages, on which host.

    `length` is in tokens a passage. `refresh_every` training steps the keys that are searched are made anew; between,
    what they find is encoded again with gradient. 0 keeps the keys and values of the start, for fine-tuning with a
    fixed memory (`initialise` must name the plugin that made them). `tag` is one word of the host's vocabulary that
    stands before every passage and every input (knowledge prompting). Where `train` names `host/` paths, the host is
    trained too (PlugLM's own pretraining) and written; `fresh_head` draws a head where the host has none.
    """

    kind: Literal["memory_plugin"] = "memory_plugin"
    host: str
    passages: tuple[str, ...] = Field(min_length=1)
    length: int = Field(32, ge=4)
    refresh_every: int = Field(50, ge=0)
    capacity: int | None = Field(None, ge=1)
    tag: str = ""
    method: dict[str, Any] = {"name": "pluglm"}
    fresh_head: bool = False
    initialise: str = "random"
    dropout: float | None = None
    train: Rules = (("plugin/.*", "train"), (".*", "freeze"))

    @model_validator(mode="after")
    def _fixed_needs_a_start(self) -> MemoryPluginConfig:
        if not self.refresh_every and self.initialise == "random":
            raise ValueError("refresh_every=0 keeps the memory of a trained plugin: name it in initialise")
        return self


class MemoryPluginStage(TrainingStage[MemoryPluginConfig]):
    """Trains a plugin with a memory."""

    def check(self) -> None:
        super().check()
        cls, _ = read_method(self.config.method, f"{self.where}.method")
        if not issubclass(cls, PlugLM):
            problem = f"{cls.name} reads no memory of passages"
            raise InputError(f"{self.where}.method", problem, "use pluglm, or a stage of kind plugin")
        if self.config.initialise != "random":
            self.run.check(self.config.initialise, f"{self.where}.initialise")

    def execute(self) -> dict[str, Any]:
        config = self.config
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        reference = self.run.model(config.host, f"{self.where}.host")
        host = open_host(
            reference,
            head=task.head or "none",
            fresh_head=config.fresh_head,
            dropout=config.dropout,
            dtype=activations(config.fit.compute_dtype),
            seed=self.run.seed_of(self.name),
        )
        task = task.for_host(host.loaded, f"{self.where}.host")
        plugin = self._plugin(host)
        asked = dataclasses.replace(host, tokenizer=tagged(host.tokenizer, config.tag))
        feeds = self.feeds(task, asked, None, plugin)
        self._give_passages(plugin, host)
        result = self.make_fit(task, host, plugin, feeds)[0].run()
        nnx.update(plugin, unflatten(trained_leaves(result, "plugin")))
        size = on_first(lambda: self._write(plugin, host, result))
        return {**summary(result, feeds[0]), "passages": size}

    def _write(self, plugin: PlugLM, host: HostBundle, result: FitResult) -> int:
        """Writes what was trained, and the memory; returns how many passages it holds."""
        config, folder = self.config, self.fresh_folder()
        if any(path.startswith("host/") for path in result.train):
            host = self._save_host(host, trained_leaves(result, "host"))
        memory = self._memory(folder / "memory", plugin, host)
        save_plugin(
            folder / "plugin",
            plugin,
            host=host.identity,
            knowledge={"name": ", ".join(config.passages), "fingerprint": "none", "dim": 0, "count": memory.size},
            config=config.model_dump(mode="json"),
            metrics=result.metrics,
        )
        return memory.size

    def passages(self) -> Iterator[Passage]:
        """Streams the passages of all files."""
        for reference in self.config.passages:
            yield from read_passages(self.run.path(reference, f"{self.where}.passages"))

    def _plugin(self, host: HostBundle) -> PlugLM:
        config = self.config
        plugin = make_plugin(
            config.method,
            **host.loaded.config.plugin_sizes,
            knowledge_dim=0,
            seed=self.run.seed_of(self.name),
            where=f"{self.where}.method",
        )
        if config.initialise != "random":
            where = f"{self.where}.initialise"
            take_over(plugin, load_plugin(self.run.path(config.initialise, where), host=host.identity), where)
        if not isinstance(plugin, PlugLM):
            raise TypeError(f"{type(plugin).__name__} reads no memory; `check` was not called")
        return plugin

    def _memory(self, folder: Path, plugin: PlugLM, host: HostBundle) -> PassageMemory:
        encoder = PassageEncoder(host, plugin, self.config.length, self.config.tag)
        return build_memory(
            folder, self.passages(), encoder, name=self.name, capacity=self.config.capacity, **encoder.about()
        )

    def _give_passages(self, plugin: PlugLM, host: HostBundle) -> None:
        """Encodes the passages by the plugin as it starts; while it trains, its tables follow it."""
        encoder = PassageEncoder(host, plugin, self.config.length, self.config.tag)
        texts: list[str] = []
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for passage in self.passages():
            texts.append(passage.text)
            if len(texts) == BATCH:
                parts.append(encoder(texts))
                texts = []
        if texts:
            parts.append(encoder(texts))
        if not parts:
            raise InputError(f"{self.where}.passages", "there is no passage")
        tokens, keys, values = (jnp.asarray(np.concatenate(some)) for some in zip(*parts, strict=True))
        plugin.live, plugin.refresh_every = bool(self.config.refresh_every), self.config.refresh_every
        plugin.set_tables(keys, values, jnp.ones(len(keys), bool), tokens if plugin.live else None)

    def _save_host(self, host: HostBundle, trained: Mapping[str, Any]) -> HostBundle:
        """Writes the host that was trained along, and opens it again: the plugin is pinned to what is on the disk."""
        nnx.update(host.loaded.host, unflatten(trained))
        about = {"base": self.config.host, "task": self.config.task, "labels": None}
        extra = {"lineage": list(host.lineage), "task_options": self.config.task_options}
        folder = self.run.folder(self.name) / "host"
        save_host(
            host.loaded.host, folder, tokenizer_files_from=host.loaded.folder, host_json={**about, "extra": extra}
        )
        head = host.loaded.host.head
        return open_host(folder, head="none" if head is None else head.kind)


class MemoryConfig(StageConfig):
    """Which passages, read by which plugin of which host; `length`, `tag` and `capacity` as in `MemoryPluginConfig`."""

    kind: Literal["memory"] = "memory"
    host: str
    plugin: str
    passages: tuple[str, ...] = Field(min_length=1)
    length: int = Field(32, ge=4)
    tag: str = ""
    capacity: int | None = Field(None, ge=1)


class MemoryStage(Stage[MemoryConfig]):
    """Encodes passages."""

    def execute(self) -> dict[str, Any]:
        config = self.config
        host = open_host(self.run.model(config.host, f"{self.where}.host"))
        named = f"{self.where}.plugin"
        plugin = open_memory_plugin(self.run.path(config.plugin, named), host, named)
        encoder = PassageEncoder(host, plugin, config.length, config.tag)
        files = [self.run.path(one, f"{self.where}.passages") for one in config.passages]
        passages = (passage for file in files for passage in read_passages(file))
        folder = self.fresh_folder() / "memory"
        made = build_memory(folder, passages, encoder, name=self.name, capacity=config.capacity, **encoder.about())
        return {"passages": made.size}
