"""A world small enough for tests: a random host that knows words, entities whose vectors tell their answers, files.

Entities are `city0`, `city1`, …; the question `city7 is in [MASK] .` has the answer `land2` (7 % LANDS); a vector is a
code of the answer plus noise. The host was trained only to copy a land that stands where a slot would stand
(`land2 / city7 is in [MASK] .`), so it knows no city; a plugin must learn to say the answer in the slot.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny import random_host

from kinject.data.pipeline import Feed
from kinject.data.records import Record, parse_record
from kinject.knowledge.base import write_knowledge
from kinject.models.config import EncoderConfig
from kinject.models.saving import save_host
from kinject.stages.experiment import Experiment
from kinject.tasks.base import make_task

LANDS, CITIES, DIM = 5, 60, 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "/", "is", "in", ".", "#", "$", "a", "place", "of"]
VOCABULARY = [*WORDS, *(f"land{i}" for i in range(LANDS)), *(f"city{i}" for i in range(CITIES)), "far", "##away"]


def write_tokenizer(folder: Path, more=()) -> Path:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, *more]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    return folder


def write_host(folder: Path, head="masked_lm", *, seed=0, layers=3, more=()) -> Path:
    config = tiny_bert(len(VOCABULARY) + len(more), layers=layers)
    tokenizer = write_tokenizer(folder.with_name(folder.name + "_tokenizer"), more)
    return save_host(
        random_host(config, head, seed=seed), folder, tokenizer_files_from=tokenizer, host_json={"task": "cloze"}
    )


def tiny_bert(vocabulary: int, *, layers: int, positions: int = 40) -> EncoderConfig:
    return EncoderConfig(
        model_type="bert",
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        pad_token_id=0,
    )


def vectors(seed=0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    codes = draw.normal(size=(LANDS, DIM))
    return (codes[np.arange(CITIES) % LANDS] + 0.1 * draw.normal(size=(CITIES, DIM))).astype(np.float32)


def write_base(folder: Path, *, seed=0, name="cities") -> Path:
    return write_knowledge(
        folder,
        name=name,
        ids=[f"Q{i}" for i in range(CITIES)],
        vectors=vectors(seed),
        labels=[f"city{i}" for i in range(CITIES)],
        source="made up",
        license="none",
    )


def write_host_and_base(folder: Path, host="host", *, more=()) -> Path:
    """A raw masked-LM host of one layer and a knowledge base of cities."""
    write_host(folder / host, layers=1, more=more)
    write_base(folder / "knowledge")
    return folder


def question(i: int) -> dict:
    name = f"city{i}"
    text = f"{name} is in [MASK] ." if i % 2 else f"a place of {name} is in far [MASK] ."
    start = text.index(name)
    mention = {"start": start, "end": start + len(name), "entity": f"Q{i}"}
    return {"text": text, "mentions": [mention], "label": f"land{i % LANDS}"}


def sentence(i: int, j: int) -> dict:
    tokens = [f"city{i}", "is", "in", "a", "place", "of", f"city{j}", "."]
    mentions = [{"start": 0, "end": 1, "entity": f"Q{i}"}, {"start": 6, "end": 7, "entity": f"Q{j}"}]
    return {"tokens": tokens, "mentions": mentions}


def write_records(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def records(*values: dict) -> list[Record]:
    """Such questions or sentences as records, without a file."""
    return [parse_record(value, f"test:{number}") for number, value in enumerate(values, 1)]


def batch_of(host, knowledge, values, task="cloze") -> dict:
    """The one batch that a task makes of them, as a seam gets it; `host` and `knowledge` are the fixtures."""
    examples = make_task(task).examples(records(*values), host.encoder(None), knowledge, buckets=1)
    return Feed(examples, knowledge.gather).batch(0, np.arange(examples.size))


def copying(i: int, land: int) -> dict:
    text = question(i)["text"].replace(f"city{i}", f"land{land} / city{i}")
    return {"text": text, "mentions": [], "label": f"land{land}"}


def write_world(folder: Path) -> Path:
    """Host, knowledge base and records, in `folder`."""
    write_host(folder / "raw_host")
    write_records(folder / "copying.jsonl", (copying(i, land) for i in range(CITIES) for land in range(LANDS)))
    host = {
        "kind": "host",
        "task": "cloze",
        "base": str(folder / "raw_host"),
        "data": (str(folder / "copying.jsonl"),),
        "train": (("host/.*", "train"),),
        "fit": {"batch_size": 50, "steps": 150, "checkpoint_every": 150, "optimizer": {"learning_rate": 0.01}},
    }
    run_experiment({"seed": 0, "stages": {"host": host}}, folder / "host_run")
    (folder / "host_run" / "host").rename(folder / "host")
    write_base(folder / "knowledge")
    write_records(folder / "train.jsonl", map(question, range(0, 40)))
    write_records(folder / "dev.jsonl", map(question, range(40, 50)))
    write_records(folder / "test.jsonl", map(question, range(50, 60)))
    write_records(
        folder / "sentences.jsonl", (sentence(i, (i * 7 + 3) % 40) for i in range(40) if i != (i * 7 + 3) % 40)
    )
    return folder


def run_experiment(config: dict, workdir: Path, *, quiet=True) -> dict:
    """Runs all stages of a config and returns the results."""
    with Experiment.open(config, workdir, devices=1, quiet=quiet) as experiment:
        for stage in experiment.choose(None):
            experiment.execute(stage)
    return experiment.run.results


def plugin_stage(world: Path, **changes) -> dict:
    fit = {"batch_size": 8, "steps": 24, "log_every": 2, "checkpoint_every": 4, "optimizer": {"learning_rate": 0.02}}
    fit |= changes.pop("fit", {})
    return {
        "kind": "plugin",
        "task": "cloze",
        "host": str(world / "host"),
        "knowledge": str(world / "knowledge"),
        "data": (str(world / "train.jsonl"),),
        "initialise": "random",
        "fit": fit,
        **changes,
    }


def evaluate_stage(world: Path, plugins: dict, **changes) -> dict:
    domain = {"knowledge": str(world / "knowledge"), "data": (str(world / "test.jsonl"),), "plugins": plugins}
    domain["reference_data"] = (str(world / "train.jsonl"),)
    return {"kind": "evaluate", "task": "cloze", "host": str(world / "host"), "domains": {"cities": domain}, **changes}


def leaves(tree) -> dict:
    """A copy of a pytree's leaves on the host, by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in flat}


def same_bits(one, other) -> bool:
    one, other = leaves(one), leaves(other)
    return one.keys() == other.keys() and all(
        one[path].dtype == other[path].dtype and one[path].tobytes() == other[path].tobytes() for path in one
    )


def as_device(batch: dict) -> dict:
    return {key: jnp.asarray(value) for key, value in batch.items()}
