"""`plugin.json`, what a plugin says of itself, the files that it names, and its card: the README of its folder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinject.errors import InputError, printable
from kinject.json_file import read_object

FORMAT_VERSION, WITH_HEAD = 1, 2  # a folder without a head is what version 1 always was
PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
FIELDS = {
    "method": str,
    "method_config": dict,
    "hidden_size": int,
    "knowledge_dim": int,
    "parameters": dict,
    "host": dict,
    "knowledge": dict,
    "metrics": dict,
    "versions": dict,
    "files": dict,
}
AGAIN = "copy the folder again, or train the plugin again"


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of `params/` and `head/`, by its path in the folder."""
    parts = (folder / "params", folder / "head")
    files = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raises InputError for the first file that is missing, another, or not named: Orbax would not say it in one line.

    Args:
      folder: the plugin's.
      expected: the field `files` of its manifest: SHA-256 by name.
    """
    found = hash_files(folder)
    for name, digest in expected.items():
        if found.get(name) != digest:
            problem = "its content is not what plugin.json was written for" if name in found else "it is missing"
            raise InputError(folder / name, problem, f"the folder is damaged: {AGAIN}")
    for name in found:
        if name not in expected:
            pickled = " and may be a pickle, which can execute anything" if name.endswith(PICKLES) else ""
            raise InputError(folder / name, f"plugin.json does not name it{pickled}", "remove it")


def read_plugin_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks `plugin.json`.

    Raises:
      InputError: none there, or one with a field that is missing or cannot be.
    """
    path = Path(folder) / "plugin.json"
    if not path.is_file():
        raise InputError(folder, "there is no plugin here (no plugin.json)", "name a plugin's folder")
    manifest = read_object(path, AGAIN)
    version = manifest.get("format_version")  # first: another version may have other fields
    if version not in (FORMAT_VERSION, WITH_HEAD):
        mend = "load it with the kinject that wrote it, or a newer one"
        raise InputError(path, f"format_version is {version!r}, this kinject reads 1 and 2", mend)
    for key, kind in FIELDS.items():
        if key not in manifest:
            raise InputError(path, f"the field {key} is missing", AGAIN)
        if not isinstance(manifest[key], kind) or isinstance(manifest[key], bool):
            raise InputError(path, f"the field {key} is {manifest[key]!r}, not of type {kind.__name__}", AGAIN)
    if (version == WITH_HEAD) != isinstance(manifest.get("head"), dict):
        raise InputError(path, f"format_version is {version}, and the field head is {manifest.get('head')!r}", AGAIN)
    _check_values(path, manifest)
    return manifest


def _check_values(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises InputError for a field that has its type and cannot be what it says."""
    for field, least in (("hidden_size", 1), ("knowledge_dim", 0)):
        if manifest[field] < least:
            raise InputError(path, f"the field {field} is {manifest[field]}, not at least {least}", AGAIN)
    head = manifest.get("head") or {}
    for where, leaves in (("parameters", manifest["parameters"]), ("head.parameters", head.get("parameters", {}))):
        if not isinstance(leaves, dict) or not all(map(_is_leaf, leaves.values())):
            raise InputError(path, f"the field {where} is malformed", "each has a shape and a dtype; " + AGAIN)
    for name, value in manifest["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(path, f"the field metrics.{name} is {value!r}, not a number", AGAIN)
    strings = {"host.encoder_fingerprint": manifest["host"].get("encoder_fingerprint")}
    strings |= {f"files.{name}": value for name, value in manifest["files"].items()}
    if head:
        strings |= {f"head.{name}": head.get(name) for name in ("kind", "task")}
    for name, value in strings.items():
        if not isinstance(value, str):
            raise InputError(path, f"the field {name} is {value!r}, not a string", AGAIN)
    if type(manifest["knowledge"].get("count", 0)) is not int:
        raise InputError(path, f"the field knowledge.count is {manifest['knowledge']['count']!r}, not a number", AGAIN)


def _is_leaf(leaf: object) -> bool:
    if not isinstance(leaf, dict) or not isinstance(leaf.get("dtype"), str):
        return False
    shape = leaf.get("shape")
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)


def card(manifest: Mapping[str, Any]) -> str:
    """The plugin's README: what it is, what it fits, what it was trained on, how it did, under which licence.

    What somebody else has written into a manifest is shown as it is, but for characters that a terminal would obey.
    """
    knowledge, host, config = manifest["knowledge"], manifest["host"], manifest.get("config", {})
    size = sum(math.prod(leaf["shape"]) for leaf in manifest["parameters"].values())
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in manifest["metrics"].items())
    source = f" Source: {knowledge['source']}." if knowledge.get("source") else ""
    made_with = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    return printable(
        f"# Knowledge plugin: {knowledge.get('name', 'unnamed')}\n\n"
        f"Method `{manifest['method']}`, {size:,} parameters, for a host with hidden size {manifest['hidden_size']} "
        f"and entity vectors of {manifest['knowledge_dim']} numbers.\n\n"
        f"- Host encoder: `{host['encoder_fingerprint']}`\n"
        f"- Knowledge base: {knowledge.get('name')} (`{knowledge.get('fingerprint')}`), "
        f"{knowledge.get('count', 0):,} entities.{source}\n"
        f"- Licence of the knowledge: {knowledge.get('license') or 'not stated'}\n"
        f"- Trained on: {_data_line(config)}\n"
        f"{_chosen_line(config)}- Made with: {made_with}\n\n"
        f"| metric in training | value |\n|---|---|\n{metrics}\n\n"
        f"{_head_line(manifest)}The plugin holds no entity vectors: it needs the knowledge base named above.\n"
    )


def _data_line(config: Mapping[str, Any]) -> str:
    """The data and the task, as the config named them; `@` is what another stage of its run made."""
    if "average_of" in config:
        parts = (f"`{one['plugin']}` ({one['weight']:.3g})" for one in config["average_of"])
        return f"nothing: it is the mean of {', '.join(parts)}"
    data = [f"`{one}`" for one in config.get("data", ())]
    if not data:
        return "not stated"
    return ", ".join(data) + (f", for the task `{config['task']}`" if config.get("task") else "")


def _head_line(manifest: Mapping[str, Any]) -> str:
    head = manifest.get("head")
    if head is None:
        return ""
    outputs = f" of {head['num_labels']} outputs" if head.get("num_labels") else ""
    return f"The `{head['kind']}` head{outputs} that was trained with it, for `{head['task']}`, is in `head/`. "


def _chosen_line(config: Mapping[str, Any]) -> str:
    """What else was tried, where settings were chosen on development data."""
    tried = config.get("tried") or ()
    shown = "; ".join(f"{one['settings']} {one['score']:.4g}" for one in tried)
    return f"- Settings chosen on development data out of: {shown}\n" if tried else ""
