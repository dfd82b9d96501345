"""Stage `knowledge`: a domain's triples become a knowledge base, its questions become records.

Writes `<stage>/knowledge/` (see docs/formats.md) and, where the source asks questions, `<stage>/records/<split>.jsonl`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kinject.config import build_dataclass
from kinject.data.sources import Domain, load
from kinject.data.tokenizer import load_tokenizer
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.knowledge.graph import GraphConfig, train_graph
from kinject.knowledge.ranking import filtered_ranking
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
            normalisation="centred, divided by the standard deviation of all numbers",
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

    def _embed(self, domain: Domain) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Vectors float32 [N, k], which entities the graph saw (bool [N]), and how well held-out triples rank."""
        graph = build_dataclass(GraphConfig, self.config.graph, f"{self.where}.graph")
        seed = self.run.seed_of(self.name)
        held_out, kept = hold_out(domain.triples, self.config.held_out, seed)
        sizes = len(domain.ids), len(domain.relations)
        with self.run.reporter.bar(f"{self.name}: graph embedding", graph.epochs) as update:
            result = train_graph(
                domain.triples[kept], *sizes, graph, seed=seed, progress=lambda done, loss: update(done, loss=loss)
            )
        metrics = {}
        if len(held_out):
            metrics = filtered_ranking(result, domain.triples[held_out], domain.triples)
        return result.standardised(), result.seen, metrics

    def _say(self, domain: Domain, base: KnowledgeBase, metrics: dict[str, float]) -> None:
        ranked = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("mrr", "hits@10") if name in metrics)
        self.run.reporter.say(
            f"{self.name}: {base.size:,} entities, {len(domain.triples):,} triples, {base.dim} numbers a vector; "
            f"held-out triples: {ranked or 'none'}"
        )


def hold_out(triples: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses triples to rank: indices (held out, kept). An entity keeps at least one triple as a head.

    Args:
      triples: int32 [T, 3].
      count: how many at most.
      seed: which.
    """
    order = np.random.default_rng(seed).permutation(len(triples))
    _, first = np.unique(triples[order, 0], return_index=True)  # one triple of each head stays
    spare = np.setdiff1d(np.arange(len(order)), first)
    held_out = order[np.sort(spare)[:count]]
    return held_out, np.setdiff1d(np.arange(len(triples)), held_out)


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
