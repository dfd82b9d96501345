"""Orbax checkpoints of a run: trainable leaves, optimizer state, the data iterator's position and a little JSON.

Frozen parameters are never saved here. Loading is strict both ways: the names, shapes and dtypes on disk must be
exactly those that the run expects, and the leaves must hash to what was saved; a checkpoint that is damaged is skipped
with a warning and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from kinject.errors import InputError

log = logging.getLogger("kinject")


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


def digest(leaves: Mapping[str, Any]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def specification(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Shape and dtype of every leaf, as JSON holds them."""
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in leaves.items()}


class Checkpoints:
    """The checkpoints of one stage, newest last, in `folder/<step>`."""

    def __init__(self, folder: Path, keep: int | None = 2):
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        for torn in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(torn, ignore_errors=True)  # a save that a kill cut short
        for empty in self.folder.iterdir():
            if empty.is_dir() and empty.name.isdigit() and not (empty / "_CHECKPOINT_METADATA").exists():
                log.warning("skipping %s: the checkpoint is incomplete", empty)
                shutil.rmtree(empty, ignore_errors=True)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
                "data": grain.checkpoint.CheckpointHandler(),
            },
        )

    def save(
        self, step: int, state: Any, meta: Mapping[str, Any], iterator: grain.DatasetIterator | None = None
    ) -> None:
        """Saves asynchronously; `wait` or `close` before the process may end."""
        leaves = name_leaves(state)
        fetched = {name: np.asarray(jax.device_get(leaf)) for name, leaf in leaves.items()}
        items = {
            "state": ocp.args.StandardSave(fetched),
            "meta": ocp.args.JsonSave(
                {**meta, "step": step, "digest": digest(fetched), "leaves": specification(fetched)}
            ),
        }
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointSave(iterator)
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, template: Any, iterator: grain.DatasetIterator | None = None) -> Restored | None:
        """The newest checkpoint that is whole, in the structure of `template`; None when there is none.

        Sets `iterator` to the position saved with it and deletes newer, damaged checkpoints, whose steps will be
        trained again.

        Raises:
          InputError: a checkpoint that is whole but was made by another configuration: other leaves, shapes or dtypes.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, template, iterator)
            except InputError:
                raise
            except Exception as error:
                log.warning("skipping damaged checkpoint %s: %s", self.folder / str(step), str(error).split("\n")[0])
                self.manager.delete(step)
                continue
            return restored
        return None

    def _read(self, step: int, template: Any, iterator: grain.DatasetIterator | None) -> Restored:
        expected = name_leaves(template)
        meta = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        self._check(step, meta["leaves"], specification(expected))
        shapes = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in expected.items()}
        leaves = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))["state"]
        if digest(leaves) != meta["digest"]:
            raise ValueError("its content does not have the digest that was saved with it")
        if iterator is not None:
            self.manager.restore(step, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(iterator)))
        flat, structure = jax.tree_util.tree_flatten_with_path(template)
        state = jax.tree.unflatten(
            structure,
            [_place(leaves[jax.tree_util.keystr(path)], like) for path, like in flat],
        )
        return Restored(step, state, meta)

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
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def _place(leaf: Any, like: Any) -> Any:
    """A host array onto the devices of the template's leaf."""
    return jax.device_put(leaf, like.sharding) if isinstance(like, jax.Array) else leaf


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all: into a sibling first, then renamed over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)
