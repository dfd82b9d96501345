"""Trains the same few steps on several meshes of four devices and says what came out; run by test_mesh.py.

One run is sent SIGTERM twice and goes on with other devices each time.

python tests/mesh_cases.py WORLD WORKDIR
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tiny_world import plugin_stage

from kinject.data.pipeline import Feed
from kinject.data.records import read_records
from kinject.inference.host import open_host
from kinject.inference.mesh import MeshConfig, Placement
from kinject.inference.processes import Preempted, listen
from kinject.inference.program import split_program
from kinject.inference.vectors import load_table
from kinject.knowledge.base import KnowledgeBase
from kinject.models.tuning import make_tuning
from kinject.models.tuning_base import attach, rules_for
from kinject.plugins.base import make_plugin
from kinject.reports.console import Reporter
from kinject.tasks.base import make_task
from kinject.training.config import FitConfig
from kinject.training.loop import Fit

MESHES = {
    "1x1": (1, {}),
    "4x1": (4, {}),
    "2x2": (4, {"model": 2}),
    "1x4": (4, {"model": 4}),
    "2x2 sharded": (4, {"model": 2, "shard_frozen": True}),
    "2x2 vectors": (4, {"model": 2}),  # of entities, looked up on the devices
}
CASES = {  # case: what trains, which meshes
    "map": (None, ["1x1", "4x1", "1x4", "2x2 sharded", "2x2 vectors"]),
    "full": ({"name": "full"}, ["1x1", "2x2"]),
    "lora": ({"name": "lora", "sites": ["query", "key", "up"]}, ["1x1", "2x2 sharded"]),
}


def fit_of(world: Path, workdir: Path, tuning: dict | None, mesh: str) -> Fit:
    host = open_host(world / "host", head="masked_lm", dropout=0.1)
    task, knowledge, plugin = make_task("cloze"), KnowledgeBase.open(world / "knowledge"), None
    rules = [("plugin/.*", "train"), (".*", "freeze")]
    if tuning is None:
        plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=1)
    else:
        made = make_tuning(tuning)
        attach(host.loaded.host, made, nnx.Rngs(0))
        rules = list(rules_for(made, "masked_lm", ()))
    program, params = split_program(host.loaded.host, plugin, task)

    def feed(split: str) -> Feed:
        records = list(read_records(world / f"{split}.jsonl", ("label",)))
        return Feed(task.examples(records, host.encoder(None), knowledge, buckets=1), knowledge.gather)

    count, axes = MESHES[mesh]
    # sgd: Adam would blow up the rounding of gradients that are zero
    settings = {"steps": 4, "log_every": 2, "checkpoint_every": 4, "dropout": "all"}
    settings["optimizer"] = {"name": "sgd", "learning_rate": 0.05, "clip": 1.0}
    fit = FitConfig.model_validate(plugin_stage(world)["fit"] | settings)
    place = Placement.over(count, MeshConfig(**axes))
    table = load_table(knowledge, place) if mesh.endswith("vectors") else None
    options = {"table": table, "seed": 3, "workdir": workdir, "reporter": Reporter(quiet=True), "placement": place}
    return Fit("stage", program, params, rules, fit, feed("train"), feed("dev"), **options)


def split_of(fit: Fit) -> dict[str, list]:
    """Which parameters are not replicated, and how."""
    leaves = {**fit.state.train, **fit.frozen}
    if fit.place.mesh is None:
        return {}
    return {
        path: [list(leaf.shape), str(leaf.sharding.spec)]
        for path, leaf in leaves.items()
        if not leaf.is_fully_replicated
    }


def main(world: Path, workdir: Path) -> None:
    assert jax.device_count() == 4
    found = {}
    for case, (tuning, meshes) in CASES.items():
        for mesh in meshes:
            folder = workdir / f"{case} {mesh}"
            fit = fit_of(world, folder, tuning, mesh)
            split, start = split_of(fit), {path: np.array(leaf) for path, leaf in fit.state.train.items()}
            result = fit.run()
            np.savez(folder / "train.npz", **result.train)
            moved = max(float(np.abs(leaf - start[path]).max()) for path, leaf in result.train.items())
            notes = fit.place.notes({**fit.state.train, **fit.frozen})
            found[f"{case} {mesh}"] = {"split": split, "metrics": result.metrics, "moved": moved, "notes": notes}
    found["moved on"] = move_on(world, workdir / "map moved on", ["4x1", "2x2 sharded", "1x1"])
    (workdir / "found.json").write_text(json.dumps(found))


def move_on(world: Path, workdir: Path, meshes: list[str]) -> list[int]:
    """Trains one step on each mesh but the last, on which the rest is trained; the steps at which they stopped."""
    stopped = []
    for mesh in meshes[:-1]:
        listen()
        fit = fit_of(world, workdir, None, mesh)
        step = fit.train_step

        def with_notice(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)  # noqa: B023, used before the next

        fit.train_step = with_notice
        try:
            fit.run()
        except Preempted:
            stopped.append(int(fit.state.step))
    listen()
    result = fit_of(world, workdir, None, meshes[-1]).run()
    np.savez(workdir / "train.npz", **result.train)
    return stopped


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
