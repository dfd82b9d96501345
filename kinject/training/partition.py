"""What trains is data: regex rules over parameter paths decide which leaves are trained.

The label tree made here is the only place that knows. It decides what is differentiated, what the optimizer keeps
state for (`step.py`), the dtype in which a leaf is held on the devices, and what a checkpoint saves.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.tree import Flat

TRAIN, FREEZE = "train", "freeze"


def label_parameters(
    paths: Iterable[str],
    rules: Iterable[tuple[str, str]],
    where: str = "train",
    tables: Collection[str] = (),
) -> dict[str, str]:
    """Labels every path by the first rule whose regex matches the whole of it.

    Args:
      paths: parameter paths.
      rules: (regex, "train" | "freeze") pairs, in order.
      where: the config key that holds the rules, for messages.
      tables: those of the paths that are no parameters: frozen, and no rule's business.

    Returns:
      {path: "train" | "freeze"} in the order of `paths`.

    Raises:
      InputError: a parameter that no rule covers, a rule that covers no parameter (a misspelt regex trains nothing,
        silently, in other codebases), an unknown label, a regex that does not compile, or nothing left to train.
    """
    everything = list(paths)
    paths = [path for path in everything if path not in tables]
    compiled = []
    for regex, label in rules:
        if label not in (TRAIN, FREEZE):
            raise InputError(where, f"rule {regex!r} has the label {label!r}", "labels are 'train' and 'freeze'")
        try:
            compiled.append((re.compile(regex), label))
        except re.error as error:
            raise InputError(where, f"{regex!r} is not a regular expression: {error}") from None
    for pattern, _ in compiled:
        if pattern.pattern != ".*" and not any(pattern.fullmatch(path) for path in paths):
            near = difflib.get_close_matches(pattern.pattern, paths, n=2, cutoff=0.4)  # first the likeliest meant
            sample = ", ".join(dict.fromkeys([*near, *paths[:: max(1, len(paths) // 4)]][:4]))
            raise InputError(where, f"rule {pattern.pattern!r} matches no parameter", f"paths look like {sample}")
    labels = {}
    for path in paths:
        found = next((label for pattern, label in compiled if pattern.fullmatch(path)), None)
        if found is None:
            raise InputError(where, f"no rule covers the parameter {path}", "end the rules with ('.*', 'freeze')")
        labels[path] = found
    if TRAIN not in labels.values():
        raise InputError(where, "no parameter is left to train")
    return {path: labels.get(path, FREEZE) for path in everything}


def split(params: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[Flat, Flat]:
    """Flat parameters -> (trainable leaves, frozen leaves)."""
    train = {path: leaf for path, leaf in params.items() if labels[path] == TRAIN}
    frozen = {path: leaf for path, leaf in params.items() if labels[path] == FREEZE}
    return train, frozen


def describe(params: Mapping[str, Any], labels: Mapping[str, str], tables: Collection[str] = ()) -> str:
    """The label tree with counts, one line a group of like-named leaves: what the run prints at its start."""
    groups: dict[tuple[str, str], list[int]] = {}
    for path, leaf in params.items():
        if path in tables:
            continue
        group = re.sub(r"/\d+(?=/|$)", "/*", path)
        entry = groups.setdefault((labels[path], group), [0, 0])
        entry[0] += 1
        entry[1] += int(np.prod(leaf.shape))
    lines = [
        f"  {label:6s} {count:>12,d}  {group}" + (f"  ({leaves} leaves)" if leaves > 1 else "")
        for (label, group), (leaves, count) in groups.items()
        if label == TRAIN
    ]
    totals = {
        label: sum(count for (each, _), (_, count) in groups.items() if each == label) for label in (TRAIN, FREEZE)
    }
    read = sum(int(np.prod(params[path].shape)) for path in tables)
    beside = f", {read:,d} numbers in tables" if tables else ""
    return "\n".join([f"parameters: {totals[TRAIN]:,d} trained, {totals[FREEZE]:,d} frozen{beside}", *lines])
