"""What the demo page asks for: one sentence, answered by the host alone and under the plugins chosen."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kinject.data.records import KIND, Record, drawn, read_records
from kinject.errors import InputError, did_you_mean
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import AliasLinker
from kinject.serving import Host, Plugin, Prediction, Refused
from kinject.serving.plugin import pair

EXAMPLES, SEED = (
    3,
    0,
)  # sentences of one sort that a file gives, and what draws them: nobody chooses the flattering ones
PATIENCE = 30.0  # seconds that a question waits for those before it
LONGEST_TEXT = 10_000  # characters; a page for sentences is no place for books
NOTHING_READ = "No name that the chosen plugins know was found in the text, so the answer is the host's own."
ALONE = "No plugin is chosen: this is the host alone."


@dataclass(frozen=True)
class Offer:
    """A plugin that the page offers, and what it is plugged in with."""

    plugin: Plugin
    knowledge: KnowledgeBase | None
    memory: tuple[str, ...]
    linker: AliasLinker | None

    def to_json(self) -> dict[str, Any]:
        """What the page shows of it."""
        about = None
        if self.knowledge is not None:
            about = {"name": self.knowledge.name, "entities": self.knowledge.size}
        return {"name": self.plugin.name, "method": self.plugin.method, "knowledge": about}


@dataclass(frozen=True)
class Example:
    """A sentence that the page offers, and what is right, where its record says so."""

    text: str
    right: str | None


class Demo:
    """A host, the plugins that can be chosen, and sentences to begin with.

    Answers are given one at a time, whichever threads ask: what is plugged into the host belongs to the question.

    Args:
      host: with nothing plugged in.
      offers: plugins of different names; each is plugged in once, so that what does not fit is told before the page is.
      name: what the page calls the host.
      examples: sentences that the page offers.

    Raises:
      InputError: a plugin that does not fit the host, its knowledge base or its memory.
    """

    def __init__(self, host: Host, offers: Sequence[Offer], *, name: str, examples: Sequence[Example] = ()):
        self.host, self.name, self.examples = host, name, tuple(examples)
        self.offers = {one.plugin.name: one for one in offers}
        self._lock = threading.Lock()
        self._explains = host.task.answer == "labels"
        for one in self.offers:
            self._choose([one])

    @classmethod
    def load(
        cls,
        host: str,
        plugins: Iterable[str],
        knowledge: Iterable[str] = (),
        memory: Iterable[str] = (),
        *,
        task: str | None = None,
        examples: Iterable[str] = (),
    ) -> Demo:
        """Loads everything from its folders.

        Args:
          host: the host's folder.
          plugins: folders; each finds its own knowledge base among those given.
          knowledge: folders of knowledge bases, in any order.
          memory: PlugLM's memories.
          task: a registered name; None = the one in host.json.
          examples: record files; the page offers some texts of each, see `examples_of`.

        Raises:
          InputError: one of them is not there, is damaged, or does not fit the others.
        """
        bases = [KnowledgeBase.open(folder) for folder in knowledge]
        loaded, memory = [Plugin.load(folder) for folder in plugins], tuple(memory)
        read, unread = pair(loaded, bases)
        if unread:
            raise InputError(f"--knowledge {unread[0].folder}", "no plugin was trained on it", "leave it out")
        if memory and not any(one.reads_memory for one in loaded):
            raise InputError("--memory", "there is no plugin that reads it", "leave it out")
        shown = [one for file in examples for one in examples_of(list(read_records(file)))]
        offers = [
            Offer(one, base, memory if one.reads_memory else (), None if base is None else AliasLinker(base))
            for one, base in zip(loaded, read, strict=True)
        ]
        ready = Host.load(host, task=task, batch_size=1, window=1)
        return cls(ready, offers, name=host, examples=shown)

    def about(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        return {
            "host": self.name,
            "plugins": [one.to_json() for one in self.offers.values()],
            "examples": [vars(one) for one in self.examples],
        }

    def answer(self, text: str, plugins: Sequence[str], *, top: int = 5) -> dict[str, Any]:
        """Answers one sentence.

        Args:
          text: the sentence.
          plugins: names of those that are chosen, perhaps none.
          top: how many labels each answer has at most.

        Returns:
          What `kinject predict --compare --explain` writes of it (docs/serving.md), and `text`, `plugins` and
          `notice`: one line for a text in which no plugin read anything, else None.

        Raises:
          InputError: an empty text, one that the task cannot use, an unknown plugin, plugins that do not go together.
          TimeoutError: others were being answered for half a minute.
        """
        if not text.strip():
            raise InputError("text", "it is empty", "type a sentence")
        if len(text) > LONGEST_TEXT:
            raise InputError("text", f"it has {len(text):,} characters", f"give at most {LONGEST_TEXT:,}")
        if not self._lock.acquire(timeout=PATIENCE):
            raise TimeoutError("others are being answered")
        try:
            self._refresh()
            self._choose(plugins)
            answers = self.host.answer(
                [(1, text)], "text", top=top, compare=True, explain=self._explains, errors="yield"
            )
            one = next(answers)
        finally:
            self._lock.release()
        if isinstance(one, Refused):
            raise InputError("text", one.error.removeprefix("text:1: "))
        return {"text": text, "plugins": list(self.host.plugged), "notice": self._notice(one), **one.to_json()}

    def _refresh(self) -> None:
        """Goes on to the newest revisions of the knowledge bases, of plugins that are not chosen too."""
        for name, one in self.offers.items():
            new = None if one.knowledge is None else one.knowledge.latest()
            if new is not None and new is not one.knowledge:
                linker = None if one.linker is None else one.linker.refreshed(new)
                self.offers[name] = replace(one, knowledge=new, linker=linker)
        self.host.refresh()

    def _choose(self, names: Iterable[str]) -> None:
        """Plugs in exactly these; leaves the host alone where they cannot be."""
        chosen = list(dict.fromkeys(names))
        for name in chosen:
            if name not in self.offers:
                raise InputError(f"plugin {name}", "the page does not offer it", did_you_mean(name, self.offers))
        if list(self.host.plugged) == chosen:
            return
        for name in self.host.plugged:
            self.host.unplug(name)
        for name in chosen:
            one = self.offers[name]
            self.host.plug(one.plugin, knowledge=one.knowledge, memory=one.memory, linker=one.linker)

    def _notice(self, answer: Prediction) -> str | None:
        """What the reader should know of an answer that the plugins had no part in."""
        chosen = [self.offers[name] for name in self.host.plugged]
        if not chosen:
            return ALONE
        by_text = all(one.knowledge is not None for one in chosen)  # others act without any entity
        return NOTHING_READ if by_text and all(one.plugin is None for one in answer.entities) else None


def examples_of(records: Sequence[Record]) -> list[Example]:
    """What the page offers of a file's records: some texts, drawn.

    Of questions of several kinds: one entity under some of them, and one question under some entities.
    """
    if records and all(isinstance(record.fields.get(KIND), str) for record in records):
        chosen = drawn(records, EXAMPLES, SEED)
    else:
        chosen = np.random.default_rng(SEED).permutation(len(records))[:EXAMPLES].tolist()
    found = (records[i] for i in chosen)
    return [Example(one.text, label if isinstance(label := one.fields.get("label"), str) else None) for one in found]
