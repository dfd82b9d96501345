"""What a knowledge base says of entities in words, and BM25 over it: one document an entity.

Facts are descriptions, and triples as `head relation tail`. BM25 (Robertson and Zaragoza 2009) is the library bm25s,
whose scores are sparse matrices made when the index is built. Both the index of triples by their heads and that of
words are made once, kept beside the knowledge base and memory-mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinject.errors import InputError, first_line
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.derived import derived_path, ensure_derived

Form = Literal["description", "triples", "all"]
ORDER, STARTS = "order.npy", "starts.npy"
BLOCK = 65_536  # entities whose texts are in memory at once, beside their words


class Facts:
    """The facts of entities, by row of the knowledge base.

    Args:
      base: the knowledge base.
      form: which facts.

    Raises:
      InputError: the index cannot be written or read.
    """

    def __init__(self, base: KnowledgeBase, form: Form = "all"):
        self.base, self.form = base, form
        self.relations = [(one["label"] or one["id"]).replace("_", " ") for one in base.relations]
        self._triples = None if form == "description" else base.triples
        self._by_head = None if self._triples is None else _triples_by_head(base, self._triples)

    def of(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The facts of each row: `name: description` first, then its triples in their order; none of row -1."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        spans = [self._places(row) for row in rows.tolist()]
        triples = np.empty((0, 3), np.int32)
        if self._triples is not None and spans:
            triples = self._triples[np.concatenate(spans)]
        names = self._names(np.concatenate([rows, triples[:, 2]]))
        descriptions = self._descriptions(rows)
        found, done = [], 0
        for row, span, description in zip(rows.tolist(), spans, descriptions, strict=True):
            facts = [f"{names[row]}: {description}"] if description else []
            for _, relation, tail in triples[done : done + len(span)].tolist():
                facts.append(f"{names[row]} {self.relations[relation]} {names[tail]}")
            done += len(span)
            found.append(facts)
        return found

    def _places(self, row: int) -> np.ndarray:
        """Which triples an entity is the head of."""
        if self._by_head is None or row < 0:
            return np.empty(0, np.int64)
        order, starts = self._by_head
        return np.asarray(order[starts[row] : starts[row + 1]])

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


def _triples_by_head(base: KnowledgeBase, triples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triples in the order of their heads, int64 [T], and where each row's begin, int64 [N + 1]; memory-mapped."""

    def make(folder: Path) -> None:
        heads = np.asarray(triples[:, 0])
        np.save(folder / ORDER, np.argsort(heads, kind="stable"))
        np.save(folder / STARTS, np.concatenate([[0], np.cumsum(np.bincount(heads, minlength=base.size))]))

    try:
        folder = ensure_derived(base, "facts", make)
        return np.load(folder / ORDER, mmap_mode="r"), np.load(folder / STARTS, mmap_mode="r")
    except (OSError, ValueError) as error:
        problem = f"cannot be made or read: {first_line(error)}"
        raise InputError(derived_path(base, "facts"), problem, "delete it and try again") from None


class TextIndex:
    """Finds entities by words.

    Args:
      base: the knowledge base.
      form: which facts its documents are made of.

    Raises:
      InputError: bm25s is not installed, or the index cannot be written or read.
    """

    def __init__(self, base: KnowledgeBase, form: Form = "all"):
        try:
            import bm25s
        except ImportError:
            raise InputError("retrieve", "bm25s is not installed", "pip install 'kinject[retrieval]'") from None
        self.base, self._bm25s = base, bm25s
        name = f"bm25_{form}"
        try:
            folder = ensure_derived(
                base, name, lambda partial: self._build(Facts(base, form)).save(partial, show_progress=False)
            )
            self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError) as error:
            problem = f"cannot be made or read: {first_line(error)}"
            raise InputError(derived_path(base, name), problem, "delete it, try again") from None

    def _build(self, facts: Facts) -> Any:
        vocabulary: dict[str, int] = {}
        documents: list[list[int]] = []
        for start in range(0, self.base.size, BLOCK):
            texts = [" ".join(some) for some in facts.of(range(start, min(start + BLOCK, self.base.size)))]
            for words in self._words(texts):
                documents.append([vocabulary.setdefault(word, len(vocabulary)) for word in words])
        index = self._bm25s.BM25()
        index.index((documents, vocabulary), show_progress=False)
        return index

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        return self._bm25s.tokenize(list(texts), return_ids=False, show_progress=False)

    def search(self, texts: Sequence[str], count: int) -> np.ndarray:
        """The best entities for each text, int32 [n, count], best first; -1 where nothing shares a word with it."""
        found = np.full((len(texts), count), -1, np.int32)
        words = self._words(texts)
        asked = [i for i, some in enumerate(words) if any(word in self._index.vocab_dict for word in some)]
        if not asked:
            return found
        kept = min(count, self.base.size)
        rows, scores = self._index.retrieve(
            [words[i] for i in asked], k=kept, show_progress=False, backend_selection="numpy"
        )
        found[asked, :kept] = np.where(scores > 0, rows, -1)
        return found
