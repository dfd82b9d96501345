"""Stage `triples`: a file of triples, and one of labels, become the knowledge base `<stage>/knowledge/`.

The graph is embedded here. With labels and descriptions, `<stage>/records/described.jsonl` holds the entities that have
a vector and a description: what general map-tuning by description matching trains on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from kinject.config import build_dataclass
from kinject.errors import InputError
from kinject.json_file import read_object
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.graph import GraphConfig
from kinject.knowledge.graph_vectors import NORMALISATION, embed_triples
from kinject.knowledge.triples import read_triples
from kinject.knowledge.write import write_knowledge
from kinject.stages.base import Stage, StageConfig


class TriplesConfig(StageConfig):
    """Which files, and how the graph is embedded.

    `triples` is a TSV of head, relation, tail. `labels` is a JSON object of objects with `label`, `description` and
    `alternatives` (all may be missing); an object's id is its `wikidata_id`, or else its key. `held_out` triples are
    left out of the training and ranked (filtered MRR and Hits@10).
    """

    kind: Literal["triples"] = "triples"
    triples: str
    labels: str | None = None
    graph: dict[str, Any] = {}
    held_out: int = Field(200, ge=0)
    source: str = ""
    license: str = ""


class Words(NamedTuple):
    """What is said of an entity besides its triples."""

    label: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()


class TriplesStage(Stage):
    """Embeds a graph of the user's."""

    Config = TriplesConfig

    def check(self) -> None:
        super().check()
        self.run.check(self.config.triples, f"{self.where}.triples")
        if self.config.labels is not None:
            self.run.check(self.config.labels, f"{self.where}.labels")

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        ids, relations, triples = read_triples(self.run.path(config.triples, f"{self.where}.triples"))
        words: dict[str, Words] = {}
        if config.labels is not None:
            words = read_words(self.run.path(config.labels, f"{self.where}.labels"))
        graph = build_dataclass(GraphConfig, config.graph, f"{self.where}.graph")
        with self.run.reporter.bar(f"{self.name}: graph embedding", graph.epochs) as update:
            vectors, seen, metrics = embed_triples(
                triples,
                len(ids),
                len(relations),
                graph,
                seed=self.run.seed_of(self.name),
                held_out=config.held_out,
                progress=lambda done, loss: update(done, loss=loss),
            )
        said = [words.get(one, Words()) for one in ids]
        folder.mkdir(parents=True)
        written = write_knowledge(
            folder / "knowledge",
            name=self.name,
            ids=ids,
            vectors=vectors,
            has_vector=seen,
            normalisation=NORMALISATION,
            labels=[one.label for one in said],
            aliases=[one.aliases for one in said],
            descriptions=[one.description for one in said],
            triples=triples,
            relations=relations,
            source=config.source,
            license=config.license,
            metrics=metrics,
        )
        described = _write_described(folder / "records", ids, said, seen)
        base = KnowledgeBase.open(written)
        self.run.reporter.say(f"{self.name}: {base.size:,} entities, {len(triples):,} triples, {described:,} described")
        return {"entities": base.size, "triples": len(triples), "dim": base.dim, "described": described, **metrics}


def read_words(path: Path) -> dict[str, Words]:
    """Reads labels, descriptions and aliases by entity id.

    Raises:
      InputError: not JSON, or a field of the wrong type.
    """
    values = read_object(path, 'write {"Q90": {"label": "Paris", "description": "…"}}')
    return {value.get("wikidata_id") or key: _words(value, f"{path}: {key}") for key, value in _objects(values, path)}


def _objects(values: dict[str, Any], path: Path) -> list[tuple[str, dict[str, Any]]]:
    for key, value in values.items():
        if not isinstance(value, dict):
            raise InputError(f"{path}: {key}", "it is no object", 'write {"label": "Paris", "description": "…"}')
    return list(values.items())


def _words(value: dict[str, Any], where: str) -> Words:
    label, description = value.get("label") or "", value.get("description") or ""
    aliases = value.get("alternatives") or []
    for name, one in (("label", label), ("description", description), ("wikidata_id", value.get("wikidata_id") or "")):
        if not isinstance(one, str):
            raise InputError(where, f"field {name} is {one!r}", "it must be a string")
    if not isinstance(aliases, list) or not all(isinstance(one, str) for one in aliases):
        raise InputError(where, "field alternatives is no list of strings")
    return Words(label, description, tuple(aliases))


def _write_described(folder: Path, ids: list[str], said: list[Words], seen: np.ndarray) -> int:
    folder.mkdir(parents=True)
    count = 0
    with (folder / "described.jsonl").open("w", encoding="utf-8") as file:
        for one, words, has_vector in zip(ids, said, seen, strict=True):
            if has_vector and words.label and words.description:
                mention = {"start": 0, "end": len(words.label), "entity": one}
                record = {"text": words.label, "mentions": [mention], "description": words.description}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    return count
