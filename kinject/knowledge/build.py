"""A knowledge base out of what a user has: entities, triples, vectors; vectors are made where none are given."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.description_vectors import Cut, embed_descriptions
from kinject.knowledge.entity_file import EntityFile
from kinject.knowledge.files import map_array
from kinject.knowledge.importers import import_knowledge
from kinject.knowledge.manifest import refuse_existing
from kinject.knowledge.row_views import Beside, Picked
from kinject.knowledge.triples import TripleCollector, Unknown
from kinject.knowledge.write import write_knowledge

Make = Literal["auto", "triples", "descriptions", "both"]
# a small graph is trained in smaller batches and more epochs, so that it sees enough steps
LEAST_STEPS, LEAST_BATCH, BATCHES = 1000, 64, 8
Progress = Callable[[int, int, float], None]  # epoch, epochs, loss


@dataclass(frozen=True)
class Making:
    """How vectors are made where none are given.

    Attributes:
      of: "triples" (graph embedding), "descriptions" (TF-IDF and truncated SVD, no model), "both" (side by side; zeros
        in the half that an entity lacks), "auto": triples where there are any, else descriptions.
      dim: numbers of each.
      method: of the graph: transe, rotate or distmult.
      epochs: passes over the triples; None: 50, and more until there are `LEAST_STEPS` steps.
      held_out: triples that are left out of the training and ranked, to tell how well the graph was learned.
      seed: of all of it.
      cut: cuts descriptions into words; None: runs of letters and digits.
    """

    of: Make = "auto"
    dim: int = 64
    method: str = "transe"
    epochs: int | None = None
    held_out: int = 0
    seed: int = 0
    cut: Cut | None = None


@dataclass(frozen=True)
class Given:
    """What the user has; paths.

    Attributes:
      entities: .csv, .tsv or .jsonl with id, label, aliases, description, vector, triples.
      triples: TSV of head, relation, tail.
      vectors: files of vectors by the argument of their importer; {"": file} for the only one of a format.
      vectors_format: see kinject.knowledge.importers; None: a .npy in the order of the entities.
      columns: what the columns of `entities` are called in the file, by the names above.
      separator: between the aliases, and the triples, of a CSV or TSV.
      unknown: what becomes of a triple whose head or tail is no entity.
    """

    entities: Path | None = None
    triples: Path | None = None
    vectors: Mapping[str, Path] = field(default_factory=dict)
    vectors_format: str | None = None
    columns: Mapping[str, str] | None = None
    separator: str = "|"
    unknown: Unknown = "refuse"


class _Vectors(NamedTuple):
    """Vectors [N, k] that can be read in slices, which entities have one, and what is to be noted of them."""

    values: Any
    present: np.ndarray | None
    normalisation: str
    provenance: dict[str, Any]
    metrics: dict[str, float]


def build_knowledge(
    folder: str | os.PathLike[str],
    given: Given,
    making: Making | None = None,
    *,
    progress: Progress | None = None,
    **about: Any,
) -> Path:
    """Builds a knowledge base folder.

    Args:
      folder: must not exist yet; appears only when everything is written.
      given: what there is.
      making: how vectors are made, where `given` has none.
      progress: called while a graph is trained, with the epoch, how many there will be, and its mean loss.
      about: name (the folder's by default), source, license, dtype, as in `write_knowledge`.

    Raises:
      InputError: naming file, line and field of what is wrong; nothing is left behind.
    """
    folder, making = Path(folder), making or Making()
    refuse_existing(folder)
    about = {"name": folder.name, **about}
    if given.entities is None and given.triples is None:
        return _only_vectors(folder, given, about)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        table = None
        if given.entities is not None:
            table = stack.enter_context(EntityFile(given.entities, folder, given.columns, given.separator))
        collected = _collect(given, table)
        ids = list(collected.row_of)
        triples = collected.array() if collected.relations else None
        vectors = _vectors(stack, folder, given, making, table, collected, progress)
        words = {"labels": ids}
        if table is not None:
            words = {"labels": table.words("label"), "aliases": table.words("aliases")}
            words["descriptions"] = table.words("description")
        return write_knowledge(
            folder,
            ids=ids,
            vectors=vectors.values,
            has_vector=vectors.present,
            triples=triples,
            relations=None if triples is None else list(collected.relations),
            normalisation=vectors.normalisation,
            metrics=vectors.metrics,
            provenance={"files": _names(given), "triples_skipped": collected.skipped, **vectors.provenance},
            **words,
            **about,
        )


def _names(given: Given) -> dict[str, Any]:
    """The names of the files that a knowledge base was built of."""
    files = {
        "entities": given.entities,
        "triples": given.triples,
        **{f"vectors {n}".strip(): p for n, p in given.vectors.items()},
    }
    return {name: Path(path).name for name, path in files.items() if path is not None}


def _only_vectors(folder: Path, given: Given, about: dict[str, Any]) -> Path:
    if not given.vectors:
        raise InputError("knowledge build", "there is nothing to build of", "give --entities, --triples or --vectors")
    if given.vectors_format is None:
        raise InputError("knowledge build", "vectors alone need --vectors-format", "or give --entities beside them")
    return import_knowledge(given.vectors_format, folder, **_arguments(given), **about)


def _collect(given: Given, table: EntityFile | None) -> TripleCollector:
    """All triples there are; without a table their heads and tails are the entities."""
    collected = TripleCollector({} if table is None else table.row_of, "add" if table is None else given.unknown)
    if table is not None and table.has_triples:
        for triple in table.triples():
            collected.add(*triple)
    if given.triples is not None:
        collected.read(given.triples)
    return collected


def _vectors(
    stack: ExitStack,
    folder: Path,
    given: Given,
    making: Making,
    table: EntityFile | None,
    collected: TripleCollector,
    progress: Progress | None,
) -> _Vectors:
    """The vectors that are given, or those that are made."""
    count = len(collected.row_of)
    column = None if table is None else table.vectors()
    if given.vectors:
        if column is not None:
            raise InputError(given.entities, "has vectors although --vectors is given", "give one of the two")
        return _imported(stack, folder, given, collected)
    if column is not None:
        values, present = column
        rows = np.concatenate([np.arange(len(values)), np.full(count - len(values), -1)])
        there = np.concatenate([np.ones(len(values), bool) if present is None else present, rows[len(values) :] >= 0])
        return _Vectors(Picked(values, rows), there, "none", {"vectors": "the vector column of the entities"}, {})
    return _made(stack, folder, given, making, table, collected, progress)


def _arguments(given: Given) -> dict[str, Path]:
    """The importer's arguments that name files."""
    usual = (
        "entities" if given.vectors_format == "table" else "folder" if given.vectors_format == "pykeen" else "vectors"
    )
    return {name or usual: path for name, path in given.vectors.items()}


def _imported(stack: ExitStack, folder: Path, given: Given, collected: TripleCollector) -> _Vectors:
    """Vectors out of somebody's files, by the entities' ids; out of a plain .npy in their order."""
    ids = list(collected.row_of)
    listed = ", ".join(str(path) for path in given.vectors.values())
    if given.vectors_format is None:
        path = next(iter(given.vectors.values()))
        if len(given.vectors) > 1 or path.suffix != ".npy":
            raise InputError(listed, "is no single .npy file", "name its --vectors-format, such as word2vec")
        values = map_array(path)
        if len(values) != len(ids):
            problem = f"has {len(values)} vectors, there are {len(ids)} entities"
            raise InputError(path, problem, "without a --vectors-format they are in the order of the entities")
        return _Vectors(values, None, "none", {"vectors": f"{path.name}, in the order of the entities"}, {})
    spool = folder.with_name(f".{folder.name}.imported-{os.getpid()}")
    stack.callback(shutil.rmtree, spool, ignore_errors=True)
    base = KnowledgeBase.open(import_knowledge(given.vectors_format, spool, **_arguments(given)))
    rows = base.rows(ids)
    present = (rows >= 0) if base.has_vector is None else (rows >= 0) & base.has_vector[rows]
    if not present.any():
        problem = f"none of its ids, such as {base.ids([0])[0]!r}, is one of the entities', such as {ids[0]!r}"
        raise InputError(listed, problem, "take vectors that belong to these entities")
    note = {"vectors": f"imported: {given.vectors_format}", "vectors_in_file": base.size}
    return _Vectors(Picked(base.vectors, rows), present, base.manifest["normalisation"], note, base.manifest["metrics"])


def _made(
    stack: ExitStack,
    folder: Path,
    given: Given,
    making: Making,
    table: EntityFile | None,
    collected: TripleCollector,
    progress: Progress | None,
) -> _Vectors:
    """Vectors out of triples, descriptions, or both."""
    of = making.of
    if of == "auto":
        of = "triples" if collected.relations else "descriptions"
    if of != "descriptions" and not collected.relations:
        raise InputError("--vectors-from", "there are no triples", "give --triples, or a column of triples")
    if of != "triples" and table is None:
        raise InputError("--vectors-from", "there are no descriptions", "give --entities with descriptions")
    parts: list[tuple[Any, np.ndarray]] = []
    note, metrics = {}, {}
    if of != "triples":
        spool = folder.with_name(f".{folder.name}.described-{os.getpid()}")
        stack.callback(spool.unlink, missing_ok=True)
        texts = table.words("description")
        made = embed_descriptions(texts, making.dim, spool, seed=making.seed, cut=making.cut, where=given.entities)
        parts.append((made.vectors, made.present))
        kind = "TF-IDF and truncated SVD (scikit-learn) of the descriptions"
        note["descriptions"] = f"{kind}, {made.vectors.shape[1]} components"
        note["descriptions_words"] = "the pieces of a host's tokenizer" if making.cut else "runs of letters and digits"
        metrics["descriptions_variance_kept"] = round(made.kept, 4)
    if of != "descriptions":
        part, note["graph"], ranked = _of_triples(making, collected, progress)
        parts.insert(0, part)
        metrics |= ranked
    (values, present) = parts[0]
    if len(parts) > 1:
        values = Beside([one for one, _ in parts], [there for _, there in parts])
        present = parts[0][1] | parts[1][1]
    provenance = {
        "vectors": f"made of {'triples and descriptions' if of == 'both' else of}",
        **note,
        "seed": making.seed,
    }
    normalisation = "centred, divided by the standard deviation of all numbers"
    return _Vectors(values, present, normalisation, provenance, metrics)


def _of_triples(
    making: Making, collected: TripleCollector, progress: Progress | None
) -> tuple[Any, dict[str, Any], Any]:
    """(vectors and which are there), how they were made, metrics."""
    from kinject.knowledge.graph import GraphConfig  # JAX
    from kinject.knowledge.graph_vectors import embed_triples

    triples = collected.array()
    batch = min(GraphConfig.batch, max(LEAST_BATCH, len(triples) // BATCHES))
    epochs = making.epochs or max(GraphConfig.epochs, math.ceil(LEAST_STEPS / math.ceil(len(triples) / batch)))
    config = GraphConfig(method=making.method, dim=making.dim, epochs=epochs, batch=batch)
    report = None if progress is None else lambda done, loss: progress(done, epochs, loss)
    sizes = len(collected.row_of), len(collected.relations)
    made = embed_triples(triples, *sizes, config, seed=making.seed, held_out=making.held_out, progress=report)
    note = {"method": config.method, "dim": config.dim, "epochs": epochs, "batch": batch, "triples": len(triples)}
    return (made.vectors, made.seen), note, made.metrics
