"""Stages that make the knowledge base `<stage>/knowledge/` (see docs/formats.md): of a domain, of triples, of vectors.

`knowledge`: a domain's triples become a knowledge base, and where the source asks questions, these become
`<stage>/records/<split>.jsonl`.

`triples`: a file of triples, and one of labels, become a knowledge base. With labels and descriptions,
`<stage>/records/described.jsonl` holds the entities that have a vector and a description: what general map-tuning by
description matching trains on.

`import_knowledge`: somebody's files of entity vectors become a knowledge base.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from kinject.config import build_dataclass
from kinject.data.sources import load
from kinject.data.sources.domain import Domain
from kinject.data.sources.kinds import one_piece
from kinject.data.sources.withheld import withhold
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError, did_you_mean
from kinject.json_file import read_object
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.graph import GraphConfig
from kinject.knowledge.importers import IMPORTERS, import_knowledge
from kinject.knowledge.triples import read_triples
from kinject.knowledge.vectors import Vectors, graph_vectors
from kinject.knowledge.write import Entries, write_entries
from kinject.stages.base import AnyConfig, Stage, StageConfig


class GraphStage(Stage[AnyConfig]):
    """A stage that trains vectors on triples; its settings have `graph` and `held_out`."""

    def write(
        self, named: Entries, triples: np.ndarray, relations: Sequence[str] | Mapping[str, str], **about: Any
    ) -> tuple[KnowledgeBase, Vectors]:
        """Embeds the graph of some entities and writes `<stage>/knowledge/`; returns it, and its vectors."""
        config: Any = self.config
        graph = build_dataclass(GraphConfig, config.graph, f"{self.where}.graph")
        with self.run.reporter.bar(f"{self.name}: graph embedding", graph.epochs) as update:
            vectors = graph_vectors(
                triples,
                len(named.ids),
                len(relations),
                graph,
                seed=self.run.seed_of(self.name),
                held_out=config.held_out,
                progress=lambda done, loss: update(done, loss=loss),
            )
        entries = named._replace(triples=triples, relations=relations)
        written = write_entries(self.run.folder(self.name) / "knowledge", entries, vectors, **about)
        return KnowledgeBase.open(written), vectors


class KnowledgeConfig(StageConfig):
    """Which domain, and how its graph is embedded.

    `source` names one of kinject.data.sources; `options` go to it. `held_out` triples are left out of the graph's
    training and ranked afterwards (filtered MRR and Hits@10). `tokenizer_of` is the host folder whose vocabulary the
    questions must suit. For each split in `described`, `records/described_<split>.jsonl` holds its entities with their
    descriptions: training data without task labels. `withheld` says how many entities of the split `test` are kept
    out of the graph; `withheld.jsonl` has them, with what is known of them.
    """

    kind: Literal["knowledge"] = "knowledge"
    source: str
    tokenizer_of: str
    options: dict[str, Any] = {}
    graph: dict[str, Any] = {}
    held_out: int = Field(200, ge=0)
    described: tuple[str, ...] = ()
    withheld: int = Field(0, ge=0)


class KnowledgeStage(GraphStage[KnowledgeConfig]):
    """Builds one domain."""

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        tokenizer = load_tokenizer(self.run.path(config.tokenizer_of, f"{self.where}.tokenizer_of"))

        def pieces(text: str) -> Sequence[str]:
            return tokenizer.backend.encode(text, add_special_tokens=False).tokens

        every = load(config.source, pieces, **{"seed": self.run.seed, **config.options})
        domain = self._without_withheld(every)
        named = Entries(domain.ids, domain.labels, domain.aliases, domain.descriptions)
        about = {"name": domain.name, "source": domain.source, "license": domain.license}
        base, vectors = self.write(named, domain.triples, list(domain.relations), **about)
        every.write_questions(folder / "records")
        for split in config.described:
            described = ((one.entity, one.name) for one in every.splits[split])
            found = ((every.ids[row], name, every.descriptions[row]) for row, name in described)
            write_described(folder / "records" / f"described_{split}.jsonl", found)
        ranked = [f"{name} {vectors.metrics[name]:.3f}" for name in ("mrr", "hits@10") if name in vectors.metrics]
        self.run.reporter.say(
            f"{self.name}: {base.size:,} entities, {len(domain.triples):,} triples, {base.dim} numbers a vector; "
            f"held-out triples: {', '.join(ranked) or 'none'}"
        )
        questions = {split: len(asked) for split, asked in every.splits.items()}
        facts = {"entities": base.size, "triples": len(domain.triples), "dim": base.dim}
        shares = one_piece(every.splits.get("choices", ()), pieces)
        return {**facts, "questions": questions, **({"one_piece": shares} if shares else {}), **vectors.metrics}

    def _without_withheld(self, domain: Domain) -> Domain:
        """The domain's graph without the entities that are withheld, which it writes."""
        if not self.config.withheld:
            return domain
        domain, told = withhold(domain, "test", self.config.withheld, self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "withheld.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in told)
        return domain


def write_described(path: Path, entities: Iterable[tuple[str, str, str]]) -> int:
    """Writes (id, name, description) of entities as records `name` + `description`, an entity that is named several
    times once; returns how many have both.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for entity, name, description in dict.fromkeys(entities):
            if name and description:
                mention = {"start": 0, "end": len(name), "entity": entity}
                record = {"text": name, "mentions": [mention], "description": description}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    return count


class TriplesConfig(StageConfig):
    """Which files, and how the graph is embedded.

    `triples` is a TSV of head, relation, tail. `labels` is a JSON object of objects with `label`, `description` and
    `alternatives` (all may be missing); an object's id is its `wikidata_id`, or else its key. `relation_labels` is one
    of the same form for relations. With `only`, no triples of other relations are read. `held_out` triples are left
    out of the training and ranked (filtered MRR and Hits@10).
    """

    kind: Literal["triples"] = "triples"
    triples: str
    labels: str | None = None
    relation_labels: str | None = None
    only: tuple[str, ...] = ()
    graph: dict[str, Any] = {}
    held_out: int = Field(200, ge=0)
    source: str = ""
    license: str = ""


class TriplesStage(GraphStage[TriplesConfig]):
    """Embeds a graph of the user's."""

    def check(self) -> None:
        super().check()
        self.run.check(self.config.triples, f"{self.where}.triples")
        for field in ("labels", "relation_labels"):
            if getattr(self.config, field) is not None:
                self.run.check(getattr(self.config, field), f"{self.where}.{field}")

    def execute(self) -> dict[str, Any]:
        config, folder = self.config, self.fresh_folder()
        ids, names, triples = self._read()
        words, relation_words = self._words("labels"), self._words("relation_labels")
        relations = {one: relation_words.get(one, Words()).label for one in names}
        said = [words.get(one, Words()) for one in ids]
        labels, descriptions = [one.label for one in said], [one.description for one in said]
        named = Entries(ids, labels, [one.aliases for one in said], descriptions)
        about = {"name": self.name, "source": config.source, "license": config.license}
        base, vectors = self.write(named, triples, relations, **about)
        (folder / "records").mkdir()
        rows = range(len(ids)) if vectors.present is None else np.flatnonzero(vectors.present).tolist()
        found = ((ids[row], labels[row], descriptions[row]) for row in rows)
        described = write_described(folder / "records" / "described.jsonl", found)
        self.run.reporter.say(f"{self.name}: {base.size:,} entities, {len(triples):,} triples, {described:,} described")
        facts = {"entities": base.size, "triples": len(triples), "dim": base.dim, "described": described}
        return {**facts, **vectors.metrics}

    def _read(self) -> tuple[list[str], list[str], np.ndarray]:
        """Ids of entities and of relations, and the triples int32 [T, 3], of the relations that are to be read."""
        path, only = self.run.path(self.config.triples, f"{self.where}.triples"), self.config.only
        ids, relations, triples = read_triples(path)
        unknown = next((one for one in only if one not in relations), None)
        if unknown is not None:
            raise InputError(
                f"{self.where}.only", f"{path} has no relation {unknown}", did_you_mean(unknown, relations)
            )
        if not only:
            return ids, relations, triples
        kept = triples[np.isin(triples[:, 1], [relations.index(one) for one in only])]
        rows, ends = np.unique(kept[:, [0, 2]], return_inverse=True)
        used, kinds = np.unique(kept[:, 1], return_inverse=True)
        heads, tails = ends.reshape(-1, 2).T
        numbered = np.stack([heads, kinds, tails], 1).astype(np.int32)
        return [ids[row] for row in rows], [relations[one] for one in used], numbered

    def _words(self, field: Literal["labels", "relation_labels"]) -> dict[str, Words]:
        """What a file says of entities or relations, by id; nothing where none is named."""
        reference = getattr(self.config, field)
        return {} if reference is None else read_words(self.run.path(reference, f"{self.where}.{field}"))


class Words(NamedTuple):
    """What is said of an entity besides its triples."""

    label: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()


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


class ImportKnowledgeStage(Stage[ImportKnowledgeConfig]):
    """Imports a knowledge base."""

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
