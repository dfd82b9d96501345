"""`host.json`, what kinject knows of a host beside what Hugging Face's files say, and the fingerprints in it.

A fingerprint is one short name for the exact values of a parameter tree: it pins what a plugin was made for.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from kinject.errors import InputError
from kinject.json_file import read_object
from kinject.version import __version__

NAME = "host.json"
FORMAT_VERSION = 1
HASHERS = 2  # threads
NO_HEAD = "none"
BLOCK = 1 << 22  # elements copied at a time where an array is not contiguous
GIVEN = ("base", "task", "labels", "extra")  # fields that are the caller's to say


class Digests(Mapping[str, str]):
    """The `array_digest` of each parameter by path; those that are still in the making are waited for."""

    def __init__(self, *sources: Mapping[str, str | Future[str]] | Digests):
        self._made: dict[str, str | Future[str]] = {}
        for source in sources:
            self._made.update(source._made if isinstance(source, Digests) else source)

    def __getitem__(self, path: str) -> str:
        one = self._made[path]
        if not isinstance(one, str):
            one = self._made[path] = one.result()
        return one

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __reduce__(self) -> tuple[Any, ...]:
        return Digests, (dict(self),)


def fingerprints(digests: Mapping[str, str]) -> dict[str, str]:
    """Returns the fingerprints of a host and of its encoder alone, of {parameter path: array digest}."""
    prefix = "encoder/"
    encoder = ((path.removeprefix(prefix), d) for path, d in digests.items() if path.startswith(prefix))
    return {"fingerprint": of_digests(digests.items()), "encoder_fingerprint": of_digests(encoder)}


def new_manifest(
    head: str | None,
    num_labels: int | None,
    digests: Mapping[str, str],
    given: Mapping[str, Any],
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the manifest of a host about to be written.

    Args:
      head: kind of its head.
      num_labels: outputs of a pooled head.
      digests: {parameter path: array digest}.
      given: any of `GIVEN`.
      tuning: settings of what was added to the encoder (models/tuning.py), None for a plain host.
    """
    labels = given.get("labels")
    return {
        "format_version": FORMAT_VERSION,
        "kinject_version": __version__,
        "head": head or NO_HEAD,
        "num_labels": num_labels,
        "tuning": None if tuning is None else dict(tuning),
        **fingerprints(digests),
        "base": given.get("base"),
        "task": given.get("task"),
        "labels": None if labels is None else list(labels),
        "extra": dict(given.get("extra") or {}),
    }


def read_host_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder, empty where kinject did not write it.

    Raises:
      InputError: it is malformed, or of a format that this kinject does not read.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    manifest = read_json(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        mend = "load it with the kinject that wrote it, or a newer one"
        raise InputError(path, f"format_version is {version!r}, and this kinject reads {FORMAT_VERSION}", mend)
    return manifest


def check_pinned(manifest: Mapping[str, Any], head: str | None, prints: Mapping[str, str], folder: Path) -> None:
    """Raises InputError where the weights of a folder are not those its manifest was written for."""
    if not manifest:
        return
    same_head = manifest.get("head") == (head or NO_HEAD)
    for name in ("encoder_fingerprint", "fingerprint") if same_head else ("encoder_fingerprint",):
        if manifest.get(name) != prints[name]:
            problem = f"{name} is {manifest.get(name)}, but the weights have {prints[name]}"
            raise InputError(folder / NAME, problem, "take host.json and weights of one host")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file of a host, or raises InputError."""
    if not path.is_file():
        raise InputError(path, "is missing", "give a folder in Hugging Face's form")
    return read_object(path, "get the file again")


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
        digest.update(array.reshape(-1).view(np.uint8).data)
    else:
        rows = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_later(array: np.ndarray) -> Future[str]:
    """The `array_digest` of an array that nobody changes, made by threads of this module."""
    with _pending.lock:
        if _pending.pool is None:
            _pending.pool = ThreadPoolExecutor(HASHERS)
        made = _pending.pool.submit(array_digest, array)
        _pending.made.add(made)
    return made


class _Pending:
    """The threads, and what they are at. A child that is forked has no threads, so that all is made before."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets all."""
        self.lock, self.made = threading.Lock(), WeakSet[Future[str]]()
        self.pool: ThreadPoolExecutor | None = None

    def settle(self) -> None:
        """Waits for all."""
        wait(list(self.made))


_pending = _Pending()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_pending.settle, after_in_child=_pending.begin)


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
