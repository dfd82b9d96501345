"""What a knowledge base says of entities in words: descriptions, and triples as `head relation tail`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from kinject.errors import InputError, first_line
from kinject.knowledge.base import KnowledgeBase

Form = Literal["description", "triples", "all"]
ORDER, STARTS = "order.npy", "starts.npy"
MADE_OF = "made_of.json"


def cache_folder(base: KnowledgeBase, name: str) -> Path:
    """Where something that is made of a knowledge base once is kept: `<knowledge base>.<name>`, beside it."""
    return base.folder.with_name(f"{base.folder.name}.{name}")


def source_hashes(base: KnowledgeBase) -> dict[str, str]:
    """What the texts of a knowledge base depend on: hashes of its files, labels and triples included."""
    return {name: str(facts.get("sha256")) for name, facts in base.manifest["files"].items()}


def is_current(folder: Path, base: KnowledgeBase) -> bool:
    """Whether `folder` was made of the knowledge base as it is now."""
    try:
        return json.loads((folder / MADE_OF).read_text()) == source_hashes(base)
    except (OSError, ValueError):
        return False


def finish(partial: Path, folder: Path, base: KnowledgeBase) -> None:
    """Puts what was made in `partial` into its place, in one step."""
    (partial / MADE_OF).write_text(json.dumps(source_hashes(base)))
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


class Facts:
    """The facts of entities, by row of the knowledge base.

    Triples are found by their head through an index that is made once with a sort, kept beside the knowledge base and
    memory-mapped.

    Args:
      base: the knowledge base.
      form: which facts.

    Raises:
      InputError: the index cannot be written or read.
    """

    def __init__(self, base: KnowledgeBase, form: Form = "all"):
        self.base, self.form = base, form
        self.relations = [(one["label"] or one["id"]).replace("_", " ") for one in base.relations]
        self._order = self._starts = None
        if base.triples is not None and form != "description":
            self._order, self._starts = _triples_by_head(base)

    def of(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The facts of each row: `name: description` first, then its triples in their order; none of row -1."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        spans = [self._triples(row) for row in rows]
        triples = self.base.triples[np.concatenate(spans)] if self._order is not None and len(spans) else None
        names = self._names(rows if triples is None else np.concatenate([rows, triples[:, 2]]))
        descriptions = self._descriptions(rows)
        found, done = [], 0
        for row, span, description in zip(rows.tolist(), spans, descriptions, strict=True):
            facts = [f"{names[row]}: {description}"] if description else []
            for _, relation, tail in [] if triples is None else triples[done : done + len(span)].tolist():
                facts.append(f"{names[row]} {self.relations[relation]} {names[tail]}")
            done += len(span)
            found.append(facts)
        return found

    def _triples(self, row: int) -> np.ndarray:
        if self._order is None or row < 0:
            return np.empty(0, np.int64)
        return np.asarray(self._order[self._starts[row] : self._starts[row + 1]])

    def _names(self, rows: np.ndarray) -> dict[int, str]:
        known = np.unique(rows[rows >= 0])
        ids = self.base.ids(known)
        table = self.base.entities
        labels = ids if table is None else table.column("label").take(known).to_pylist()
        return {row: label or one for row, label, one in zip(known.tolist(), labels, ids, strict=True)}

    def _descriptions(self, rows: np.ndarray) -> list[str]:
        if self.base.entities is None or self.form == "triples":
            return [""] * len(rows)
        texts = self.base.entities.column("description").take(np.maximum(rows, 0)).to_pylist()
        return [(text or "") if row >= 0 else "" for row, text in zip(rows.tolist(), texts, strict=True)]


def _triples_by_head(base: KnowledgeBase) -> tuple[np.ndarray, np.ndarray]:
    """Triples in the order of their heads, int64 [T], and where each row's begin, int64 [N + 1]; memory-mapped."""
    folder = cache_folder(base, "facts")
    try:
        if not is_current(folder, base):
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            heads = np.asarray(base.triples[:, 0])
            np.save(partial / ORDER, np.argsort(heads, kind="stable"))
            np.save(partial / STARTS, np.concatenate([[0], np.cumsum(np.bincount(heads, minlength=base.size))]))
            finish(partial, folder, base)
        return np.load(folder / ORDER, mmap_mode="r"), np.load(folder / STARTS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(folder, f"cannot be made or read: {first_line(error)}", "delete it and try again") from None
