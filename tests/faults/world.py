"""What faults are put into: every kind of file that kinject reads, below the size of a seal's block and above it.

Folders beginning with `large_`, and `wide`, hold files of more than a megabyte; the others are as small as can be.
"""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
from fault_world import encode, plugin_params, write_fault_world
from tiny_world import CITIES, plugin_stage, question, run_experiment, write_host

WIDE, BROAD = 150_000, 20_000  # entities of a long table; columns of a broad one
FIT = {"batch_size": 8, "steps": 4, "log_every": 1, "checkpoint_every": 2, "buckets": 1}


def write_world(folder: Path) -> Path:
    """Everything, in `folder`."""
    from faults.texts import write_texts

    write_fault_world(folder)
    write_wide(folder)
    write_large(folder)
    for name, of in (("living", "knowledge"), ("large_living", "large_knowledge")):
        write_living(folder / name, folder / of)
    for name, of in (("run", ""), ("large_run", "large_")):
        run_cut_short(folder, folder / name, of)
    write_texts(folder / "texts")
    return folder


def write_wide(world: Path) -> None:
    """A knowledge base of many entities with its names: tries, tables of rows, words and triples of several blocks."""
    from kinject.knowledge import KnowledgeBase, write_knowledge
    from kinject.linking import AliasLinker

    rows = np.arange(WIDE)
    vectors = np.random.default_rng(1).normal(size=(WIDE, 4)).astype(np.float32)
    about = {"triples": np.stack([rows, 0 * rows, rows[::-1]], 1).astype(np.int32), "relations": ["r"]}
    labels = [f"town{i * 7919 % 1_000_003:x}" for i in rows]
    write_knowledge(world / "wide", name="wide", ids=[f"Q{i}" for i in rows], vectors=vectors, labels=labels, **about)
    AliasLinker(KnowledgeBase.open(world / "wide"))


def write_large(world: Path) -> None:
    """A host of many words, a base of long vectors, the map between them, and a memory of long values."""
    from kinject.inference.host import knowledge_identity, open_host
    from kinject.knowledge import KnowledgeBase, write_knowledge
    from kinject.memory import Passage, build_memory
    from kinject.plugins.base import make_plugin
    from kinject.plugins.store import save_plugin

    write_host(world / "large_host", layers=1, more=[f"word{i}" for i in range(20_000)])
    draw = np.random.default_rng(2)
    vectors = draw.normal(size=(CITIES, BROAD)).astype(np.float32)
    names = {"ids": [f"Q{i}" for i in range(CITIES)], "labels": [f"city{i}" for i in range(CITIES)]}
    base = KnowledgeBase.open(write_knowledge(world / "large_knowledge", name="cities", vectors=vectors, **names))
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=BROAD)
    for leaf in plugin_params(plugin):
        leaf[...] = 0.01 * draw.normal(size=leaf.shape).astype(np.float32)
    about = {"host": open_host(world / "large_host").identity, "knowledge": knowledge_identity(base)}
    save_plugin(world / "large_plugin", plugin, config={}, metrics={"loss": 1.0}, **about)
    passages = [Passage(f"city{i} is in land{i % 5} .", f"Q{i}") for i in range(8)]
    sizes = {"hidden_size": 2 * BROAD, "key_size": 2, "length": 3}
    prints = {"encoder_fingerprint": "sha256:e", "plugin_fingerprint": "sha256:p"}

    def long(texts):
        tokens, keys, values = encode(texts)
        return tokens, keys, np.tile(values, BROAD // 2)

    build_memory(world / "large_memory", passages, long, name="m", sizes=sizes, **prints)


def write_living(folder: Path, base: Path) -> None:
    """A base with revisions on the files of a compaction, one of them with vectors in a file beside it."""
    from kinject.knowledge import KnowledgeBase
    from kinject.linking import AliasLinker

    shutil.copytree(base, folder)
    grown = KnowledgeBase.open(folder)
    draw = np.random.default_rng(3)

    def some(name, count):
        vectors = draw.normal(size=(count, grown.dim)).astype(np.float32)
        grown.add([{"id": f"{name}{i}", "label": f"{name} {i}", "vector": vectors[i]} for i in range(count)])

    some("early", 2)
    grown.compact()
    some("late", 2)
    grown.edit([{"id": "late0", "description": "changed"}])
    some("many", max(20, (80 << 10) // 4 // grown.dim))
    grown.remove(["early1"])
    AliasLinker(grown)


def run_config(world: Path, of: str) -> dict:
    data = {"data": (str(world / "train.jsonl"),), "dev_data": (str(world / "dev.jsonl"),)}
    stage = plugin_stage(world, fit=FIT, keep_encoded=True, **data)
    stage |= {"host": str(world / f"{of}host"), "knowledge": str(world / f"{of}knowledge")}
    return {"seed": 0, "stages": {"plugin": stage}}


def run_cut_short(world: Path, workdir: Path, of: str) -> None:
    """A workdir as a kill just before its end leaves it."""
    run_experiment(run_config(world, of), workdir)
    shutil.rmtree(workdir / "plugin")
    (workdir / "results.json").unlink()


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def record_lines(count: int) -> str:
    return "".join(json.dumps({**question(i % CITIES), "id": str(i)}) + "\n" for i in range(count))
