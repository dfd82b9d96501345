"""Stage `edit_questions`: edits of a domain's facts, and the questions about them, `<stage>/records/edits.jsonl`."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from kinject.data.sources.edits import Editor
from kinject.stages.base import Stage, StageConfig


class EditQuestionsConfig(StageConfig):
    """Which domain, out of which of its records.

    `data` are questions about the entities that are edited and their neighbours; `known_data` those that say what
    follows from a new fact (the host's, which ask about countries). `edits` says how many facts of each relation are
    changed.
    """

    kind: Literal["edit_questions"] = "edit_questions"
    domain: str
    knowledge: str
    data: tuple[str, ...] = Field(min_length=1)
    known_data: tuple[str, ...] = ()
    edits: dict[str, int] = Field(min_length=1)


class EditQuestionsStage(Stage[EditQuestionsConfig]):
    """Writes edits."""

    def execute(self) -> dict[str, Any]:
        config, needed = self.config, ("kind", "label")
        base = self.run.knowledge(config.knowledge, f"{self.where}.knowledge")
        subjects = self.run.records(config.data, needed, f"{self.where}.data")
        known = self.run.records(config.known_data, needed, f"{self.where}.known_data") if config.known_data else []
        editor = Editor(base, config.domain, subjects, known, self.seed)
        folder = self.fresh_folder() / "records"
        folder.mkdir(parents=True)
        edits: set[str] = set()
        count = 0
        with (folder / "edits.jsonl").open("w", encoding="utf-8") as file:
            for question in editor.questions(config.edits):
                file.write(json.dumps(question, ensure_ascii=False) + "\n")
                edits.add(question["edit"])
                count += 1
        return {"edits": len(edits), "questions": count}
