"""Orbax checkpoints of a run: trainable leaves, optimizer state, the data iterator's position and a little JSON.

Frozen parameters are never saved here. The data position is one number, the same for any number of processes, and
leaves are read whole whatever mesh they came from, so a run goes on elsewhere. All processes save, each what it alone
holds, and process 0 what all hold; each reads for itself the checkpoint that process 0 has chosen.

Loading is strict both ways: the names, shapes and dtypes on disk must be exactly those that the run expects, leaves and
JSON must hash to what was saved, and the files must be those that were sealed; a checkpoint that is damaged, or whose
best one is, is skipped with a warning and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from kinject.errors import InputError, first_line
from kinject.inference.mesh import fetch, is_split, put
from kinject.inference.processes import first, on_first
from kinject.integrity import SEAL, read_seal, refuse_special, write_seal
from kinject.plugins.store import processes_apart
from kinject.training.metrics import check_arrays
from kinject.tree import digest

log = logging.getLogger("kinject")
META_DIGEST = "meta_digest"


@dataclass(frozen=True)
class Restored:
    """A checkpoint read back: the state in the template's structure, and the JSON saved beside it."""

    step: int
    state: Any
    meta: dict[str, Any]


def name_leaves(tree: Any) -> dict[str, Any]:
    """A pytree's leaves by path name: Orbax then needs to know nothing of optax's containers."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def specification(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Shape and dtype of every leaf, as JSON holds them."""
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in leaves.items()}


def meta_digest(meta: Mapping[str, Any]) -> str:
    """SHA-256 of the JSON beside the leaves, without the digest itself."""
    plain = json.loads(json.dumps({key: value for key, value in meta.items() if key != META_DIGEST}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one stage, newest last, in `folder/<step>`."""

    def __init__(self, folder: Path, keep: int | None = 2):
        self.folder = Path(folder).absolute()
        on_first(self._clean)
        together = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=str(self.folder))
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, multiprocessing_options=together),
            item_handlers={"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()},
        )

    def _clean(self) -> None:
        """Removes what a kill cut short."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(torn, ignore_errors=True)
        for empty in self.folder.iterdir():
            if empty.is_dir() and empty.name.isdigit() and not (empty / "_CHECKPOINT_METADATA").exists():
                log.warning("skipping %s: the checkpoint is incomplete", empty)
                shutil.rmtree(empty, ignore_errors=True)

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any], iterator: grain.DatasetIterator | None = None
    ) -> None:
        """Saves asynchronously; `wait` or `close` before the process may end."""
        leaves = name_leaves(state)
        fetched = {name: np.asarray(leaf) for name, leaf in fetch(leaves).items()}
        check_arrays(self.folder.parent.name, step, fetched)
        described = {**meta, "step": step, "digest": digest(fetched), "leaves": specification(fetched)}
        if iterator is not None:
            described["data"] = iterator.get_state()
        described = json.loads(json.dumps(described))  # a copy: it is written later, when the iterator has gone on
        described[META_DIGEST] = meta_digest(described)
        split = {name: leaf for name, leaf in leaves.items() if is_split(leaf)}
        items = {"state": ocp.args.StandardSave({**fetched, **split}), "meta": ocp.args.JsonSave(described)}
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(
        self,
        template: Any,
        iterator: grain.DatasetIterator | None = None,
        accept: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> Restored | None:
        """The newest checkpoint that is whole, in the structure of `template`; None when there is none.

        `accept` gets the JSON of one that is whole, and says why it will not do, or "".

        Sets `iterator` to the position saved with it and deletes newer, damaged checkpoints, whose steps will be
        trained again.

        Raises:
          InputError: a checkpoint that is whole but was made by another configuration: other leaves, shapes or dtypes.
        """
        steps, found = sorted(self.manager.all_steps(), reverse=True), None

        def newest_whole() -> int | None:
            nonlocal found
            for step in steps:
                try:
                    found = self._read(step, template)
                    if accept is not None and (why := accept(found[1])):
                        raise ValueError(why)
                except InputError:
                    raise
                except Exception as error:
                    log.warning("skipping damaged checkpoint %s: %s", self.folder / str(step), first_line(error))
                    continue
                return step
            return None

        chosen = on_first(newest_whole)
        for step in steps:
            if chosen is None or step > chosen:
                self.manager.delete(step)
        if chosen is None:
            return None
        leaves, meta = found or self._read(chosen, template)  # the others read what process 0 has found whole
        if iterator is not None:
            iterator.set_state(meta["data"])
        flat, structure = jax.tree_util.tree_flatten_with_path(template)
        placed = [put(leaves[jax.tree_util.keystr(path)], getattr(like, "sharding", None)) for path, like in flat]
        return Restored(chosen, jax.tree.unflatten(structure, placed), meta)

    def is_whole(self, step: int, template: Any) -> bool:
        """Whether the checkpoint of a step is there, and as it was saved."""
        try:
            self._read(step, template)
        except Exception as error:  # Orbax raises whatever tensorstore does
            log.warning("damaged checkpoint %s: %s", self.folder / str(step), first_line(error))
            return False
        return True

    def _read(self, step: int, template: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The leaves by name and the JSON of one checkpoint; raises where it is not whole. No process waits here."""
        expected = name_leaves(template)
        _check_seal(self.folder / str(step))
        apart = processes_apart()
        options = {"multiprocessing_options": apart}
        handler = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(**options),
            state=ocp.StandardCheckpointHandler(**options),
            meta=ocp.JsonCheckpointHandler(**options),
        )
        with ocp.Checkpointer(handler, **options) as reader:
            folder = self.folder / str(step)
            meta = reader.restore(folder, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if meta.get(META_DIGEST, "") not in ("", meta_digest(meta)):
                raise ValueError("its JSON does not have the digest that was saved with it")
            self._check(step, meta["leaves"], specification(expected))
            shapes = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in expected.items()}
            leaves = reader.restore(folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))["state"]
        if digest(leaves) != meta["digest"]:
            raise ValueError("its content does not have the digest that was saved with it")
        return leaves, meta

    def _check(self, step: int, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        for name in sorted(set(found) | set(wanted)):
            if found.get(name) != wanted.get(name):
                raise InputError(
                    self.folder / str(step),
                    f"the checkpoint's leaf {name} is {found.get(name, 'missing')}, "
                    f"the run expects {wanted.get(name, 'none')}",
                    "it was made by another configuration: use another --workdir, or delete this folder",
                )

    def drop_after(self, step: int) -> None:
        """Deletes checkpoints beyond `step`: a rerun from there makes them again."""
        for later in [each for each in self.manager.all_steps() if each > step]:
            self.manager.delete(later)

    def drop_before(self, step: int) -> None:
        """Deletes checkpoints older than `step`."""
        for earlier in [each for each in self.manager.all_steps() if each < step]:
            self.manager.delete(earlier)

    def wait(self) -> None:
        """Returns when what was saved last is on disk."""
        self.manager.wait_until_finished()
        self._seal()

    def close(self) -> None:
        """Waits for what is being saved and lets the folder go."""
        self.wait()
        self.manager.close()

    def _seal(self) -> None:
        """Seals the checkpoints that were finished since the last time."""
        for step in self.manager.all_steps() if first() else ():
            folder = self.folder / str(step)
            if (folder / "_CHECKPOINT_METADATA").exists() and not (folder / SEAL).exists():
                write_seal(folder)


def _check_seal(folder: Path) -> None:
    """Raises ValueError for a checkpoint whose files are not those that were sealed, or no plain files."""
    try:
        refuse_special(folder)
        seal = read_seal(folder)
        if seal is not None:
            seal.verify()
    except InputError as error:
        where = str(error.where).removeprefix(f"{folder}/")
        raise ValueError(f"{where}: {error.problem}") from None
