"""Releases that are an array of vectors and a file of ids: plain .npy, UMLS, OpenKE and THUNLP, PyKEEN.

- Plain: a text file with one id a line, in the order of the array's rows, or DGL-KE's `entities.tsv` of `row<tab>id`.
- UMLS vectors as map-tuning releases them: `transe.npy` and `entities.tsv`, a header, then `row<whitespace>CUI` lines.
- OpenKE and THUNLP: `transe.npy`, `entity2id.txt` and, beside them, `entity_map.txt`. `entity2id.txt` starts with the
  number of entities, then has `ID<whitespace>row` lines. `entity_map.txt` is tab-separated: the first field is a
  mention, case kept, the last the id it stands for; a later line overrides an earlier one (thunlp/Knowledge-Plugin;
  map-tuning, ACL 2023). The array may be text, a row's numbers between tabs or blanks, as ERNIE's `entity2vec.vec`.
- PyKEEN: a folder written by `PipelineResult.save_to_directory`, whose ids and triples are plain TSV. The model itself,
  `trained_model.pkl`, is a pickled Python object, and a pickle runs code when it is read. So vectors come from a .npy
  file, or from a torch file that holds nothing but tensors:

    import numpy, torch
    model = torch.load("trained_model.pkl", weights_only=False)  # on your machine, if you trust the file
    numpy.save("entities.npy", model.entity_representations[0](indices=None).detach().numpy())
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import NO_ARRAY, InputError
from kinject.knowledge.files import VectorSpool, at, map_array, whole_number
from kinject.knowledge.write import write_knowledge
from kinject.text_files import read_lines, split_columns

_PYKEEN_KEY = "entity_representations.0._embeddings.weight"
_PYKEEN_MEND = (
    "save model.entity_representations[0](indices=None).detach().numpy() with numpy.save and pass it as vectors"
)


def import_npy(folder_out: Path, *, vectors: Path, ids: Path, **about: Any) -> Path:
    """Imports an array and its ids.

    Args:
      folder_out: the knowledge base to write.
      vectors: .npy, floating [N, k].
      ids: text, one id a line.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    table, ids = map_array(Path(vectors)), Path(ids)
    listed = ids_by_row(ids, _numbered(ids), len(table))
    if "" in listed:
        raise InputError(at(ids, listed.index("") + 1), "is empty", "every line is an id")
    return write_knowledge(folder_out, ids=listed, vectors=table, **about)


def _numbered(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, id, row) of a file of ids, or of `row<tab>id` or `id<tab>row`, whichever its first line is."""
    place = None
    for number, line in read_lines(path):
        fields = line.split("\t")
        if number == 1 and len(fields) == 2:
            place = next((at for at, field in enumerate(fields) if field.strip().isdecimal()), None)
        if place is None:
            if "\t" in line:
                problem = f"{line[:60]!r} has a tab, and its row is not the other column"
                raise InputError(at(path, number), problem, "give one id a line, or row<tab>id")
            yield number, line, number - 1
        elif len(fields) != 2:
            raise InputError(at(path, number), f"{line[:60]!r} is not a row, a tab and an id")
        else:
            row = whole_number(at(path, number), fields[place].strip(), "the row")
            yield number, fields[1 - place].strip(), row


def import_umls(folder_out: Path, *, vectors: Path, entities: Path, **about: Any) -> Path:
    """Imports UMLS concept vectors; ids are CUIs.

    Args:
      folder_out: the knowledge base to write.
      vectors: .npy, floating [N, k].
      entities: `entities.tsv`.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    table = map_array(Path(vectors))
    ids = ids_by_row(Path(entities), _umls_rows(Path(entities)), len(table))
    return write_knowledge(folder_out, ids=ids, vectors=table, **about)


def _umls_rows(path: Path) -> Iterator[tuple[int, str, int]]:
    for number, line in read_lines(path):
        if number == 1:
            continue
        fields = line.split()
        if len(fields) != 2:
            raise InputError(at(path, number), f"{line!r} is not a row and a CUI")
        yield number, fields[1], whole_number(at(path, number), fields[0], "the row")


def import_openke(folder_out: Path, *, vectors: Path, entities: Path, names: Path | None = None, **about: Any) -> Path:
    """Imports an OpenKE or THUNLP release; names become aliases.

    Args:
      folder_out: the knowledge base to write.
      vectors: .npy, floating [N, k], or text with a row a line.
      entities: `entity2id.txt`.
      names: `entity_map.txt`; mentions of entities that have no vector are counted in the manifest and left out.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    entities = Path(entities)
    with ExitStack() as stack:
        table = _matrix(Path(vectors), Path(folder_out), stack)
        ids = ids_by_row(entities, _openke_rows(entities), len(table))
        return _write_openke(folder_out, table, ids, names, about)


def _matrix(path: Path, folder_out: Path, stack: ExitStack) -> np.ndarray:
    """A .npy array, or text with the numbers of a row between tabs or blanks, float32 [N, k], while `stack` is open."""
    if path.suffix == ".npy":
        return map_array(path)
    spool = stack.enter_context(VectorSpool(folder_out))
    for number, line in read_lines(path):
        spool.add(at(path, number), str(number), split_columns(line))
    return spool.finish(path)[1]


def _write_openke(
    folder_out: Path, table: np.ndarray, ids: list[str], names: Path | None, about: dict[str, Any]
) -> Path:
    aliases = None
    if names is not None:
        aliases, left_out = _openke_names(Path(names), ids)
        counts = {"names": len(aliases.values), "names_of_unknown_entities": left_out}
        about["metrics"] = {**about.get("metrics", {}), **counts}
    return write_knowledge(folder_out, ids=ids, vectors=table, aliases=aliases, **about)


def _openke_rows(path: Path) -> Iterator[tuple[int, str, int]]:
    expected = read = 0
    for number, line in read_lines(path):
        where = at(path, number)
        if number == 1:
            expected = whole_number(where, line.strip(), "the count of entities that the file starts with")
            continue
        fields = line.rsplit(None, 1)
        if len(fields) != 2:
            raise InputError(where, f"{line!r} is not an id and a row")
        yield number, fields[0], whole_number(where, fields[1], "the row")
        read += 1
    if read != expected:
        raise InputError(path, f"announces {expected} entities and holds {read}", "the file may be cut; get it again")


def _openke_names(path: Path, ids: list[str]) -> tuple[NamesByRow, int]:
    row_of = {one: row for row, one in enumerate(ids)}
    row_of_name: dict[str, int] = {}
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0]:
            raise InputError(at(path, number), f"{line!r} is not a mention, a tab and an id")
        row_of_name[fields[0]] = row_of.get(fields[-1].strip(), -1)
    names = [name for name, row in row_of_name.items() if row >= 0]
    rows = np.fromiter((row for row in row_of_name.values() if row >= 0), np.int64, count=len(names))
    return NamesByRow(names, rows, len(ids)), len(row_of_name) - len(names)


class NamesByRow(Sequence):
    """The names of every row, as N lists that are made when asked for: most of five million would be empty."""

    def __init__(self, names: list[str], rows: np.ndarray, count: int):
        order = np.argsort(rows, kind="stable")
        self.values = [names[index] for index in order.tolist()]
        self._starts = np.searchsorted(rows[order], np.arange(count + 1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            return self.values[self._starts[rows] : self._starts[rows + 1]]
        return [self[row] for row in range(*rows.indices(len(self)))]


def import_pykeen(folder_out: Path, *, folder: Path, vectors: Path | None = None, **about: Any) -> Path:
    """Imports a PyKEEN result, with its training triples; the entity labels of PyKEEN are the ids.

    Args:
      folder_out: the knowledge base to write.
      folder: the result; holds `training_triples/entity_to_id.tsv.gz`.
      vectors: .npy, floating [N, k], or complex (stored as k real, then k imaginary parts); None reads
        `trained_model.pkl`, if that is a state dict of plain tensors.
      about: name, source, license and the like, as in `write_knowledge`.

    Raises:
      InputError: naming file and line of what is wrong.
    """
    folder = Path(folder)
    table = _pykeen_state(folder / "trained_model.pkl") if vectors is None else _map_array(Path(vectors))
    triples_folder = folder / "training_triples"
    path = triples_folder / "entity_to_id.tsv.gz"
    ids = ids_by_row(path, _pykeen_rows(path), len(table))
    triples = relations = None
    if (triples_folder / "numeric_triples.tsv.gz").is_file():
        path = triples_folder / "relation_to_id.tsv.gz"
        pairs = list(_pykeen_rows(path))
        relations = ids_by_row(path, pairs, len(pairs))
        triples = _pykeen_triples(triples_folder / "numeric_triples.tsv.gz")
    return write_knowledge(folder_out, ids=ids, vectors=table, triples=triples, relations=relations, **about)


def _pykeen_rows(path: Path) -> Iterator[tuple[int, str, int]]:
    """Reads what pandas writes: a header of id and label, fields quoted where they must be."""
    lines = csv.reader((line for _, line in read_lines(path, keep_ends=True)), delimiter="\t")
    for fields in lines:
        where = at(path, lines.line_num)
        if lines.line_num == 1:
            if fields != ["id", "label"]:
                raise InputError(where, f"the columns are {fields}, not id and label")
            continue
        if len(fields) != 2:
            raise InputError(where, f"has {len(fields)} fields, not id and label")
        yield lines.line_num, fields[1], whole_number(where, fields[0], "the id")


def _pykeen_triples(path: Path) -> np.ndarray:
    numbers = array("q")
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != 3:
            raise InputError(at(path, number), f"has {len(fields)} fields, not head, relation and tail")
        if number > 1:
            numbers.extend(whole_number(at(path, number), field, "an index") for field in fields)
    return np.frombuffer(numbers, np.int64).reshape(-1, 3)


def _map_array(path: Path) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except NO_ARRAY:
        return map_array(path)  # says what is wrong
    if np.iscomplexobj(vectors) and vectors.ndim == 2:
        return np.concatenate([vectors.real, vectors.imag], axis=1)
    return map_array(path)


def _pykeen_state(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(path, "is not there", "pass vectors, a .npy of the entity representations")
    import pickle

    try:
        import torch
    except ImportError:
        raise InputError(path, "needs torch to be read", f"install torch, or {_PYKEEN_MEND}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        problem = "is a pickled model, not a state dict of tensors; reading it would run the code inside"
        raise InputError(path, problem, _PYKEEN_MEND) from None
    if not isinstance(state, dict) or not isinstance(state.get(_PYKEEN_KEY), torch.Tensor):
        raise InputError(path, f"has no tensor {_PYKEEN_KEY!r}", _PYKEEN_MEND)
    weight = state[_PYKEEN_KEY].detach()
    if weight.is_complex():
        weight = torch.cat([weight.real, weight.imag], dim=-1)
    return weight.reshape(len(weight), -1).float().numpy()


def ids_by_row(path: Path, pairs: Iterable[tuple[int, str, int]], count: int) -> list[str]:
    """Puts ids in row order.

    Args:
      path: the file they are from, for messages.
      pairs: (line number, id, row).
      count: how many vectors there are; every one of them must get an id.

    Raises:
      InputError: a row named twice, beyond the vectors, or left out.
    """
    ids: list[str | None] = [None] * count
    for number, one, row in pairs:
        if row >= count:
            problem = f"{one!r} has row {row}, there are {count} vectors"
            raise InputError(at(path, number), problem, "take the vectors and the ids from the same release")
        if ids[row] is not None:
            raise InputError(at(path, number), f"row {row} belongs to both {ids[row]!r} and {one!r}")
        ids[row] = one
    if missing := ids.count(None):
        problem = f"no id for {missing} of {count} vectors, the first of them row {ids.index(None)}"
        raise InputError(path, problem, "take the vectors and the ids from the same release")
    return [one for one in ids if one is not None]
