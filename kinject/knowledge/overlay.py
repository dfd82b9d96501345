"""What revisions added, changed and removed, held in memory over the files that never change.

Rows of added entities follow those of the files, in the order in which they came; no row is ever used twice. A vector
that changed, or came later than its entity, or went with it, is a patch. An overlay is never changed once it is made:
`after` copies it and folds records in, so whoever reads an older revision goes on reading that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kinject.errors import InputError, first_line
from kinject.knowledge.revisions import Head, Revision
from kinject.knowledge.stored import Entity, Stored

Triple = tuple[int, int, int]
Named = tuple[str, str, str]  # a triple of ids
_MISSING: Any = object()


class Overlay:
    """All that revisions did to a stored base.

    Attributes:
      head: the revision that this is.
      ids: of the added rows, in order; the first has the row `stored.size`.
      table: vectors of the added rows [n, k] as they came, in the stored dtype.
      present: whether those have one, bool [n].
      patched: rows whose vector is another now, sorted, int64 [p]; with `patches` [p, k] and `patch_present` bool [p].
      words: names and descriptions of rows that were added or whose words changed.
      removed: rows that are gone.
      named: rows whose words came, changed or went, in order; a row may stand there again.
      triples: added triples, in order, as a dict for its order.
      dropped: triples of the files that are no longer true.
      relations: those that came, as {"id", "label"}.
      waiting: by an unknown id, the triples that name it.
      placed: by row, how its vector was placed, and how far it can be trusted.
      log: a summary of each revision.
    """

    def __init__(self, stored: Stored, head: Head):
        self.stored, self.head = stored, head
        self.rows: dict[str, int] = {}
        self.ids: list[str] = []
        self.table = np.empty((0, stored.dim), stored.vectors.dtype)
        self.present = np.empty(0, bool)
        self.patched = np.empty(0, np.int64)
        self.patches, self.patch_present = self.table, self.present
        self.words: dict[int, Entity] = {}
        self.removed: set[int] = set()
        self.removed_rows = self.patched
        self.named: list[int] = []
        self.triples: dict[Triple, None] = {}
        self.by_head: dict[int, list[Triple]] = {}
        self.by_tail: dict[int, list[Triple]] = {}
        self.dropped: set[Triple] = set()
        self.degrees: dict[int, int] = {}
        self.relations: list[dict[str, str]] = []
        self.relation_of: dict[str, int] = {}
        told = stored.manifest.get("revisions") or {}  # of files that revisions were folded into
        self.log: list[dict[str, Any]] = list(told.get("log", ()))
        self.waiting: dict[str, list[Named]] = {}
        for named in map(tuple, told.get("waiting", ())):
            self._wait(named)
        placed = told.get("placed", {})
        rows = stored.rows(list(placed)).tolist() if placed else []
        self.placed: dict[int, dict[str, Any]] = dict(zip(rows, placed.values(), strict=True))

    @property
    def size(self) -> int:
        """Rows in all, those that are gone included."""
        return self.stored.size + len(self.ids)

    def after(self, records: Sequence[Revision]) -> Overlay:
        """The overlay with further revisions folded in; this one stays as it is."""
        if not records:
            return self
        fold = _Fold(self._copy())
        for record in records:
            try:
                fold.take(record)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                problem = f"revision {record.facts['revision']} is not what this kinject writes: {first_line(error)}"
                raise InputError(self.stored.folder, problem, "open it with the kinject that wrote it") from None
        return fold.finish()

    def row(self, one: str) -> int:
        """The row of one id, -1 where it is unknown or gone."""
        row = self.rows.get(one)
        if row is None:
            row = int(self.stored.rows([one])[0])
        return -1 if row in self.removed else row

    def relation(self, one: str) -> int:
        """The index of a relation's id, -1 where there is none."""
        return self.relation_of.get(one, -1)

    def triples_of(self, row: int) -> list[Triple]:
        """The added triples that an entity stands in; those of entities that are gone left out."""
        both = [*self.by_head.get(row, ()), *(one for one in self.by_tail.get(row, ()) if one[0] != one[2])]
        return [one for one in both if self.holds(one)]

    def holds(self, triple: Sequence[int]) -> bool:
        """Whether a triple, of the files or added, is still true."""
        head, relation, tail = triple
        if head in self.removed or tail in self.removed:
            return False
        return (head, relation, tail) not in self.dropped

    def _wait(self, named: Named) -> None:
        """Lets a triple wait for the entity that it names and nobody knows."""
        unknown = named[2] if self.row(named[2]) < 0 else named[0]
        self.waiting[unknown] = [*self.waiting.get(unknown, ()), named]

    def _copy(self) -> Overlay:
        new = Overlay.__new__(Overlay)
        for name, value in vars(self).items():
            setattr(new, name, value.copy() if isinstance(value, dict | set | list) else value)
        return new


class _Fold:
    """Folds records into an overlay that nobody reads yet."""

    def __init__(self, made: Overlay):
        self.made = made
        self._new: list[np.ndarray | None] = []  # vectors of the rows that came, before they are one table
        self._first = made.size
        self._patches: dict[int, np.ndarray | None] = {}
        self._own: set[int] = set()  # rows whose lists of triples are copies already
        if not made.relation_of:
            made.relation_of = {one["id"]: index for index, one in enumerate(made.stored.relations)}

    def take(self, record: Revision) -> None:
        made, facts = self.made, record.facts
        if len(record.vectors) and record.vectors.shape[1] != made.stored.dim:
            raise ValueError(f"its vectors have {record.vectors.shape[1]} numbers, the base's {made.stored.dim}")
        for one in facts["relations"]:
            made.relation_of[one["id"]] = len(made.relation_of)
            made.relations.append(one)
        for one in facts["removed"]:
            self._remove(made.row(one))
        came = [one["id"] for one in facts["entities"] if self._entity(one, record.vectors)]
        for triple in facts["dropped"]:
            self._drop(tuple(triple))
        for triple in facts["triples"]:
            self._triple(tuple(triple))
        for one in came:
            for triple in made.waiting.pop(one, ()):
                self._triple(triple)
        made.head = Head(facts["revision"], record.hash, made.head.base)
        made.log.append({**facts["summary"], "revision": facts["revision"], "time": facts["time"]})

    def finish(self) -> Overlay:
        """The overlay, with its arrays."""
        made, dtype = self.made, self.made.stored.vectors.dtype
        if self._new:
            table = np.zeros((len(self._new), made.stored.dim), dtype)
            there = np.array([one is not None for one in self._new])
            if there.any():
                table[there] = [one for one in self._new if one is not None]
            made.table = np.concatenate([made.table, table])
            made.present = np.concatenate([made.present, there])
        if self._patches:
            patches = dict(zip(made.patched.tolist(), zip(made.patches, made.patch_present, strict=True), strict=True))
            nothing = np.zeros(made.stored.dim, dtype)
            patches |= {r: (nothing if v is None else v, v is not None) for r, v in self._patches.items()}
            rows = sorted(patches)
            made.patched = np.array(rows, np.int64)
            made.patches = np.stack([patches[row][0] for row in rows]).astype(dtype)
            made.patch_present = np.array([patches[row][1] for row in rows], bool)
        if len(made.removed) != len(made.removed_rows):
            made.removed_rows = np.array(sorted(made.removed), np.int64)
        return made

    def _remove(self, row: int) -> None:
        made = self.made
        if row < 0:
            return
        made.removed.add(row)
        made.words.pop(row, None)
        made.placed.pop(row, None)
        made.named.append(row)
        self._set(row, None)

    def _entity(self, facts: dict[str, Any], vectors: np.ndarray) -> bool:
        """Takes an entity that came or changed; tells whether it came."""
        made, one = self.made, facts["id"]
        row = made.row(one)
        came = row < 0
        if came:
            row = made.size
            made.ids.append(one)
            made.rows[one] = row
            self._new.append(None)
        old = made.words.get(row) or (Entity(one) if came else made.stored.entity(row))
        words: list[Any] = [facts.get(field, _MISSING) for field in ("label", "aliases", "description")]
        if came or any(word is not _MISSING for word in words):
            kept: list[Any] = [was if word is _MISSING else word for was, word in zip(old[1:], words, strict=True)]
            made.words[row] = Entity(one, kept[0], tuple(kept[1]), kept[2])
            made.named.append(row)
        if "vector" in facts:
            self._set(row, None if facts["vector"] is None else vectors[facts["vector"]])
        if "placed" in facts:
            made.placed[row] = facts["placed"]
        return came

    def _set(self, row: int, vector: np.ndarray | None) -> None:
        """A row's vector: in the new rows' own place, or as a patch."""
        if row >= self._first:
            self._new[row - self._first] = vector
        else:
            self._patches[row] = vector

    def _triple(self, named: Named) -> None:
        """Takes a triple, or lets it wait for the entity that it names and nobody knows."""
        made = self.made
        head, relation, tail = made.row(named[0]), made.relation(named[1]), made.row(named[2])
        if head < 0 or tail < 0:
            made._wait(named)
            return
        triple = head, relation, tail
        if triple in made.dropped:  # one of the files', true again
            made.dropped.discard(triple)
            self._count(triple, 1)
            return
        if triple in made.triples:
            return
        made.triples[triple] = None
        self._list(made.by_head, head).append(triple)
        self._list(made.by_tail, tail).append(triple)
        self._count(triple, 1)

    def _drop(self, named: Named) -> None:
        made = self.made
        triple = made.row(named[0]), made.relation(named[1]), made.row(named[2])
        if triple in made.triples:
            del made.triples[triple]
            self._list(made.by_head, triple[0]).remove(triple)
            self._list(made.by_tail, triple[2]).remove(triple)
        elif min(triple) >= 0:
            made.dropped.add(triple)
        else:
            for unknown in (named[0], named[2]):
                made.waiting[unknown] = [one for one in made.waiting.get(unknown, ()) if one != named]
            return
        self._count(triple, -1)

    def _list(self, lists: dict[int, list[Triple]], row: int) -> list[Triple]:
        """The triples of a row, in a list that no other overlay shares."""
        key = row if lists is self.made.by_head else ~row
        if key not in self._own:
            self._own.add(key)
            lists[row] = list(lists.get(row, ()))
        return lists[row]

    def _count(self, triple: Triple, by: int) -> None:
        for row in (triple[0], triple[2]):
            self.made.degrees[row] = self.made.degrees.get(row, 0) + by
