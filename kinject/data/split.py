"""Records cut into parts that share no entity, so that what is asked about in one was seen in no other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kinject.errors import InputError

By = Literal["entity", "record"]


@dataclass(frozen=True)
class RecordParts:
    """Records by part.

    Attributes:
      of: the part of each record, by its number.
      groups: how many groups of records that share entities there are.
      largest: records in the largest of them.
      unlinked: records without an entity.
    """

    of: tuple[str, ...]
    groups: int
    largest: int
    unlinked: int

    def numbers(self, part: str) -> list[int]:
        """Which records are in a part, in their order."""
        return [number for number, one in enumerate(self.of) if one == part]


def split_records(
    records: Sequence[Mapping[str, Any]], into: Mapping[str, float], *, by: By, seed: int = 0
) -> RecordParts:
    """Draws parts of given shares.

    Args:
      records: as lines of a record file have them; `mentions` name the entities.
      into: shares by part; they are divided by their sum.
      by: "entity": records that name an entity in common, directly or through others, stay together; "record": each
        for itself.
      seed: of the draw.

    Raises:
      InputError: shares that are none, or records so connected that a part stays empty.
    """
    if len(into) < 2 or any(not 0 < share < float("inf") for share in into.values()):
        raise InputError("--into", f"it is {dict(into)}", "name two parts or more, such as host=.4,plugin=.4,test=.2")
    entities = [sorted({one.get("entity") for one in record.get("mentions", ())} - {None}) for record in records]
    group = _connected(entities) if by == "entity" else np.arange(len(records))
    sizes = np.bincount(group, minlength=1)
    wanted = {part: share / sum(into.values()) * len(records) for part, share in into.items()}
    taken: Counter[str] = Counter()
    part_of: dict[int, str] = {}
    order = np.random.default_rng(seed).permutation(len(sizes))
    for one in order[np.argsort(-sizes[order], kind="stable")].tolist():  # large groups first: they fit less easily
        part = max(wanted, key=lambda name: wanted[name] - taken[name])
        part_of[one] = part
        taken[part] += int(sizes[one])
    empty = [part for part in into if not taken[part]]
    if empty:
        problem = f"part {empty[0]} stays empty: of {len(records)} records {np.max(sizes)} share entities"
        raise InputError("--by entity", problem, "link fewer names, or split --by record")
    unlinked = sum(not one for one in entities)
    return RecordParts(tuple(part_of[one] for one in group.tolist()), len(sizes), int(np.max(sizes)), unlinked)


def _connected(entities: Sequence[Sequence[str]]) -> np.ndarray:
    """A number for each record, int [n], from 0; records that share an entity have the same."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known = {one: number for number, one in enumerate(dict.fromkeys(name for some in entities for name in some))}
    pairs = [(number, known[name]) for number, some in enumerate(entities) for name in some]
    count, total = len(entities), len(entities) + len(known)
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(pairs)), (rows, columns + count)), shape=(total, total))
    _, group = connected_components(links, directed=False)
    _, group = np.unique(group[:count], return_inverse=True)
    return group
