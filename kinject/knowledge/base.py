"""A knowledge base: entities, their vectors, names and triples, in one folder that is opened and never loaded.

It may grow: `add`, `edit` and `remove` write a revision, `at` reads an older one, `compact` folds them together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError
from kinject.knowledge.overlay import Overlay
from kinject.knowledge.revisions import Head, read_chain, read_head
from kinject.knowledge.stored import Entity, Stored
from kinject.knowledge.view import View
from kinject.knowledge.write import write_knowledge

if TYPE_CHECKING:
    import numpy as np

    from kinject.knowledge.growth import Change

__all__ = ["Entity", "KnowledgeBase", "write_knowledge"]

Words = Mapping[str, Any]
ATTEMPTS = 5  # a reader that meets a compaction reads the pointer again


class KnowledgeBase(View):
    """An open knowledge base; make one with `KnowledgeBase.open`. Cheap to pickle: it travels as its folder's path.

    It goes on reading the revision that it was opened at, whatever others write, until `refresh`.
    """

    @classmethod
    def open(cls, folder: str | os.PathLike[str], revision: int | None = None) -> KnowledgeBase:
        """Opens a folder, checking manifest, file sizes, shapes and dtypes, and the chain of its revisions.

        Args:
          folder: the knowledge base.
          revision: None = the newest.

        Raises:
          InputError: not a knowledge base, a missing, cut or unfitting file, a later format, a record that is not the
            one that was written, no such revision.
        """
        folder = Path(folder).absolute()
        for attempt in range(ATTEMPTS):
            head = read_head(folder)
            try:
                return cls._open(folder, head, revision)
            except InputError:
                if attempt == ATTEMPTS - 1 or read_head(folder) == head:
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def _open(cls, folder: Path, head: Head | None, revision: int | None) -> KnowledgeBase:
        stored = Stored.open(folder if head is None else folder / head.base)
        start = _start(stored, head)
        end = start if head is None else head
        overlay = Overlay(stored, start)
        records = read_chain(folder, start, end)
        if revision is not None:
            if not start.revision <= revision <= end.revision:
                problem = f"there is no revision {revision}: its are {start.revision} to {end.revision}"
                raise InputError(folder, problem, "see them with: kinject knowledge log")
            records = records[: revision - start.revision]
        return cls(folder, stored, overlay.after(records))

    def __reduce__(self) -> tuple[Any, ...]:
        return KnowledgeBase.open, (self.folder, self.revision)

    def __repr__(self) -> str:
        of = f", revision {self.revision}" if self.revision else ""
        return f"KnowledgeBase({self.name!r}, {self.size} entities x {self.dim}{of}, {self.folder})"

    def verify(self) -> str:
        """Reads everything, block by block, and returns the fingerprint.

        Raises:
          InputError: a file or the whole differs from what the manifest says, or a revision from what follows it.
        """
        self.stored.verify()
        KnowledgeBase.open(self.folder, self.revision)
        return self.fingerprint

    def check_claim(self) -> None:
        """Holds an unsealed base to the fingerprint that it claims; one larger than 64 MiB only `verify` reads whole.

        Raises:
          InputError: as `verify`.
        """
        self.stored.check_claim()

    def at(self, revision: int) -> KnowledgeBase:
        """The knowledge base as it was at a revision; this one stays as it is.

        Raises:
          InputError: there is no such revision, or it was folded away by `compact`.
        """
        return KnowledgeBase.open(self.folder, revision)

    def latest(self) -> KnowledgeBase:
        """The knowledge base at its newest revision: this one itself where nothing is newer.

        Only the pointer and what is new are read. After a compaction the new files are opened, whose rows are others.

        Raises:
          InputError: see `open`.
        """
        head = read_head(self.folder)
        if head is None or head == self.overlay.head:
            return self
        if self.folder / head.base != self.stored.folder or head.revision < self.revision:
            return KnowledgeBase.open(self.folder)
        try:
            records = read_chain(self.folder, self.overlay.head, head)
        except InputError:  # a compaction came between, or a record is damaged: `open` tells which
            return KnowledgeBase.open(self.folder)
        return KnowledgeBase(self.folder, self.stored, self.overlay.after(records))

    def refresh(self) -> bool:
        """Goes on to the newest revision; returns whether there was one."""
        new = self.latest()
        if new is self:
            return False
        self._become(new)
        return True

    def log(self) -> list[dict[str, Any]]:
        """What each revision did, oldest first: `revision`, `time`, `kind`, counts, and `note` where one was given."""
        return [dict(one) for one in self.overlay.log]

    def add(
        self,
        entities: Iterable[Words | str] = (),
        *,
        triples: Iterable[tuple[str, str, str]] = (),
        vectors: Mapping[str, np.ndarray] | None = None,
        descriptions: Mapping[str, str] | None = None,
        read: Mapping[str, np.ndarray] | None = None,
        note: str = "",
    ) -> Change:
        """Adds entities and triples as one revision, and goes on to it.

        Where an entity comes without a vector, one is made in the space of the base: of its triples, else of its
        description, else of what a host read where sentences mention it (`read`). An entity whose triples all name
        entities that are unknown waits, and is placed when they come.

        Args:
          entities: ids, or {"id", "label", "aliases", "description", "vector", "triples": [(relation, tail), …]}; only
            the id is needed.
          triples: of ids (head, relation, tail); one of the two is known or added here. A relation may be new.
          vectors: by id, floating [k].
          descriptions: by id.
          read: by id, float [n, D]: what a host put out where n sentences mention it (`kinject.inference.mentions`).
          note: kept in the log.

        Returns:
          What was done: `revision` and, for each entity, how it was `placed` and how far that can be trusted.

        Raises:
          InputError: an id that is there already, a vector of another size, a triple of two unknown entities, a folder
            that cannot be written. Nothing is changed then.
        """
        from kinject.knowledge.growth import add

        return self._grow(add, entities, triples, vectors or {}, descriptions or {}, read or {}, note)

    def edit(
        self,
        entities: Iterable[Words] = (),
        *,
        triples: Iterable[tuple[str, str, str]] = (),
        drop: Iterable[tuple[str, str, str]] = (),
        vectors: Mapping[str, np.ndarray] | None = None,
        note: str = "",
    ) -> Change:
        """Changes entities as one revision, and goes on to it; what is not named stays as it is.

        A triple replaces the ones of its head and relation, and the head moves by what it says and they did not; a head
        that gains or loses a fact is placed anew by all its triples. An entity whose description changes is placed
        anew where its vector was made of it. All others keep their vectors, bit for bit.

        Args:
          entities: {"id", and what changes of "label", "aliases", "description", "vector", "triples"}.
          triples: of ids (head, relation, tail), replacing those of the same head and relation.
          drop: triples that are no longer true.
          vectors: by id, floating [k].
          note: kept in the log.

        Returns:
          As `add`.

        Raises:
          InputError: an unknown id, a triple to drop that is not there, and as `add`. Nothing is changed then.
        """
        from kinject.knowledge.growth import edit

        return self._grow(edit, entities, triples, drop, vectors or {}, note)

    def remove(self, ids: Iterable[str], *, note: str = "") -> Change:
        """Removes entities and the triples that they stand in, as one revision, and goes on to it.

        They are gone from the disk after `compact`.

        Raises:
          InputError: an unknown id, a folder that cannot be written. Nothing is changed then.
        """
        from kinject.knowledge.growth import remove

        return self._grow(remove, ids, note)

    def compact(self, keep: int = 0) -> int:
        """Folds revisions into new files, and goes on to them; returns how many revisions were folded.

        What was removed in them is gone from the disk, indexes beside the folder included. Others who have the base
        open go on reading what they opened.

        Args:
          keep: so many of the newest revisions stay as they are, and can be read with `at`.

        Raises:
          InputError: the folder cannot be written, or the disk is full. Nothing is changed then.
        """
        from kinject.knowledge.compaction import clear, compact
        from kinject.knowledge.revisions import writing

        with writing(self.folder):
            self.refresh()
            first = _start(self.stored, self.overlay.head)
            if self.revision - keep <= first.revision:
                clear(self.folder, first)  # what a killed compaction left
                return 0
            folded = self.at(self.revision - keep) if keep else self
            compact(folded, self.overlay.head)
            count = folded.revision - first.revision
            self._become(KnowledgeBase.open(self.folder))
        return count

    @property
    def first_revision(self) -> int:
        """The oldest revision that `at` can read."""
        return _start(self.stored, None).revision

    def _grow(self, make: Any, *given: Any) -> Change:
        """Makes a revision behind the newest one under the lock, writes it, and goes on to it."""
        from kinject.knowledge.growth import commit
        from kinject.knowledge.revisions import writing

        with writing(self.folder):
            newest = self.latest()
            change = make(newest, *given)
            self._become(KnowledgeBase(self.folder, newest.stored, commit(newest, change)))
        return change

    def _become(self, other: KnowledgeBase) -> None:
        for name in ("vectors", "has_vector", "triples", "entities"):
            self.__dict__.pop(name, None)
        self.stored, self.overlay, self.manifest = other.stored, other.overlay, other.manifest


def _start(stored: Stored, head: Head | None) -> Head:
    """The revision that the files are."""
    told = stored.manifest.get("revisions") or {}
    base = "." if head is None else head.base
    return Head(int(told.get("revision", 0)), str(told.get("hash", stored.manifest["fingerprint"])), base)
