"""The names of a knowledge base's entities as a trie that is opened and never loaded: `<knowledge base>.names/`.

Made once from labels and aliases, beside the knowledge base, and memory-mapped: a million names open in milliseconds.
What revisions of the base changed since is held beside it in memory (`NameChanges`).
A name (folded, see surface.py) is a key of a marisa trie; its entities are a stretch of flat arrays, the likeliest
first.

How likely an entity is to be meant by a name: 1 + the triples that it stands in, halved where the name is an alias and
not its label. Among equals the earlier row comes first.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import marisa_trie
import numpy as np

from kinject.errors import InputError, first_line
from kinject.integrity import BLOCK, Seal, read_seal
from kinject.knowledge.derived import derived_path, ensure_derived
from kinject.knowledge.files import save_trie
from kinject.knowledge.manifest import blocks
from kinject.knowledge.view import View
from kinject.linking.surface import fold, units

FORMAT_VERSION = 1
TRIE, ABOUT = "names.marisa", "about.json"
STARTS, ROWS, WEIGHTS, CAPITALS = "starts.npy", "rows.npy", "weights.npy", "capitals.npy"
FLAT = (STARTS, ROWS, WEIGHTS, CAPITALS)
ALIAS_WEIGHT = 0.5  # of a label's


def folded_name(name: str, *, cases: bool) -> str:
    """What a name is looked up as: folded, runs of white space as one."""
    return " ".join(fold(name, cases=cases).text.split())


class Owners(NamedTuple):
    """The entities that a name may mean.

    Attributes:
      rows: rows of the knowledge base, the likeliest first.
      weights: how likely each is, not normalised.
      capitals: whether each is called so in capitals only.
    """

    rows: list[int]
    weights: list[float]
    capitals: list[bool]


class _Flat:
    """A memory-mapped array of one axis that is read in short stretches, whose blocks are checked at the first touch.

    Memory views: a few numbers of one are read several times faster than of an array.
    """

    def __init__(self, folder: Path, name: str, seal: Seal | None):
        array = np.load(folder / name, mmap_mode="r")
        self._view: Any = np.asarray(array).data
        self._name, self._seal, self._size = name, seal, array.itemsize
        self._start = int(getattr(array, "offset", 0))
        self._good = bytearray(0 if seal is None else -(-(self._start + array.nbytes) // BLOCK))

    def __call__(self, low: int, high: int) -> list[Any]:
        """The numbers [low, high)."""
        if self._good and high > low:
            first, last = (self._start + low * self._size) // BLOCK, (self._start + high * self._size - 1) // BLOCK
            if not (self._good[first] and self._good[last]) or last > first + 1:
                self._seal.check_blocks(self._name, range(first, last + 1))  # type: ignore[union-attr]  # there is one
                self._good[first : last + 1] = b"\1" * (last + 1 - first)
        return self._view[low:high].tolist()


class Aliases:
    """All names of a knowledge base.

    Args:
      base: the knowledge base.
      cases: whether upper and lower case are alike.

    Attributes:
      trie: the folded names.
      longest: characters of the longest.

    Raises:
      InputError: the knowledge base has no names, or the index cannot be written or read.
    """

    def __init__(self, base: View, *, cases: bool = True):
        self.base, self.cases = base.snapshot(), cases
        name = "names" if cases else "names_exact"
        self.folder = derived_path(base, name)
        if not base.has_names:
            mend = "build it with labels or aliases: kinject knowledge build --entities …"
            raise InputError(base.folder, "its entities have no names", mend)
        try:
            ensure_derived(base, name, self._build, later=FLAT)
            self._open()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            mend = "the folder of the knowledge base must be writable; delete the index and try again"
            raise InputError(self.folder, f"cannot be made or read: {first_line(error)}", mend) from None
        self._changes = NameChanges(partial(folded_name, cases=cases)).after(base)  # holds nothing of this

    def refreshed(self, base: View) -> Aliases:
        """The names of another revision of the base; only what is new is read."""
        if base.stored is not self.base.stored or base.revision < self.base.revision:
            return Aliases(base, cases=self.cases)
        new = copy.copy(self)
        new.base, new._changes = base.snapshot(), self._changes.after(base)
        return new

    def fold(self, name: str) -> str:
        """What a name is looked up as: folded, runs of white space as one."""
        return folded_name(name, cases=self.cases)

    def names_at(self, folded: str, start: int, unit: str) -> list[str]:
        """The names that a folded text may have at a place, longest first; `unit` is the word or sign there."""
        found = self.trie.prefixes(folded[start : start + self.longest])
        if unit in self._changes.lengths:
            found = sorted({*found, *self._changes.names_at(folded, start, unit)}, key=len)
        return found[::-1]

    def owners(self, name: str) -> Owners | None:
        """Who has a folded name; None where nobody does."""
        key, changes = self.trie.get(name), self._changes
        if not changes.owners and not changes.gone and not self.base.overlay.degrees:
            return None if key is None else self._stored_owners(key)
        found = [] if key is None else list(zip(*self._stored_owners(key), strict=True))
        degrees = self.base.overlay.degrees
        kept = [one for one in found if one[0] not in changes.gone]
        if len(kept) > 1 or (kept and name in changes.owners):
            kept = [
                (row, weight + degrees.get(row, 0) * (1 if self._is_label(row, name) else ALIAS_WEIGHT), capitals)
                if row in degrees
                else (row, weight, capitals)
                for row, weight, capitals in kept
            ]
        for row, label, capitals in changes.owners.get(name, ()):
            kept.append((row, (1 + self._degree(row)) * (1 if label else ALIAS_WEIGHT), capitals))
        kept.sort(key=lambda one: (-one[1], one[0]))
        return Owners(*map(list, zip(*kept, strict=True))) if kept else None

    def _stored_owners(self, key: int) -> Owners:
        low, high = self._starts(key, key + 2)
        return Owners(self._rows(low, high), self._weights(low, high), self._capitals(low, high))

    def _is_label(self, row: int, name: str) -> bool:
        return self.fold(self.base.stored.entity(row).label) == name

    def _degree(self, row: int) -> float:
        """How many triples an entity stands in; of one of the files by the weight of a name that it had there."""
        degree: float = self.base.overlay.degrees.get(row, 0)
        if row < self.base.stored.size and self.base.stored.has_names:
            words = self.base.stored.entity(row)
            for place, name in enumerate((words.label, *words.aliases)):
                key = self.trie.get(self.fold(name))
                if key is not None:
                    owners = self._stored_owners(key)
                    weight = owners.weights[owners.rows.index(row)]
                    return degree + weight / (ALIAS_WEIGHT if place else 1) - 1
        return degree

    @property
    def ambiguous(self) -> int:
        """How many names several entities have."""
        return int((np.diff(self._starts(0, len(self.trie) + 1)) > 1).sum())

    def __len__(self) -> int:
        return len(self.trie) + sum(self.trie.get(name) is None for name in self._changes.owners)

    def _open(self) -> None:
        about = json.loads((self.folder / ABOUT).read_text())
        if about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"its format_version is {about['format_version']}, this kinject reads {FORMAT_VERSION}")
        self.longest = int(about["longest"])
        self.trie = marisa_trie.Trie().mmap(str(self.folder / TRIE))
        seal = read_seal(self.folder)
        self._starts, self._rows, self._weights, self._capitals = (_Flat(self.folder, name, seal) for name in FLAT)

    def _build(self, folder: Path) -> None:
        trie = marisa_trie.Trie(name for name, _, _, _ in self._names())
        if not len(trie) and not self.base.overlay.words:
            raise InputError(self.base.folder, "no entity has a label or an alias", "add them and build it again")
        save_trie(trie, folder / TRIE)
        longest = _write_owners(folder, trie, self._names(), self.base)
        (folder / ABOUT).write_text(json.dumps({"format_version": FORMAT_VERSION, "longest": longest}))

    def _names(self) -> Iterator[tuple[str, int, bool, bool]]:
        """Yields (folded name, row, whether it is the label, whether it is in capitals) of every name."""
        row = 0
        table = self.base.stored.entities
        if table is None:
            return
        for batch in table.select(["label", "aliases"]).to_batches(max_chunksize=65_536):
            labels, aliases = (column.to_pylist() for column in batch.columns)
            for label, others in zip(labels, aliases, strict=True):
                for place, name in enumerate((label or "", *(others or ()))):
                    folded = self.fold(name)
                    if folded:
                        yield folded, row, place == 0, name.isupper()
                row += 1


def _write_owners(folder: Path, trie: Any, names: Iterator[tuple[str, int, bool, bool]], base: View) -> int:
    """Writes the flat arrays; returns how many characters the longest name has."""
    keys, rows, labels, capitals, longest = _collect(trie, names)
    # one entry an entity and name: the label's where both are the same, in capitals only where no spelling is not
    order = np.lexsort((capitals, ~labels, rows, keys))
    keys, rows, labels, capitals = keys[order], rows[order], labels[order], capitals[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
    capitals = np.logical_and.reduceat(capitals, np.flatnonzero(first))
    keys, rows, labels = keys[first], rows[first], labels[first]
    weights = (1 + _degrees(base)[rows]) * np.where(labels, 1, ALIAS_WEIGHT).astype(np.float32)
    order = np.lexsort((rows, -weights, keys))
    np.save(folder / ROWS, rows[order])
    np.save(folder / WEIGHTS, weights[order].astype(np.float32))
    np.save(folder / CAPITALS, capitals[order])
    np.save(folder / STARTS, np.searchsorted(keys, np.arange(len(trie) + 1)).astype(np.int64))
    return longest


def _collect(trie: Any, names: Iterator[tuple[str, int, bool, bool]]) -> tuple[Any, ...]:
    """Keys int32, rows int32, labels bool and capitals bool of all names [A], and the length of the longest."""
    kind = np.dtype([("key", np.int32), ("row", np.int32), ("label", bool), ("capitals", bool)])
    longest = 0

    def entries() -> Iterator[tuple[int, int, bool, bool]]:
        nonlocal longest
        for name, row, label, capitals in names:
            longest = max(longest, len(name))
            yield trie.key_id(name), row, label, capitals

    table = np.fromiter(entries(), kind)
    return table["key"], table["row"], table["label"], table["capitals"], longest


def _degrees(base: View) -> np.ndarray:
    """How many triples of the files each of their entities stands in, float32 [N]."""
    stored = base.stored
    degrees = np.zeros(stored.size, np.float32)
    if stored.triples is not None:
        for some in blocks(len(stored.triples), 12):
            degrees += np.bincount(stored.triples[some][:, [0, 2]].ravel(), minlength=stored.size).astype(np.float32)
    return degrees


Owner = tuple[int, bool, bool]  # row, whether the name is its label, whether it is written in capitals


class NameChanges:
    """What a knowledge base's revisions did to its names. Never changed once it is made: `after` makes the next.

    Args:
      fold: what a name is looked up as.

    Attributes:
      owners: by folded name, the entities that came by it.
      lengths: by the word or other character that names begin with, how long those names are.
      gone: rows of the files whose names the index has, and which are called so no longer.
    """

    def __init__(self, fold: Callable[[str], str]):
        self._fold = fold
        self.owners: dict[str, list[Owner]] = {}
        self.gone: set[int] = set()
        self.lengths: dict[str, tuple[int, ...]] = {}
        self._names: dict[int, list[str]] = {}
        self._done = 0

    def after(self, view: View) -> NameChanges:
        """The changes up to another revision of the same files, this one's or a later one."""
        overlay = view.overlay
        if self._done == len(overlay.named):
            return self
        made = NameChanges(self._fold)
        made.owners, made.gone = dict(self.owners), set(self.gone)
        made.lengths, made._names = dict(self.lengths), dict(self._names)
        made._done = len(overlay.named)
        for row in dict.fromkeys(overlay.named[self._done :]):
            made._forget(row)
            if row < view.stored.size:
                made.gone.add(row)
            if row in overlay.words:
                words = overlay.words[row]
                made._learn(row, (words.label, *words.aliases))
        return made

    def names_at(self, folded: str, start: int, unit: str) -> list[str]:
        """The names that a folded text has at a place where `unit` (a word or other character) begins."""
        found = []
        for length in self.lengths.get(unit, ()):
            name = folded[start : start + length]
            if len(name) == length and name in self.owners:
                found.append(name)
        return found

    def _forget(self, row: int) -> None:
        for name in self._names.pop(row, ()):
            self.owners[name] = [one for one in self.owners[name] if one[0] != row]
            if not self.owners[name]:
                del self.owners[name]

    def _learn(self, row: int, names: tuple[str, ...]) -> None:
        learned = []
        for place, name in enumerate(names):
            folded = self._fold(name)
            if not folded:
                continue
            owners = self.owners.get(folded, [])
            old = next((one for one in owners if one[0] == row), None)
            capitals = name.isupper() and (old is None or old[2])
            owner = (row, place == 0 or (old is not None and old[1]), capitals)
            self.owners[folded] = [*(one for one in owners if one[0] != row), owner]
            learned.append(folded)
            first = next(iter(units(folded)), None)
            if first is not None:
                key = first.group()
                self.lengths[key] = tuple(sorted({*self.lengths.get(key, ()), len(folded)}))
        self._names[row] = list(dict.fromkeys(learned))
