"""Folding revisions into new files, so that what was removed is gone from the disk.

The new files are written beside the old ones, into `base/NNNNNN/`; then the pointer names them, and only then the old
ones go. Killed before the pointer moves, the folder is as it was; after it, the next writer clears away what is left.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.integrity import SEAL
from kinject.json_file import read_object
from kinject.knowledge import manifest as layout
from kinject.knowledge.derived import SOURCE_HASHES, source_hashes
from kinject.knowledge.placement import parts_of
from kinject.knowledge.revisions import REVISIONS, Head, move_head, sync_folder
from kinject.knowledge.space import describe_space
from kinject.knowledge.vectors import Picked, Vectors
from kinject.knowledge.view import View
from kinject.knowledge.write import Entries, write_entries

BASE = "base"


def compact(view: View, head: Head) -> None:
    """Makes `view` the files of its folder; the revisions after it, up to `head`, stay.

    Args:
      view: the revision that is written down; the folder's lock is held.
      head: the newest revision.
    """
    name = f"{view.revision:06d}"
    folder = view.folder / BASE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    keep = np.setdiff1d(np.arange(view.size), view.overlay.removed_rows)
    if not len(keep):
        raise InputError(view.folder, "no entity is left", "a knowledge base holds at least one: delete the folder")
    _write(view, folder, keep)
    _down(folder)
    move_head(view.folder, head._replace(base=f"{BASE}/{name}"))
    clear(view.folder, Head(view.revision, "", f"{BASE}/{name}"))


def _write(view: View, folder: Path, keep: np.ndarray) -> None:
    """Writes what is left as an ordinary knowledge base, which says of which space and revision it is."""
    manifest, table = view.manifest, view.entities
    words = {} if table is None else {name: _words(table.column(name), keep) for name in table.column_names}
    entries = Entries(_AtRows(view.ids, keep), words.get("label"), words.get("aliases"), words.get("description"))
    if view.relations:
        row = np.full(view.size, -1, np.int32)
        row[keep] = np.arange(len(keep), dtype=np.int32)
        triples = np.asarray(view.triples) if view.triples is not None else np.empty((0, 3), np.int32)
        named = {one["id"]: one["label"] for one in view.relations}
        if len(triples):
            triples = np.stack([row[triples[:, 0]], triples[:, 1], row[triples[:, 2]]], axis=1)
            entries = entries._replace(triples=triples, relations=named)
    present = view.present(keep)
    note = {**manifest.get("provenance", {}), "compacted": view.revision}
    vectors = Vectors(
        Picked(view.vectors, keep),
        None if present.all() else present,
        manifest["normalisation"],
        manifest["metrics"],
        note,
        parts_of(view),
    )
    told = {"revision": view.revision, "hash": view.fingerprint, "log": view.overlay.log, **_still_to_come(view)}
    more = {"revisions": told, "space": _space(view)}
    about = {"name": view.name, "source": manifest["source"], "license": manifest["license"]}
    write_entries(folder, entries, vectors, dtype=manifest["dtype"], more=more, **about)


def _space(view: View) -> dict[str, Any]:
    """What the manifest says of the space: its name stays, whatever files it was estimated from."""
    told = view.space
    made = describe_space(parts_of(view))
    return {"id": told["id"], "parts": made["parts"], "numbers": made["id"], "origins": told["origins"]}


def _still_to_come(view: View) -> dict[str, Any]:
    """What later revisions need to know: triples that wait, and by id how vectors were placed."""
    overlay = view.overlay
    triples = sorted({triple for some in overlay.waiting.values() for triple in some})
    waiting = [list(one) for one in triples if (view.rows([one[0], one[2]]) >= 0).any()]
    rows = [row for row in overlay.placed if row not in overlay.removed]
    return {"waiting": waiting, "placed": dict(zip(view.ids(rows), map(overlay.placed.get, rows), strict=True))}


def clear(folder: Path, kept: Head) -> None:
    """Deletes what the pointer does not need.

    Args:
      folder: the knowledge base; its lock is held.
      kept: revision and folder of the files that the pointer names. Other files of the base, records up to that
        revision, and indexes made of other files go; what is not kinject's stays.
    """
    for path in (folder / BASE).glob("*"):
        if path != folder / kept.base and path.name.isdigit():
            shutil.rmtree(path, ignore_errors=True)
    if kept.base == ".":
        return
    for path in (folder / REVISIONS).iterdir():
        if path.suffix in (".json", ".npy") and path.stem.isdigit() and int(path.stem) <= kept.revision:
            path.unlink()
    for name in _old_files(folder):
        (folder / name).unlink(missing_ok=True)
    made_of = source_hashes(layout.read_knowledge_manifest(folder / kept.base))
    for path in folder.parent.glob(f"{glob.escape(folder.name)}.*"):
        if (path / SOURCE_HASHES).is_file() and read_object(path / SOURCE_HASHES) != made_of:
            shutil.rmtree(path, ignore_errors=True)
    sync_folder(folder)


def _old_files(folder: Path) -> list[str]:
    """The files of a base in its top folder by its manifest, which is the last of them; what else lies there stays."""
    if not (folder / layout.MANIFEST).is_file():
        return []
    named = [name for name in read_object(folder / layout.MANIFEST).get("files", {}) if Path(name).name == name]
    return [*named, SEAL, layout.MANIFEST]


def _down(folder: Path) -> None:
    """Sees to it that all files of a folder are on the disk before a pointer names it."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for one in (folder, folder.parent, folder.parent.parent):
        sync_folder(one)


class _AtRows(Sequence[Any]):
    """What `take` (of rows, int [n]) gives for some rows, read in slices."""

    def __init__(self, take: Callable[[np.ndarray], Sequence[Any]], rows: np.ndarray):
        self._take, self._rows = take, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: Any) -> Any:
        found = self._take(np.atleast_1d(self._rows[some]))
        return found if isinstance(some, slice) else found[0]

    def __iter__(self) -> Iterator[Any]:
        for some in layout.blocks(len(self), 64):
            yield from self[some]


def _words(column: Any, rows: np.ndarray) -> _AtRows:
    """A column of words at rows."""
    return _AtRows(lambda some: column.take(some).to_pylist(), rows)
