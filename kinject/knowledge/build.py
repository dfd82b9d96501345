"""The one way in which a knowledge base is built: entities with their names, triples, and vectors, put in a folder.

    files ── importers/, triples.py ──┐
    a domain of data/sources ─────────┴─> Entries (ids, names, triples) ─┐
    given vectors ────────────────────┐                                  ├─> write_entries
    graph_vectors(triples) ───────────┼─> Vectors ───────────────────────┘
    description_vectors(descriptions) ┘

`build_knowledge` reads a user's files and chooses where the vectors come from; the stages, which train a graph by the
settings of a config, bring `Entries` and `Vectors`. `write_knowledge`, which importers and users call with arrays, is
`write_entries` with its arguments one by one.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.commonsense import READERS, Filter, TriplesFormat, label_of, relation_label
from kinject.knowledge.described import Cut
from kinject.knowledge.files import map_array
from kinject.knowledge.importers import import_knowledge
from kinject.knowledge.importers.table import EntityTable
from kinject.knowledge.manifest import refuse_existing
from kinject.knowledge.triples import TripleCollector, Unknown
from kinject.knowledge.vectors import Picked, Vectors, description_vectors, graph_vectors, side_by_side
from kinject.knowledge.write import Entries, write_entries

Make = Literal["auto", "triples", "descriptions", "both", "nothing"]
# a small graph is trained in smaller batches and more epochs, so that it sees enough steps
LEAST_STEPS, LEAST_BATCH, BATCHES = 1000, 64, 8
Progress = Callable[[int, int, float], None]  # epoch, epochs, loss


@dataclass(frozen=True)
class Making:
    """How vectors are made where none are given.

    Attributes:
      of: "triples" (graph embedding), "descriptions" (TF-IDF and truncated SVD, no model), "both" (side by side; zeros
        in the half that an entity lacks), "auto": triples where there are any, else descriptions, "nothing": no entity
        has a vector, for a base that is read as facts.
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
      triples_format: whose file `triples` is; see kinject.knowledge.commonsense.
      keep: which of its triples are read.
      table: which columns of a table of the user's own `entities` was made of; noted, so that the base can grow by such
        tables.
    """

    entities: Path | None = None
    triples: Path | None = None
    vectors: Mapping[str, Path] = field(default_factory=dict)
    vectors_format: str | None = None
    columns: Mapping[str, str] | None = None
    separator: str = "|"
    unknown: Unknown = "refuse"
    triples_format: TriplesFormat = "tsv"
    keep: Filter = field(default_factory=Filter)
    table: Mapping[str, Any] | None = None


def build_knowledge(
    folder: str | os.PathLike[str],
    given: Given | str | os.PathLike[str],
    making: Making | None = None,
    *,
    progress: Progress | None = None,
    **about: Any,
) -> Path:
    """Builds a knowledge base folder.

    Args:
      folder: must not exist yet; appears only when everything is written.
      given: what there is, or the path of a table of entities.
      making: how vectors are made, where `given` has none.
      progress: called while a graph is trained, with the epoch, how many there will be, and its mean loss.
      about: name (the folder's by default), source, license, dtype, as in `write_knowledge`.

    Raises:
      InputError: naming file, line and field of what is wrong; nothing is left behind.
    """
    folder, making = Path(folder), making or Making()
    given = given if isinstance(given, Given) else Given(entities=Path(given))
    refuse_existing(folder)
    about = {"name": folder.name, **about}
    if given.entities is None and given.triples is None:
        return _only_vectors(folder, given, about)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        table = None
        if given.entities is not None:
            table = stack.enter_context(EntityTable(given.entities, folder, given.columns, given.separator))
            if not table.row_of:
                mend = "the first line of a CSV names its columns, id among them"
                raise InputError(given.entities, "holds no entity", mend)
        collected = _collect(given, table)
        vectors = _given_vectors(stack, folder, given, table, collected)
        if vectors is None:
            vectors = _made_vectors(stack, folder, making, table, collected, progress)
        note = {"files": _names(given), "triples_skipped": collected.skipped, **(vectors.provenance or {})}
        if given.table is not None:
            note["table"] = dict(given.table)
        if given.triples_format != "tsv":
            note |= {
                "triples_format": given.triples_format,
                "left_out": dict(collected.left_out),
                **given.keep._asdict(),
            }
        entries = _entries(table, collected, worded=given.triples_format != "tsv")
        return write_entries(folder, entries, vectors._replace(provenance=note), **about)


def _entries(table: EntityTable | None, collected: TripleCollector, worded: bool) -> Entries:
    """Entities and triples; an entity that only triples name has its id as its label, or (`worded`) what that says."""
    ids = list(collected.row_of)
    entries = Entries(ids, labels=[label_of(one) for one in ids] if worded else ids)
    if table is not None:
        entries = Entries(ids, table.words("label"), table.words("aliases"), table.words("description"))
    if collected.relations:
        names = {one: relation_label(one) if worded else "" for one in collected.relations}
        relations: Any = names if worded else list(names)
        entries = entries._replace(triples=collected.array(), relations=relations)
    return entries


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


def _collect(given: Given, table: EntityTable | None) -> TripleCollector:
    """All triples there are; without a table their heads and tails are the entities."""
    collected = TripleCollector({} if table is None else table.row_of, "add" if table is None else given.unknown)
    if table is not None and table.has_triples:
        for triple in table.triples():
            collected.add(*triple)
    if given.triples is not None and given.triples_format == "tsv":
        collected.read(given.triples)
    elif given.triples is not None:
        for triple in READERS[given.triples_format](given.triples, given.keep, collected.left_out):
            collected.add(*triple)
        if not collected.relations:
            raise InputError(given.triples, "holds no triple that is kept", "lower --least-weight, or check the file")
    return collected


def _given_vectors(
    stack: ExitStack, folder: Path, given: Given, table: EntityTable | None, collected: TripleCollector
) -> Vectors | None:
    """The vectors of files, or of the table's column; None where neither is given."""
    in_table = table is not None and table.has_vectors
    if given.vectors:
        if in_table:
            raise InputError(str(given.entities), "has vectors although --vectors is given", "give one of the two")
        return _imported(stack, folder, given, collected)
    if table is None or not in_table:
        return None
    values, present = table.vectors()
    rows = np.full(len(collected.row_of), -1)
    rows[: len(values)] = np.arange(len(values))
    there = rows >= 0
    if present is not None:
        there[: len(values)] = present
    note = {"vectors": "the vector column of the entities"}
    return Vectors(Picked(values, rows), there, provenance=note)


def _arguments(given: Given) -> dict[str, Path]:
    """The importer's arguments that name files."""
    usual = (
        "entities" if given.vectors_format == "table" else "folder" if given.vectors_format == "pykeen" else "vectors"
    )
    return {name or usual: path for name, path in given.vectors.items()}


def _imported(stack: ExitStack, folder: Path, given: Given, collected: TripleCollector) -> Vectors:
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
        return Vectors(values, provenance={"vectors": f"{path.name}, in the order of the entities"})
    spool = folder.with_name(f".{folder.name}.imported-{os.getpid()}")
    stack.callback(shutil.rmtree, spool, ignore_errors=True)
    base = KnowledgeBase.open(import_knowledge(given.vectors_format, spool, **_arguments(given)))
    rows = base.rows(ids)
    present = (rows >= 0) if base.has_vector is None else (rows >= 0) & base.has_vector[rows]
    if not present.any():
        problem = f"none of its ids, such as {base.ids([0])[0]!r}, is one of the entities', such as {ids[0]!r}"
        raise InputError(listed, problem, "take vectors that belong to these entities")
    note = {"vectors": f"imported: {given.vectors_format}", "vectors_in_file": base.size}
    said = base.manifest
    return Vectors(Picked(base.vectors, rows), present, said["normalisation"], said["metrics"], note)


def _made_vectors(
    stack: ExitStack,
    folder: Path,
    making: Making,
    table: EntityTable | None,
    collected: TripleCollector,
    progress: Progress | None,
) -> Vectors:
    """Vectors out of triples, descriptions, or both: the graph's first, then the descriptions'."""
    of = making.of
    if of == "auto":
        of = "triples" if collected.relations else "descriptions"
    if of == "nothing":
        count = len(collected.row_of)
        return Vectors(np.zeros((count, 1), np.float32), np.zeros(count, bool), provenance={"vectors": "none"})
    if of != "descriptions" and not collected.relations:
        raise InputError("--vectors-from", "there are no triples", "give --triples, or a column of triples")
    parts: list[Vectors] = []
    if of != "triples":
        if table is None:
            raise InputError("--vectors-from", "there are no descriptions", "give --entities with descriptions")
        spool = folder.with_name(f".{folder.name}.described-{os.getpid()}")
        stack.callback(spool.unlink, missing_ok=True)
        where, texts = table.path, table.words("description")
        parts.append(description_vectors(texts, making.dim, spool, seed=making.seed, cut=making.cut, where=where))
    if of != "descriptions":
        parts.insert(0, _of_triples(making, collected, progress))
    made = side_by_side(parts) if len(parts) > 1 else parts[0]
    source = f"made of {'triples and descriptions' if of == 'both' else of}"
    return made._replace(provenance={"vectors": source, **(made.provenance or {}), "seed": making.seed})


def _of_triples(making: Making, collected: TripleCollector, progress: Progress | None) -> Vectors:
    from kinject.knowledge.graph import GraphConfig  # JAX

    triples = collected.array()
    batch = min(GraphConfig.batch, max(LEAST_BATCH, len(triples) // BATCHES))
    epochs = making.epochs or max(GraphConfig.epochs, math.ceil(LEAST_STEPS / math.ceil(len(triples) / batch)))
    config = GraphConfig(method=making.method, dim=making.dim, epochs=epochs, batch=batch)
    report = None if progress is None else lambda done, loss: progress(done, epochs, loss)
    sizes = len(collected.row_of), len(collected.relations)
    made = graph_vectors(triples, *sizes, config, seed=making.seed, held_out=making.held_out, progress=report)
    note = {"method": config.method, "dim": config.dim, "epochs": epochs, "batch": batch, "triples": len(triples)}
    return made._replace(provenance={"graph": note})
