"""A world of every kind of artefact in a few kilobytes, made in seconds without training, for faults to be put into."""

import json
from pathlib import Path

import numpy as np
from tiny_world import CITIES, question, write_base, write_host, write_records

from kinject.inference.host import knowledge_identity, open_host
from kinject.knowledge import KnowledgeBase
from kinject.linking import AliasLinker
from kinject.memory import Passage, build_memory
from kinject.plugins.base import make_plugin
from kinject.plugins.store import save_plugin


def write_fault_world(folder: Path) -> Path:
    """A host, a knowledge base with its names, a plugin, a memory and questions, in `folder`."""
    write_host(folder / "host", layers=1)
    base = KnowledgeBase.open(write_base(folder / "knowledge"))
    AliasLinker(base)
    bundle = open_host(folder / "host")
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=base.dim)
    draw = np.random.default_rng(0)
    for leaf in plugin_params(plugin):
        leaf[...] = draw.normal(size=leaf.shape).astype(np.float32)
    about = {"host": bundle.identity, "knowledge": knowledge_identity(base), "config": {}, "metrics": {"loss": 1.0}}
    save_plugin(folder / "plugin", plugin, **about)
    sizes = {"hidden_size": 4, "key_size": 2, "length": 3}
    passages = [Passage(f"city{i} is in land{i % 5} .", f"Q{i}") for i in range(8)]
    prints = {"encoder_fingerprint": "sha256:e", "plugin_fingerprint": "sha256:p"}
    build_memory(folder / "memory", passages, encode, name="m", sizes=sizes, **prints)
    write_records(folder / "train.jsonl", map(question, range(24)))
    write_records(folder / "dev.jsonl", map(question, range(24, 32)))
    write_records(folder / "questions.jsonl", ({"text": question(i)["text"]} for i in range(CITIES - 4, CITIES)))
    return folder


def plugin_params(plugin):
    """The plugin's parameters as variables."""
    from flax import nnx

    return [leaf for _, leaf in nnx.to_flat_state(nnx.state(plugin, nnx.Param))]


def encode(texts):
    """A passage encoder of no model: lengths and sums of bytes."""
    n = len(texts)
    tokens = np.array([[len(text), 1, -1] for text in texts], np.int32).reshape(n, 3)
    keys = np.array([[len(text), sum(text.encode())] for text in texts], np.float32).reshape(n, 2)
    return tokens, keys, np.repeat(keys, 2, axis=1)


def flip(path: Path, at: int, bit: int = 2) -> None:
    """Turns one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content))


def edit_json(path: Path, change) -> None:
    """Changes an object in a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
