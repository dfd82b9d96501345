"""A map-tuning plugin as one safetensors file that needs no kinject; docs/serving.md has a torch program that reads it.

`weight` float32 [D, k] and `bias` float32 [D] are torch's `Linear(k, D)`; the file's metadata says what they belong to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kinject.errors import InputError
from kinject.plugins.map_tuning import MapTuning
from kinject.plugins.store import StoredPlugin

FORMAT_VERSION = "1"


def export_map(stored: StoredPlugin, out: str | os.PathLike[str]) -> Path:
    """Writes the map of a plugin, whole or not at all.

    Args:
      stored: a map-tuning plugin whose map is affine.
      out: a new file.

    Raises:
      InputError: another method, a map that is not affine, a file that exists.
    """
    out, plugin, manifest = Path(out), stored.plugin, stored.manifest
    if not isinstance(plugin, MapTuning):
        problem = f"it is of the method {manifest['method']}, whose weights mean nothing without the host's code"
        raise InputError(stored.folder, problem, "export a map_tuning plugin")
    if plugin.config.mapper == "residual_mlp":
        raise InputError(stored.folder, "its map is residual_mlp", "export one whose map is affine")
    if out.exists():
        raise InputError(out, "it exists already", "choose another file; nothing was overwritten")
    tensors = {
        "weight": np.ascontiguousarray(np.asarray(plugin.mapper.kernel[...], np.float32).T),
        "bias": np.asarray(plugin.mapper.bias[...], np.float32),
    }
    partial = out.with_name(f".{out.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, metadata=_metadata(manifest))
    partial.replace(out)
    return out


def _metadata(manifest: dict[str, Any]) -> dict[str, str]:
    knowledge, host = manifest["knowledge"], manifest["host"]
    facts = {
        "format": "kinject.map_tuning",
        "format_version": FORMAT_VERSION,
        "slot": "[unk] / mention: the mapped vector replaces the word embedding of [unk]",
        "hidden_size": manifest["hidden_size"],
        "knowledge_dim": manifest["knowledge_dim"],
        "host_encoder_fingerprint": host["encoder_fingerprint"],
        "knowledge_name": knowledge.get("name"),
        "knowledge_fingerprint": knowledge.get("fingerprint"),
        "license": knowledge.get("license") or "",
        "kinject_version": manifest.get("versions", {}).get("kinject", "unknown"),
    }
    return {name: str(value) for name, value in facts.items()}
