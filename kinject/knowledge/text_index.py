"""BM25 over what a knowledge base says of its entities in words: one document an entity.

Robertson and Zaragoza 2009, by the library bm25s, whose scores are sparse matrices made when the index is built. The
index is made once, kept beside the knowledge base and memory-mapped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinject.errors import InputError, first_line
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.facts import Facts, Form, cache_folder, finish, is_current

BLOCK = 65_536  # entities whose texts are in memory at once, beside their words


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
        folder = cache_folder(base, f"bm25_{form}")
        try:
            if not is_current(folder, base):
                partial = folder.with_name(folder.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                self._build(Facts(base, form)).save(partial, show_progress=False)
                finish(partial, folder, base)
            self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(folder, f"cannot be made or read: {first_line(error)}", "delete it, try again") from None

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
