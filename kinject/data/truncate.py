"""Which pieces of a text go when a passage is too long: context far from everything that matters."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable

Run = tuple[int, int]  # pieces [low, high) of a mention
Doomed = list[int]  # indices of pieces, ascending
Truncate = Callable[[list[tuple[list[int], list[Run]]], int, int], list[Doomed] | None]
"""(piece ids and runs of each text, how many must go, mask id) -> for each text what goes; None if it cannot be."""


def doomed_pieces(sides: list[tuple[list[int], list[Run]]], excess: int, mask_id: int) -> list[Doomed] | None:
    """Chooses `excess` pieces to drop from the texts of a passage.

    Mentions and mask tokens stay. Of the rest, what lies outside of them goes before what lies between them, and the
    farthest from them goes first; a text without either keeps its beginning.

    Args:
      sides: for each text its piece ids and the runs of its mentions.
      excess: how many must go.
      mask_id: the host's mask token.

    Returns:
      For each text the indices to drop; None if there are not so many.
    """
    ranked = []
    for number, (ids, runs) in enumerate(sides):
        ranked += [(*rank, number, index) for index, rank in _ranks(ids, runs, mask_id)]
    if len(ranked) < excess:
        return None
    ranked.sort(reverse=True)
    gone: list[Doomed] = [[] for _ in sides]
    for *_, number, index in ranked[:excess]:
        gone[number].append(index)
    return [sorted(doomed) for doomed in gone]


def doomed_in_turn(sides: list[tuple[list[int], list[Run]]], excess: int, mask_id: int) -> list[Doomed] | None:
    """As `doomed_pieces`, but a text loses nothing while one before it has a piece that may go.

    For what is asked of a passage: the passage goes before the question, and the question before the answer.
    """
    gone: list[Doomed] = []
    for ids, runs in sides:
        ranked = sorted(((rank, index) for index, rank in _ranks(ids, runs, mask_id)), reverse=True)[:excess]
        gone.append(sorted(index for _, index in ranked))
        excess -= len(ranked)
    return None if excess else gone


def cut(ids: list[int], runs: list[Run], doomed: Doomed) -> tuple[list[int], list[Run]]:
    """Returns pieces and runs of a text without its doomed pieces, none of which lies in a run."""
    drop = set(doomed)
    kept = [piece for index, piece in enumerate(ids) if index not in drop]
    moved = [(low - bisect_left(doomed, low), high - bisect_left(doomed, low)) for low, high in runs]
    return kept, moved


def _ranks(ids: list[int], runs: list[Run], mask_id: int) -> list[tuple[int, tuple[bool, int]]]:
    """Returns (index, (lies outside, distance)) of every piece that may go."""
    stays = [piece == mask_id for piece in ids]
    for low, high in runs:
        stays[low:high] = [True] * (high - low)
    anchors = [index for index, stay in enumerate(stays) if stay]
    if not anchors:
        return [(index, (True, index + 1)) for index in range(len(ids))]
    ranks = [(index, (True, anchors[0] - index)) for index in range(anchors[0])]
    for left, right in itertools.pairwise(anchors):
        ranks += [(index, (False, min(index - left, right - index))) for index in range(left + 1, right)]
    ranks += [(index, (True, index - anchors[-1])) for index in range(anchors[-1] + 1, len(ids))]
    return ranks
