"""Encoded examples in a folder: what a run has made of its texts, mapped into memory by the next one.

examples.json               format, lengths, notes, the names of the arrays, and what they were made of
<bucket>.<name>.npy         one array of one bucket, [n, …]
record_index.npy            int [n], where examples are not one a record
seal.json                   sizes and hashes (kinject/integrity.py)

It is a cache: whoever deletes it loses the time that encoding takes.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kinject.data.pipeline import Examples
from kinject.errors import NO_ARRAY, InputError
from kinject.integrity import BLOCK, open_sealed, write_seal
from kinject.json_file import parse, read_object, write_object

FACTS = "examples.json"
FORMAT = 1
AGAIN = "delete the folder: it is made again"


def is_plain(examples: Examples) -> bool:
    """Whether examples are arrays and nothing else, such as a function that draws masks when they are dealt."""
    return examples.fixed and examples.parts is None and not examples.references


def write_examples(folder: Path, examples: Examples, made_of: Mapping[str, Any]) -> None:
    """Writes examples that are plain, whole or not at all; what was in the folder is replaced.

    Args:
      folder: where.
      examples: all of them.
      made_of: JSON-like, whatever decides what the examples are.

    Raises:
      InputError: they are not plain, or the disk does not take them.
    """
    if not is_plain(examples):
        raise InputError(folder, "these examples are not arrays alone, and cannot be kept")
    partial = folder.with_name(folder.name + ".partial")
    facts = {
        "format": FORMAT,
        "lengths": list(examples.lengths),
        "ordered": examples.ordered,
        "notes": dict(examples.notes),
        "buckets": [sorted(bucket) for bucket in examples.buckets],
        "made_of": made_of,
    }
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for number, bucket in enumerate(examples.buckets):
            for name, values in bucket.items():
                np.save(partial / f"{number}.{name}.npy", np.ascontiguousarray(values), allow_pickle=False)
        if examples.record_index is not None:
            np.save(partial / "record_index.npy", examples.record_index, allow_pickle=False)
        write_object(partial / FACTS, facts)
        write_seal(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        hint = "free some room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "look at the folder"
        raise InputError(folder, f"it cannot be written: {error.strerror or error}", hint) from None


def read_examples(folder: Path, made_of: Mapping[str, Any], whole: bool = False) -> Examples | None:
    """The examples of a folder; arrays of more than a megabyte stay on the disk and are checked as they are read.

    With `whole`, every byte is checked now.

    Returns None where there are none, or others: of what they were made stands in the folder.

    Raises:
      InputError: the folder is damaged.
    """
    if not folder.exists():
        return None
    facts = read_object(folder / FACTS, AGAIN)
    if facts.get("format") != FORMAT or facts.get("made_of") != parse(json.dumps(made_of)):
        return None
    seal = open_sealed(folder, "its arrays")
    if seal is None:
        raise InputError(folder, "it has no seal.json", AGAIN)
    if whole:
        seal.verify()

    def array(name: str) -> Any:
        path = folder / f"{name}.npy"
        if path.name not in seal.files:
            raise InputError(path, "it is not in the folder's seal", AGAIN)
        try:
            if path.stat().st_size <= BLOCK:
                return np.load(path, allow_pickle=False)
            return seal.array(path.name, np.load(path, mmap_mode="r", allow_pickle=False))
        except NO_ARRAY as error:
            raise InputError(path, f"it is no array: {error}", AGAIN) from None

    buckets = tuple({name: array(f"{i}.{name}") for name in names} for i, names in enumerate(facts["buckets"]))
    index = array("record_index") if "record_index.npy" in seal.files else None
    lengths = tuple(facts["lengths"])
    return Examples(buckets, lengths, ordered=facts["ordered"], record_index=index, notes=facts["notes"])
