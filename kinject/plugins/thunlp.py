"""Mapping networks that the authors of map-tuning released: `Affine_*.bin`, a torch state dict of one Linear layer."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from kinject.errors import InputError, first_line
from kinject.models.seams import Plugin
from kinject.plugins.map_tuning import MapTuning


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
            f"the knowledge base has {plugin.knowledge_dim}, the host {plugin.hidden_size}",
        )
    plugin.mapper.kernel[...] = jnp.asarray(kernel)
    plugin.mapper.bias[...] = jnp.asarray(bias)
