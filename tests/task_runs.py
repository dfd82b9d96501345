"""What the tests of single tasks share: a world whose host can spell markers and prefixes, and a run of all stages."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_world import (
    VOCABULARY,
    as_device,
    evaluate_stage,
    run_experiment,
    write_base,
    write_host,
    write_records,
)

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.datasets.prepare import prepare
from kinject.inference.host import knowledge_identity, open_host
from kinject.inference.mesh import place_params
from kinject.inference.program import evaluate, split_program
from kinject.knowledge.base import KnowledgeBase
from kinject.models.pretrained import load_host
from kinject.plugins.base import make_plugin
from kinject.plugins.store import load_plugin, save_plugin
from kinject.tasks.base import Extent, make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

MORE = ["@", "Q", "A", ":", "the", ",", "who", "?"]
WORDS = [*VOCABULARY, *MORE]


class TaskWorld:
    """A raw masked-LM host and a knowledge base of cities, in a folder."""

    def __init__(self, folder, layers=1):
        self.folder = folder
        write_host(folder / "raw", layers=layers, more=MORE)
        write_base(folder / "knowledge")
        self.host = open_host(folder / "raw", head="masked_lm")
        self.knowledge = KnowledgeBase.open(folder / "knowledge")
        made = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=1)
        identities = {"host": self.host.identity, "knowledge": knowledge_identity(self.knowledge)}
        identities |= {"config": {}, "metrics": {}}
        self.plugin = save_plugin(folder / "plugin", made, **identities)

    def batch(self, task, values, *, slots=True, max_length=None):
        """All examples of some records, in one batch."""
        knowledge = self.knowledge if slots else None
        examples = task.examples(parsed(*values), self.host.encoder(max_length), knowledge, buckets=1)
        (batch,) = Feed(examples, knowledge and knowledge.gather).evaluation(examples.size)
        return batch

    def run(self, task, values, options, steps=2):
        """A host made from the raw model, then measured alone and with a plugin of the raw model.

        Returns:
          (results by stage, folder of the run).
        """
        data = (str(write_records(self.folder / f"{task}.jsonl", values)),)
        fit = {"batch_size": 4, "steps": steps, "buckets": 1, "log_every": 1, "checkpoint_every": steps}
        fit |= {"optimizer": {"name": "sgd", "learning_rate": 0.1}, "evaluation_batch_size": 8}
        host = {"kind": "host", "task": task, "data": data, "dev_data": data, "base": str(self.folder / "raw")}
        host |= {"task_options": options, "fit": fit}
        later = {key: value for key, value in options.items() if key != "labels"}  # those are the host's
        table = evaluate_stage(self.folder, {"plugin": str(self.plugin)}, task=task, host="@host", task_options=later)
        table["domains"]["cities"] |= {"data": data, "reference_data": ()}
        table |= {"examples": 0, "batch_size": 8}
        folder = self.folder / "runs" / task
        return run_experiment({"seed": 0, "stages": {"host": host, "table": table}}, folder), folder


def check_stages(world, task, values, options, *, n, extra=()):
    """All stages of a task on the tiny world: two steps, then the host alone and with a plugin on the same records."""
    results, folder = world.run(task, values, options)
    table = results["table"]["cities"]
    assert table["n"] == n and {"host", "plugin", "shuffled", "coverage"} <= table.keys()
    # the table measures what the stage measured
    assert table["host"] == pytest.approx(results["host"][f"dev_{table['metric']}"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and losses[0] != losses[1] and np.isfinite(losses).all()
    assert all(f"dev_{name}" in results["host"] for name in extra)
    assert json.loads((folder / "host" / "host.json").read_text())["task"] == task
    return results, folder


def check_run(world, name, records, options):
    """Two steps of a task's head and of a plugin; then the host alone and with the plugin on the same records.

    Returns:
      (metrics of the host alone, metrics with the plugin).
    """
    task = make_task(name, **options)
    loaded = load_host(world.folder / "raw", head=task.head, num_labels=task.num_labels, fresh_head=True, seed=1)
    task = task if loaded.fresh else task.for_host(loaded, "host")
    plugin = load_plugin(world.plugin).plugin
    program, params = split_program(loaded.host, plugin, task)
    labels = label_parameters(params, [("host/head/.*", "train"), ("plugin/.*", "train"), (".*", "freeze")])
    optimizer = make_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), labels, 2)
    train, frozen = place_params(*split(params, labels), "float32")
    state, step = (
        initial_state(train, optimizer, labels),
        make_train_step(program, optimizer, labels, seed=0, dropout=True),
    )
    before = {path: np.asarray(leaf) for path, leaf in train.items()}
    feed = Feed(task.examples(records, world.host.encoder(None), world.knowledge, buckets=1), world.knowledge.gather)
    losses = []
    for _, batch in zip(range(2), feed.training(4, seed=0), strict=False):
        state, logged = step(state, frozen, as_device(batch))
        losses.append(float(logged["loss"]))
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    moved = {path for path, leaf in state.train.items() if not np.array_equal(leaf, before[path])}
    assert any(path.startswith("host/head/") for path in moved) and any(path.startswith("plugin/") for path in moved)
    trained = {**frozen, **state.train}
    plugged, _ = evaluate(program, trained, feed, 8)
    bare = Feed(task.bare_examples(records, world.host.encoder(None), world.knowledge, buckets=1))
    alone = {path: leaf for path, leaf in trained.items() if path.startswith("host/")}
    host, _ = evaluate(replace(program, plugin=None), alone, bare, 8)
    assert task.metric in host and host.keys() == plugged.keys() and host["loss"] != plugged["loss"]
    return host, plugged


def prepared(world, name, files, config=""):
    """Published files, written by `files(folder)`, as a data set: its reference without a split."""
    folder = world.folder / "files" / name
    files(folder)
    (summary,) = prepare("/".join(filter(None, (name, config))), folder, world.folder / "data", check=False)
    return summary.reference


def check_shapes(world, task, values, places):
    """Batches without data have the form of real ones."""
    batch = world.batch(task, values)
    rows, length = batch["token_ids"].shape
    made = task.batch_shapes(Extent(rows, length, batch["entity_ids"].shape[-1], places, knowledge_dim=8, outputs=4))
    assert {name: (one.shape, one.dtype) for name, one in made.items()} == {
        name: (one.shape, one.dtype) for name, one in batch.items()
    }


def parsed(*values):
    return [parse_record(value, f"file.jsonl:{number}") for number, value in enumerate(values, 1)]


def shown(ids, slots=None, entities=None):
    """A row's pieces without padding; a slot is shown by its row in the knowledge base."""
    pieces = [WORDS[i] for i in ids]
    for place, slot in enumerate(slots if slots is not None else ()):
        if slot >= 0:
            pieces[place] = f"E{entities[slot]}"
    return " ".join(piece for piece in pieces if piece != "[PAD]")


def row(batch, *at):
    return shown(*(batch[name][at] for name in ("token_ids", "entity_slot", "entity_ids")))


__all__ = [
    "MORE",
    "WORDS",
    "TaskWorld",
    "as_device",
    "check_run",
    "check_shapes",
    "check_stages",
    "parsed",
    "prepared",
    "row",
    "shown",
]
