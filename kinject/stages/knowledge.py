"""Stage `knowledge`: a domain's triples become a knowledge base, its questions become records.

Writes `<stage>/knowledge/` (see docs/formats.md) and, where the source asks questions, `<stage>/records/<split>.jsonl`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kinject.config import build_dataclass
from kinject.data.sources import Domain, load
from kinject.data.tokenizer import load_tokenizer
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.knowledge.graph import GraphConfig
from kinject.knowledge.graph_vectors import NORMALISATION, GraphVectors, embed_triples
from kinject.stages.base import Stage, StageConfig


class KnowledgeConfig(StageConfig):
    """Which domain, and how its graph is embedded.

    `source` names one of kinject.data.sources; `options` go to it. `held_out` triples are left out of the graph's
    training and ranked afterwards (filtered MRR and Hits@10). `tokenizer_of` is the host folder whose vocabulary the
    questions must suit. For each split in `described`, `records/described_<split>.jsonl` holds its entities with their
    descriptions: training data without task labels.
    """

    kind: Literal["knowledge"] = "knowledge"
    source: str
    tokenizer_of: str
    options: dict[str, Any] = {}
    graph: dict[str, Any] = {}
    held_out: int = Field(200, ge=0)
    described: tuple[str, ...] = ()


class KnowledgeStage(Stage):
    """Builds one domain."""

    Config = KnowledgeConfig

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        tokenizer = load_tokenizer(self.run.path(config.tokenizer_of, f"{self.where}.tokenizer_of"))
        domain = load(
            config.source,
            lambda text: tokenizer.backend.encode(text, add_special_tokens=False).tokens,
            **{"seed": self.run.seed, **config.options},
        )
        vectors, seen, metrics = self._embed(domain)
        written = write_knowledge(
            folder / "knowledge",
            name=domain.name,
            ids=domain.ids,
            vectors=vectors,
            has_vector=seen,
            normalisation=NORMALISATION,
            labels=domain.labels,
            aliases=domain.aliases,
            descriptions=domain.descriptions,
            triples=domain.triples,
            relations=list(domain.relations),
            source=domain.source,
            license=domain.license,
            metrics=metrics,
        )
        base = KnowledgeBase.open(written)
        domain.write_questions(folder / "records")
        for split in config.described:
            write_described(domain, split, folder / "records" / f"described_{split}.jsonl")
        self._say(domain, base, metrics)
        questions = {split: len(asked) for split, asked in domain.splits.items()}
        facts = {"entities": base.size, "triples": len(domain.triples), "dim": base.dim}
        return {**facts, "questions": questions, **metrics}

    def _embed(self, domain: Domain) -> GraphVectors:
        graph = build_dataclass(GraphConfig, self.config.graph, f"{self.where}.graph")
        with self.run.reporter.bar(f"{self.name}: graph embedding", graph.epochs) as update:
            return embed_triples(
                domain.triples,
                len(domain.ids),
                len(domain.relations),
                graph,
                seed=self.run.seed_of(self.name),
                held_out=self.config.held_out,
                progress=lambda done, loss: update(done, loss=loss),
            )

    def _say(self, domain: Domain, base: KnowledgeBase, metrics: dict[str, float]) -> None:
        ranked = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("mrr", "hits@10") if name in metrics)
        self.run.reporter.say(
            f"{self.name}: {base.size:,} entities, {len(domain.triples):,} triples, {base.dim} numbers a vector; "
            f"held-out triples: {ranked or 'none'}"
        )


def write_described(domain: Domain, split: str, path: Path) -> None:
    """Writes the entities that a split asks about, those with a description, as records `name` + `description`."""
    with path.open("w", encoding="utf-8") as file:
        for question in domain.splits[split]:
            if not domain.descriptions[question.entity]:
                continue
            mention = {"start": 0, "end": len(question.name), "entity": domain.ids[question.entity]}
            record = {
                "text": question.name,
                "mentions": [mention],
                "description": domain.descriptions[question.entity],
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
