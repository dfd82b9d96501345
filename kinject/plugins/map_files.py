"""Affine maps of map-tuning in other programs' files.

Read: the mapping networks that the method's authors released (`Affine_*.bin`, a torch state dict of one Linear layer).
Written: one safetensors file that needs no kinject; docs/serving.md has a torch program that reads it. Its `weight`
float32 [D, k] and `bias` float32 [D] are torch's `Linear(k, D)`, and its metadata says what they belong to.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from kinject.errors import InputError, first_line
from kinject.models.seams import Plugin
from kinject.plugins.map_tuning import MapTuning
from kinject.plugins.store import StoredPlugin

FORMAT_VERSION = "1"


def read_released_affine(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads `model.weight` [D, k] and `model.bias` [D].

    Returns:
      (kernel float32 [k, D], bias float32 [D]).

    Raises:
      InputError: torch is not installed, the file is not a state dict of tensors (no pickle is executed), or it has
        other keys or shapes.
    """
    try:
        import torch
    except ImportError:
        raise InputError(path, "reading a torch file needs torch", "pip install torch, once, for the import") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        problem = f"it is not a plain torch state dict: {first_line(error, 100)}"
        raise InputError(path, problem, "only tensors are loaded, never pickled code") from None
    expected = {"model.weight", "model.bias"}
    if not isinstance(state, dict) or set(state) != expected:
        keys = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise InputError(path, f"it holds {keys}", f"a released mapping network holds {sorted(expected)}")
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(path, f"{key} is a {type(value).__name__}, not a tensor")
    weight, bias = state["model.weight"].float().numpy(), state["model.bias"].float().numpy()
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise InputError(path, f"model.weight {weight.shape} and model.bias {bias.shape} do not fit each other")
    return np.ascontiguousarray(weight.T), bias


def load_released_affine(path: Path, plugin: Plugin, where: str = "initialise") -> None:
    """Sets an affine map-tuning plugin to a released mapping network.

    Raises:
      InputError: another method or mapper, or dimensions that differ from the host's and the knowledge base's.
    """
    kernel, bias = read_released_affine(path)
    if not isinstance(plugin, MapTuning) or plugin.config.mapper == "residual_mlp":
        raise InputError(where, f"{path} is an affine map", "use the method map_tuning with mapper affine")
    if kernel.shape != plugin.mapper.kernel.shape:
        raise InputError(
            path,
            f"it maps {kernel.shape[0]} numbers to {kernel.shape[1]}; "
            f"the knowledge base has {plugin.knowledge_dim}, the host {plugin.embedding_size}",
        )
    plugin.mapper.kernel[...] = jnp.asarray(kernel)
    plugin.mapper.bias[...] = jnp.asarray(bias)


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
        "hidden_size": manifest.get("embedding_size", manifest["hidden_size"]),
        "knowledge_dim": manifest["knowledge_dim"],
        "host_encoder_fingerprint": host["encoder_fingerprint"],
        "knowledge_name": knowledge.get("name"),
        "knowledge_fingerprint": knowledge.get("fingerprint"),
        "license": knowledge.get("license") or "",
        "kinject_version": manifest.get("versions", {}).get("kinject", "unknown"),
    }
    return {name: str(value) for name, value in facts.items()}
