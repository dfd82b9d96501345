"""Vectors of descriptions for entities that come later: TF-IDF and a truncated SVD, as they were stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kinject.knowledge.space import Part

Cut = Callable[[str], list[str]]  # a description -> its words or pieces
_BETWEEN = "\0"  # no word holds it: runs of letters and digits, or pieces of a tokenizer


class TokenizerCut:
    """Cuts a text into the pieces of a tokenizer, given as the JSON of the library tokenizers."""

    def __init__(self, json: str):
        from tokenizers import Tokenizer

        self.json, self._backend = json, Tokenizer.from_str(json)

    def __call__(self, text: str) -> list[str]:
        return self._backend.encode(text, add_special_tokens=False).tokens


def vectoriser(cut: Cut | None, **settings: Any) -> Any:
    """scikit-learn's TfidfVectorizer with our settings; words are runs of letters and digits where nothing cuts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words: dict[str, Any] = {"analyzer": cut} if cut else {"token_pattern": r"(?u)\w+"}
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **words, **settings)


def description_part(words: Any, components: Any, cut: Cut | None, mean: np.ndarray, deviation: float) -> Part | None:
    """What was fitted, as a part of a space; None where the words were cut by a function that cannot be stored."""
    tokenizer = ""
    if cut is not None:
        if not isinstance(cut, TokenizerCut):
            return None
        tokenizer = cut.json
    arrays: dict[str, np.ndarray] = {
        "words": _bytes(_BETWEEN.join(words.get_feature_names_out())),
        "tokenizer": _bytes(tokenizer),
        "idf": np.asarray(words.idf_, np.float32),
        "components": np.asarray(components.components_, np.float32),
        "mean": np.asarray(mean, np.float32),
        "deviation": np.asarray(deviation, np.float32),
    }
    return Part("descriptions", arrays, 0, len(arrays["components"]))


class Describer:
    """Makes vectors of descriptions by a part of a space."""

    def __init__(self, part: Part):
        self.part, arrays = part, part.arrays
        tokenizer = bytes(arrays["tokenizer"]).decode()
        self._cut = TokenizerCut(tokenizer) if tokenizer else None
        self._words = vectoriser(self._cut, vocabulary=bytes(arrays["words"]).decode().split(_BETWEEN))
        self._words.idf_ = np.asarray(arrays["idf"])

    def vectors(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [n, d] as they are stored, zeros where there is none; and how far each can be trusted.

        That is the share of a description's words that the space knows, float32 [n]; 0 where there is no vector.
        """
        arrays = self.part.arrays
        made = (self._words.transform(texts) @ arrays["components"].T).astype(np.float32)
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        there = lengths[:, 0] > 1e-6
        made = np.divide(made, lengths, out=np.zeros_like(made), where=there[:, None])
        made = np.where(there[:, None], (made - arrays["mean"]) / arrays["deviation"], 0)
        analyse, known = self._words.build_analyzer(), self._words.vocabulary_
        cut = [analyse(text) for text in texts]
        shares = [sum(word in known for word in some) / max(len(some), 1) for some in cut]
        return made.astype(np.float32), np.where(there, shares, 0).astype(np.float32)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
