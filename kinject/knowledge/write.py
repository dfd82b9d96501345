"""Writing a knowledge base folder: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import marisa_trie
import numpy as np

from kinject.errors import InputError
from kinject.integrity import write_seal
from kinject.knowledge import manifest as layout
from kinject.knowledge.files import save_trie
from kinject.knowledge.space import describe_space, write_space
from kinject.knowledge.triples import check_triples
from kinject.knowledge.vectors import Vectors

if TYPE_CHECKING:
    import pyarrow

_ENTITY_BATCH = 65_536  # rows of a record batch of entities.arrow: small enough to build without a second copy


class Entries(NamedTuple):
    """What a knowledge base is made of besides its vectors; the fields are those of `write_knowledge`."""

    ids: Sequence[str]
    labels: Sequence[str] | None = None
    aliases: Sequence[Sequence[str]] | None = None
    descriptions: Sequence[str] | None = None
    triples: np.ndarray | None = None
    relations: Sequence[str] | Mapping[str, str] | None = None


def write_knowledge(
    folder: str | os.PathLike[str],
    *,
    name: str,
    ids: Sequence[str],
    vectors: np.ndarray,
    has_vector: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    aliases: Sequence[Sequence[str]] | None = None,
    descriptions: Sequence[str] | None = None,
    triples: np.ndarray | None = None,
    relations: Sequence[str] | Mapping[str, str] | None = None,
    dtype: str | None = None,
    source: str = "",
    license: str = "",
    normalisation: str = "none",
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a knowledge base folder. The vectors are read block by block, so a memory map of any size will do.

    Args:
      folder: must not exist yet; appears only when everything is written.
      name: what the knowledge base is called in logs and manifests.
      ids: N distinct non-empty strings without line breaks; their order is the row order.
      vectors: floating [N, k], finite.
      has_vector: bool [N], False where an entity has no vector (stored as zeros, not found by `gather`); None = all do.
      labels: N strings; empty where there is none.
      aliases: N lists of strings.
      descriptions: N strings; empty where there is none.
      triples: integer [T, 3] of (head row, relation index, tail row).
      relations: relation ids in index order, or a mapping of relation id to label in that order.
      dtype: "float32" or "float16" of the stored table; None keeps float16 and makes everything else float32.
      source: where the knowledge is from.
      license: on what terms it may be used.
      normalisation: what was done to the vectors, in words ("none", "centred, divided by the global std").
      metrics: figures of merit of the vectors, such as a filtered MRR.
      provenance: of which files and how the vectors were made; JSON values.

    Raises:
      InputError: the folder exists, counts differ, an id is doubled or unusable, a vector is not finite, a triple
        points outside. Nothing is left behind.
    """
    entries = Entries(ids, labels, aliases, descriptions, triples, relations)
    given = Vectors(vectors, has_vector, normalisation, metrics or {}, provenance)
    return write_entries(folder, entries, given, name=name, dtype=dtype, source=source, license=license)


def write_entries(
    folder: str | os.PathLike[str],
    entries: Entries,
    vectors: Vectors,
    *,
    name: str,
    dtype: str | None = None,
    source: str = "",
    license: str = "",
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a knowledge base folder; `write_knowledge` says what each argument may be, and what is raised.

    `more` are further fields of the manifest.
    """
    folder = Path(folder)
    layout.refuse_existing(folder)
    about: dict[str, Any] = {"name": name, "source": source, "license": license, "normalisation": vectors.normalisation}
    entries, vectors, dtype = _check(folder, name, entries, vectors, dtype)
    noted = {} if vectors.provenance is None else {"provenance": dict(vectors.provenance)}
    with _whole(folder) as draft:
        about |= {"metrics": dict(vectors.metrics), **noted, **(more or {})}
        _write(draft, folder, entries, vectors, dtype, about)
        write_seal(draft, layout.OUTSIDE)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Yields a sibling to write in, which becomes the folder if all goes well and vanishes if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    draft.mkdir()
    try:
        yield draft
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write(draft: Path, folder: Path, entries: Entries, vectors: Vectors, dtype: str, about: dict[str, Any]) -> None:
    """Writes checked content; the manifest last."""
    _write_ids(draft, folder, entries.ids)
    fingerprint = _write_vectors(draft, folder, entries.ids, vectors, dtype)
    if not (entries.labels is entries.aliases is entries.descriptions is None):
        _write_entities(draft, folder, entries)
    if entries.triples is not None:
        np.save(draft / layout.TRIPLES, entries.triples)
        relations = _relation_names(folder, entries.relations)
        listed = [{"id": one, "label": label} for one, label in relations.items()]
        (draft / layout.RELATIONS).write_text(json.dumps(listed, ensure_ascii=False, indent=0), encoding="utf-8")
    space = {}
    if vectors.parts:
        write_space(draft, vectors.parts)
        space = {"space": describe_space(vectors.parts)}
    fields = {
        "count": len(entries.ids),
        "dim": int(vectors.values.shape[1]),
        "dtype": dtype,
        "fingerprint": fingerprint,
        "has_vector": layout.HAS_VECTOR if vectors.present is not None else None,
    }
    layout.write_knowledge_manifest(draft, {**space, **about, **fields})


def _check(
    folder: Path, name: str, entries: Entries, vectors: Vectors, dtype: str | None
) -> tuple[Entries, Vectors, str]:
    """Checks what can be checked without reading a vector; settles the dtypes."""
    ids, values = entries.ids, vectors.values
    if not name.strip():
        raise InputError(folder, "field 'name' is empty", "give the knowledge base a name")
    if len(values.shape) != 2 or values.shape[1] == 0:
        raise InputError(folder, f"field 'vectors' has shape {tuple(values.shape)}, not [entities, dimensions]")
    if len(ids) == 0:
        raise InputError(folder, "field 'ids' is empty", "a knowledge base holds at least one entity")
    columns = {"vectors": values, "has_vector": vectors.present, "labels": entries.labels, "aliases": entries.aliases}
    for field, column in {**columns, "descriptions": entries.descriptions}.items():
        if column is not None and len(column) != len(ids):
            raise InputError(folder, f"{len(ids)} ids but {len(column)} {field}", "give one of each for every entity")
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(folder, f"field 'vectors' is {values.dtype}, not floating", "convert it to float32")
    dtype = dtype or ("float16" if values.dtype == np.float16 else "float32")
    if dtype not in layout.DTYPES:
        raise InputError(folder, f"field 'dtype' is {dtype!r}", f"choose {' or '.join(layout.DTYPES)}")
    if (entries.triples is None) != (entries.relations is None):
        raise InputError(folder, "triples and relations come together", "give both, or neither")
    relations = _relation_names(folder, entries.relations)
    if entries.triples is not None:
        entries = entries._replace(triples=check_triples(folder, entries.triples, len(ids), len(relations)))
    if vectors.present is not None:
        vectors = vectors._replace(present=np.ascontiguousarray(vectors.present, dtype=bool))
    return entries, vectors, dtype


def _relation_names(folder: Path, relations: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if isinstance(relations, Mapping):
        return dict(relations)
    names = dict.fromkeys(relations or (), "")
    if relations is not None and len(names) != len(relations):
        doubled = next(one for one in names if list(relations).count(one) > 1)
        raise InputError(folder, f"field 'relations' names {doubled!r} twice", "give every relation its own id")
    return names


def _write_ids(draft: Path, folder: Path, ids: Sequence[str]) -> None:
    """Writes the trie, and the permutations between its keys and the rows."""
    for row, one in enumerate(ids):
        if not isinstance(one, str) or not one or "\n" in one or "\0" in one:
            raise InputError(folder, f"id {one!r} of row {row} is unusable", "ids are non-empty one-line strings")
    try:
        trie = marisa_trie.Trie(ids)
    except UnicodeEncodeError as error:
        raise InputError(folder, f"an id is not valid Unicode: {error}", "mend the encoding of the ids") from None
    key_of_row = np.fromiter(map(trie.key_id, ids), np.int32, count=len(ids))
    if len(trie) != len(ids):
        first = np.full(len(trie), len(ids), np.int64)
        np.minimum.at(first, key_of_row, np.arange(len(ids)))
        row = int(np.flatnonzero(first[key_of_row] != np.arange(len(ids)))[0])
        problem = f"id {ids[row]!r} stands twice, in rows {first[key_of_row[row]]} and {row}"
        raise InputError(folder, problem, "give every entity its own id")
    row_of_key = np.empty_like(key_of_row)
    row_of_key[key_of_row] = np.arange(len(ids), dtype=np.int32)
    save_trie(trie, draft / layout.TRIE)
    np.save(draft / layout.KEY_OF_ROW, key_of_row)
    np.save(draft / layout.ROW_OF_KEY, row_of_key)


def _write_vectors(draft: Path, folder: Path, ids: Sequence[str], vectors: Vectors, dtype: str) -> str:
    """Writes the table block by block; returns the fingerprint."""
    has_vector = vectors.present
    count, dim = vectors.values.shape
    fingerprint = layout.Fingerprint(count, dim, dtype)
    header = {"descr": layout.DTYPES[dtype], "fortran_order": False, "shape": (count, dim)}
    with (draft / layout.VECTORS).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in layout.blocks(count, dim * 4):
            block = np.asarray(vectors.values[rows])
            if has_vector is not None:
                block = np.where(has_vector[rows, None], block, 0)
            with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is refused by name just below
                block = np.ascontiguousarray(block, dtype=layout.DTYPES[dtype])
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(bad):
                row = rows.start + int(bad[0])
                problem = f"the vector of row {row} (id {ids[row]!r}) is not finite as {dtype}"
                raise InputError(folder, problem, "mend it, or mark the row in has_vector as without one")
            fingerprint.add_vectors(block)
            file.write(block.data)
    fingerprint.add_presence(has_vector)
    if has_vector is not None:
        np.save(draft / layout.HAS_VECTOR, has_vector)
    for rows in layout.blocks(count, 64):
        fingerprint.add_ids(ids[rows])
    return fingerprint.hexdigest()


def entity_schema() -> pyarrow.Schema:
    """The columns of `entities.arrow`."""
    import pyarrow as pa

    words = [(name, pa.large_string()) for name in ("id", "label", "description")]
    return pa.schema([*words, ("aliases", pa.large_list(pa.large_string()))])


def _write_entities(draft: Path, folder: Path, entries: Entries) -> None:
    """Writes names and descriptions, a record batch at a time."""
    ids, labels, aliases, descriptions, *_ = entries
    import pyarrow as pa

    schema = entity_schema()
    with pa.OSFile(str(draft / layout.ENTITIES), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(ids), _ENTITY_BATCH):
            rows = slice(start, min(start + _ENTITY_BATCH, len(ids)))
            empty = [""] * (rows.stop - rows.start)
            columns = [
                ids[rows],
                empty if labels is None else labels[rows],
                empty if descriptions is None else descriptions[rows],
                [[]] * len(empty) if aliases is None else [list(some) for some in aliases[rows]],
            ]
            try:
                arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
            except (pa.ArrowException, TypeError) as error:
                problem = f"labels, descriptions or aliases of rows {rows.start} to {rows.stop - 1}: {error}"
                raise InputError(folder, problem, "give strings, and lists of strings for the aliases") from None
            writer.write_batch(pa.record_batch(arrays, schema=schema))
