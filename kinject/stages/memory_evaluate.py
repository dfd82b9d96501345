"""Stages that ask questions with a passage memory: one memory after the other, or the same after edits.

`memory_evaluate` asks a plugin with several memories, with none, and with what others' passages say.

`memory_update` edits facts in a plugin's memory, trains nothing, and asks the questions again. Half of the questions'
entities get other facts: each passage about such an entity is replaced by that of an entity with another answer, under
its own name. The other half shows whether anything else moved. Works on a copy of the memory.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Field

from kinject.data.pipeline import Feed
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import derangement, record_of, task_examples
from kinject.inference.passages import (
    PassageEncoder,
    attach,
    check_memory,
    exchange_values,
    make_readings,
    open_memory_plugin,
    passages_used,
    retrieved,
    sync,
    tagged,
)
from kinject.memory.store import Passage, PassageMemory
from kinject.models.precision import Precision
from kinject.plugins.pluglm import PlugLM
from kinject.stages.base import Stage
from kinject.stages.comparison import AskingConfig, comparison_of, majority


class MemoryEvaluateConfig(AskingConfig):
    """Which plugin, memories and held-out texts.

    `memories` are rows of the table: memories' folders, joined. Two rows more are the plugin with an empty memory, and
    with the memories of the first row, of which every passage found has the value of another. `texts` are records by
    name; where they have an `entity`, the table tells how often a passage about it was found with the first row's.
    """

    kind: Literal["memory_evaluate"] = "memory_evaluate"
    plugin: str
    memories: dict[str, tuple[str, ...]] = Field(min_length=1)
    texts: dict[str, tuple[str, ...]] = Field(min_length=1)
    compute_dtype: Precision = "float32"


class MemoryEvaluateStage(Stage[MemoryEvaluateConfig]):
    """Asks with one memory after the other."""

    def execute(self) -> dict[str, Any]:
        config = self.config
        comparison = comparison_of(
            self.run, config, config.host, self.where, f"{self.where}.host", config.compute_dtype
        )
        named = f"{self.where}.plugin"
        plugin = open_memory_plugin(self.run.path(config.plugin, named), comparison.host, named)
        memories = self._memories()
        (tag,) = {memory.manifest["tag"] for memory in memories.values()}
        comparison.host = replace(comparison.host, tokenizer=tagged(comparison.host.tokenizer, tag))
        attach(plugin, list(memories.values()), comparison.host.identity)
        found = {}
        for name, references in config.texts.items():
            records = self.run.records(references, comparison.task.required, f"{self.where}.texts.{name}")
            found[name] = self._rows(comparison, plugin, memories, records)
        return found

    def _memories(self) -> dict[str, PassageMemory]:
        """All memories of all rows, each once."""
        opened = {}
        for row, references in self.config.memories.items():
            for reference in references:
                opened[reference] = PassageMemory.open(self.run.path(reference, f"{self.where}.memories.{row}"))
        if len({memory.manifest["tag"] for memory in opened.values()}) != 1:
            raise InputError(f"{self.where}.memories", "they have different tags", "build them with one, or with none")
        return opened

    def _rows(
        self, comparison: Comparison, plugin: PlugLM, memories: Mapping[str, PassageMemory], records: Sequence[Record]
    ) -> dict[str, Any]:
        """The metric of every row; memories are switched by the rows that count, so one program serves all."""
        metric, alive, values = comparison.task.metric, plugin.alive[...], plugin.values[...]
        owner = np.repeat(np.arange(len(memories)), [memory.capacity for memory in memories.values()])

        def score(counts: np.ndarray) -> float:
            plugin.alive[...] = jnp.asarray(counts)
            return comparison.with_plugin(plugin, None, records)[0][metric]

        rows: dict[str, Any] = {"n": len(records), "metric": metric}
        rows["empty_memory"] = score(np.zeros(len(owner), bool))
        chosen = {}
        for name, references in self.config.memories.items():
            chosen[name] = np.isin(owner, [list(memories).index(one) for one in references]) & np.asarray(alive)
            rows[name] = score(chosen[name])
        first = next(iter(chosen.values()))
        plugin.alive[...] = jnp.asarray(first)
        exchange_values(plugin, self.run.seed_of(self.name))
        rows["values_of_others"] = score(first)
        plugin.values[...] = values
        if all("entity" in record.fields for record in records):
            rows |= self._retrieved(comparison, plugin, memories, records)
        plugin.alive[...] = alive
        return rows

    def _retrieved(
        self, comparison: Comparison, plugin: PlugLM, memories: Mapping[str, PassageMemory], records: Sequence[Record]
    ) -> dict[str, float]:
        """As the plugin stands: with the passages that count now."""
        alive = np.asarray(plugin.alive[...])
        starts = np.cumsum([0, *(memory.capacity for memory in memories.values())])
        own = []
        for record in records:
            about = [
                start + row
                for start, memory in zip(starts, memories.values(), strict=False)
                for row in memory.rows_about(str(record.fields["entity"]))
            ]
            own.append({row for row in about if alive[row]})
        host, length = comparison.host, self.config.max_length
        examples = task_examples(comparison.task, plugin, records, host, None, max_length=length, buckets=1)
        of_examples = [own[i] for i in record_of(examples, records)]
        return retrieved(host.loaded.host, plugin, Feed(examples), self.config.batch_size, of_examples)


class MemoryUpdateConfig(AskingConfig):
    """Which plugin and memory, and the held-out questions; `reference_data` gives the most frequent answer.

    A question must have a `label` and one mention whose entity passages are about. `examples` are shown with the
    passages that they used.
    """

    kind: Literal["memory_update"] = "memory_update"
    task: str = "cloze"
    plugin: str
    memory: str
    data: tuple[str, ...] = Field(min_length=1)
    reference_data: tuple[str, ...] = ()
    examples: int = Field(3, ge=0)


class MemoryUpdateStage(Stage[MemoryUpdateConfig]):
    """Edits facts and asks again."""

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        comparison = comparison_of(self.run, config, config.host, self.where, f"{self.where}.host", "float32")
        host, named = comparison.host, f"{self.where}.plugin"
        plugin = open_memory_plugin(self.run.path(config.plugin, named), host, named)
        source = self.run.path(config.memory, f"{self.where}.memory")
        check_memory(PassageMemory.open(source), plugin, host.identity)
        folder.mkdir(parents=True)
        shutil.copytree(source, folder / "memory", ignore=shutil.ignore_patterns(".lock"))
        with PassageMemory.open(folder / "memory", write=True) as memory:
            tag = memory.manifest["tag"]
            encoder = PassageEncoder(host, plugin, memory.manifest["length"], tag)
            comparison.host = replace(host, tokenizer=tagged(host.tokenizer, tag))
            records = self.run.records(config.data, comparison.task.required, f"{self.where}.data")
            return self._compare(comparison, plugin, memory, encoder, records)

    def _compare(
        self,
        comparison: Comparison,
        plugin: PlugLM,
        memory: PassageMemory,
        encoder: PassageEncoder,
        records: Sequence[Record],
    ) -> dict[str, Any]:
        metric = comparison.task.metric
        rows: dict[str, Any] = {"n": len(records), "metric": metric}
        if self.config.reference_data:
            train = self.run.records(
                self.config.reference_data, comparison.task.required, f"{self.where}.reference_data"
            )
            rows["majority"] = majority(train, records)
        alone, host_says = comparison.host_alone(records)
        attach(plugin, [memory], comparison.host.identity)
        alive = plugin.alive[...]
        plugin.alive[...] = jnp.zeros_like(alive)  # an empty memory of the same capacity: the same programs
        empty, says = comparison.with_plugin(plugin, None, records)
        plugin.alive[...] = alive
        rows |= {"host": alone[metric], "empty_memory": empty[metric]}
        rows["empty_memory_is_the_host"] = float((says["predicted"] == host_says["predicted"]).mean())
        found, before = comparison.with_plugin(plugin, None, records)
        rows["plugin"] = found[metric]
        rows |= self._retrieved(comparison, plugin, memory, records)
        shown = self._examples(comparison, plugin, memory, records, before)

        draw = np.random.default_rng(self.run.seed_of(self.name))
        edited = np.zeros(len(records), bool)
        edited[draw.permutation(len(records))[: len(records) // 2]] = True
        donors = self._edit(memory, encoder, records, np.flatnonzero(edited))
        rows["passages_edited"] = sync(plugin, [memory])
        _, after = comparison.with_plugin(plugin, None, records)
        new = before["label"].copy()
        new[edited] = before["label"][donors]
        rows["updated_follow"] = float((after["predicted"] == new)[edited].mean())
        knew = edited & (before["predicted"] == before["label"])
        rows["updated_follow_of_known"] = float((after["predicted"] == new)[knew].mean()) if knew.any() else 0.0
        rows["updated_keep_old"] = float((after["predicted"] == before["label"])[edited].mean())
        rows["untouched_accuracy"] = float((after["predicted"] == before["label"])[~edited].mean())
        rows["untouched_same_answer"] = float((after["predicted"] == before["predicted"])[~edited].mean())
        decode = comparison.host.tokenizer.decode
        for one in shown:
            one["after"] = decode([int(after["predicted"][one["row"]])])
            one["fact_now"] = decode([int(new[one.pop("row")])])
        return {"questions": {**rows, "examples": shown}}

    def _edit(
        self, memory: PassageMemory, encoder: PassageEncoder, records: Sequence[Record], rows: np.ndarray
    ) -> np.ndarray:
        """Gives every entity of `rows` the facts of one with another answer; returns whose, int [len(rows)]."""
        labels = np.array([records[row].fields["label"] for row in rows])
        donors = rows[derangement(np.unique(labels, return_inverse=True)[1], self.run.seed_of(self.name))]
        passages, old = {row: self._about(memory, records[row]) for row in rows.tolist()}, []
        fresh = []
        for row, donor in zip(rows.tolist(), donors.tolist(), strict=True):
            old += [place for place, _ in passages[row]]
            name, other = _name(records[row]), _name(records[donor])
            entity = records[row].mentions[0].entity
            for _, passage in passages[donor]:
                fresh.append(Passage(re.sub(re.escape(other), name, passage.text, flags=re.IGNORECASE), entity))
        memory.add(fresh, encoder)
        memory.delete(old)
        return donors

    def _about(self, memory: PassageMemory, record: Record) -> list[tuple[int, Passage]]:
        entity = record.mentions[0].entity if record.mentions else None
        found = [(row, memory.passage(row)) for row in memory.rows_about(entity or "")]
        if not found:
            raise InputError(record.where, f"no passage is about {entity!r}", "leave the question out")
        if not all(_name(record).lower() in passage.text.lower() for _, passage in found):
            problem = f"a passage about {entity!r} does not hold the name {_name(record)!r}"
            raise InputError(record.where, problem, "leave the question out")
        return found

    def _readings(self, comparison: Comparison, plugin: PlugLM, records: Sequence[Record]) -> Any:
        """(index of the question, batch, its row, the last memory layer's reading) of every question."""
        host = comparison.host
        examples = comparison.task.examples(records, host.encoder(self.config.max_length), None)
        read = make_readings(host.loaded.host, plugin)
        for batch in Feed(examples).evaluation(self.config.batch_size):
            reading = read(batch)[plugin.config.layers[-1]]
            for row in np.flatnonzero(batch["weights"] > 0):
                yield int(batch["index"][row]), batch, int(row), reading

    def _retrieved(
        self, comparison: Comparison, plugin: PlugLM, memory: PassageMemory, records: Sequence[Record]
    ) -> dict[str, float]:
        """How often a passage about the entity that was asked about is found."""
        examples = comparison.task.examples(records, comparison.host.encoder(self.config.max_length), None)
        own = [memory.rows_about(record.mentions[0].entity or "") for record in records]
        return retrieved(comparison.host.loaded.host, plugin, Feed(examples), self.config.batch_size, own)

    def _examples(
        self,
        comparison: Comparison,
        plugin: PlugLM,
        memory: PassageMemory,
        records: Sequence[Record],
        before: dict[str, np.ndarray],
    ) -> list[dict[str, Any]]:
        """A few questions, drawn by the run's seed, with the passages that the blank read."""
        chosen = np.random.default_rng(self.run.seed_of(self.name)).permutation(len(records))[: self.config.examples]
        decode, shown = comparison.host.tokenizer.decode, []
        some = [records[i] for i in chosen]
        for index, batch, row, reading in self._readings(comparison, plugin, some) if some else ():
            used = passages_used(reading, [memory], row, int(batch["positions"][row, 0]))
            one = {"row": int(chosen[index]), "text": some[index].text, "label": str(some[index].fields["label"])}
            one["before"] = decode([int(before["predicted"][chosen[index]])])
            shown.append({**one, "passages": [[text, round(weight, 3)] for text, _, weight in used]})
        return shown


def _name(record: Record) -> str:
    mention = record.mentions[0]
    if record.text is None:
        raise InputError(record.where, "it has tokens, not a text", "give the question as a text")
    return record.text[mention.start : mention.end]
