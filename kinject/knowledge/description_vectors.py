"""Vectors of entities out of their descriptions, without a model: TF-IDF and a truncated SVD, from scikit-learn.

This is latent semantic analysis (Deerwester et al. 1990): entities whose descriptions use words that occur together get
vectors that point the same way. Words and components are learned from at most `SAMPLE` descriptions, spread evenly; the
vectors are made block by block into a file, so memory does not grow with the number of entities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinject.errors import InputError

SAMPLE = 200_000  # descriptions that words and components are learned from
BLOCK = 16_384  # descriptions turned into vectors at once
WORDS = 100_000  # the most frequent words that are looked at

Cut = Callable[[str], list[str]]  # a description -> its words or pieces


class DescriptionVectors(NamedTuple):
    """What descriptions make of entities.

    Attributes:
      vectors: float32 [N, k] in a file, centred and divided by their standard deviation; zeros where there is none.
      present: bool [N]: whether an entity has a description with a word that others use too.
      kept: share of the TF-IDF variance that the k components keep.
    """

    vectors: np.memmap
    present: np.ndarray
    kept: float


def embed_descriptions(
    descriptions: Sequence[str],
    dim: int,
    path: Path,
    *,
    seed: int,
    cut: Cut | None = None,
    where: object = "descriptions",
) -> DescriptionVectors:
    """Makes a vector of each description.

    Args:
      descriptions: N texts, read in slices; empty where there is none.
      dim: k; less where there are fewer words or descriptions.
      path: the file for the vectors; its caller removes it.
      seed: of the SVD's random projections.
      cut: cuts a description into words; None: runs of letters and digits, in lower case.
      where: what is named in messages.

    Raises:
      InputError: fewer than two descriptions that share a word.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings: dict[str, Any] = {"analyzer": cut} if cut else {"token_pattern": r"(?u)\w+"}
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=WORDS, dtype=np.float32, **settings)
    try:
        table = words.fit_transform(_sample(descriptions))
    except ValueError:  # no word stands in two of them
        raise InputError(
            where, "no two descriptions share a word", "give descriptions, or triples or vectors"
        ) from None
    dim = min(dim, *table.shape)
    with np.errstate(invalid="ignore"):  # of descriptions that all say the same; refused below
        components = TruncatedSVD(dim, random_state=seed).fit(table)
    del table
    vectors = np.memmap(path, "<f4", "w+", shape=(len(descriptions), dim))
    present = np.zeros(len(descriptions), bool)
    for rows, texts in _blocks(descriptions):
        made = components.transform(words.transform(texts)).astype(np.float32)
        lengths = np.linalg.norm(made, axis=1, keepdims=True)
        present[rows] = lengths[:, 0] > 1e-6
        vectors[rows] = np.divide(made, lengths, out=np.zeros_like(made), where=lengths > 1e-6)
    if not _standardise(vectors, present):
        raise InputError(where, "all descriptions say the same", "tell the entities apart, or give triples or vectors")
    return DescriptionVectors(vectors, present, float(components.explained_variance_ratio_.sum()))


def _blocks(descriptions: Sequence[str]) -> Iterator[tuple[slice, Sequence[str]]]:
    for start in range(0, len(descriptions), BLOCK):
        rows = slice(start, min(start + BLOCK, len(descriptions)))
        yield rows, descriptions[rows]


def _sample(descriptions: Sequence[str]) -> Iterator[str]:
    """Every n-th description that is not empty, about `SAMPLE` of all."""
    step = max(1, len(descriptions) // SAMPLE)
    for _, texts in _blocks(descriptions):
        yield from filter(None, texts[::step])


def _standardise(vectors: np.ndarray, present: np.ndarray) -> bool:
    """Centres the vectors that are there and divides them by the standard deviation of all their numbers, in place.

    Returns whether they differ at all; if not, they are left as they are.
    """
    spans = [slice(start, start + BLOCK) for start in range(0, len(vectors), BLOCK)]
    total = sum(vectors[rows][present[rows]].sum(axis=0, dtype=np.float64) for rows in spans)
    mean = (total / max(present.sum(), 1)).astype(np.float32)
    squares = sum(float(((vectors[rows][present[rows]] - mean) ** 2).sum(dtype=np.float64)) for rows in spans)
    deviation = np.float32(np.sqrt(squares / max(present.sum() * vectors.shape[1], 1)))
    if deviation < 1e-6:
        return False
    for rows in spans:
        vectors[rows] = np.where(present[rows, None], (vectors[rows] - mean) / deviation, 0)
    return True
