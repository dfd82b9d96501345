"""One short name for the exact values of a parameter tree, to pin what a plugin was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

BLOCK = 1 << 22  # elements copied at a time where an array is not contiguous


def fingerprint(params: Mapping[str, Any]) -> str:
    """Returns "sha256:…" over the sorted paths, dtypes, shapes and bytes of all arrays.

    Args:
      params: nested mapping of arrays (a pure dict or an NNX state), or a flat one with paths as keys.

    Two trees agree exactly when paths, dtypes, shapes and bits do: the same weights held in bfloat16 are others.
    """
    return of_digests((path, array_digest(array)) for path, array in _leaves(params, ()))


def array_digest(array: Any) -> str:
    """Returns the SHA-256 over dtype, shape and bytes (C order) of one array, read block by block."""
    array = np.asarray(array)
    digest = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    if array.flags.c_contiguous:
        digest.update(array.reshape(-1).view(np.uint8))
    else:
        rows = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def of_digests(digests: Iterable[tuple[str, str]]) -> str:
    """Returns the fingerprint of a tree of which each array's path and `array_digest` are known."""
    lines = (f"{path} {digest}\n" for path, digest in sorted(digests))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _leaves(tree: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = (*prefix, str(name))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield "/".join(path), value[...] if hasattr(value, "get_value") else value
