"""Tuning a host: sentences a second of full fine-tuning and of LoRA beside the same steps in torch with transformers.

    python benchmarks/host_tuning.py --json OUT                             (MiniLM's shape)
    python benchmarks/host_tuning.py --layers 12 --hidden 768 --json OUT    (bert-base's)

Sequence classification with two labels on made-up sentences of FewRel's lengths (map_tuning.py's), random weights, the
same ones in all arms, AdamW, no dropout anywhere. LoRA has rank 4 at queries and keys, and trains the output layer.
Ours: length buckets, on one device with all cores, as a run has it that is told nothing (`--devices`), in float32 and
with products in bfloat16. Theirs, in a process of its own: `BertForSequenceClassification` with SDPA, in random order
padded to a batch's longest, and sorted by length, each in float32 and under bfloat16 autocast; LoRA is that of `peft`
(`pip install -e '.[test,benchmarks]'`).
Arms run in turns; told are sentences over seconds of all rounds, by the clock, and mean losses at a learning rate so
small that every pass has the same: they must agree, or the script ends with an error.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from elsewhere import ArmsElsewhere
from flax import nnx
from made_up import SPECIAL, random_host, shape_of, tokenizer_folder
from map_tuning import Arm, interleaved, sentences
from rows import row, write

from kinject.data.pipeline import Batch, Feed
from kinject.data.records import parse_record
from kinject.inference.host import open_host
from kinject.inference.mesh import Placement, place_params
from kinject.inference.program import split_program
from kinject.inference.xla import split_cpu, tune_malloc
from kinject.models.heads import HostModel
from kinject.models.lora import Lora
from kinject.models.saving import save_host
from kinject.models.tuning_base import Full, Tuning, attach, rules_for
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

LABELS, RATE, RANK = ("no", "yes"), 1e-8, 4
TUNINGS: dict[str, Callable[[], Tuning]] = {
    "full fine-tuning": Full,
    "LoRA": lambda: Lora(rank=RANK, alpha=float(RANK), sites=("query", "key")),
}
Row = dict[str, np.ndarray]


class World:
    """A host's folder and encoded sentences with labels."""

    def __init__(self, folder: Path, layers: int, hidden: int, count: int, buckets: int):
        config = shape_of(layers, hidden, 30_522)
        config = replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        words = config.vocab_size - len(SPECIAL)
        about = {"task": "sequence_classification", "labels": list(LABELS)}
        tokenizer = tokenizer_folder(folder / "tokenizer", words)
        save_host(
            random_host(config, "classification", 2), folder / "host", tokenizer_files_from=tokenizer, host_json=about
        )
        self.folder, ready = folder / "host", open_host(folder / "host")
        self.task = make_task("sequence_classification", labels=LABELS).for_host(ready.loaded, "benchmark")
        lines = [{**line, "mentions": [], "label": LABELS[i % 2]} for i, line in enumerate(sentences(count, words))]
        records = [parse_record(line, f"made up:{i}") for i, line in enumerate(lines)]
        self.feed = Feed(self.task.bare_examples(records, ready.encoder(128), None, buckets=buckets))

    def host(self) -> HostModel:
        return open_host(self.folder).loaded.host

    def rows(self) -> list[Row]:
        """Every sentence by itself, without padding."""
        made = []
        for batch in self.feed.evaluation(1):
            real = batch["segment_ids"][0] > 0
            made.append({"token_ids": batch["token_ids"][0][real], "label": batch["labels"][0]})
        return made


def ours(world: World, tuning: Tuning, precision: str, size: int) -> Arm:
    """Steps of `kinject.training` on one stream of batches that goes on from pass to pass.

    A batch is of one length, and a few batches hold other lengths than the sentences do on the whole: what a pass did
    is counted in sentences of the mean number of real tokens, and its loss is that of the steps that were timed.
    """
    host, place = world.host(), Placement.over()
    attach(host, tuning, nnx.Rngs(0))
    program, params = split_program(host, None, world.task)
    program = replace(program, precision=precision, row_parts=place.row_parts)
    labels = label_parameters(params, list(rules_for(tuning, "classification")))
    train, frozen = place_params(*split(params, labels), precision, place)
    optimizer = make_optimizer(OptimizerConfig(name="adamw", learning_rate=RATE, weight_decay=0.01), labels, 1_000)
    state, stream = place.state(initial_state(train, optimizer, labels)), iter(world.feed.training(size, 0))
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False, shardings=place.shardings(state))
    mean = sum(len(row["token_ids"]) for row in world.rows()) / world.feed.examples.size

    def train_on(batches: Iterable[Batch]) -> tuple[float, float]:
        nonlocal state
        losses, tokens = [], 0
        for batch in batches:
            tokens += int((batch["segment_ids"] > 0).sum())
            read = {name: values for name, values in batch.items() if name != "index"}
            state, logged = step(state, frozen, place.batch(read))
            losses.append(logged["loss"])
        return tokens / mean, statistics.fmean(map(float, losses))

    # compiles the step of each length: a first pass may not meet all of them
    counts = [len(bucket["index"]) for bucket in world.feed.examples.buckets]
    train_on(world.feed.batch(number, np.arange(size) % count) for number, count in enumerate(counts))
    return lambda: train_on(islice(stream, math.ceil(world.feed.examples.size / size)))


def compare(world: World, elsewhere: ArmsElsewhere, name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one way of tuning."""
    mine = ("float32", "bfloat16_dots")
    arms = {one: ours(world, TUNINGS[name](), one, arguments.batch) for one in mine}
    for half in (False, True):
        for order in ("random", "sorted"):
            arm = elsewhere.arm("tuned", name, arguments.batch, order, half)
            arms[f"{order}{', bfloat16 autocast' if half else ''}"] = arm
    rates, losses = interleaved(arms, arguments.rounds)
    for one, loss in losses.items():
        if abs(loss - losses["random"]) > (2e-2 if one in mine else 2e-3):  # ours: of the batches that were timed
            raise SystemExit(f"{name}, {one}: the loss is {loss:.4f}, not {losses['random']:.4f}")
    shape = f"{arguments.layers} x {arguments.hidden}, batch {arguments.batch}, {arguments.sentences} sentences"
    unit, more = "sentences a second, training step", {"shape": shape, "rounds": arguments.rounds}
    return [
        row(
            f"host_tuning, {name}, {one} / {other}",
            rates[one],
            rates[other],
            unit,
            loss={"ours": losses[one], "theirs": losses[other]},
            **more,
        )
        for one in mine
        for other in arms
        if other not in mine
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--buckets", type=int, default=4, help="padded lengths of ours")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved, after one that compiles")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, default=1, help="ours; those of a CPU share its cores")
    arguments = parser.parse_args()
    tune_malloc()  # as training by command does; torch is elsewhere
    split_cpu(arguments.devices)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), arguments.layers, arguments.hidden, arguments.sentences, arguments.buckets)
        with ArmsElsewhere("host_tuning_torch", world.folder, world.rows(), RATE, RANK) as elsewhere:
            rows = [one for name in TUNINGS for one in compare(world, elsewhere, name, arguments)]
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
