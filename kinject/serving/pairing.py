"""Which plugin reads which of the knowledge bases that a command line names, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.knowledge.base import KnowledgeBase
    from kinject.serving.plugin import Plugin


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
