"""Parameter trees as flat dicts by path: the form in which rules, optimizers and checkpoints see them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

Flat = dict[str, Any]
"""A parameter tree as a flat dict: `host/encoder/layers/0/attention/norm/scale` -> array."""


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Flat:
    """Nested dict of arrays (as `nnx.to_pure_dict` gives it) -> flat dict by path."""
    flat: Flat = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat.update(flatten(value, path))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `flatten`: parts of a path made of digits are list positions, as in NNX."""
    tree: dict[Any, Any] = {}
    for path, value in flat.items():
        *parents, leaf = (int(part) if part.isdigit() else part for part in path.split("/"))
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def digest(leaves: Mapping[str, Any]) -> str:
    """SHA-256 over sorted names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
