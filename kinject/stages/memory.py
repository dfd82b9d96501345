"""Stage `memory`: passages encoded by a trained plugin, to be plugged in beside others; writes `<stage>/memory/`.

Nothing is trained: this is how a model gets the knowledge of a domain that it has not seen.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kinject.inference.host import open_host
from kinject.inference.passages import PassageEncoder, open_memory_plugin
from kinject.memory.store import build_memory
from kinject.stages.base import Stage, StageConfig
from kinject.stages.memory_plugin import read_passages


class MemoryConfig(StageConfig):
    """Which passages, read by which plugin of which host; `length`, `tag` and `capacity` as in `MemoryPluginConfig`."""

    kind: Literal["memory"] = "memory"
    host: str
    plugin: str
    passages: tuple[str, ...] = Field(min_length=1)
    length: int = Field(32, ge=4)
    tag: str = ""
    capacity: int | None = Field(None, ge=1)


class MemoryStage(Stage):
    """Encodes passages."""

    Config = MemoryConfig
    config: MemoryConfig

    def check(self) -> None:
        super().check()
        for reference in self.config.passages:
            self.run.check(reference, f"{self.where}.passages")

    def execute(self) -> dict[str, Any]:
        config = self.config
        host = open_host(self.run.model(config.host, f"{self.where}.host"))
        named = f"{self.where}.plugin"
        named = f"{self.where}.plugin"
        plugin = open_memory_plugin(self.run.path(config.plugin, named), host, named)
        encoder = PassageEncoder(host, plugin, config.length, config.tag)
        files = [self.run.path(one, f"{self.where}.passages") for one in config.passages]
        passages = (passage for file in files for passage in read_passages(file))
        folder = self.fresh_folder() / "memory"
        made = build_memory(folder, passages, encoder, name=self.name, capacity=config.capacity, **encoder.about())
        return {"passages": made.size}
