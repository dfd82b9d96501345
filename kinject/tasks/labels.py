"""Label vocabularies: the names of a head's outputs, in one order that task, data and host must share."""

from __future__ import annotations

import copy
import json
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import optax

from kinject.datasets.records import find_dataset, is_dataset, parse_reference, read_metadata
from kinject.errors import InputError, did_you_mean
from kinject.tasks.base import Task
from kinject.text_files import read_whole

if TYPE_CHECKING:
    from kinject.data.records import Record
    from kinject.data.tokenizer import HostTokenizer
    from kinject.models.pretrained import LoadedHost

WHERE = "task_options.labels"
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls an output that nobody named
FORMS = 'give a list of names, or a JSON file: a list, or {"name": index} as rel2id.json and label2id.json have it'


def read_labels(source: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Returns label names in the order of the head's outputs.

    Args:
      source: the names, or the path of a JSON file that holds a list of them or `{name: index}`, or a prepared data set
        (`tfds:wiki80/files@DATA_DIR`) whose labels they are.

    Raises:
      InputError: no such file, not JSON, names that are no strings or occur twice, indices that are not 0, 1, 2, ….
    """
    if not isinstance(source, (str, Path)):
        return _checked(source, WHERE)
    if is_dataset(str(source)):
        name, data_dir, _ = parse_reference(str(source))
        return _checked(read_metadata(find_dataset(name, data_dir, str(source))).get("labels"), source)
    path = Path(source).expanduser()
    try:
        value = json.loads(read_whole(path), object_pairs_hook=lambda pairs: _unique(pairs, path))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", FORMS) from error
    except ValueError as error:  # both "not UTF-8" and "not JSON" are
        raise InputError(path, f"is no JSON file ({error})", FORMS) from error
    return _checked(_by_index(value, path) if isinstance(value, Mapping) else value, path)


def stored_labels(loaded: LoadedHost) -> Sequence[str] | None:
    """The names of a host's outputs: those of host.json, else those in the config.json of transformers, if any.

    Raises:
      InputError: names in config.json that are not one an output.
    """
    if loaded.manifest.get("labels") is not None:
        return loaded.manifest["labels"]
    outputs = getattr(loaded.host.head, "num_labels", None)
    names = {int(number): str(name) for number, name in (loaded.stated.get("id2label") or {}).items()}
    if outputs is None or all(UNNAMED.fullmatch(name) for name in names.values()):
        return None
    if sorted(names) != list(range(outputs)):
        problem = f"id2label names the outputs {', '.join(map(str, sorted(names)))}, and the head has {outputs}"
        raise InputError(loaded.folder / "config.json", problem, f"name each from 0 to {outputs - 1} once")
    return [names[number] for number in range(outputs)]


class LabelledTask(Task, ABC):
    """A task whose head has one output a label.

    Args:
      labels: see `read_labels`; needed to make a host, and taken from the host where one is used.
    """

    def __init__(self, labels: str | Path | Sequence[str] | None = None):
        self._set(None if labels is None else read_labels(labels))

    @property
    def num_labels(self) -> int:
        if self.labels is None:
            raise InputError(WHERE, "a host for this task is made with the names of its labels", FORMS)
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels.

        Raises:
          InputError: neither the task's options nor a host named them.
        """
        if self.labels is None:
            raise InputError(WHERE, "labels are not known without a host", FORMS)
        return self.labels

    def for_host(self, loaded: LoadedHost, where: object) -> Task:
        stored = stored_labels(loaded)
        outputs = getattr(loaded.host.head, "num_labels", None)
        if stored is not None and self.labels is not None and tuple(stored) != self.labels:
            raise InputError(where, _difference(tuple(stored), self.labels), f"leave {WHERE} out to use the host's")
        task = copy.copy(self)
        if stored is not None:
            task._set(_checked(stored, where))
        if task.labels is None and loaded.stated.get("id2label") and not loaded.manifest:
            task._set(tuple(f"LABEL_{number}" for number in range(outputs or 0)))  # as transformers calls them
        if task.labels is None:
            raise InputError(where, "the host has no label names", f"give them as {WHERE}")
        if len(task.labels) != outputs:
            raise InputError(where, f"the host has {outputs} outputs for {len(task.labels)} labels", "mend the labels")
        return task

    def index_of(self, label: Any, record: Record, field: str) -> int:
        """Returns which output a record's label is.

        Raises:
          InputError: not one of the labels, naming file, line and field.
        """
        names = self.names
        if not isinstance(label, str) or label not in self._index:
            hint = did_you_mean(str(label), names) if len(names) <= 20 or isinstance(label, str) else ""
            raise InputError(record.where, f"field {field} is {label!r}, which is none of the labels", hint[:200])
        return self._index[label]

    def _set(self, labels: tuple[str, ...] | None) -> None:
        self.labels = labels
        self._index = {label: number for number, label in enumerate(labels or ())}


class SingleLabelTask(LabelledTask, ABC):
    """A task whose head reads one place and chooses one of the labels; its outputs are [B, 1, labels]."""

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs[:, 0], batch["labels"])
        return losses, batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"chosen": outputs[:, 0].argmax(-1), "right": batch["labels"]}

    def unanswered(self, record: Record, tokenizer: HostTokenizer) -> Mapping[str, Any]:
        return {"label": self.names[0]}

    def choices(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs[:, 0]


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(path, f"has the key {twice!r} twice", "keep one of them")
    return found


def _by_index(value: Mapping[str, Any], path: Path) -> list[str]:
    indices = list(value.values())
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(len(indices))):
        raise InputError(path, "the indices of its labels are not 0, 1, 2, … each once", FORMS)
    return sorted(value, key=value.__getitem__)


def _checked(names: Any, where: object) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, (str, bytes)) or not len(names):
        raise InputError(where, "holds no list of labels", FORMS)
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(where, f"{name!r} is no name of a label", FORMS)
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise InputError(where, f"the label {twice[0]!r} occurs twice", "keep one of them")
    return tuple(names)


def _difference(host: tuple[str, ...], asked: tuple[str, ...]) -> str:
    if len(host) != len(asked):
        return f"the host was made for {len(host)} labels, not {len(asked)}"
    number = next(i for i, (one, other) in enumerate(zip(host, asked, strict=True)) if one != other)
    return f"label {number} of the host is {host[number]!r}, not {asked[number]!r}"
