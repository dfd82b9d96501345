"""A plugin's folder, loaded to be plugged in with its knowledge base, and what is plugged into a host at one time."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flax import nnx

from kinject.data.encode import rows_with_vector
from kinject.data.records import Mention, Record
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import HostBundle, knowledge_identity
from kinject.inference.passages import attach
from kinject.inference.program import named_seed
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import Linker
from kinject.memory.store import PassageMemory
from kinject.models import seams
from kinject.plugins.pluglm import PlugLM
from kinject.plugins.store import StoredPlugin, check_fits, copy_plugin, in_space, load_plugin
from kinject.serving.evaluation import Evaluation, Inputs, labelled, open_base
from kinject.serving.queries import Linked
from kinject.serving.routing import JoinedKnowledge, Routed
from kinject.tasks.base import Task

NAMES_KEPT = 1 << 16
log = logging.getLogger("kinject")
SLOTS_ALONE = ("feed_forward", "outputs", "before", "prepare")  # a plugin beside others must not override these


class Evaluates(Protocol):
    """What a plugin is evaluated with: `kinject.Host` is one."""

    ready: HostBundle
    task: Task

    @property
    def comparison(self) -> Comparison:
        """What evaluates it alone and with plugins."""


class Plugin:
    """A knowledge plugin: loaded from its folder by `Plugin.load`, or made by `kinject.tune` or `kinject.average`.

    Attributes:
      name: the folder's, or that of its knowledge base where no folder was named yet.
      method: the registered name of its method.
      manifest: the content of `plugin.json`.
      knowledge: the knowledge base that it was tuned on, where that is at hand; None for a plugin read from a folder.
    """

    def __init__(
        self,
        stored: StoredPlugin,
        *,
        name: str | None = None,
        knowledge: KnowledgeBase | None = None,
        keeps: Any = None,
    ):
        self.stored, self.knowledge = stored, knowledge
        self.name, self.manifest = name or stored.folder.name, stored.manifest
        self.method: str = stored.manifest["method"]
        self._keeps = keeps  # what the folder lasts as long as

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Plugin:
        """Reads a plugin, checking the digest of every file; host and knowledge are checked when it is plugged in.

        Raises:
          InputError: no plugin there, a damaged one, or one of another format.
        """
        return cls(load_plugin(Path(folder)))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes the plugin's folder (docs/formats.md), whole or not at all, and returns it.

        Raises:
          InputError: the folder exists.
        """
        return copy_plugin(self.stored, Path(folder))

    def evaluate(
        self,
        host: Evaluates,
        knowledge: KnowledgeBase | str | os.PathLike[str] | None,
        records: Inputs,
        *,
        linker: Linker | None = None,
        seed: int = 0,
    ) -> Evaluation:
        """Asks the host about labelled records: alone, with this plugin, and with another entity's knowledge.

        What is plugged into the host does not matter, and stays.

        Args:
          host: that the plugin fits.
          knowledge: its knowledge base; None = the one that it brings along, or none.
          records: as of `Host.stream`, with the fields that the task asks for, such as `label`.
          linker: finds mentions in records that come without; None = the names of the knowledge base.
          seed: of the exchange; a config's `evaluate` stage with that seed exchanges alike.

        Raises:
          InputError: another host's plugin or knowledge base, or a record that cannot be used.
        """
        base = self.knowledge if knowledge is None else open_base(knowledge)
        fitted = fit(self, host.ready, self.name, base, (), None)
        known = labelled(records, base, linker, host.task.required)
        return Evaluation.of(host.comparison.rows(fitted.plugin, base, known, named_seed(seed, "evaluate")), self.name)

    @property
    def reads_memory(self) -> bool:
        """Whether it answers from a memory of passages (PlugLM)."""
        return isinstance(self.stored.plugin, PlugLM)

    @property
    def metrics(self) -> dict[str, float]:
        """What its training reported."""
        return dict(self.manifest["metrics"])

    def trainable_parameters(self) -> int:
        """How many numbers were trained: the plugin's own, and those of a head that came along."""
        trained = {**self.manifest["parameters"], **(self.manifest.get("head") or {}).get("parameters", {})}
        return sum(math.prod(leaf["shape"]) for leaf in trained.values())

    def same_as(self, other: Plugin) -> bool:
        """Whether both have the same parameters, and were made for the same host and knowledge base."""
        parts = ("files", "host", "method", "method_config")
        return all(self.manifest[one] == other.manifest[one] for one in parts) and (
            self.manifest["knowledge"].get("fingerprint") == other.manifest["knowledge"].get("fingerprint")
        )

    def __repr__(self) -> str:
        about = self.manifest["knowledge"].get("name")
        size = f"{self.trainable_parameters():,} parameters"
        where = "not saved yet" if self._keeps is not None else self.stored.folder
        return f"Plugin({self.name!r}, {self.method}, {size}, knowledge {about!r}, {where})"


def pair(
    plugins: Sequence[Plugin], bases: Sequence[KnowledgeBase]
) -> tuple[list[KnowledgeBase | None], list[KnowledgeBase]]:
    """Finds each plugin's knowledge base; plugins of one name are called after their knowledge bases from here on.

    Returns:
      (the knowledge base of each plugin, None where it needs none; those that no plugin reads).

    Raises:
      InputError: two plugins of one name that knowledge bases of one name read, a plugin whose knowledge base is not
        given.
    """
    for plugin, name in zip(plugins, apart(plugins), strict=True):
        plugin.name = name
    read = [knowledge_of(plugin, bases) for plugin in plugins]
    return read, [base for base in bases if all(base is not one for one in read)]


def apart(plugins: Sequence[Plugin]) -> list[str]:
    """Names that tell plugins apart: the plugin's own, or its knowledge base's where several have the same.

    Raises:
      InputError: that does not tell them apart either.
    """
    names = [plugin.name for plugin in plugins]
    found = [
        name if names.count(name) == 1 else str(plugin.manifest["knowledge"].get("name"))
        for plugin, name in zip(plugins, names, strict=True)
    ]
    for number, name in enumerate(found):
        if name in found[:number]:
            problem = f"another plugin is called {name} too"
            raise InputError(f"--plugin {plugins[number].stored.folder}", problem, "rename its folder")
    return found


def knowledge_of(plugin: Plugin, bases: Sequence[KnowledgeBase]) -> KnowledgeBase | None:
    """The knowledge base that a plugin was trained on, by its space; None where it needs none.

    A lone one is taken as it is, so that what does not fit is told in detail when it is plugged in.

    Raises:
      InputError: it is none of those given.
    """
    pinned = plugin.manifest["knowledge"].get("fingerprint")
    found = [base for base in bases if in_space(plugin.manifest["knowledge"], knowledge_identity(base))]
    if found or not plugin.manifest["knowledge_dim"]:
        return found[0] if found else None
    if len(bases) == 1:
        return bases[0]
    name = plugin.manifest["knowledge"].get("name")
    raise InputError(
        f"--plugin {plugin.stored.folder}",
        f"it was trained on the knowledge base {name!r} ({str(pinned)[:19]}…), which is none of those given",
        "name its folder: --knowledge",
    )


@dataclass(frozen=True)
class Plugged:
    """A plugin in a host, with what it reads."""

    name: str
    plugin: seams.Plugin
    knowledge: KnowledgeBase | None
    memories: tuple[PassageMemory, ...]
    linker: Linker | None
    source: Plugin

    def refreshed(self) -> Plugged:
        """The plugin with the newest revision of its knowledge base; itself where that is the one it reads."""
        new = None if self.knowledge is None else self.knowledge.latest()
        if new is None or new is self.knowledge:
            return self
        check_fits(self.source.stored.folder, self.source.manifest, None, knowledge_identity(new))
        again = getattr(self.linker, "refreshed", None)
        return replace(self, knowledge=new, linker=self.linker if again is None else again(new))


def fit(
    plugin: Plugin,
    host: HostBundle,
    name: str,
    knowledge: KnowledgeBase | None,
    memories: Sequence[PassageMemory],
    linker: Linker | None,
) -> Plugged:
    """The plugin, checked against host and knowledge; one that reads memories as a copy that is given them.

    Raises:
      InputError: it was trained through another host or on another knowledge base, or needs one; memories of another
        plugin, or for a method that reads none.
    """
    stored, made = plugin.stored, plugin.stored.plugin
    identity = None if plugin.reads_memory and knowledge is None else knowledge_identity(knowledge)
    check_fits(stored.folder, stored.manifest, host.identity, identity)
    _tell_revision(plugin, knowledge)
    if isinstance(made, PlugLM):
        if not memories:
            problem = "it answers from a memory of passages, and none is given"
            raise InputError(stored.folder, problem, "name the memory's folder (memory=…, --memory)")
        made = nnx.merge(*nnx.split(made))
        attach(made, memories, host.identity)
    elif memories:
        raise InputError(stored.folder, f"{plugin.method} reads no memory of passages", "leave the memory out")
    return Plugged(name, made, knowledge, tuple(memories), linker, plugin)


def _tell_revision(plugin: Plugin, knowledge: KnowledgeBase | None) -> None:
    """Says in one line where a plugin reads another revision than it was trained on."""
    pinned = plugin.manifest["knowledge"]
    if knowledge is None or pinned.get("fingerprint") in (None, knowledge.fingerprint):
        return
    trained, now = pinned.get("revision", 0), knowledge.revision
    log.warning(
        "%s was trained on revision %s of %s and reads revision %s, in the same space",
        plugin.name,
        trained,
        knowledge.name,
        now,
    )


@dataclass(frozen=True)
class ActivePlugins:
    """What is plugged in while some texts are answered; nothing of it changes.

    Attributes:
      plugin: what the host runs with: None, the one plugin, or several as one.
      knowledge: what it reads, joined where there are several.
      tag: the word that stands before every text, as before the passages of a memory; "" = none.
      names: the label of a row of a knowledge base, those asked for last kept.
    """

    plugged: tuple[Plugged, ...] = ()
    linkers: tuple[Linker, ...] = ()
    plugin: seams.Plugin | None = None
    knowledge: Any = None
    tag: str = ""
    names: Any = field(default=None, compare=False)

    @classmethod
    def of(cls, plugged: Mapping[str, Plugged]) -> ActivePlugins:
        """Puts plugins together, by name.

        Raises:
          InputError: they cannot be plugged in together.
        """
        check_together(plugged)
        members = tuple(plugged.values())
        linkers = tuple(one.linker for one in members if one.linker is not None)
        tag, names = _tag(members), lru_cache(NAMES_KEPT)(_label)
        if len(members) < 2:
            plugin, knowledge = (members[0].plugin, members[0].knowledge) if members else (None, None)
            return cls(members, linkers, plugin, knowledge, tag, names)
        joined = JoinedKnowledge([one.knowledge for one in members if one.knowledge is not None])
        routed = Routed([one.plugin for one in members], joined.starts[:-1])
        return cls(members, linkers, routed, joined, tag, names)

    @property
    def alone(self) -> ActivePlugins:
        """The host alone; mentions are linked as before, so that it is asked the same."""
        return ActivePlugins((), self.linkers)

    @property
    def reads_slots(self) -> bool:
        """Whether entities get slots."""
        return self.plugin is not None and self.plugin.reads_slots

    def leaves_alone(self, mentions: Sequence[Linked]) -> bool:
        """Whether an answer is the host's own: nobody reads these, and nothing is found by search or in a memory."""
        made = self.plugin
        finds = bool(self.memories) or getattr(getattr(made, "config", None), "retrieve", False)
        reads = made is not None and made.reads_examples() and not finds
        return reads and all(one.plugin is None for one in mentions)

    @property
    def memories(self) -> tuple[PassageMemory, ...]:
        """The memories that the one plugin reads; none where there are several plugins."""
        return self.plugged[0].memories if len(self.plugged) == 1 else ()

    def readers(self, entities: Sequence[str]) -> list[tuple[str, str] | None]:
        """For each entity id, which plugin reads what of it and the entity's label there; None where none does."""
        if not entities or self.plugin is None or self.knowledge is None or not self.plugin.reads_examples():
            return [None] * len(entities)
        if isinstance(self.knowledge, JoinedKnowledge):
            rows = self.knowledge.rows(entities)
            owners, rows = self.knowledge.owners(rows), rows - self.knowledge.starts[self.knowledge.owners(rows)]
        else:
            known = rows_with_vector(self.knowledge) if self.reads_slots else self.knowledge.rows
            rows = known(list(entities))
            owners = np.where(rows >= 0, 0, -1)
        return [
            None if owner < 0 else (self.plugged[owner].name, self.names(self.plugged[owner].knowledge, int(row)))
            for owner, row in zip(owners.tolist(), rows.tolist(), strict=True)
        ]

    def linked(self, records: Sequence[Record]) -> list[tuple[Linked, ...]]:
        """The mentions of each record, with who reads them."""
        ids = list(dict.fromkeys(one.entity for record in records for one in record.mentions if one.entity is not None))
        readers = dict(zip(ids, self.readers(ids), strict=True))

        def of(mention: Mention) -> Linked:
            plugin, name = (None if mention.entity is None else readers.get(mention.entity)) or (None, "")
            return Linked(mention.start, mention.end, mention.entity, name, plugin)

        return [tuple(map(of, record.mentions)) for record in records]

    def slot_rows(self, entities: Sequence[str]) -> np.ndarray:
        """The rows that stand in `entity_ids` of a batch for these entities, int32 [n]."""
        if isinstance(self.knowledge, JoinedKnowledge):
            return self.knowledge.rows(entities)
        return rows_with_vector(self.knowledge)(list(entities))


def check_together(plugins: Mapping[str, Plugged]) -> None:
    """Raises InputError unless these plugins, by name, can be plugged together."""
    if len(plugins) < 2:
        return
    seen: dict[str, str] = {}
    for name, one in plugins.items():
        plugin, base = one.plugin, one.knowledge
        others = [seam for seam in SLOTS_ALONE if getattr(type(plugin), seam) is not getattr(seams.Plugin, seam)]
        if base is None or not plugin.reads_slots or others:
            problem = f"{plugin.name} does more than fill the slots of its entities, so it is plugged in alone"
            raise InputError(f"plugin {name}", problem, "unplug the others first")
        files = base.manifest["fingerprint"]  # of any revision
        if files in seen:
            problem = f"it reads the same knowledge base as {seen[files]}, so no entity would be its own"
            raise InputError(f"plugin {name}", problem, "plug in one of them")
        seen[files] = name
        first = next(iter(plugins.values()))
        if plugin.slot_form != first.plugin.slot_form:
            problem = (
                f"its slots stand {plugin.slot_form} the mention, those of {first.name} {first.plugin.slot_form} it"
            )
            raise InputError(f"plugin {name}", problem, "plug in one of them")


def _tag(members: Sequence[Plugged]) -> str:
    tags = sorted({memory.manifest["tag"] for one in members for memory in one.memories})
    if len(tags) > 1:
        raise InputError("memory", f"the memories have the tags {', '.join(map(repr, tags))}", "use those of one tag")
    return tags[0] if tags else ""


def _label(base: KnowledgeBase, row: int) -> str:
    return base.entity(row).label
