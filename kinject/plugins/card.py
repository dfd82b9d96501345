"""A plugin's card, the README of its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kinject.errors import printable


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
