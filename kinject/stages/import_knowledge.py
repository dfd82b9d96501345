"""Stage `import_knowledge`: somebody's files of entity vectors become the knowledge base `<stage>/knowledge/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from kinject.errors import did_you_mean
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.importers import IMPORTERS, import_knowledge
from kinject.stages.base import Stage, StageConfig


class ImportKnowledgeConfig(StageConfig):
    """What is imported.

    `format` is one of kinject.knowledge.importers; `files` are its arguments that name files, `options` its others and
    what is to be noted (name, source, license, …).
    """

    kind: Literal["import_knowledge"] = "import_knowledge"
    format: str
    files: dict[str, str] = Field(min_length=1)
    options: dict[str, Any] = {}

    @field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        if name not in IMPORTERS:
            raise ValueError(f"there is no such format, {did_you_mean(name, IMPORTERS)}")
        return name


class ImportKnowledgeStage(Stage):
    """Imports a knowledge base."""

    Config = ImportKnowledgeConfig

    def check(self) -> None:
        super().check()
        for name, reference in self.config.files.items():
            self.run.check(reference, f"{self.where}.files.{name}")

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        files: dict[str, Path] = {
            name: self.run.path(reference, f"{self.where}.files.{name}") for name, reference in config.files.items()
        }
        folder.mkdir(parents=True)
        arguments = {"name": self.name, **config.options, **files}
        written = import_knowledge(config.format, folder / "knowledge", **arguments)
        base = KnowledgeBase.open(written)
        self.run.reporter.say(f"{self.name}: {base.size:,} entities, {base.dim} numbers a vector")
        return {"entities": base.size, "dim": base.dim}
