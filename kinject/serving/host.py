"""A host that answers: `Host.load`, `host.plug`, `with host.unplugged()`, `host.predict`, `host.stream`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jax
from flax import nnx

from kinject.data.records import Record
from kinject.errors import InputError, did_you_mean
from kinject.inference.comparison import Comparison
from kinject.inference.host import HostBundle, open_host, open_under_head, told_task
from kinject.inference.mesh import Placement
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import Linker, NamesLinker
from kinject.memory.store import PassageMemory
from kinject.models.precision import Precision, activations, check_installed
from kinject.plugins.store import read_head
from kinject.serving.engine import Engine
from kinject.serving.explain import Explainer
from kinject.serving.plugin import ActivePlugins, Plugged, Plugin, fit
from kinject.serving.queries import Prediction, Refused, read_queries
from kinject.serving.runtime import EngineName
from kinject.tasks.base import Task, make_task

Folder = str | os.PathLike[str]
log = logging.getLogger("kinject")
Input = str | Mapping[str, Any] | Record
ONE = (str, Mapping, Record)  # one input, and not several


class Parameters(NamedTuple):
    """How many numbers were trained, and how many stay frozen beside them."""

    trained: int
    frozen: int

    def __str__(self) -> str:
        share = self.trained / max(self.trained + self.frozen, 1)
        return f"{self.trained:,} trained, {self.frozen:,} frozen ({share:.3%})"


class Host:
    """A fine-tuned model that answers, alone or with knowledge plugged in; `Host.load` makes one.

    Attributes:
      task: what it answers.
      ready: the loaded model with its tokenizer and identity.
      engine: the compiled programs; `engine.programs.compiled` counts them.
    """

    def __init__(self, ready: HostBundle, task: Task, **options: Any):
        self.ready, self.task = ready, task
        self.engine = Engine(ready, task, **options)
        self._plugged: dict[str, Plugged] = {}
        self._arrangement = ActivePlugins()
        self._off = self._told = False

    @classmethod
    def load(
        cls,
        folder: Folder,
        *,
        task: str | None = None,
        task_options: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        window: int = 1024,
        precision: Precision = "float32",
        devices: int = 1,
        head: Plugin | Folder | None = None,
        engine: EngineName = "jax",
    ) -> Host:
        """Loads a host for one task.

        Args:
          folder: as kinject or transformers wrote it, or a hub id.
          task: a registered name; None = the one in host.json, or that of `architectures` in config.json.
          task_options: of the task, over those that the folder tells of. A task with labels takes the host's.
          max_length: tokens a text, None = the host's maximum. What is longer loses context far from mentions.
          batch_size: texts a batch; fewer of those beyond 64 tokens, so that a batch has about as many tokens.
          window: texts that are read, sorted by length and held at a time.
          precision: what the host is held and computed in.
          devices: how many share each batch.
          head: a plugin that a head was trained together with; the host then answers under that head, for its task,
            also where no plugin is on. None = the host's own.
          engine: who runs the host's layers: XLA ("jax"), ONNX Runtime (extra `onnx`; with precision "int8" products
            are int8 x int8), or "auto": whichever is faster here, timed once, for one text, batches and many texts
            (docs/serving.md). Methods that only fill slots are plugged in, swapped and revised as ever.

        Raises:
          InputError: no such host or task, one that cannot be served, a plugin without a head or with one
            for another host.
        """
        for name, value in (("batch_size", batch_size), ("window", window), ("devices", devices)):
            if value < 1:
                raise InputError(name, f"it is {value}", "give 1 or more")
        check_installed(precision, "precision")
        dtype = activations(precision)
        if head is not None:
            stored = (head if isinstance(head, Plugin) else Plugin.load(head)).stored
            trained = read_head(stored)
            task = task or str(trained.facts.get("task"))
            ready = open_under_head(folder, stored, trained, task, dtype=dtype)
            made = _made(task, trained.facts.get("task_options") or {})
        else:
            made = _task(folder, task, task_options)
            ready = open_host(folder, head=made.head, dtype=dtype)
        made = made.for_host(ready.loaded, folder).for_evaluation()
        place = Placement.single() if devices == 1 else Placement.over(devices)
        options = {"max_length": max_length, "rows": batch_size, "window": window, "precision": precision}
        return cls(ready, made, place=place, engine=engine, **options)

    def __repr__(self) -> str:
        config, labels = self.ready.loaded.config, self.task.labels
        answers = f" of {len(labels)} labels" if labels else ""
        told = [f"{self.ready.loaded.folder}", f"{config.model_type}, {config.num_hidden_layers} layers"]
        told += [f"{self.task.made_as[0]}{answers}"]
        read = {name: one.knowledge for name, one in self._plugged.items()}
        plugged = [f"{name} ({base.size:,} entities)" if base is not None else name for name, base in read.items()]
        told += [] if self.engine.told == "engine: jax" else [self.engine.told]
        return f"Host({', '.join(told)}; plugged in: {', '.join(plugged) or 'nothing'})"

    def _watched(self, answers: Iterator[Prediction | Refused]) -> Iterator[Prediction | Refused]:
        """Says once where plugins are in that read entities, and an answer comes in which none read any."""
        for one in answers:
            if isinstance(one, Prediction) and one.host_alone and not self._told:
                self._told = True
                log.warning("input %d names no entity that a plugin knows: its answer is the host's own", one.line)
            yield one

    @property
    def plugged(self) -> tuple[str, ...]:
        """The names of the plugins, in the order in which they were plugged in."""
        return tuple(self._plugged)

    def plug(
        self,
        plugin: Plugin | Folder,
        *,
        knowledge: KnowledgeBase | Folder | None = None,
        memory: Folder | Iterable[Folder] = (),
        linker: Linker | Literal["names"] | None = "names",
        name: str | None = None,
    ) -> Host:
        """Plugs a plugin in, beside those that are in already, and returns the host.

        Several are possible where all only fill the slots of their entities (map-tuning): each entity goes through the
        first plugin whose knowledge base has a vector of it. Any other combination is refused.

        Args:
          plugin: loaded, or its folder.
          knowledge: the knowledge base that it was trained on, or its folder; None = the one that a plugin of
            `kinject.tune` brings along, and for a plugin that reads none.
          memory: PlugLM's memory or memories.
          linker: finds mentions in texts that come without; "names" = the names and aliases of the knowledge base,
            where it has any. None = nothing is linked.
          name: what it is called in answers; one that is plugged in under it is replaced. None = its own name, or that
            of its knowledge base where another plugin goes by its own; the same plugin is replaced.

        Raises:
          InputError: another host's plugin or knowledge base, or one that cannot be combined with what is plugged in;
            the host stays as it was.
        """
        plugin = plugin if isinstance(plugin, Plugin) else Plugin.load(plugin)
        knowledge = plugin.knowledge if knowledge is None else knowledge
        knowledge = knowledge if isinstance(knowledge, KnowledgeBase | None) else KnowledgeBase.open(knowledge)
        folders = [memory] if isinstance(memory, str | os.PathLike) else memory
        memories = [PassageMemory.open(Path(one)) for one in folders]
        name = self._free_name(plugin) if name is None else name
        knowledge = None if knowledge is None else knowledge.snapshot()  # the host goes on by `refresh` alone
        if linker == "names":
            linker = NamesLinker(knowledge) if knowledge is not None and knowledge.has_names else None
        one = fit(plugin, self.ready, name, knowledge, memories, linker)
        self.engine.check_plugin(one.plugin, plugin.stored.folder)
        plugged = {**self._plugged, name: one}
        self._arrangement, self._plugged = ActivePlugins.of(plugged), plugged
        return self

    def refresh(self) -> bool:
        """Goes on to the newest revision of every knowledge base that is plugged in; returns whether there was one.

        Nothing is compiled or loaded anew, and answers that are under way are not touched. Where nothing changed, that
        costs the reading of one small file a base.

        Raises:
          InputError: a base was damaged, or replaced by one of another space; the host stays as it was.
        """
        plugged = {name: one.refreshed() for name, one in self._plugged.items()}
        if all(one is plugged[name] for name, one in self._plugged.items()):
            return False
        self._arrangement, self._plugged = ActivePlugins.of(plugged), plugged
        return True

    def unplug(self, which: Plugin | str | None = None) -> Host:
        """Takes out a plugin, or the one of a name, or with no argument all of them, and returns the host.

        Raises:
          InputError: it is not plugged in.
        """
        if isinstance(which, Plugin):
            out = {name for name, one in self._plugged.items() if one.source is which or one.source.same_as(which)}
            name = which.name
        else:
            name, out = which or "", set(self._plugged) if which is None else {which} & self._plugged.keys()
        if not out and which is not None:
            raise InputError(f"plugin {name}", "it is not plugged in", did_you_mean(name, self._plugged))
        self._plugged = {each: one for each, one in self._plugged.items() if each not in out}
        self._arrangement = ActivePlugins.of(self._plugged)
        return self

    def _free_name(self, plugin: Plugin) -> str:
        """What a plugin is called that is plugged in without a name."""
        taken = {name for name, one in self._plugged.items() if not one.source.same_as(plugin)}
        names = (plugin.name, str(plugin.manifest["knowledge"].get("name")))
        for name in names:
            if name not in taken:
                return name
        problem = f"other plugins are called {' and '.join(dict.fromkeys(names))}"
        raise InputError(f"plugin {plugin.name}", problem, "give it a name: plug(…, name=…)")

    def trainable_parameters(self) -> Parameters:
        """How many numbers were trained in what is plugged in, and how many the frozen host has."""
        arrays = jax.tree.leaves(nnx.state(self.ready.loaded.host, nnx.Param))
        plugged = sum(one.source.trainable_parameters() for one in self._plugged.values())
        return Parameters(plugged, sum(leaf.size for leaf in arrays))

    @cached_property
    def comparison(self) -> Comparison:
        """What evaluates this host alone and with plugins; `Plugin.evaluate` asks it."""
        engine = self.engine
        return Comparison(self.ready, self.task, engine.max_length, engine.place, precision=engine.precision)

    @contextmanager
    def unplugged(self) -> Iterator[Host]:
        """Inside, the host answers alone, bit for bit as if nothing had ever been plugged in; linkers still link."""
        before, self._off = self._off, True
        try:
            yield self
        finally:
            self._off = before

    @overload
    def predict(self, inputs: Input, *, errors: Literal["raise"] = "raise", **options: Any) -> Prediction: ...

    @overload
    def predict(
        self, inputs: Iterable[Input], *, errors: Literal["raise"] = "raise", **options: Any
    ) -> list[Prediction]: ...

    @overload
    def predict(self, inputs: Input, *, errors: Literal["yield"], **options: Any) -> Prediction | Refused: ...

    @overload
    def predict(
        self, inputs: Iterable[Input], *, errors: Literal["yield"], **options: Any
    ) -> list[Prediction | Refused]: ...

    def predict(self, inputs: Input | Iterable[Input], **options: Any) -> Any:
        """Answers: one text or record with one answer, several with a list of answers in their order.

        Args:
          inputs: as of `stream`.
          options: as of `stream`.

        Raises:
          InputError: options that the task cannot serve, or an input that cannot be used.
        """
        answers = self.stream(inputs, **options)
        return next(answers) if isinstance(inputs, ONE) else list(answers)

    def stream(
        self,
        inputs: Input | Iterable[Input],
        *,
        top: int = 5,
        compare: bool = False,
        explain: bool = False,
        errors: Literal["raise", "yield"] = "raise",
        linker: Linker | None = None,
    ) -> Iterator[Prediction | Refused]:
        """Answers texts or records, in their order, as they come: memory does not grow with their number.

        What is plugged in now counts for all of them.

        Args:
          inputs: texts, dicts as a line of a record file has them (docs/formats.md; no answer is needed), `Record`s.
          top: how many labels each answer has at most.
          compare: add what the host alone answers (`before`).
          explain: add what each entity, or which passages, did to the first answer.
          errors: "raise" an InputError for the first input that cannot be used, or "yield" a `Refused` in its place.
          linker: finds mentions in texts that come without; None = the plugins' own.

        Raises:
          InputError: options that the task cannot serve; while iterating, an input that cannot be used.
        """
        if top < 1:
            raise InputError("top", f"it is {top}", "give 1 or more")
        if not isinstance(inputs, (Iterable, Record)):
            raise InputError("input", f"it is {inputs!r}", "give a text, a record, or several of them")
        some = [inputs] if isinstance(inputs, ONE) else inputs
        return self.answer(
            enumerate(some, 1), "input", top=top, compare=compare, explain=explain, errors=errors, linker=linker
        )

    def answer(
        self,
        numbered: Iterable[tuple[int, Any]],
        name: str,
        *,
        top: int = 5,
        compare: bool = False,
        explain: bool = False,
        errors: Literal["raise", "yield"] = "raise",
        linker: Linker | None = None,
    ) -> Iterator[Prediction | Refused]:
        """As `stream`, of (line, input) pairs of a file `name`; an input that is an InputError is refused."""
        now = self._arrangement.alone if self._off else self._arrangement
        queries = read_queries(numbered, name, (linker,) if linker else now.linkers)
        explainer = Explainer(self.engine, now) if explain else None
        answers = self._watched(self.engine.answer(queries, now, top=top, compare=compare, explainer=explainer))
        return answers if errors == "yield" else _raising(answers)


def _raising(answers: Iterator[Prediction | Refused]) -> Iterator[Prediction]:
    for one in answers:
        if isinstance(one, Refused):
            raise one.cause or InputError("input", one.error)
        yield one


def _task(folder: Folder, name: str | None, options: Mapping[str, Any] | None) -> Task:
    try:
        named, given = told_task(folder)
    except InputError:
        if name is None:
            raise
        named, given = name, {}  # a task that is asked for need not be one that the folder tells of
    name = name or named
    return _made(name, {**(given if name == named else {}), **(options or {})})


def _made(name: str, options: Mapping[str, Any]) -> Task:
    task = make_task(name, "task", **options)
    if not task.served:
        raise task.not_served()
    return task
