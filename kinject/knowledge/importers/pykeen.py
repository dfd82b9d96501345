"""PyKEEN: a folder written by `PipelineResult.save_to_directory`, whose ids and triples are plain TSV.

The model itself, `trained_model.pkl`, is a pickled Python object, and a pickle runs code when it is read. So vectors
come from a .npy file, or from a torch file that holds nothing but tensors:

    import numpy, torch
    model = torch.load("trained_model.pkl", weights_only=False)  # on your machine, if you trust the file
    numpy.save("entities.npy", model.entity_representations[0](indices=None).detach().numpy())
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.importers.lines import at, map_array, read_lines, whole_number
from kinject.knowledge.importers.row_ids import ids_by_row
from kinject.knowledge.write import write_knowledge

_ENTITY_KEY = "entity_representations.0._embeddings.weight"
_MEND = "save model.entity_representations[0](indices=None).detach().numpy() with numpy.save and pass it as vectors"


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
    table = _read_state_dict(folder / "trained_model.pkl") if vectors is None else _read_array(Path(vectors))
    triples_folder = folder / "training_triples"
    path = triples_folder / "entity_to_id.tsv.gz"
    ids = ids_by_row(path, _read_labels(path), len(table))
    triples = relations = None
    if (triples_folder / "numeric_triples.tsv.gz").is_file():
        path = triples_folder / "relation_to_id.tsv.gz"
        pairs = list(_read_labels(path))
        relations = ids_by_row(path, pairs, len(pairs))
        triples = _read_triples(triples_folder / "numeric_triples.tsv.gz")
    return write_knowledge(folder_out, ids=ids, vectors=table, triples=triples, relations=relations, **about)


def _read_labels(path: Path) -> Iterator[tuple[int, str, int]]:
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


def _read_triples(path: Path) -> np.ndarray:
    numbers = array("q")
    for number, line in read_lines(path):
        fields = line.split("\t")
        if len(fields) != 3:
            raise InputError(at(path, number), f"has {len(fields)} fields, not head, relation and tail")
        if number > 1:
            numbers.extend(whole_number(at(path, number), field, "an index") for field in fields)
    return np.frombuffer(numbers, np.int64).reshape(-1, 3)


def _read_array(path: Path) -> np.ndarray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return map_array(path)  # says what is wrong
    if np.iscomplexobj(vectors) and vectors.ndim == 2:
        return np.concatenate([vectors.real, vectors.imag], axis=1)
    return map_array(path)


def _read_state_dict(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(path, "is not there", "pass vectors, a .npy of the entity representations")
    import pickle

    try:
        import torch
    except ImportError:
        raise InputError(path, "needs torch to be read", f"install torch, or {_MEND}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        problem = "is a pickled model, not a state dict of tensors; reading it would run the code inside"
        raise InputError(path, problem, _MEND) from None
    if not isinstance(state, dict) or not isinstance(state.get(_ENTITY_KEY), torch.Tensor):
        raise InputError(path, f"has no tensor {_ENTITY_KEY!r}", _MEND)
    weight = state[_ENTITY_KEY].detach()
    if weight.is_complex():
        weight = torch.cat([weight.real, weight.imag], dim=-1)
    return weight.reshape(len(weight), -1).float().numpy()
