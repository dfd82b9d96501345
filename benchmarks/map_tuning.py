"""Map-tuning: sentences a second of our training step beside the same step in torch with transformers.

    python benchmarks/map_tuning.py --json OUT            (bert-base's shape)
    python benchmarks/map_tuning.py --hidden 384 --layers 6 --json OUT

Mention-masked language modelling (the paper, section 3.3) on made-up sentences of FewRel's lengths, one linked mention
each, masked; frozen host with random weights, all arms with the same ones; Adam on the map. Ours: length buckets, in
float32 and with products in bfloat16, rows shared by all devices (of a CPU: a device a core). Theirs, all in torch on
as many threads:

- authors: as the authors' code composes its input, one mapper call a token, padded to 64, gradients of the frozen
  weights computed and thrown away;
- batches: `BertForMaskedLM` with SDPA, one gather and one mapper call a batch, frozen parameters without gradients,
  batches in random order padded to their longest;
- sorted: the same on batches of like lengths;
- sorted, gathered: and the vocabulary projected at masked positions only, which transformers does not do by itself.

The last three also under bfloat16 autocast. Arms run in turns; told are medians over rounds, and mean losses,
which agree (the authors' arm is timed on a sixth of the sentences, drawn at random, and its mean is theirs). Useful
FLOPs count real tokens, no weight gradients, the last layer and the head where something is read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from made_up import SPECIAL, random_host, shape_of, tokenizer_folder

from kinject.data.encode import EntityEncoder
from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.data.tokenizer import load_tokenizer
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.config import EncoderConfig
from kinject.models.saving import save_host
from kinject.plugins.store import make_plugin
from kinject.tasks.base import make_task
from kinject.training.compiled import split_cpu
from kinject.training.evaluation import evaluate
from kinject.training.mesh import Placement
from kinject.training.optimizer import OptimizerConfig, make_optimizer
from kinject.training.partition import hold, label_parameters, split
from kinject.training.step import TrainState, initial_state, make_train_step, split_program

ENTITIES, DIM = 1_000, 100
RATE = 1e-6  # so small that every pass has the same loss, and the arms can be compared
AUTHORS_MAX_LEN = 64  # their inputs are padded to it, whatever the batch holds
RULES = [("plugin/.*", "train"), (".*", "freeze")]
Arm = Callable[[], tuple[int, float]]  # trains on some sentences; (how many, their mean loss)


class World:
    """Files of a random host and a knowledge base, and encoded sentences."""

    def __init__(self, folder: Path, config: EncoderConfig, count: int, buckets: int):
        self.config, self.folder = config, folder
        tokenizer = tokenizer_folder(folder / "tokenizer", config.vocab_size - len(SPECIAL))
        host = random_host(config, "masked_lm")
        save_host(host, folder / "host", tokenizer_files_from=tokenizer, host_json={"task": "mention_masked_lm"})
        vectors = np.random.default_rng(0).normal(size=(ENTITIES, DIM)).astype(np.float32)
        ids = [f"Q{i}" for i in range(ENTITIES)]
        write_knowledge(folder / "kb", name="names", ids=ids, vectors=vectors, source="made up", license="none")
        self.host, self.knowledge = host, KnowledgeBase.open(folder / "kb")
        self.plugin = make_plugin({"name": "map_tuning"}, hidden_size=config.hidden_size, knowledge_dim=DIM)
        self.task = make_task("mention_masked_lm")
        encoder = EntityEncoder(load_tokenizer(tokenizer), 128)
        records = [parse_record(line, "made up") for line in sentences(count, config.vocab_size - len(SPECIAL))]
        self.feed = Feed(self.task.examples(records, encoder, self.knowledge, buckets=buckets), self.knowledge.gather)

    def rows(self) -> list[dict[str, np.ndarray]]:
        """Every sentence by itself, without padding."""
        made = []
        for batch in self.feed.evaluation(1):
            real = batch["segment_ids"][0] > 0
            one = {name: batch[name][0][real] for name in ("token_ids", "entity_slot")}
            kept = batch["weights"][0] > 0
            places = {name: batch[name][0][kept] for name in ("positions", "labels")}
            made.append({**one, **places, "vectors": batch["entity_vectors"][0]})
        return made

    def shuffled(self) -> list[dict[str, np.ndarray]]:
        """`rows`, which come bucket by bucket, in an order that has nothing to do with their lengths."""
        rows = self.rows()
        np.random.default_rng(1).shuffle(rows)
        return rows


def sentences(count: int, words: int) -> Iterator[dict[str, Any]]:
    """Sentences of about the lengths of FewRel's (median 24 words), one linked mention of two words in each."""
    draw = np.random.default_rng(0)
    for number in range(count):
        length = int(np.clip(np.exp(draw.normal(np.log(24), 0.35)), 8, 90))
        start = int(draw.integers(length - 2))
        mention = {"start": start, "end": start + 2, "entity": f"Q{draw.integers(ENTITIES)}"}
        tokens = [f"w{i}" for i in draw.integers(words, size=length)]
        yield {"tokens": tokens, "mentions": [mention], "id": str(number)}


def ours(world: World, precision: str, batch_size: int) -> Arm:
    """One pass over the sentences by the step of `kinject.training`, on all devices."""
    place = Placement.over()
    program, params = split_program(world.host, world.plugin, world.task)
    program = replace(program, precision=precision, row_parts=place.row_parts)
    labels = label_parameters(params, RULES)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=RATE), labels, 1_000)
    train, frozen = hold(*split(params, labels), precision, place, program.tables)
    loss = evaluate(program, {**frozen, **train}, world.feed, batch_size, place)[0]["loss"]

    def start() -> TrainState:
        return place.state(initial_state(jax.tree.map(jnp.copy, train), optimizer, labels))

    pinned = place.shardings(start())
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False, shardings=pinned)

    def run() -> tuple[int, float]:
        state, batches = start(), 0
        for batch in islice(world.feed.training(batch_size, 0), max(1, world.feed.examples.size // batch_size)):
            read = {name: values for name, values in batch.items() if name != "index"}
            state, _ = step(state, frozen, place.batch(read))
            batches += 1
        jax.block_until_ready(state)
        return batches * batch_size, loss

    return run


def in_torch(world: World, batch_size: int, *, order: str, gathered: bool, half: bool) -> Arm:
    """The same by transformers, without a Python loop over tokens."""
    import torch

    model, mapper = torch_model(world, frozen=True)
    rows = world.shuffled()
    if order == "sorted":
        rows = sorted(rows, key=lambda row: len(row["token_ids"]))

    def loss_of(batch: dict[str, Any]) -> Any:
        words = model.get_input_embeddings()(batch["token_ids"])
        mapped = mapper(batch["vectors"])
        embeds = words.clone()
        embeds[batch["slot_rows"], batch["slot_places"]] = mapped.to(words.dtype)
        inputs = {"inputs_embeds": embeds, "attention_mask": batch["mask"]}
        if not gathered:
            return torch.nn.functional.cross_entropy(model(**inputs).logits[batch["at"]], batch["labels"])
        hidden = model.bert(**inputs).last_hidden_state[batch["at"]]
        return torch.nn.functional.cross_entropy(model.cls(hidden), batch["labels"])

    return torch_pass(rows, batch_size, loss_of, mapper, half=half)


def as_the_authors(world: World, batch_size: int, limit: int) -> Arm:
    """Inputs composed token by token, a mapper call each, padded to `max_len`; every parameter has its gradient."""
    import torch

    model, mapper = torch_model(world, frozen=False)
    rows = world.shuffled()[:limit]
    table = model.get_input_embeddings().weight.detach().clone()

    def embed(row: dict[str, np.ndarray], length: int) -> Any:
        made = []
        for token, slot in zip(row["token_ids"], row["entity_slot"], strict=True):
            made.append(mapper(torch.from_numpy(row["vectors"][slot])) if slot >= 0 else table[int(token)])
        return torch.stack(made + [table[0]] * (length - len(made)))

    def loss_of(batch: dict[str, Any]) -> Any:
        length = batch["token_ids"].shape[1]
        embeds = torch.stack([embed(row, length) for row in batch["rows"]])
        logits = model(inputs_embeds=embeds, attention_mask=batch["mask"]).logits
        return torch.nn.functional.cross_entropy(logits[batch["at"]], batch["labels"])

    return torch_pass(rows, batch_size, loss_of, mapper, least=AUTHORS_MAX_LEN)


def torch_pass(
    rows: list[dict[str, np.ndarray]],
    batch_size: int,
    loss_of: Callable[[dict[str, Any]], Any],
    mapper: Any,
    *,
    half: bool = False,
    least: int = 0,
) -> Arm:
    """One pass over sentences that trains the map by Adam."""
    import torch

    optimizer = torch.optim.Adam(mapper.parameters(), lr=RATE)

    def run() -> tuple[int, float]:
        total, pieces = 0.0, 0
        for start in range(0, len(rows), batch_size):
            batch = torch_batch(rows[start : start + batch_size], least)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, pieces = total + float(loss.detach()) * len(batch["labels"]), pieces + len(batch["labels"])
        return len(rows), total / pieces

    return run


def torch_model(world: World, frozen: bool) -> tuple[Any, Any]:
    """The host by transformers, without dropout, and the map, with our weights."""
    import torch
    from transformers import AutoModelForMaskedLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForMaskedLM.from_pretrained(world.folder / "host", attn_implementation="sdpa").eval()
    model.requires_grad_(not frozen)
    mapper = torch.nn.Linear(DIM, world.config.hidden_size)
    with torch.no_grad():
        mapper.weight.copy_(torch.from_numpy(np.array(world.plugin.mapper.kernel[...]).T))
        mapper.bias.copy_(torch.from_numpy(np.array(world.plugin.mapper.bias[...])))
    return model, mapper


def torch_batch(rows: list[dict[str, np.ndarray]], least: int = 0) -> dict[str, Any]:
    """Sentences side by side, padded to the longest, or to `least` where that is more."""
    import torch

    length = max(least, *(len(row["token_ids"]) for row in rows))
    ids, mask = np.zeros((2, len(rows), length), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row["token_ids"])], mask[number, : len(row["token_ids"])] = row["token_ids"], 1
    slots = [(number, int(np.flatnonzero(row["entity_slot"] >= 0)[0])) for number, row in enumerate(rows)]
    at = [(number, place) for number, row in enumerate(rows) for place in row["positions"]]
    slot_rows, slot_places = torch.tensor(slots).T
    return {
        "rows": rows,
        "token_ids": torch.from_numpy(ids),
        "mask": torch.from_numpy(mask),
        "vectors": torch.from_numpy(np.stack([row["vectors"][0] for row in rows])),
        "slot_rows": slot_rows,
        "slot_places": slot_places,
        "at": tuple(torch.tensor(at).T),
        "labels": torch.from_numpy(np.concatenate([row["labels"] for row in rows]).astype(np.int64)),
    }


def useful_flops(world: World) -> float:
    """Of one pass over the sentences: forward, and backward for activations, on real tokens only."""
    config, total = world.config, 0.0
    size, inner = config.hidden_size, config.intermediate_size
    for row in world.rows():
        length, read = len(row["token_ids"]), len(row["positions"])
        layer = 2 * length * (4 * size * size + 2 * size * inner) + 4 * length * length * size
        last = 2 * length * 2 * size * size + read * (2 * (2 * size * size + 2 * size * inner) + 4 * length * size)
        head = read * 2 * (size * size + size * config.vocab_size)
        total += 2 * ((config.num_hidden_layers - 1) * layer + last + head)
    return total


def roofline(dtype: Any, seconds: float = 2.0, size: int = 2048) -> float:
    """FLOP/s of a large matrix product, the best of some."""
    left, right = (jnp.ones((size, size), dtype) for _ in range(2))
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(left, right))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        jax.block_until_ready(product(left, right))
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def interleaved(arms: dict[str, Arm], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """(sentences a second, mean loss) of each arm; the first round, which compiles, is not counted."""
    rates, losses = {name: [] for name in arms}, {}
    for _ in range(rounds + 1):
        for name, run in arms.items():
            started = time.perf_counter()
            done, loss = run()
            rates[name].append(done / (time.perf_counter() - started))
            losses.setdefault(name, loss)
    return {name: statistics.median(found[1:]) for name, found in rates.items()}, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=192)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch", type=int, default=32, help="sentences a batch, all arms")
    parser.add_argument("--buckets", type=int, default=6, help="padded lengths of ours")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved, after one that compiles")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)), help="ours; of a CPU, a core each")
    arguments = parser.parse_args()
    split_cpu(arguments.devices)
    config = shape_of(arguments.layers, arguments.hidden, arguments.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), config, arguments.sentences, arguments.buckets)
        size, few = arguments.batch, max(arguments.batch, arguments.sentences // 6)
        arms = {name: ours(world, name, size) for name in ("float32", "bfloat16_dots")}
        arms["authors"] = as_the_authors(world, size, few)
        for half in (False, True):
            ending = ", bfloat16 autocast" if half else ""
            for name, order, gathered in (
                ("batches", "random", False),
                ("sorted", "sorted", False),
                ("sorted, gathered", "sorted", True),
            ):
                arms[name + ending] = in_torch(world, size, order=order, gathered=gathered, half=half)
        rates, losses = interleaved(arms, arguments.rounds)
        per_sentence = useful_flops(world) / len(world.rows())
    peaks = {"float32": roofline(jnp.float32), "bfloat16_dots": roofline(jnp.bfloat16)}
    rows = []
    for mine in ("float32", "bfloat16_dots"):
        reached = rates[mine] * per_sentence
        share = {f"share_of_{name}_matmul": reached / peak for name, peak in peaks.items()}
        of = ", ".join(f"{100 * reached / peak:.0f}% of {name}" for name, peak in peaks.items())
        print(
            f"{mine}: {rates[mine]:.1f} sentences/s, loss {losses[mine]:.4f}, {reached / 1e9:.0f} useful GFLOP/s ({of})"
        )
        for theirs in [name for name in arms if name not in peaks]:
            rows.append(
                {
                    "name": f"map_tuning, {mine} / {theirs}",
                    "ratio": rates[mine] / rates[theirs],
                    "ours": rates[mine],
                    "theirs": rates[theirs],
                    "unit": "sentences a second, mention-masked LM, training step",
                    "hardware": f"{jax.default_backend()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
                    "versions": f"jax {jax.__version__}",
                    "shape": f"{arguments.layers} x {arguments.hidden}, batch {size}",
                    "loss": {"ours": losses[mine], "theirs": losses[theirs]},
                    **share,
                }
            )
            print(f"  {rows[-1]['ratio']:6.2f}x of {theirs} ({rates[theirs]:.1f}/s; loss {losses[theirs]:.4f})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
