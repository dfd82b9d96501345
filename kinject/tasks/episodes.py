"""Few-shot episodes, drawn as the authors draw them, so that seeds name the same questions as in their tables.

Their code (Knowledge-Plugin, code/formatter/FewRel_formatter.py) seeds Python's generator with the episode's number and
draws, in this order: a sample of N of the relation names in sorted order; then, for each of these relations as they
were drawn, a sample of K + Q of its instance numbers, which is shuffled; the first K are the support, the rest are
queries. A query's class is the place of its relation among those drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from kinject.errors import InputError


@dataclass(frozen=True)
class Setting:
    """N-way K-shot with Q queries a class."""

    n_way: int = 5
    k_shot: int = 1
    queries: int = 5

    def __post_init__(self):
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise InputError(f"task_options.{name}", f"it must be a whole number from 1, got {value!r}")


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
      seed: what it was drawn with.
      classes: names of the N relations, in the order drawn.
      supports: for each class the K instances that are shown, as places in the relation's list.
      queries: for each class the Q instances that are asked, none of them shown.
    """

    seed: int
    classes: tuple[str, ...]
    supports: tuple[tuple[int, ...], ...]
    queries: tuple[tuple[int, ...], ...]


def draw_episode(sizes: Mapping[str, int], setting: Setting, seed: int) -> Episode:
    """Draws one episode.

    Args:
      sizes: how many instances each relation has; see `check_pool`.
      setting: N, K, Q.
      seed: the episode's number.
    """
    draw = random.Random(seed)
    classes = draw.sample(sorted(sizes), setting.n_way)
    supports, queries = [], []
    for relation in classes:
        chosen = draw.sample(range(sizes[relation]), setting.k_shot + setting.queries)
        draw.shuffle(chosen)
        supports.append(tuple(chosen[: setting.k_shot]))
        queries.append(tuple(chosen[setting.k_shot :]))
    return Episode(seed, tuple(classes), tuple(supports), tuple(queries))


def check_pool(sizes: Mapping[str, int], setting: Setting, where: object) -> None:
    """Raises InputError where relations or their instances are too few for an episode."""
    if len(sizes) < setting.n_way:
        problem = f"field label: there are {len(sizes)} relations, an episode needs {setting.n_way}"
        raise InputError(where, problem, "lower task_options.n_way")
    need = setting.k_shot + setting.queries
    for relation, size in sizes.items():
        if size < need:
            problem = f"the relation {relation} has {size} sentences, an episode needs {need}"
            raise InputError(where, problem, "lower task_options.k_shot or queries, or drop the relation")
