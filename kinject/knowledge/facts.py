"""What a knowledge base says of entities in words, and BM25 over it: one document an entity.

Facts are descriptions, and triples as `head relation tail`. BM25 (Robertson and Zaragoza 2009) is the library bm25s,
whose scores are sparse matrices made when the index is built. Both the index of triples by their heads and that of
words are made once, kept beside the knowledge base and memory-mapped; what revisions changed is looked at beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kinject.errors import InputError, first_line
from kinject.integrity import read_seal
from kinject.knowledge.derived import derived_path, ensure_derived
from kinject.knowledge.overlay import Overlay
from kinject.knowledge.view import View

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

    def __init__(self, base: View, form: Form = "all"):
        self.base, self.form = base, form
        self.relations = [(one["label"] or one["id"]).replace("_", " ") for one in base.relations]
        self._triples = None if form == "description" else base.stored.triples
        self._by_head = None if self._triples is None else _triples_by_head(base, self._triples)

    def of(self, rows: Sequence[int] | np.ndarray) -> list[list[str]]:
        """The facts of each row: `name: description` first, then its triples in their order; none of row -1."""
        rows = np.asarray(rows, np.int64).reshape(-1)
        triples = self._headed(rows)
        tails = np.array([tail for some in triples for _, _, tail in some], np.int64)
        names = self._names(np.concatenate([rows, tails]))
        descriptions = self._descriptions(rows)
        found = []
        for row, some, description in zip(rows.tolist(), triples, descriptions, strict=True):
            facts = [f"{names[row]}: {description}"] if description else []
            found.append(
                facts + [f"{names[row]} {self.relations[relation]} {names[tail]}" for _, relation, tail in some]
            )
        return found

    def _headed(self, rows: np.ndarray) -> list[list[tuple[int, int, int]]]:
        """The triples that each row is the head of: those of the files, as they are now, then those that came."""
        overlay = self.base.overlay
        spans = [self._places(row) for row in rows.tolist()]
        every = np.empty((0, 3), np.int32)
        if self._triples is not None and spans:
            every = self._triples[np.concatenate(spans)]
        done, found = 0, []
        for row, span in zip(rows.tolist(), spans, strict=True):
            some: list[tuple[int, int, int]] = [(a, b, c) for a, b, c in every[done : done + len(span)].tolist()]
            done += len(span)
            came = (
                []
                if self.form == "description"
                else [one for one in overlay.by_head.get(row, ()) if overlay.holds(one)]
            )
            if overlay.dropped or overlay.removed:
                some = _replaced(some, came, overlay)
            some += [one for one in came if one not in some]
            found.append(some)
        return found

    def _places(self, row: int) -> np.ndarray:
        """Which triples an entity is the head of."""
        if self._by_head is None or not 0 <= row < self.base.stored.size:
            return np.empty(0, np.int64)
        order, starts = self._by_head
        return np.asarray(order[starts[row] : starts[row + 1]])

    def _names(self, rows: np.ndarray) -> dict[int, str]:
        known = np.unique(rows[rows >= 0])
        labels = self._words("label", known)
        return {row: label or one for row, label, one in zip(known.tolist(), labels, self.base.ids(known), strict=True)}

    def _descriptions(self, rows: np.ndarray) -> list[str]:
        if self.form == "triples":
            return [""] * len(rows)
        return self._words("description", rows)

    def _words(self, field: str, rows: np.ndarray) -> list[str]:
        """The label or description of each row; empty where there is none."""
        stored, words = self.base.stored, self.base.overlay.words
        old = (rows >= 0) & (rows < stored.size)
        texts = [""] * len(rows)
        if stored.entities is not None:
            texts = stored.entities.column(field).take(np.where(old, rows, 0)).to_pylist()
        gone = self.base.overlay.removed
        return [
            getattr(words[row], field) if row in words else (text or "") if there and row not in gone else ""
            for row, text, there in zip(rows.tolist(), texts, old.tolist(), strict=True)
        ]


def _replaced(
    triples: Sequence[tuple[int, int, int]], came: Sequence[tuple[int, int, int]], overlay: Overlay
) -> list[tuple[int, int, int]]:
    """An entity's triples that still hold; where one was dropped stands what came by the same relation.

    A fact that changes is thus read where the old one was: readers of the first facts alone do not miss it.
    """
    new = list(came)
    found = []
    for triple in triples:
        if overlay.holds(triple):
            found.append(triple)
        elif triple in overlay.dropped:
            instead = next((one for one in new if one[1] == triple[1]), None)
            if instead is not None:
                new.remove(instead)
                found.append(instead)
    return found


def _triples_by_head(base: View, triples: np.ndarray) -> tuple[Any, Any]:
    """Triples in the order of their heads, int64 [T], and where each row's begin, int64 [N + 1]; memory-mapped."""

    def make(folder: Path) -> None:
        heads = np.asarray(triples[:, 0])
        np.save(folder / ORDER, np.argsort(heads, kind="stable"))
        np.save(folder / STARTS, np.concatenate([[0], np.cumsum(np.bincount(heads, minlength=base.stored.size))]))

    try:
        folder = ensure_derived(base, "facts", make, later=(ORDER, STARTS))
        seal = read_seal(folder)
        order, starts = (np.load(folder / name, mmap_mode="r") for name in (ORDER, STARTS))
        return (order, starts) if seal is None else (seal.array(ORDER, order), seal.array(STARTS, starts))
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

    def __init__(self, base: View, form: Form = "all"):
        try:
            import bm25s
        except ImportError:
            raise InputError("retrieve", "bm25s is not installed", "pip install 'kinject[retrieval]'") from None
        self.base, self._bm25s = base, bm25s
        name = f"bm25_{form}"
        try:
            folder = ensure_derived(
                base, name, lambda partial: self._build(Facts(base.built(), form)).save(partial, show_progress=False)
            )
            self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError) as error:
            problem = f"cannot be made or read: {first_line(error)}"
            raise InputError(derived_path(base, name), problem, "delete it, try again") from None

        overlay = base.overlay
        changed = {*overlay.named, *overlay.by_head, *(head for head, _, _ in overlay.dropped)} - overlay.removed
        self._changed = np.array(sorted(changed | {row for row in overlay.removed if row < base.stored.size}), np.int64)
        texts = [" ".join(some) for some in Facts(base, form).of(self._changed)] if len(self._changed) else []
        self._lengths, self._postings = _postings(self._words(texts) if texts else [])

    def _build(self, facts: Facts) -> Any:
        vocabulary: dict[str, int] = {}
        documents: list[list[int]] = []
        for start in range(0, facts.base.size, BLOCK):
            texts = [" ".join(some) for some in facts.of(range(start, min(start + BLOCK, facts.base.size)))]
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
        kept = min(count + int((self._changed < self.base.stored.size).sum()), self.base.stored.size)
        rows, scores = np.full((len(texts), 0), -1), np.zeros((len(texts), 0))
        if asked:
            best, points = self._index.retrieve(
                [words[i] for i in asked], k=kept, show_progress=False, backend_selection="numpy"
            )
            rows, scores = np.full((len(texts), kept), -1), np.zeros((len(texts), kept))
            rows[asked], scores[asked] = best, points
        if len(self._changed):
            scores = np.where(np.isin(rows, self._changed), 0, scores)
            rows = np.concatenate([rows, np.broadcast_to(self._changed, (len(texts), len(self._changed)))], axis=1)
            scores = np.concatenate([scores, self._score_changed(words)], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")
            rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        kept = min(count, rows.shape[1])
        found[:, :kept] = np.where(scores > 0, rows, -1)[:, :kept]
        return found

    def _score_changed(self, asked: Sequence[Sequence[str]]) -> np.ndarray:
        """BM25 of what revisions brought, float [n, changed], by the index's frequencies of words.

        A word that the index does not have is as rare as one can be, and lengths are compared with each other.
        """
        index, starts = self._index, self._index.scores["indptr"]
        documents = int(index.scores["num_docs"])
        norm = index.k1 * (1 - index.b + index.b * self._lengths / max(float(self._lengths.mean()), 1e-9))
        found = np.zeros((len(asked), len(self._changed)))
        for i, some in enumerate(asked):
            for word in some:
                if word in self._postings:
                    places, counts = self._postings[word]
                    number = index.vocab_dict.get(word)
                    often = 0 if number is None else int(starts[number + 1] - starts[number])
                    rarity = np.log(1 + (documents - often + 0.5) / (often + 0.5))
                    found[i, places] += rarity * counts / (counts + norm[places])
        return found


def _postings(documents: Sequence[Sequence[str]]) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Lengths of documents [n], and for each word which of them have it and how often."""
    found: dict[str, list[tuple[int, int]]] = {}
    for place, words in enumerate(documents):
        for word, count in Counter(words).items():
            found.setdefault(word, []).append((place, count))
    pairs = {word: np.array(some).T for word, some in found.items()}
    return np.array([len(some) for some in documents], float), {w: (p[0], p[1].astype(float)) for w, p in pairs.items()}
