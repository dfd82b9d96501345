"""What a stored set says when it is opened: everything that a later version must find in it again, as JSON values.

`make.py` writes what the version that made the set says into `expected.json`; tests/test_stored.py asks the present
one. Arrays stand as a hash of dtype, shape and bytes; scores as hexadecimal floats, which lose nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from kinject import Host, Plugin
from kinject.knowledge import KnowledgeBase
from kinject.knowledge.facts import Facts, TextIndex
from kinject.linking import AliasLinker
from kinject.memory import PassageMemory
from kinject.models.pretrained import load_host
from kinject.plugins.store import read_head
from kinject.tree import flatten

HOSTS = ("host", "host_lora")
BASES = ("knowledge", "facts", "sparse")
PLUGINS = ("plugin", "kformer", "k_adapter", "pluglm", "headed")
WORDS = ["city3 and city41 are in land3", "a place in land2", "nothing of it"]
ASKED = {  # answers -> host, plugin, knowledge base, memory, whether under the plugin's own head
    "host": ("host", None, None, None, False),
    "plugin": ("host", "plugin", "knowledge", None, False),
    "lora": ("host_lora", None, None, None, False),
    "kformer": ("host", "kformer", "facts", None, False),
    "k_adapter": ("host", "k_adapter", None, None, False),
    "pluglm": ("host", "pluglm", None, "memory", False),
    "headed": ("host", "headed", "knowledge", None, True),
}


def array_hash(array: Any) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()).hexdigest()[:32]


def parameters(module: nnx.Module) -> dict[str, str]:
    flat = flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    return {path: array_hash(leaf) for path, leaf in sorted(flat.items())}


def host(folder: Path) -> dict[str, Any]:
    loaded = load_host(folder)
    tuning = loaded.host.tuning
    return {
        "fingerprint": loaded.fingerprint,
        "encoder_fingerprint": loaded.encoder_fingerprint,
        "tuning": None if tuning is None else tuning.to_json(),
        "parameters": parameters(loaded.host),
    }


def knowledge(folder: Path) -> dict[str, Any]:
    base = KnowledgeBase.open(folder)
    vectors, found = base.gather(np.arange(-1, base.size))
    ids = base.ids(range(base.size))
    return {
        "name": base.name,
        "fingerprint": base.fingerprint,
        "verified": base.verify(),
        "ids": ids,
        "rows": base.rows([*reversed(ids), "nobody"]).tolist(),
        "vectors": array_hash(vectors),
        "found": found.astype(int).tolist(),
        "entities": None if base.entities is None else base.entities.to_pylist(),
        "triples": None if base.triples is None else base.triples.tolist(),
        "relations": base.relations,
    }


def plugin(folder: Path) -> dict[str, Any]:
    stored = Plugin.load(folder).stored
    pins = {name: stored.manifest[name] for name in ("method", "method_config", "host", "knowledge")}
    made = {**pins, "parameters": parameters(stored.plugin)}
    if "head" in stored.manifest:
        head = read_head(stored)
        made["head"] = {path: array_hash(leaf) for path, leaf in sorted(head.params.items())}
        made["head_facts"] = dict(head.facts)
    return made


def memory(folder: Path) -> dict[str, Any]:
    opened = PassageMemory.open(folder)
    rows = {row: [one.text, one.entity] for row, one in opened.passages()}
    arrays = {name: array_hash(getattr(opened, name)) for name in ("tokens", "keys", "values", "alive")}
    return {"passages": {str(row): one for row, one in rows.items()}, "size": opened.size, **arrays}


def words(folder: Path) -> dict[str, Any]:
    """What is found through the indices that lie beside a knowledge base."""
    base = KnowledgeBase.open(folder)
    linker = AliasLinker(base)
    return {
        "linked": [[list(span) for span in linker(text)] for text in WORDS],
        "found": TextIndex(base).search(WORDS, 3).tolist(),
        "facts": Facts(base).of(range(base.size)),
    }


def questions(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "label"} for record in records]


def answers(folder: Path, name: str) -> list[list[tuple[str, float]]]:
    """The labels and scores of one line of ASKED to the questions in test.jsonl."""
    host, plugin, base, memory, headed = (folder / one if isinstance(one, str) else one for one in ASKED[name])
    ready = Host.load(host, head=plugin if headed else None)
    if plugin is not None:
        ready.plug(plugin, knowledge=base, memory=() if memory is None else memory)
    return [[(one.label, one.score) for one in answer.labels] for answer in ready.predict(questions(folder))]


def content(folder: Path) -> dict[str, Any]:
    """All that is read and not computed."""
    return {
        "hosts": {name: host(folder / name) for name in HOSTS},
        "knowledge": {name: knowledge(folder / name) for name in BASES},
        "plugins": {name: plugin(folder / name) for name in PLUGINS},
        "memory": memory(folder / "memory"),
        "words": words(folder / "facts"),
        "finished": {"parameters": plugin(folder / "finished" / "plugin")["parameters"]},
    }


def hexadecimal(found: list[list[tuple[str, float]]]) -> list[list[list[str]]]:
    return [[[label, float(score).hex()] for label, score in labels] for labels in found]
