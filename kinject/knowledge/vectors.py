"""Where the vectors of entities come from: given by the user, trained on their triples, or made of their descriptions.

Descriptions need no model: TF-IDF and a truncated SVD, from scikit-learn. This is latent semantic analysis (Deerwester
et al. 1990): entities whose descriptions use words that occur together get vectors that point the same way. Words and
components are learned from at most `SAMPLE` descriptions, spread evenly; the vectors are made block by block into a
file, so memory does not grow with the number of entities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.described import Cut, description_part, vectoriser
from kinject.knowledge.space import Part, graph_part

if TYPE_CHECKING:
    from kinject.knowledge.graph import GraphConfig

STANDARDISED = "centred, divided by the standard deviation of all numbers"
SAMPLE = 200_000  # descriptions that words and components are learned from
BLOCK = 16_384  # descriptions turned into vectors at once
WORDS = 100_000  # the most frequent words that are looked at


class Vectors(NamedTuple):
    """The vectors of N entities, and what the manifest says of them.

    Attributes:
      values: [N, k]; an array, a memory map, or anything with its shape and dtype that is read in slices.
      present: bool [N]: whether an entity has a vector; None = all do.
      normalisation: what was done to them, in words.
      metrics: figures of merit.
      provenance: of what and how they were made; None = nothing is noted.
      parts: the space that they were made in, by which further entities are placed; none where they are given.
    """

    values: Any
    present: np.ndarray | None = None
    normalisation: str = "none"
    metrics: Mapping[str, float] = {}
    provenance: Mapping[str, Any] | None = None
    parts: tuple[Part, ...] = ()


def graph_vectors(
    triples: np.ndarray,
    num_entities: int,
    num_relations: int,
    config: GraphConfig,
    *,
    seed: int,
    held_out: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Vectors:
    """Embeds a graph: float32 [N, k], present where an entity occurs in a triple.

    Args:
      triples: int32 [T, 3] of (head, relation, tail).
      num_entities: N.
      num_relations: R.
      config: how.
      seed: of the training, and of which triples are held out.
      held_out: at most so many triples are left out of the training; their filtered MRR and hits are the metrics.
      progress: called with the epoch and its mean loss.

    Raises:
      InputError: see `train_graph`.
    """
    from kinject.knowledge.graph import train_graph  # JAX
    from kinject.knowledge.ranking import filtered_ranking

    apart, kept = _hold_out(triples, held_out, seed)
    result = train_graph(triples[kept], num_entities, num_relations, config, seed=seed, progress=progress)
    metrics = filtered_ranking(result, triples[apart], triples) if len(apart) else {}
    values = result.standardised()
    mean, deviation = result.centre()
    part = graph_part(config.method, result.relations, values, triples, mean=mean, deviation=deviation)
    return Vectors(values, result.seen, STANDARDISED, metrics, parts=(part,))


def _hold_out(triples: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses triples to rank: indices (held out, kept). An entity keeps at least one triple as a head.

    Args:
      triples: int32 [T, 3].
      count: how many at most.
      seed: which.
    """
    order = np.random.default_rng(seed).permutation(len(triples))
    _, first = np.unique(triples[order, 0], return_index=True)  # one triple of each head stays
    spare = np.setdiff1d(np.arange(len(order)), first)
    held_out = order[np.sort(spare)[:count]]
    return held_out, np.setdiff1d(np.arange(len(triples)), held_out)


def description_vectors(
    descriptions: Sequence[str],
    dim: int,
    path: Path,
    *,
    seed: int,
    cut: Cut | None = None,
    where: object = "descriptions",
) -> Vectors:
    """Makes a vector of each description: float32 [N, k] in a file, present where others use one of its words too.

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

    words = vectoriser(cut, min_df=2, max_features=WORDS)
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
    moments = _standardise(vectors, present)
    if moments is None:
        raise InputError(where, "all descriptions say the same", "tell the entities apart, or give triples or vectors")
    note = {
        "descriptions": f"TF-IDF and truncated SVD (scikit-learn) of the descriptions, {dim} components",
        "descriptions_words": "the pieces of a host's tokenizer" if cut else "runs of letters and digits",
    }
    kept = float(components.explained_variance_ratio_.sum())  # share of the TF-IDF variance
    part = description_part(words, components, cut, *moments)
    metrics = {"descriptions_variance_kept": round(kept, 4)}
    return Vectors(vectors, present, STANDARDISED, metrics, note, (part,) if part else ())


def _blocks(descriptions: Sequence[str]) -> Iterator[tuple[slice, Sequence[str]]]:
    for start in range(0, len(descriptions), BLOCK):
        rows = slice(start, min(start + BLOCK, len(descriptions)))
        yield rows, descriptions[rows]


def _sample(descriptions: Sequence[str]) -> Iterator[str]:
    """Every n-th description that is not empty, about `SAMPLE` of all."""
    step = max(1, len(descriptions) // SAMPLE)
    for _, texts in _blocks(descriptions):
        yield from filter(None, texts[::step])


def _standardise(vectors: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Centres the vectors that are there and divides them by the standard deviation of all their numbers, in place.

    Returns centre [k] and deviation; None where they do not differ, and are left as they are.
    """
    spans = [slice(start, start + BLOCK) for start in range(0, len(vectors), BLOCK)]
    total = sum(vectors[rows][present[rows]].sum(axis=0, dtype=np.float64) for rows in spans)
    mean = (total / max(present.sum(), 1)).astype(np.float32)
    squares = sum(float(((vectors[rows][present[rows]] - mean) ** 2).sum(dtype=np.float64)) for rows in spans)
    deviation = np.float32(np.sqrt(squares / max(present.sum() * vectors.shape[1], 1)))
    if deviation < 1e-6:
        return None
    for rows in spans:
        vectors[rows] = np.where(present[rows, None], (vectors[rows] - mean) / deviation, 0)
    return mean, float(deviation)


def side_by_side(parts: Sequence[Vectors]) -> Vectors:
    """Joins the vectors of the same N entities along k; an entity has one where any part has, zeros in the others.

    The parts have the same normalisation. Their metrics and notes come together, those of the last part first.
    """
    present = [np.ones(len(one.values), bool) if one.present is None else one.present for one in parts]
    metrics: dict[str, float] = {}
    provenance: dict[str, Any] = {}
    for one in reversed(parts):
        metrics |= one.metrics
        provenance |= one.provenance or {}
    values = Beside([one.values for one in parts], present)
    starts = np.cumsum([0, *(one.values.shape[1] for one in parts)]).tolist()
    space = tuple(part.moved(start) for one, start in zip(parts, starts, strict=False) for part in one.parts)
    return Vectors(values, np.any(present, axis=0), parts[0].normalisation, metrics, provenance, space)


class Picked:
    """Rows of a table [M, k] in another order; float32 [N, k] to whoever reads it in slices.

    Args:
      table: floating [M, k].
      rows: integer [N], rows of the table; -1 reads as zeros.
    """

    def __init__(self, table: np.ndarray, rows: np.ndarray):
        self._table, self._rows = table, rows
        self.shape, self.dtype = (len(rows), table.shape[1]), np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: slice) -> np.ndarray:
        rows = self._rows[some]
        out = np.zeros((len(rows), self.shape[1]), np.float32)
        out[rows >= 0] = self._table[rows[rows >= 0]]
        return out


class Beside:
    """Several tables of the same N rows side by side, float32 [N, k1 + k2 + …] to whoever reads it in slices.

    Args:
      tables: floating [N, k] each.
      present: bool [N] each: rows that are not there read as zeros.
    """

    def __init__(self, tables: Sequence[np.ndarray], present: Sequence[np.ndarray]):
        self._tables, self._present = tables, present
        self.shape = len(tables[0]), sum(table.shape[1] for table in tables)
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, some: slice) -> np.ndarray:
        pairs = zip(self._tables, self._present, strict=True)
        return np.concatenate([np.where(there[some, None], table[some], 0) for table, there in pairs], axis=1)
