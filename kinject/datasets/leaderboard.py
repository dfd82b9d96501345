"""The files of the FewRel leaderboard: questions in, predictions out.

A question file is one JSON list of `{"meta_train": N lists of K instances, "meta_test": instance}`, an instance being
`{"tokens": […], "h": [name, entity id, [[token indices], …]], "t": …}`; of several occurrences the first counts.
Predictions are one JSON list of class numbers, 0 to N - 1, question by question.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.data.records import Record
from kinject.datasets.relation_lines import fewrel_record
from kinject.errors import InputError
from kinject.json_file import read_value

INSTANCE = 'an instance is {"tokens": […], "h": [name, id, [[indices]]], "t": [name, id, [[indices]]]}'


def read_questions(file: str | Path) -> tuple[list[Record], np.ndarray, np.ndarray]:
    """Reads a question file.

    Returns:
      (records of all instances, queries int32 [n], supports int32 [n, N, K]: numbers of records).

    Raises:
      InputError: no such file, not JSON, or a malformed question, naming its number and the field; questions of
        different N or K.
    """
    path = Path(file).expanduser()
    values = read_value(path, "get the file again")
    if not isinstance(values, list) or not values:
        raise InputError(path, "holds no list of questions", 'it is [{"meta_train": …, "meta_test": …}, …]')
    records: list[Record] = []
    queries: list[int] = []
    supports: list[list[list[int]]] = []
    for number, value in enumerate(values):
        where = f"{path}: question {number}"
        asked, shown = _question(value, where)
        if number and np.shape(shown) != np.shape(supports[0]):
            n, k = np.shape(supports[0])
            raise InputError(where, "field meta_train differs in shape", f"the first question is {n}-way {k}-shot")
        queries.append(len(records))
        records.append(_instance(asked, f"{where}, meta_test"))
        supports.append([[0] * len(shown[0]) for _ in shown])
        for i, instances in enumerate(shown):
            for j, instance in enumerate(instances):
                supports[-1][i][j] = len(records)
                records.append(_instance(instance, f"{where}, meta_train[{i}][{j}]"))
    return records, np.array(queries, np.int32), np.array(supports, np.int32)


def write_predictions(file: str | Path, chosen: np.ndarray | Sequence[int]) -> Path:
    """Writes class numbers [n] in the order of the questions, whole or not at all.

    Raises:
      InputError: the file exists.
    """
    path = Path(file).expanduser()
    if path.exists():
        raise InputError(path, "exists, and nothing is overwritten", "choose another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as partial:
        json.dump([int(one) for one in chosen], partial)
    Path(partial.name).chmod(0o644)  # NamedTemporaryFile's is the owner's alone
    Path(partial.name).rename(path)
    return path


def _instance(value: Any, where: str) -> Record:
    identity = value["h"][1] if isinstance(value, dict) and _has_id(value.get("h")) else ""
    record = fewrel_record(value, where, "C" if str(identity).startswith("C") else "Q")
    if record is None:
        raise InputError(where, "head and tail overlap", "take the question out")
    return record


def _has_id(entity: Any) -> bool:
    return isinstance(entity, list) and len(entity) > 1


def _question(value: Any, where: str) -> tuple[Any, list[list[Any]]]:
    for name in ("meta_train", "meta_test"):
        if not isinstance(value, dict) or name not in value:
            raise InputError(where, f"field {name!r} is missing", 'a question is {"meta_train": …, "meta_test": …}')
    shown = value["meta_train"]
    if not isinstance(shown, list) or not shown or not all(isinstance(one, list) and one for one in shown):
        raise InputError(where, "field 'meta_train' is no list of lists of instances", INSTANCE)
    if len({len(one) for one in shown}) > 1:
        raise InputError(where, "field 'meta_train' has classes of different sizes", "each has K instances")
    return value["meta_test"], shown
