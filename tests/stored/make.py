"""Writes a stored set: one small folder of everything that kinject keeps on disk, as the present version writes it.

    git worktree add ../old f5eefac
    PYTHONPATH=../old:../old/tests python tests/stored/make.py tests/stored/f5eefac

The version is the one on PYTHONPATH, with its own tests' tiny world; a set is made once and never made again. See
tests/test_stored.py for what later versions must find in it.
"""

# ruff: noqa: I001  (modules are where f5eefac has them)

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import conftest  # noqa: F401  sets up jax as the tests do: first
import jax.numpy as jnp
import numpy as np
from fact_world import write_facts
from flax import nnx
from kinject.knowledge.text_index import TextIndex
from kinject.stages.passages import PassageEncoder
from observe import ASKED, answers, content, hexadecimal
from tiny_world import CITIES, LANDS, question, run_experiment, vectors, write_records, write_world

from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.linking import AliasLinker
from kinject.memory.store import Passage, build_memory
from kinject.models.pretrained import load_host
from kinject.models.saving import save_host
from kinject.models.tuning import Lora, attach
from kinject.plugins.store import NO_KNOWLEDGE, load_plugin, make_plugin, save_plugin
from kinject.stages.base import knowledge_identity, open_host

METHODS = {
    "kformer": {"name": "kformer", "layers": [2], "facts": 2, "start": "paper", "retrieve": True},
    "k_adapter": {"name": "k_adapter", "layers": [0, 2], "width": 8, "depth": 1, "heads": 2, "feed_forward": 16},
    "pluglm": {"name": "pluglm", "layers": [2], "heads": 2, "key_size": 8, "top_k": 2, "query_from": "embeddings"},
}
READS = {"kformer": "facts"}  # the others read no knowledge base
STEPS, KILLED_AFTER = 24, 8

CONFIG = f"""\
def get_config():
    fit = {{"batch_size": 8, "steps": {STEPS}, "log_every": 2, "checkpoint_every": 4, "evaluate_every": 4}}
    fit |= {{"optimizer": {{"learning_rate": 0.02}}, "dropout": "all"}}
    plugin = {{"kind": "plugin", "task": "cloze", "host": "host", "knowledge": "knowledge", "fit": fit}}
    plugin |= {{"data": ("train.jsonl",), "dev_data": ("dev.jsonl",)}}
    domain = {{"knowledge": "knowledge", "data": ("test.jsonl",), "plugins": {{"plugin": "@plugin"}}}}
    evaluate = {{"kind": "evaluate", "task": "cloze", "host": "host", "domains": {{"cities": domain}}}}
    return {{"seed": 5, "stages": {{"plugin": plugin, "evaluate": evaluate}}}}
"""


def command(workdir: str) -> list[str]:
    return [sys.executable, "-m", "kinject.train", "--config", "config.py", "--workdir", workdir, "--devices", "1"]


def make_bases(folder: Path) -> None:
    """A base with words and its indices beside it, and one of float16 in which some have no vector."""
    base = write_facts(folder / "facts")
    AliasLinker(base)
    TextIndex(base)
    names = ["one", "two", "three", "four", "zwölf"]
    write_knowledge(
        folder / "sparse",
        name="sparse",
        ids=names,
        vectors=vectors()[:5].astype(np.float16),
        has_vector=np.array([True, False, True, True, False]),
        labels=names,
        aliases=[["1", "uno"], [], ["3"], [], ["12", "dozen"]],
        source="made up",
        license="none",
        metrics={"mrr": 0.25},
    )


def make_lora(folder: Path) -> None:
    host = load_host(folder / "host").host
    attach(host, Lora(rank=2, sites=("query", "value", "down")), nnx.Rngs(5))
    draw = np.random.default_rng(7)
    for path, leaf in nnx.to_flat_state(nnx.state(host)):
        if "lora" in path:
            leaf[...] = jnp.asarray(0.3 * draw.standard_normal(leaf.shape), leaf.dtype)
    save_host(host, folder / "host_lora", tokenizer_files_from=folder / "host", host_json={"task": "cloze"})


def make_plugins(folder: Path) -> None:
    """A plugin a method, with random parameters, so that none is the identity."""
    host, draw = open_host(folder / "host"), np.random.default_rng(11)
    for name, method in METHODS.items():
        base = KnowledgeBase.open(folder / READS[name]) if name in READS else None
        plugin = make_plugin(method, hidden_size=16, knowledge_dim=0 if base is None else base.dim, seed=1)
        for _, leaf in nnx.to_flat_state(nnx.state(plugin, nnx.Param)):
            leaf[...] = leaf[...] + jnp.asarray(0.2 * draw.standard_normal(leaf.shape), leaf.dtype)
        about = NO_KNOWLEDGE if base is None else knowledge_identity(base)
        save_plugin(folder / name, plugin, host=host.identity, knowledge=about, config={}, metrics={"loss": 0.5})
    encoder = PassageEncoder(host, load_plugin(folder / "pluglm").plugin, 8)
    passages = [Passage(f"city{i} is in land{i % LANDS} .", f"Q{i}") for i in range(0, CITIES, 2)]
    passages.append(Passage("a place ."))
    build_memory(folder / "memory", passages, encoder, name="passages", **encoder.about()).close()


def make_headed(folder: Path, scratch: Path) -> None:
    """A plugin that brings its head along."""
    texts = ({**question(i), "label": "even" if i % 2 == 0 else "odd"} for i in range(12))
    stage = {
        "kind": "plugin",
        "task": "sequence_classification",
        "task_options": {"labels": ["even", "odd"]},
        "host": str(folder / "host"),
        "knowledge": str(folder / "knowledge"),
        "data": (str(write_records(scratch / "texts.jsonl", texts)),),
        "fresh_head": True,
        "train": (("plugin/.*", "train"), ("host/head/.*", "train"), (".*", "freeze")),
        "fit": {"batch_size": 4, "steps": 2, "optimizer": {"learning_rate": 0.02}},
    }
    run_experiment({"seed": 1, "stages": {"headed": stage}}, scratch / "run")
    shutil.move(scratch / "run" / "headed", folder / "headed")


def make_runs(folder: Path) -> None:
    """A finished run, and one of the same config that was killed after a checkpoint."""
    (folder / "config.py").write_text(CONFIG)
    subprocess.run(command("finished"), cwd=folder, check=True, capture_output=True)
    shutil.copytree(folder / "finished" / "plugin", folder / "plugin")
    saved = folder / "half" / "checkpoints" / "plugin" / "last" / str(KILLED_AFTER)
    process = subprocess.Popen(command("half"), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not saved.exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    if (folder / "half" / "plugin").exists():
        raise RuntimeError("the run was over before it could be killed: make it longer")
    for path in (*folder.rglob("results.png"), *folder.rglob("results.svg"), *folder.rglob("report.html")):
        path.unlink()  # large, and drawn anew from the rest
    for path in folder.rglob("__pycache__"):
        shutil.rmtree(path)


def make(folder: Path, scratch: Path) -> None:
    write_world(scratch / "world")
    folder.mkdir()
    for name in ("host", "knowledge", "train.jsonl", "dev.jsonl", "test.jsonl"):
        shutil.move(scratch / "world" / name, folder / name)
    make_bases(folder)
    make_lora(folder)
    make_plugins(folder)
    make_headed(folder, scratch)
    make_runs(folder)
    expected = {"content": content(folder), "answers": {name: hexadecimal(answers(folder, name)) for name in ASKED}}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    target = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory(prefix="kinject-stored-") as scratch:  # whose name some files keep
        made = Path(scratch) / target.name
        make(made, Path(scratch))
        shutil.copytree(made, target)
    files = [path for path in target.rglob("*") if path.is_file()]
    print(f"{target.name}: {sum(path.stat().st_size for path in files):,} bytes in {len(files)} files")


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    main()
