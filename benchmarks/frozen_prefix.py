"""The frozen prefix: seconds of an epoch when the layers below all that trains are computed once, not once a step.

    python benchmarks/frozen_prefix.py --json OUT            (bert-base's shape)

Two trainings of a frozen host with random weights on made-up sentences: the head alone, and Kformer in the last three
of twelve layers (five facts of eight words a sentence, no dropout). Every epoch is timed with the states below kept in
memory, in a file, and without, in turns; told is the ratio of later epochs, the first one's seconds with what keeping
costs, and the losses, which must be the same.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from made_up import SPECIAL, random_host, shape_of, tokenizer_folder, words
from rows import write

from kinject.data.pipeline import Feed
from kinject.data.records import Record, parse_record
from kinject.inference.host import HostBundle, attach_knowledge, open_host, task_examples
from kinject.inference.mesh import Placement, place_params
from kinject.inference.program import split_program
from kinject.inference.xla import cores, tune_malloc
from kinject.models.saving import save_host
from kinject.models.seams import Plugin
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.prefix import PrefixPlan, first_trainable_state, stops_at_seam
from kinject.training.states import attach_prefix
from kinject.training.step import initial_state, make_optimizer, make_train_step

LABELS = ("no", "yes")
ANEW = "anew"
KEPT = (ANEW, "memory", "disk")
CASES = {
    "head alone": (None, [("host/head/.*", "train"), (".*", "freeze")]),
    "Kformer, last 3 layers": ("kformer", [("plugin/.*", "train"), (".*", "freeze")]),
}
Epoch = Callable[[], tuple[float, list[float]]]  # (seconds, losses)


def sentences(count: int, vocabulary: int) -> list[Record]:
    """Sentences of 12 to 40 words with a label, and five facts of eight words each."""
    draw, known = np.random.default_rng(0), words(vocabulary)

    def some(length: int) -> str:
        return " ".join(known[i] for i in draw.integers(vocabulary, size=length))

    made = []
    for number in range(count):
        text, facts = some(int(draw.integers(12, 41))), [[some(8) for _ in range(5)]]
        line = {"text": text, "mentions": [], "label": LABELS[number % 2], "id": str(number), "facts": facts}
        made.append(parse_record(line, f"made up:{number}"))
    return made


def epochs(
    host: HostBundle, plugin: Plugin | None, rules: list[tuple[str, str]], records: list[Record], size: int, kept: str
) -> tuple[Epoch, float]:
    """An epoch of training, with the lower states kept or not (one of `KEPT`), and the seconds that keeping took."""
    task = make_task("sequence_classification", labels=LABELS).for_host(host.loaded, "benchmark")
    examples = task_examples(task, plugin, records, host, None, max_length=64)
    feed = Feed(attach_knowledge(examples, plugin, records, host, None))
    program, params = split_program(host.loaded.host, plugin, task)
    labels = label_parameters(params, rules)
    train, frozen = place_params(*split(params, labels), "float32")
    seconds = 0.0
    if kept != ANEW:
        layers = len(host.loaded.host.encoder.layers)
        start = first_trainable_state(labels, plugin, layers)
        # in memory one state more, as runs keep it
        seam = kept != "disk" and stops_at_seam(labels, plugin, start, layers)
        names, width = ("prefix", "prefix_inner")[: 1 + seam], host.loaded.config.hidden_size
        plan = PrefixPlan(start, seam, np.dtype(np.float32), 0, "disk" if kept == "disk" else "memory", names, width)
        started, workdir = time.perf_counter(), Path(tempfile.gettempdir())
        feed = attach_prefix(program, {**frozen, **train}, feed, plan, 96, Placement.single(), workdir=workdir)
        for bucket in feed.examples.buckets:
            bucket["prefix"].fill()
        program, seconds = replace(program, start=start), time.perf_counter() - started
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), labels, 1_000)
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False)
    state, batches = initial_state(jax.tree.map(jnp.copy, train), optimizer, labels), iter(feed.training(size, 0))

    def epoch() -> tuple[float, list[float]]:
        nonlocal state
        started, losses = time.perf_counter(), []
        for batch in islice(batches, feed.examples.size // size):
            state, logged = step(state, frozen, {name: values for name, values in batch.items() if name != "index"})
            losses.append(logged["loss"])
        found = [float(loss) for loss in losses]  # waits for them
        return time.perf_counter() - started, found

    return epoch, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=96)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="in turns; the first one compiles")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    tune_malloc()  # as training by command does
    config, rows = shape_of(arguments.layers, arguments.hidden, 5_000 + len(SPECIAL)), []
    records = sentences(arguments.sentences, 5_000)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_folder(Path(folder) / "tokenizer", 5_000)
        about = {"task": "sequence_classification", "labels": list(LABELS)}
        made = random_host(config, "classification", len(LABELS))
        save_host(made, Path(folder) / "host", tokenizer_files_from=tokenizer, host_json=about)
        host = open_host(Path(folder) / "host")
    for name, (method, rules) in CASES.items():
        plugin = None
        if method is not None:
            settings = {"name": method, "layers": tuple(range(arguments.layers - 3, arguments.layers))}
            settings |= {"dropout": 0.0, "start": "paper"}
            plugin = make_plugin(settings, hidden_size=config.hidden_size, knowledge_dim=0)
        arms = {kept: epochs(host, plugin, rules, records, arguments.batch, kept) for kept in KEPT}
        seconds, losses = {kept: [] for kept in arms}, {kept: [] for kept in arms}
        for _ in range(arguments.epochs):
            for kept, (epoch, _) in arms.items():
                taken, lost = epoch()
                seconds[kept].append(taken)
                losses[kept] += lost
        later = {kept: statistics.median(taken[1:]) for kept, taken in seconds.items()}
        for kept in KEPT[1:]:
            difference = float(np.abs(np.subtract(losses[kept], losses[ANEW])).max())
            rows.append(
                {
                    "name": f"frozen_prefix, {name}, {kept}",
                    "ratio": later[ANEW] / later[kept],
                    "ours": later[kept],
                    "theirs": later[ANEW],
                    "unit": "seconds an epoch after the first, with lower states kept / computed anew",
                    "hardware": f"{jax.default_backend()}, {platform.machine()}, {cores()} cores",
                    "versions": f"jax {jax.__version__}",
                    "shape": f"{arguments.layers} x {arguments.hidden}, {arguments.sentences} sentences",
                    "first_epoch": {"ours": arms[kept][1] + seconds[kept][0], "theirs": seconds[ANEW][0]},
                    "largest_difference_of_losses": difference,
                }
            )
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
