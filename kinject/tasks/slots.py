"""What every task needs of encoded passages: who gets a slot, and how many entities a bucket has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kinject.data.encode import Encoded, Rows, rows_with_vector

if TYPE_CHECKING:
    from kinject.knowledge.base import KnowledgeBase


def slot_rows(knowledge: KnowledgeBase | None) -> Rows | None:
    """Entity ids -> knowledge rows, -1 for entities without a vector; None when the plugin is off."""
    return None if knowledge is None else rows_with_vector(knowledge)


def entity_count(rows: Sequence[Encoded]) -> int:
    """M of a bucket: the most entities that one of its rows has."""
    return max(len(one.entities) for one in rows)


def first_span(one: Encoded) -> np.ndarray:
    """int32 [2]: start and end of the first mention's pieces; (0, 0) where there is no mention."""
    return one.spans[0] if len(one.spans) else np.zeros(2, np.int32)
