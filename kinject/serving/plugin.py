"""A plugin's folder, loaded to be plugged in with its knowledge base, and what is plugged into a host at one time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from kinject.data.encode import rows_with_vector
from kinject.errors import InputError
from kinject.inference.host import HostBundle, knowledge_identity
from kinject.inference.passages import attach
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import Linker
from kinject.memory.store import PassageMemory
from kinject.models import seams
from kinject.plugins.pluglm import PlugLM
from kinject.plugins.store import StoredPlugin, check_fits, load_plugin
from kinject.serving.routing import JoinedKnowledge, Routed

NAMES_KEPT = 1 << 16
SLOTS_ALONE = ("feed_forward", "outputs", "before", "prepare")  # a plugin beside others must not override these


class Plugin:
    """A knowledge plugin as it lies in its folder: `Plugin.load(folder)`, then `host.plug(plugin, knowledge=…)`.

    Attributes:
      name: the folder's.
      method: the registered name of its method.
      manifest: the content of `plugin.json`.
    """

    def __init__(self, stored: StoredPlugin):
        self.stored = stored
        self.name, self.manifest = stored.folder.name, stored.manifest
        self.method: str = stored.manifest["method"]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Plugin:
        """Reads a plugin, checking the digest of every file; host and knowledge are checked when it is plugged in.

        Raises:
          InputError: no plugin there, a damaged one, or one of another format.
        """
        return cls(load_plugin(Path(folder)))

    @property
    def reads_memory(self) -> bool:
        """Whether it answers from a memory of passages (PlugLM)."""
        return isinstance(self.stored.plugin, PlugLM)

    def __repr__(self) -> str:
        about = self.manifest["knowledge"].get("name")
        return f"Plugin({self.name!r}, {self.method}, knowledge {about!r}, {self.stored.folder})"


def pair(
    plugins: Sequence[Plugin], bases: Sequence[KnowledgeBase]
) -> tuple[list[KnowledgeBase | None], list[KnowledgeBase]]:
    """Finds each plugin's knowledge base.

    Returns:
      (the knowledge base of each plugin, None where it needs none; those that no plugin reads).

    Raises:
      InputError: two plugins of one name, a plugin whose knowledge base is not given.
    """
    seen = set()
    for plugin in plugins:
        if plugin.name in seen:
            problem = f"another plugin is called {plugin.name} too"
            raise InputError(f"--plugin {plugin.stored.folder}", problem, "rename its folder")
        seen.add(plugin.name)
    read = [knowledge_of(plugin, bases) for plugin in plugins]
    return read, [base for base in bases if all(base is not one for one in read)]


def knowledge_of(plugin: Plugin, bases: Sequence[KnowledgeBase]) -> KnowledgeBase | None:
    """The knowledge base that a plugin was trained on, by its fingerprint; None where it needs none.

    A lone one is taken as it is, so that what does not fit is told in detail when it is plugged in.

    Raises:
      InputError: it is none of those given.
    """
    pinned = plugin.manifest["knowledge"].get("fingerprint")
    found = [base for base in bases if base.fingerprint == pinned]
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


def fit(
    plugin: Plugin,
    host: HostBundle,
    name: str,
    knowledge: KnowledgeBase | None,
    memories: Sequence[PassageMemory],
    linker: Linker | None,
) -> Plugged:
    """A copy of the plugin, checked against host and knowledge, and given its memories.

    Raises:
      InputError: it was trained through another host or on another knowledge base, or needs one; memories of another
        plugin, or for a method that reads none.
    """
    stored, made = plugin.stored, nnx.merge(*nnx.split(plugin.stored.plugin))
    identity = None if plugin.reads_memory and knowledge is None else knowledge_identity(knowledge)
    check_fits(stored.folder, stored.manifest, host.identity, identity)
    if isinstance(made, PlugLM):
        if not memories:
            problem = "it answers from a memory of passages, and none is given"
            raise InputError(stored.folder, problem, "name the memory's folder (memory=…, --memory)")
        attach(made, memories, host.identity)
    elif memories:
        raise InputError(stored.folder, f"{plugin.method} reads no memory of passages", "leave the memory out")
    return Plugged(name, made, knowledge, tuple(memories), linker)


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
        if base.fingerprint in seen:
            problem = f"it reads the same knowledge base as {seen[base.fingerprint]}, so no entity would be its own"
            raise InputError(f"plugin {name}", problem, "plug in one of them")
        seen[base.fingerprint] = name


def _tag(members: Sequence[Plugged]) -> str:
    tags = sorted({memory.manifest["tag"] for one in members for memory in one.memories})
    if len(tags) > 1:
        raise InputError("memory", f"the memories have the tags {', '.join(map(repr, tags))}", "use those of one tag")
    return tags[0] if tags else ""


def _label(base: KnowledgeBase, row: int) -> str:
    return base.entity(row).label
