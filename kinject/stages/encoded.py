"""Encoded examples that a run keeps in its workdir (`keep_encoded`), so that one that goes on encodes nothing.

<workdir>/encoded/<stage>.<field>/ (kinject/data/kept.py) is made by process 0 and mapped by all. It says of what it was
made: the content of every file, the task, the tokenizer, the knowledge base and kinject's own code. Where any of these
is another, the examples are made anew.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from kinject.data.kept import is_plain, read_examples, write_examples
from kinject.data.pipeline import Examples
from kinject.data.records import Record
from kinject.data.tokenizer import HostTokenizer
from kinject.datasets.records import find_dataset, is_dataset, parse_reference, read_datasets
from kinject.errors import InputError
from kinject.inference.host import HostBundle, knowledge_identity
from kinject.inference.processes import on_first
from kinject.knowledge.base import KnowledgeBase
from kinject.models.seams import Plugin
from kinject.reports.console import Reporter
from kinject.tasks.base import Task
from kinject.version import __version__

FOLDER = "encoded"
PROBED = 32  # records of which it is seen whether the task makes arrays of them
# through which texts become examples
CODE = ("data", "datasets", "knowledge", "tasks", "inference/host.py", "json_file.py", "hf_folder.py", "text_files.py")


@dataclass(frozen=True)
class Kept:
    """The examples of some files, in a folder.

    Attributes:
      folder: where they are kept.
      sources: files of records and prepared data sets.
      task: what makes examples of records.
      plugin: for which they are made.
      host: whose tokenizer cuts the texts.
      knowledge: whose entities get slots.
      max_length, buckets: see `TrainingConfig` and `FitConfig`.
    """

    folder: Path
    sources: Sequence[str | Path]
    task: Task
    plugin: Plugin | None
    host: HostBundle
    knowledge: KnowledgeBase | None
    max_length: int | None
    buckets: int

    def examples(self, make: Callable[[Sequence[Record]], Examples], reporter: Reporter, where: str) -> Examples:
        """The examples, which process 0 makes where they are missing, of other data, or damaged.

        Args:
          make: records -> examples.
          reporter: is told what was read, or why not.
          where: config key of the setting.

        Raises:
          InputError: the task or the plugin makes more of records than arrays; a bad record.
        """
        self._check(where)
        examples = read_examples(self.folder, on_first(lambda: self._prepare(make, reporter, where)))
        if examples is None:
            raise InputError(self.folder, "process 0 wrote what is not here", "give all processes one --workdir")
        return examples

    def _check(self, where: str) -> None:
        if self.plugin is not None and type(self.plugin).prepare is not Plugin.prepare:
            raise InputError(where, f"{self.plugin.name} reads every record itself", "leave it out")
        if type(self.task).prepare is not Task.prepare:
            raise InputError(where, "this task's examples hold what the host makes of them", "leave it out")

    def _prepare(self, make: Callable[[Sequence[Record]], Examples], reporter: Reporter, where: str) -> dict[str, Any]:
        """Makes them unless they are there, and returns what they are made of."""
        made_of = self._made_of(where)
        try:
            if read_examples(self.folder, made_of, whole=True) is not None:
                reporter.say(f"{where}: the examples are those of {self.folder}")
                return made_of
        except InputError as error:
            reporter.say(f"{error}; they are encoded anew")
        required = self.task.required
        try:
            probe = make(list(islice(read_datasets(self.sources, required), PROBED)))
        except InputError:  # none of so few is an example, or one is bad: the whole tells
            probe = None
        examples = probe
        if probe is None or is_plain(probe):
            examples = make(list(read_datasets(self.sources, required)))
        if examples is None or not is_plain(examples):
            problem = "this task draws or joins its examples as they are dealt, or reads their texts again"
            raise InputError(where, problem, "leave it out")
        write_examples(self.folder, examples, made_of)
        return made_of

    def _made_of(self, where: str) -> dict[str, Any]:
        """What decides what the examples are, as JSON-like values and hashes."""
        base, plugin, made_as = self.knowledge, self.plugin, self.task.made_as
        code = [path for name in CODE for path in _files(Path(__file__).parents[1] / name)]
        return {
            "kinject": __version__,
            "code": _hash([*(path for path in code if path.suffix == ".py"), *_modules(self.task, where)]),
            "libraries": [version(name) for name in ("tokenizers", "transformers")],
            "records": [_hash_of(source) for source in self.sources],
            "task": [type(self.task).__qualname__, repr(made_as), list(self.task.labels or ())],
            "named": _named_files(made_as[1]),
            "slots": None if plugin is None or not plugin.reads_slots else plugin.slot_form,
            "tokenizer": _tokenizer_hash(self.host.tokenizer),
            # of a revision, and of the files whose rows it counts: compaction gives them other numbers
            "knowledge": None
            if base is None
            else [knowledge_identity(base)["fingerprint"], base.manifest["fingerprint"]],
            "max_length": self.max_length,
            "buckets": self.buckets,
        }


def _hash_of(source: str | Path) -> str:
    """The hash of what a source of records consists of; of a prepared data set with the split that is asked for."""
    if not is_dataset(str(source)):
        return _hash([Path(source)])
    name, data_dir, split = parse_reference(str(source))
    return f"{_hash(_files(find_dataset(name, data_dir, str(source))))} {split}"


def _modules(task: Task, where: str) -> list[Path]:
    """The files of a task's classes, its own and those that it inherits from.

    Raises:
      InputError: it was made where there is no file, as in a notebook: nobody could say whether it is still the same.
    """
    found = []
    for cls in type(task).__mro__:
        if cls.__module__ in ("builtins", "abc", "typing"):
            continue
        try:
            found.append(Path(inspect.getfile(cls)))
        except (OSError, TypeError):
            found.append(Path())
        if not found[-1].is_file():
            problem = f"the class {cls.__qualname__} stands in no file that could be compared"
            raise InputError(where, problem, "leave it out, or put the task into a module")
    return found


def _named_files(options: Any) -> list[str]:
    """The hash of every file that a task's options name."""
    if isinstance(options, str | Path):
        try:
            path = Path(options).expanduser()
            return [_hash([path])] if path.is_file() else []
        except (OSError, RuntimeError, ValueError):  # a text that is no name of a file
            return []
    if isinstance(options, Mapping):
        options = options.values()
    return [one for each in options for one in _named_files(each)] if isinstance(options, Iterable) else []


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def _hash(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of some files; folders among them are passed over."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _tokenizer_hash(tokenizer: HostTokenizer) -> str:
    said = [(one.name, getattr(tokenizer, one.name)) for one in fields(tokenizer) if one.name != "backend"]
    return hashlib.sha256(f"{said} {tokenizer.backend.to_str()}".encode()).hexdigest()
