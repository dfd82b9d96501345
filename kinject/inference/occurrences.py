"""PELT's vectors: what the frozen host itself says where an entity's name is hidden, summed over a corpus.

Ye et al., ACL 2022, section 3 (see `kinject.plugins.pelt`). Each occurrence is a text in which one mention has become
one mask; the vector is the mean of what the masked-LM head makes of these masks before it scores the words.

The corpus is streamed twice: once to count each entity's occurrences, once to read a random share of them. Sums lie on
disk, memory-mapped. The second pass goes chunk by chunk; a chunk's rows are copied before they are changed and put back
where a run was interrupted, so that a run that goes on ends in the very bits of one that was never interrupted.
Memory grows with the number of entities (their ids), never with the corpus.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from kinject.data.encode import Encoded, EntityEncoder, Passage
from kinject.data.records import Record
from kinject.data.tokenizer import MASK_LITERAL
from kinject.datasets.records import is_dataset, read_datasets
from kinject.errors import InputError
from kinject.inference.host import HostBundle
from kinject.json_file import read_object, write_object
from kinject.knowledge.importers.table import EntityTable
from kinject.knowledge.manifest import refuse_existing
from kinject.knowledge.vectors import Vectors
from kinject.knowledge.write import Entries, write_entries
from kinject.models.heads import MaskedLMHead, read_hidden
from kinject.tasks.base import head_of

STEP = 16  # texts are padded to a multiple of so many positions: few programs, little padding
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reading:
    """Which occurrences are read, and how.

    Attributes:
      most: of an entity, drawn at random; the paper's.
      max_length: pieces of a text, special ones included; the farthest from the name go first.
      least: words of a text, or it is left out.
      seed: of the draw.
      batch_size: texts a forward pass.
      chunk: occurrences between two points at which an interrupted run goes on.
    """

    most: int = 256
    max_length: int = 64
    least: int = 8
    seed: int = 0
    batch_size: int = 64
    chunk: int = 2048

    def __post_init__(self) -> None:
        for name in ("most", "max_length", "batch_size", "chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}", f"is {getattr(self, name)}", "give 1 or more")


@dataclass(frozen=True)
class Corpus:
    """What the first pass finds.

    Attributes:
      ids: of the entities, in the order of the given ones, else of their first occurrence.
      names: as each was first called, "" where it never was.
      counts: int64 [N]: occurrences that may be read.
      records: texts of the corpus.
    """

    ids: list[str]
    names: list[str]
    counts: np.ndarray
    records: int


def count_occurrences(records: Iterator[Record], reading: Reading, known: Sequence[str] | None = None) -> Corpus:
    """Counts the occurrences of entities; with `known` of these only.

    Raises:
      InputError: a bad record, by file and line.
    """
    row_of = {one: row for row, one in enumerate(known or ())}
    names, counts = [""] * len(row_of), [0] * len(row_of)
    texts = 0
    for record in records:
        texts += 1
        if not _may_be_read(record, reading):
            continue
        for mention in record.mentions:
            if mention.entity is None or (known is not None and mention.entity not in row_of):
                continue
            row = row_of.setdefault(mention.entity, len(names))
            if row == len(names):
                names.append("")
                counts.append(0)
            counts[row] += 1
            names[row] = names[row] or _name(record, mention.start, mention.end)
    return Corpus(list(row_of), names, np.array(counts, np.int64), texts)


def occurrences(records: Iterator[Record], counted: Corpus, reading: Reading) -> Iterator[tuple[int, int, Passage]]:
    """Yields (number of the record, the entity's row, the text with a mask for its name) of the occurrences drawn.

    Of an entity's n occurrences `most` are drawn, every set of so many equally likely (Knuth, algorithm S).
    """
    row_of = {one: row for row, one in enumerate(counted.ids)}
    seen, taken = np.zeros((2, len(row_of)), np.int64)
    for number, record in enumerate(records):
        if not _may_be_read(record, reading):
            continue
        for mention in record.mentions:
            row = row_of.get(mention.entity or "", -1)
            if row < 0:
                continue
            left, still = counted.counts[row] - seen[row], reading.most - taken[row]
            drawn = _uniform(reading.seed, row, int(seen[row])) * left < still
            seen[row] += 1
            if drawn:
                taken[row] += 1
                yield number, row, Passage(_hidden(record, mention.start, mention.end), where=record.where)


class MaskReader:
    """Passages with one mask each -> what the host's masked-LM head makes of it: float32 [n, E].

    Args:
      host: with a masked-LM head.
      reading: lengths and sizes.

    Raises:
      InputError: another head; a length that the host does not have.
    """

    def __init__(self, host: HostBundle, reading: Reading):
        head = host.loaded.host.head
        if not isinstance(head, MaskedLMHead):
            raise InputError("--host", "it has no masked-LM head to read", "name a masked language model")
        self.encoder = EntityEncoder(host.tokenizer, min(reading.max_length, host.tokenizer.max_length))
        self.batch_size, self.dim = reading.batch_size, host.loaded.config.word_size
        graph, self._state = nnx.split(host.loaded.host)

        def run(state: Any, batch: dict[str, jax.Array]) -> jax.Array:
            model = nnx.merge(graph, state)
            return (
                head_of(model, MaskedLMHead)
                .hidden(read_hidden(model, batch, batch["positions"]))[:, 0]
                .astype(np.float32)
            )

        self._run = jax.jit(run)

    def __call__(self, passages: Sequence[Passage]) -> np.ndarray:
        encoded = self.encoder.encode_batch(passages)
        read = np.zeros((len(encoded), self.dim), np.float32)
        lengths = np.array([-(-len(one) // STEP) * STEP for one in encoded])
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            for low in range(0, len(rows), self.batch_size):
                some = rows[low : low + self.batch_size]
                read[some] = self._batch([encoded[i] for i in some], int(length))[: len(some)]
        return read

    def _batch(self, some: Sequence[Encoded], length: int) -> np.ndarray:
        full = [*some, *[some[0]] * (self.batch_size - len(some))]  # one program a length
        batch = self.encoder.pad(full, length, 0)
        batch["positions"] = np.stack([one.blanks[:1] for one in full])
        return np.asarray(self._run(self._state, batch))


class Sums:
    """Sums of vectors by entity, on disk, and how far they have come.

    A chunk is added whole: the rows that it touches are saved first, and put back when the folder is opened and the
    chunk was not counted as done.
    """

    def __init__(self, folder: Path, about: dict[str, Any], rows: int, dim: int):
        self.folder, path = folder, folder / "sums.f32"
        told = folder / "reading.json"
        if told.exists():
            if read_object(told) != about:
                problem = "it holds an unfinished run over another corpus, host or settings"
                raise InputError(folder, problem, "repeat that command, or remove the folder")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with path.open("wb") as file:
                file.truncate(rows * (dim * 4 + 8))
            self._write_done(0)
            write_object(told, about)
        self.values = np.memmap(path, np.float32, "r+", shape=(rows, dim))
        self.counts = np.memmap(path, np.int64, "r+", offset=rows * dim * 4, shape=(rows,))
        self.done = read_object(folder / "done.json")["chunks"]
        self._undo()

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Adds vectors float32 [n, E] to their rows int [n], in this order."""
        some, at = np.unique(rows, return_inverse=True)
        saved = self.folder / "undo.npz"
        draft = self.folder / "undo.draft.npz"
        np.savez(draft, chunk=self.done, rows=some, values=self.values[some], counts=self.counts[some])
        draft.replace(saved)
        values = self.values[some]
        np.add.at(values, at, vectors)
        self.values[some], self.counts[some] = values, self.counts[some] + np.bincount(at)
        self.values.flush()
        self._write_done(self.done + 1)
        self.done += 1
        saved.unlink()

    def _write_done(self, chunks: int) -> None:
        write_object(self.folder / "done.json", {"chunks": chunks})

    def _undo(self) -> None:
        saved = self.folder / "undo.npz"
        if not saved.exists():
            return
        with np.load(saved, allow_pickle=False) as undo:
            if int(undo["chunk"]) == self.done:
                self.values[undo["rows"]], self.counts[undo["rows"]] = undo["values"], undo["counts"]
        self.values.flush()
        saved.unlink()


def sum_outputs(
    host: HostBundle,
    files: Sequence[str | Path],
    work: Path,
    reading: Reading,
    known: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Corpus, Sums]:
    """Sums the host's outputs over a corpus, or goes on with an interrupted run in `work`.

    Args:
      host: a masked language model.
      files: records (JSON lines, also .gz) with linked mentions, or `tfds:` references to prepared data sets.
      work: a folder for the sums; the caller removes it.
      reading: which occurrences.
      known: the entities; None = all that the corpus links.
      progress: called with the texts read and how many there are.

    Raises:
      InputError: a bad record, no occurrence at all, another run's folder, a host without a masked-LM head.
    """
    counted = count_occurrences(read_datasets(files), reading, known)
    if not counted.counts.sum():
        raise InputError(files[0], "no text of it links an entity that could be read", "see `kinject link`")
    reader = MaskReader(host, reading)
    entities = hashlib.sha256("\n".join(counted.ids).encode()).hexdigest()
    corpus = [[str(one), 0 if is_dataset(str(one)) else Path(one).stat().st_size] for one in files]
    about = {"host": host.identity.fingerprint, "corpus": corpus, "entities": entities, **asdict(reading)}
    sums = Sums(work, about, len(counted.ids), reader.dim)
    chunk: list[tuple[int, Passage]] = []
    number = 0

    def close() -> None:
        nonlocal number
        if number >= sums.done:
            sums.add(np.array([row for row, _ in chunk]), reader([passage for _, passage in chunk]))
        number += 1
        chunk.clear()

    for at, row, passage in occurrences(read_datasets(files), counted, reading):
        chunk.append((row, passage))
        if len(chunk) == reading.chunk:
            close()
            if progress is not None:
                progress(at + 1, counted.records)
    if chunk:
        close()
    return counted, sums


def mean_vectors(sums: Sums, block: int = 16_384) -> tuple[np.ndarray, np.ndarray]:
    """The means, a memory map float32 [N, E] beside the sums, and which entities have one, bool [N]."""
    path = sums.folder / "means.f32"
    rows, dim = sums.values.shape
    means = np.memmap(path, np.float32, "w+", shape=(rows, dim))
    for low in range(0, rows, block):
        counts = np.maximum(sums.counts[low : low + block], 1)[:, None]
        means[low : low + block] = sums.values[low : low + block] / counts.astype(np.float32)
    return means, np.asarray(sums.counts) > 0


def build_from_text(
    folder: Path,
    host: HostBundle,
    files: Sequence[str | Path],
    reading: Reading,
    table: tuple[Path, Mapping[str, str] | None, str] | None = None,
    progress: Progress | None = None,
    **about: Any,
) -> Path:
    """Writes a knowledge base whose vectors are a host's outputs over a corpus; repeated, it goes on.

    Args:
      folder: must not exist yet; the unfinished work lies beside it.
      host: a masked language model.
      files: records with linked mentions.
      reading: which occurrences.
      table: file of the entities, what its columns are called, and its separator, as `EntityTable` reads it; None = the
        entities are those that the corpus links, called as they are first called there.
      progress: see `sum_outputs`.
      about: name (the folder's by default), source, license, as in `write_knowledge`.

    Raises:
      InputError: see `sum_outputs`; a bad table; the folder exists.
    """
    folder = Path(folder)
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.from-text")
    with ExitStack() as stack:
        named = None if table is None else stack.enter_context(EntityTable(table[0], folder, table[1], table[2]))
        known = None if named is None else list(named.row_of)
        counted, sums = sum_outputs(host, files, work, reading, known, progress)
        means, present = mean_vectors(sums)
        entries = Entries(counted.ids, labels=counted.names)
        if named is not None:
            words = {name: named.words(name) for name in ("label", "aliases", "description")}
            entries = Entries(counted.ids, words["label"], words["aliases"], words["description"])
        note = {
            "vectors": "mean output of the masked-LM head at the name's mask (PELT)",
            "host": host.identity.fingerprint,
            "files": [str(one) if is_dataset(str(one)) else Path(one).name for one in files],
            "texts": counted.records,
            "occurrences": int(np.sum(sums.counts)),
            **asdict(reading),
        }
        written = write_entries(
            folder, entries, Vectors(means, present, provenance=note), **{"name": folder.name, **about}
        )
    shutil.rmtree(work)
    return written


def _may_be_read(record: Record, reading: Reading) -> bool:
    text = record.text
    return bool(record.mentions) and MASK_LITERAL not in text and len(text.split()) >= reading.least


def _name(record: Record, start: int, end: int) -> str:
    part = record.source[start:end]
    return part if isinstance(part, str) else " ".join(part)


def _hidden(record: Record, start: int, end: int) -> str | list[str]:
    """The text with one mask in the place of a mention."""
    source = record.source
    if isinstance(source, str):
        return f"{source[:start]}{MASK_LITERAL}{source[end:]}"
    return [*source[:start], MASK_LITERAL, *source[end:]]


def _uniform(seed: int, row: int, place: int) -> float:
    """A number in [0, 1) that depends on nothing else (splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9 + place * 0x94D049BB133111EB + 1) % 2**64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
    return ((value ^ (value >> 31)) >> 11) / 2**53
