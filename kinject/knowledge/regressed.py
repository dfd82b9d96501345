"""Descriptions as evidence in a space that was not made of them: a regression from words into the space.

Learned once from the entities of the files that have a description and a vector, and kept beside the knowledge base in
`<knowledge base>.told/`: TF-IDF, a truncated SVD, and the ridge regression whose penalty has the least error on those
left out. It is no part of the space, and no plugin is pinned to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.json_file import read_object
from kinject.knowledge.derived import ensure_derived
from kinject.knowledge.described import Describer, description_part, vectoriser
from kinject.knowledge.placement import ridge
from kinject.knowledge.space import Part, describe_space, read_space, write_space
from kinject.knowledge.view import View

INDEX, TOLD = "told", "told.json"
SAMPLE, WORDS, COMPONENTS = 8192, 20_000, 400  # entities learned from, words, and numbers between words and vector
LEAST = 50  # entities with description and vector below which nothing is learned


def by_words(view: View, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places n entities by their descriptions.

    Returns:
      Vectors float32 [n, k], zeros where there is none, and trust float32 [n]: what the regression explains of entities
      left out, times the share of a description's words that it knows; 0 where there is no vector.
    """
    part = learned(view)
    if part is None or not texts:
        return np.zeros((len(texts), view.dim), np.float32), np.zeros(len(texts), np.float32)
    arrays = part.arrays
    features, shares = Describer(part).vectors(texts)
    made = (features - arrays["from"]) @ arrays["weights"] + arrays["to"]
    there = shares > 0
    return np.where(there[:, None], made, 0).astype(np.float32), shares * np.float32(arrays["explained"])


def learned(view: View) -> Part | None:
    """The regression, learned first where it is not there yet; None where too few entities teach it."""
    if view.stored.taught is None:
        view.stored.taught = (_opened(view),)
    return view.stored.taught[0]


def _opened(view: View) -> Part | None:
    if view.stored.entities is None or not view.stored.entities.num_rows:
        return None

    made: list[Part] = []

    def make(folder: Path) -> None:
        part = learn(*_taught(view))
        made[:] = () if part is None else (part,)
        write_space(folder, made)
        (folder / TOLD).write_text(json.dumps(describe_space(made)))

    try:
        folder = ensure_derived(view, INDEX, make)
    except OSError:  # nothing can be written beside the base: it is learned again the next time
        return made[0] if made else learn(*_taught(view))
    parts = read_space(folder, read_object(folder / TOLD))
    return parts[0] if parts else None


def _taught(view: View) -> tuple[list[str], np.ndarray]:
    """Descriptions and vectors of entities of the files, evenly spread."""
    stored: Any = view.stored
    column = stored.entities.column("description")
    rows = np.unique(np.linspace(0, stored.size - 1, min(stored.size, 4 * SAMPLE)).astype(np.int64))
    texts = column.take(rows).to_pylist()
    kept = np.array([bool(text) for text in texts], bool) & stored.present(rows)
    rows = rows[kept]
    if len(rows) > SAMPLE:
        rows = rows[np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64)]
    return column.take(rows).to_pylist() if len(rows) else [], np.asarray(stored.vectors[rows], np.float32)


def learn(texts: Sequence[str], vectors: np.ndarray) -> Part | None:
    """The regression from descriptions to vectors float32 [n, k]; None where they share too few words."""
    from sklearn.decomposition import TruncatedSVD

    if len(texts) < LEAST:
        return None
    words = vectoriser(None, min_df=2, max_features=WORDS)
    try:
        table = words.fit_transform(texts)
    except ValueError:  # no word stands in two of them
        return None
    components = TruncatedSVD(min(COMPONENTS, *(one - 1 for one in table.shape)), random_state=0).fit(table)
    part = description_part(words, components, None, np.zeros(1, np.float32), 1.0)
    assert part is not None  # nothing else than words was cut
    features, _ = Describer(part).vectors(texts)
    weights, start, end, error = ridge(features.astype(np.float64), vectors.astype(np.float64))
    explained = np.clip(1 - error / max(float(vectors.var(axis=0).mean()), 1e-12), 0, 1)
    more = {"weights": weights, "from": start, "to": end, "explained": explained}
    arrays = {**part.arrays, **{name: np.asarray(one, np.float32) for name, one in more.items()}}
    return part._replace(kind="told", arrays=arrays)
