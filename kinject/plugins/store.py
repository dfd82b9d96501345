"""A plugin on disk: one folder a domain, pinned to the host and the knowledge base that it was trained with.

plugin.json   what it is (see docs/formats.md)
params/       Orbax, the plugin's own parameters and nothing else: never the entity table, never the host
head/         Orbax, the head that was trained together with it; only where one was
README.md     its card
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.errors import InputError, first_line
from kinject.integrity import open_sealed, refuse_special, write_seal
from kinject.models.seams import Plugin
from kinject.plugins.base import make_plugin
from kinject.plugins.manifest import FORMAT_VERSION, WITH_HEAD, card, check_files, hash_files, read_plugin_manifest
from kinject.tree import flatten, unflatten

OUTSIDE = ("README.md",)  # of a plugin's seal: a card may be edited
NO_KNOWLEDGE = {"name": "none", "fingerprint": None, "dim": 0, "count": 0}
"""The knowledge base of a plugin that was trained without one; it fits wherever its host does."""
BESIDE = ("plugin.json", "README.md", "seal.json")  # what a plugin's folder holds beside its arrays


@dataclasses.dataclass(frozen=True)
class HostIdentity:
    """Which host a plugin belongs to.

    Attributes:
      fingerprint: of all parameters, head included.
      lineage: fingerprints of the encoder, then of the encoders that it was made from, newest first. A plugin of any of
        them fits: that is general plug-and-play, a map tuned on the raw model and plugged into one fine-tuned from it.
      hidden_size: D.
      former: the lineage of old, where transformers reads the folder's tokenizer in another way than kinject once did.
    """

    fingerprint: str
    lineage: tuple[str, ...]
    hidden_size: int
    former: tuple[str, ...] = ()

    def check_reading(self, pinned: str, where: object) -> None:
        """Raises InputError for what is pinned to these weights and to a reading of texts that has changed since."""
        if pinned in self.former and pinned not in self.lineage:
            problem = "it was made when this host's tokenizer was read in another way than transformers reads it"
            raise InputError(where, f"{problem}: texts are other pieces now", "make it anew with this host")

    @property
    def encoder_fingerprint(self) -> str:
        """The fingerprint of the encoder as it is now."""
        return self.lineage[0]


@dataclasses.dataclass(frozen=True)
class StoredPlugin:
    """A plugin read from its folder.

    Attributes:
      manifest: the parsed `plugin.json`; its `head` says which head came along, if any (see `read_head`).
    """

    plugin: Plugin
    manifest: dict[str, Any]
    folder: Path


@dataclasses.dataclass(frozen=True)
class TrainedHead:
    """A head that was trained together with a plugin, and travels with it.

    Attributes:
      facts: JSON-like: `kind`, `num_labels`, `labels`, `task` and `task_options`.
      params: its parameters by path, as in `host/head/<path>`.
    """

    facts: Mapping[str, Any]
    params: Mapping[str, np.ndarray]


def library_versions() -> dict[str, str]:
    """The versions that a plugin was made with."""
    found = {}
    for name in ("kinject", "jax", "flax", "optax", "orbax-checkpoint"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def save_plugin(
    folder: Path,
    plugin: Plugin,
    *,
    host: HostIdentity,
    knowledge: Mapping[str, Any],
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    head: TrainedHead | None = None,
    replace: bool = False,
) -> Path:
    """Writes a plugin folder, whole or not at all.

    Args:
      folder: must not exist, unless `replace`.
      plugin: its parameters are written as they are.
      host: the host that it was trained through.
      knowledge: `{"name", "fingerprint", "dim", "count", …}` of the knowledge base.
      config: the stage's configuration, for the record.
      metrics: of the training.
      head: what was trained together with it, to go along; None for a plugin that serves the host's own head.
      replace: an existing folder is replaced, once the new one is whole.

    Raises:
      InputError: the folder exists.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not replace:
        raise InputError(folder, "it exists already", "choose another folder; nothing was overwritten")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    params = {path: np.asarray(leaf) for path, leaf in flatten(nnx.to_pure_dict(nnx.state(plugin, nnx.Param))).items()}
    manifest = {
        "format_version": FORMAT_VERSION if head is None else WITH_HEAD,
        "method": plugin.name,
        "method_config": dataclasses.asdict(plugin.config),
        "hidden_size": plugin.hidden_size,
        **({} if plugin.embedding_size == plugin.hidden_size else {"embedding_size": plugin.embedding_size}),
        "knowledge_dim": plugin.knowledge_dim,
        "parameters": _described(params),
        "host": {"fingerprint": host.fingerprint, "encoder_fingerprint": host.encoder_fingerprint},
        "knowledge": dict(knowledge),
        "config": dict(config),
        "metrics": dict(metrics),
        "versions": library_versions(),
    }
    _write_arrays(partial / "params", params)
    if head is not None:
        manifest["head"] = {**head.facts, "parameters": _described(head.params)}
        _write_arrays(partial / "head", head.params)
    manifest["files"] = hash_files(partial)
    (partial / "plugin.json").write_text(json.dumps(manifest, indent=2, default=str, allow_nan=False) + "\n")
    (partial / "README.md").write_text(card(manifest))
    write_seal(partial, OUTSIDE)
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    return folder


def save_again(
    stored: StoredPlugin,
    folder: Path,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Writes a plugin as it is now into a new folder, with another account of how it came about.

    Args:
      stored: the plugin, and the manifest that says what it is pinned to.
      folder: must not exist.
      config: how it was made.
      metrics: of the training; None = as they were.

    Raises:
      InputError: the folder exists.
    """
    facts = stored.manifest
    lineage = (str(facts["host"]["encoder_fingerprint"]),)
    return save_plugin(
        folder,
        stored.plugin,
        host=HostIdentity(str(facts["host"]["fingerprint"]), lineage, facts["hidden_size"]),
        knowledge=facts["knowledge"],
        config=config,
        metrics=facts["metrics"] if metrics is None else metrics,
        head=None if facts.get("head") is None else read_head(stored),
    )


def copy_plugin(stored: StoredPlugin, folder: Path) -> Path:
    """Writes a plugin's folder once more, elsewhere, whole or not at all: its own files, and nothing else beside them.

    Raises:
      InputError: the folder exists, or the plugin's files are not as they were written.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists():
        raise InputError(folder, "it exists already", "choose another folder; nothing was overwritten")
    check_files(stored.folder, stored.manifest["files"])
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (*stored.manifest["files"], *(one for one in BESIDE if (stored.folder / one).exists())):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stored.folder / name, partial / name)
    partial.replace(folder)
    return folder


def load_plugin(
    folder: Path | str, *, host: HostIdentity | None = None, knowledge: Mapping[str, Any] | None = None
) -> StoredPlugin:
    """Reads a plugin, strictly, and refuses one that belongs to another host or knowledge base.

    Args:
      folder: written by `save_plugin`.
      host: the host that it is to be plugged into; None skips that check.
      knowledge: `{"fingerprint", "space", "dim"}` of the knowledge base that it will read, `NO_KNOWLEDGE` where there
        is none; None skips that check.

    Raises:
      InputError: no plugin there, a damaged one, leaves that the method does not have or that are missing, another
        host, another knowledge base.
    """
    folder = Path(folder).absolute()
    manifest = read_plugin_manifest(folder)
    check_fits(folder, manifest, host, knowledge)
    refuse_special(folder)
    check_files(folder, manifest["files"])

    def make() -> Plugin:
        return make_plugin(
            {"name": manifest["method"], **manifest["method_config"]},
            hidden_size=manifest["hidden_size"],
            knowledge_dim=manifest["knowledge_dim"],
            embedding_size=manifest.get("embedding_size"),
            where=f"{folder / 'plugin.json'}: method_config",
        )

    try:
        made = nnx.eval_shape(make)  # before anything of their size is allocated
    except jax.errors.ConcretizationTypeError:  # a method that looks at its fresh numbers as it is made
        made = make()
    expected = flatten(nnx.to_pure_dict(nnx.state(made, nnx.Param)))
    params = _read_arrays(folder / "params", _described(expected), manifest["method"])
    open_sealed(folder, "its plugin.json")
    plugin = make()
    nnx.update(plugin, unflatten({path: jnp.asarray(leaf) for path, leaf in params.items()}))
    return StoredPlugin(plugin, manifest, folder)


def read_head(stored: StoredPlugin) -> TrainedHead:
    """The head that came along with a plugin; `kinject.inference.host.with_head` puts it on a host.

    Raises:
      InputError: none did, or a damaged one.
    """
    facts = stored.manifest.get("head")
    if facts is None:
        problem = "this plugin was trained for its host's own head and brings none along"
        raise InputError(stored.folder, problem, "use the host's head")
    return TrainedHead(facts, _read_arrays(stored.folder / "head", facts.get("parameters", {}), "plugin.json"))


def _described(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {path: {"shape": list(leaf.shape), "dtype": str(np.dtype(leaf.dtype))} for path, leaf in arrays.items()}


def _write_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer(multiprocessing_options=processes_apart()) as checkpointer:
        checkpointer.save(folder, dict(arrays))


def _read_arrays(folder: Path, expected: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Arrays by path, exactly those that are expected: `_described` of them; `owner` is who expects them."""
    import orbax.checkpoint as ocp

    try:
        with ocp.StandardCheckpointer(multiprocessing_options=processes_apart()) as checkpointer:
            found = _described(checkpointer.metadata(folder).item_metadata.tree)
            arrays = checkpointer.restore(folder) if found == expected else {}
    except Exception as error:
        problem = f"the parameters cannot be read: {first_line(error, 120)}"
        raise InputError(folder, problem, "the folder is damaged; train or copy it again") from None
    for path in sorted(set(found) | set(expected)):
        here, there = (_shown(one.get(path)) for one in (found, expected))
        if here != there:
            problem = f"parameter {path} is {here or 'missing'}, {owner} has {there}"
            raise InputError(folder, problem, "the folder is damaged or of another version")
    for path, array in arrays.items():
        if not np.isfinite(array).all():
            problem = f"parameter {path} holds a number that is not finite"
            raise InputError(folder, problem, "its training went wrong: take another")
    return arrays


def _shown(leaf: Mapping[str, Any] | None) -> tuple[tuple[int, ...], str] | None:
    return None if leaf is None else (tuple(leaf["shape"]), leaf["dtype"])


def processes_apart() -> Any:
    """Orbax's option by which each process of a run reads and writes for itself, without waiting for the others."""
    import orbax.checkpoint as ocp

    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )


def check_fits(
    folder: Path, manifest: Mapping[str, Any], host: HostIdentity | None, knowledge: Mapping[str, Any] | None
) -> None:
    """Raises InputError unless the plugin belongs to this host (or one that it was made from) and knowledge base."""
    where = Path(folder) / "plugin.json"
    if host is not None:
        if manifest["hidden_size"] != host.hidden_size:
            raise InputError(where, f"hidden_size is {manifest['hidden_size']}, the host's is {host.hidden_size}")
        pinned = str(manifest["host"].get("encoder_fingerprint"))
        host.check_reading(pinned, where)
        if pinned not in host.lineage:
            raise InputError(
                where,
                f"it was trained through the encoder {pinned[:19]}…, which is neither this host's "
                f"({host.encoder_fingerprint[:19]}…) nor one that it was made from",
                "train a plugin for this host",
            )
    pinned = manifest["knowledge"].get("fingerprint")
    if knowledge is not None and pinned is not None:
        if knowledge["fingerprint"] is None:
            name = manifest["knowledge"].get("name")
            raise InputError(where, f"it reads the knowledge base {name!r}, and none is named", "name its folder")
        if manifest["knowledge_dim"] != knowledge["dim"]:
            raise InputError(
                where, f"knowledge_dim is {manifest['knowledge_dim']}, the knowledge base has {knowledge['dim']}"
            )
        pinned = str(pinned)
        if not in_space(manifest["knowledge"], knowledge):
            raise InputError(
                where,
                f"it was trained on the knowledge base {manifest['knowledge'].get('name')!r} ({pinned[:19]}…), "
                f"this one is {knowledge['fingerprint'][:19]}…",
                "vectors of another embedding space mean nothing to it: train a plugin for this knowledge base",
            )


def in_space(pinned: Mapping[str, Any], knowledge: Mapping[str, Any]) -> bool:
    """Whether vectors of a knowledge base mean to a plugin what those that it was trained on did.

    Args:
      pinned: `knowledge` of a plugin.json. One from before there were spaces has a fingerprint alone, which is that of
        a base as it was built.
      knowledge: as `knowledge_identity` tells it.
    """
    space = knowledge.get("space") or {}
    if pinned.get("fingerprint") == knowledge["fingerprint"] or pinned.get("fingerprint") in space.get("origins", ()):
        return True
    told = pinned.get("space")
    return isinstance(told, Mapping) and told.get("id") is not None and told["id"] == space.get("id")
