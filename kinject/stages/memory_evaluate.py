"""Stage `memory_evaluate`: a plugin with several memories, with none, and with what others' passages say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Field

from kinject.data.pipeline import Feed
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.examples import record_of, task_examples
from kinject.inference.passages import attach, exchange_values, open_memory_plugin, retrieved, tagged
from kinject.memory.store import PassageMemory
from kinject.models.precision import Precision, check_installed
from kinject.plugins.pluglm import PlugLM
from kinject.stages.base import Stage, StageConfig
from kinject.stages.comparison import Comparison


class MemoryEvaluateConfig(StageConfig):
    """Which plugin, memories and held-out texts.

    `memories` are rows of the table: memories' folders, joined. Two rows more are the plugin with an empty memory, and
    with the memories of the first row, of which every passage found has the value of another. `texts` are records by
    name; where they have an `entity`, the table tells how often a passage about it was found with the first row's.
    """

    kind: Literal["memory_evaluate"] = "memory_evaluate"
    host: str
    plugin: str
    memories: dict[str, tuple[str, ...]] = Field(min_length=1)
    task: str
    task_options: dict[str, Any] = {}
    texts: dict[str, tuple[str, ...]] = Field(min_length=1)
    max_length: int | None = None
    batch_size: int = Field(100, ge=1)
    compute_dtype: Precision = "float32"


class MemoryEvaluateStage(Stage):
    """Asks with one memory after the other."""

    Config = MemoryEvaluateConfig
    config: MemoryEvaluateConfig

    def check(self) -> None:
        super().check()
        check_installed(self.config.compute_dtype, f"{self.where}.compute_dtype")
        for name in ("memories", "texts"):
            for row, references in getattr(self.config, name).items():
                for reference in references:
                    self.run.check(reference, f"{self.where}.{name}.{row}")

    def execute(self) -> dict[str, Any]:
        config = self.config
        comparison = Comparison.of(
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
