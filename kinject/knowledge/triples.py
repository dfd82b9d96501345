"""Triples: read by the names of their entities and relations, held and checked as indices."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from kinject.errors import InputError
from kinject.knowledge.files import at
from kinject.text_files import read_lines

Unknown = Literal["refuse", "add", "skip"]
HEADERS = (
    *("head relation tail", "h r t", "subject predicate object", "subject relation object", "s p o"),
    *("source relation target", "from relation to", "head_id relation_id tail_id", "entity relation value"),
)
"""What a first line may say that is no triple, upper and lower case alike."""


class TripleCollector:
    """Collects triples given by names, 12 bytes each.

    Args:
      row_of: rows of the entities that there are; "add" adds to it.
      unknown: what becomes of a triple whose head or tail is not among them: "refuse" raises, "add" makes it an entity,
        "skip" leaves the triple out.

    Attributes:
      relations: relation ids with their indices.
      skipped: triples left out.
      left_out: why a reader of somebody's format left triples out, and how many.
    """

    def __init__(self, row_of: dict[str, int], unknown: Unknown = "refuse"):
        self.row_of, self.unknown = row_of, unknown
        self.relations: dict[str, int] = {}
        self.skipped = 0
        self.left_out: Counter[str] = Counter()
        self._numbers = array("i")

    def add(self, where: str, head: str, relation: str, tail: str) -> None:
        """Takes a triple; raises InputError at `where` for an unknown entity, where those are refused."""
        for field, one in (("head", head), ("tail", tail)):
            if one in self.row_of:
                continue
            if self.unknown == "skip":
                self.skipped += 1
                return
            if self.unknown == "refuse":
                mend = "add it to the entities, or choose --unknown add (makes it one) or --unknown skip"
                raise InputError(where, f"field {field!r} is {one!r}, which is no entity", mend)
            self.row_of[one] = len(self.row_of)
        numbers = self.row_of[head], self.relations.setdefault(relation, len(self.relations)), self.row_of[tail]
        self._numbers.extend(numbers)

    def read(self, path: Path) -> None:
        """Takes all triples of a TSV of head, relation, tail; a first line of such words (`HEADERS`) is passed over.

        White space around a name is none of it.

        Raises:
          InputError: a line of another form, no line at all, an unknown entity where those are refused.
        """
        found = False
        for number, line in read_lines(path):
            if not line.strip():
                continue
            found = True
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) != 3 or not all(fields):
                problem = f"{line!r} is not head, relation and tail with tabs between"
                raise InputError(at(path, number), problem, "write Q90<tab>country<tab>Q142")
            if number > 1 or " ".join(fields).lower() not in HEADERS:
                self.add(at(path, number), *fields)
        if not found:
            raise InputError(path, "the file is empty", "a line is head, relation and tail with tabs between")

    def array(self) -> np.ndarray:
        """All triples as int32 [T, 3] of (head row, relation index, tail row)."""
        return np.frombuffer(self._numbers, np.int32).reshape(-1, 3)


def read_triples(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Reads a TSV of head, relation, tail.

    Returns:
      (entity ids, relation ids, int32 [T, 3] of their numbers), both in the order in which they first occur.

    Raises:
      InputError: a line of another form; no line at all.
    """
    collected = TripleCollector({}, unknown="add")
    collected.read(path)
    return list(collected.row_of), list(collected.relations), collected.array()


def check_triples(where: object, triples: np.ndarray, num_entities: int, num_relations: int) -> np.ndarray:
    """Returns triples (head, relation, tail), integer [T, 3], as int32, if all their indices point at something.

    Raises:
      InputError: at `where`: another shape or dtype, none at all, or the first triple that points outside.
    """
    triples = np.asarray(triples)
    if triples.ndim != 2 or triples.shape[1] != 3 or not np.issubdtype(triples.dtype, np.integer):
        raise InputError(where, f"triples are {triples.dtype} {triples.shape}, not integer [T, 3]")
    if len(triples) == 0:
        raise InputError(where, "triples are none", "give at least one")
    bad = np.flatnonzero(((triples < 0) | (triples >= (num_entities, num_relations, num_entities))).any(axis=1))
    if len(bad):
        there = f"there are {num_entities} entities and {num_relations} relations"
        raise InputError(where, f"triple {bad[0]} is {triples[bad[0]].tolist()}, but {there}", "indices count from 0")
    return triples.astype(np.int32)
