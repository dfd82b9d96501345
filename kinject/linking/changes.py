"""Names that came, changed or went since the index of names was made, held in memory beside it."""

from __future__ import annotations

from collections.abc import Callable

from kinject.knowledge.view import View
from kinject.linking.surface import units

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
