"""Map-tuning: sentences a second of our training step beside the same step in torch with transformers.

    python benchmarks/map_tuning.py --json OUT            (bert-base's shape)
    python benchmarks/map_tuning.py --hidden 384 --layers 6 --json OUT
    python benchmarks/map_tuning.py --shape ModernBERT-base --layers 6 --json OUT
    python benchmarks/map_tuning.py --sentences 8192 --batch 256 --their-batches 64 128 256 512 --compile --json OUT
                                                          (on a GPU, with a CUDA build of torch)

Mention-masked language modelling (the paper, section 3.3) on made-up sentences of FewRel's lengths, one linked mention
each, masked; frozen host with random weights, all arms with the same ones; Adam on the map. Ours: length buckets, rows
shared by all devices (of a CPU: a device a core), in float32 and with products in bfloat16.
Theirs, all in torch on the same cores or the same GPU:

- authors: as the authors' code composes its input, one mapper call a token, padded to 64, gradients of the frozen
  weights computed and thrown away;
- batches: `BertForMaskedLM` with SDPA, one gather and one mapper call a batch, frozen parameters without gradients,
  batches in random order padded to their longest;
- sorted: the same on batches of like lengths;
- sorted, gathered: and the vocabulary projected at masked positions only, which transformers does not do by itself.

The last three also in bfloat16, and with --compile by `torch.compile`. Each of theirs takes the batch size that is the
fastest of --their-batches. Arms run in turns; told are sentences over seconds of all rounds, and mean losses of what
was timed, which must agree to 2% (the authors' arm runs on a sixth of the sentences, drawn at random; ours on batches
of a stream, see `ours`). Useful FLOPs count real tokens, no weight gradients, the last layer and the head where
something is read. On a GPU ours are computed in bfloat16 only, as torch's bfloat16 arms are.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from elsewhere import ArmsElsewhere
from made_up import SPECIAL, random_host, shape_of, tokenizer_folder

from kinject.data.encode import EntityEncoder
from kinject.data.pipeline import Batch, Feed
from kinject.data.records import parse_record
from kinject.data.tokenizer import load_tokenizer
from kinject.inference.mesh import Placement, place_params
from kinject.inference.program import split_program
from kinject.inference.xla import cores, split_cpu, tune_malloc
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.config import EncoderConfig
from kinject.models.precision import activations
from kinject.models.pretrained import load_host
from kinject.models.saving import save_host
from kinject.models.shapes import SHAPES
from kinject.plugins.base import make_plugin
from kinject.tasks.base import make_task
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step

ENTITIES, DIM = 1_000, 100
RATE = 1e-6  # so small that every pass has the same loss, and the arms can be compared
RULES = [("plugin/.*", "train"), (".*", "freeze")]
WAYS = (("batches", "random", False), ("sorted", "sorted", False), ("sorted, gathered", "sorted", True))
Arm = Callable[[], tuple[float, float]]  # trains on some sentences; (how many, their mean loss)


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
        self.knowledge = KnowledgeBase.open(folder / "kb")
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

    def useful_flops(self) -> np.ndarray:
        """Of each sentence, in their given order: forward, and backward for activations, on real tokens only."""
        config, found = self.config, np.zeros(self.feed.examples.size)
        size, inner = config.hidden_size, config.intermediate_size
        inner = inner * 3 // 2 if config.model_type == "modernbert" else inner  # its feed-forward is gated
        for index, row in zip(
            (one for batch in self.feed.evaluation(1) for one in batch["index"]), self.rows(), strict=True
        ):
            length, read = len(row["token_ids"]), len(row["positions"])
            layer = 2 * length * (4 * size * size + 2 * size * inner) + 4 * length * length * size
            last = 2 * length * 2 * size * size + read * (2 * (2 * size * size + 2 * size * inner) + 4 * length * size)
            head = read * 2 * (size * size + size * config.vocab_size)
            found[index] = 2 * ((config.num_hidden_layers - 1) * layer + last + head)
        return found

    def fill(self) -> float:
        """Which share of the tokens that our steps compute are real ones."""
        padded = sum(bucket["token_ids"].size for bucket in self.feed.examples.buckets)
        return sum(len(row["token_ids"]) for row in self.rows()) / padded

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
    """Steps of `kinject.training` on all devices, of one stream of batches that goes on from pass to pass.

    A batch is of one length, and a few batches hold other lengths than the sentences do on the whole. So what a pass
    did is counted in sentences of the mean useful FLOPs, and its loss is that of the steps that were timed.
    """
    place = Placement.over()
    host = load_host(world.folder / "host", head="masked_lm", dtype=activations(precision)).host
    program, params = split_program(host, world.plugin, world.task)
    program = replace(program, precision=precision, row_parts=place.row_parts)
    labels = label_parameters(params, RULES)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=RATE), labels, 10_000)
    train, frozen = place_params(*split(params, labels), precision, place, program.tables)
    state = place.state(initial_state(train, optimizer, labels))
    step = make_train_step(program, optimizer, labels, seed=0, dropout=False, shardings=place.shardings(state))
    stream, useful = iter(world.feed.training(batch_size, 0)), world.useful_flops()
    steps = max(1, math.ceil(world.feed.examples.size / batch_size))

    def train_on(batches: Iterable[Batch]) -> tuple[float, float]:
        nonlocal state
        losses, done = [], 0.0
        for batch in batches:
            done += useful[batch["index"]].sum()
            read = {name: values for name, values in batch.items() if name != "index"}
            state, logged = step(state, frozen, place.batch(read))
            losses.append(logged["loss"])
        return done / useful.mean(), statistics.fmean(map(float, losses))

    # compiles the step of each length: a first pass may not meet all of them
    sizes = [len(bucket["index"]) for bucket in world.feed.examples.buckets]
    train_on(world.feed.batch(number, np.arange(batch_size) % count) for number, count in enumerate(sizes))

    def run() -> tuple[float, float]:
        return train_on(islice(stream, steps))

    return run


def roofline(dtype: Any, seconds: float = 2.0) -> float:
    """FLOP/s of a large matrix product, the best of some."""
    size = 8192 if jax.default_backend() == "gpu" else 2048
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
    """(sentences a second over all rounds, mean loss) of each arm; the first round, which compiles, is not counted."""
    done, seconds, losses = ({name: [] for name in arms} for _ in range(3))
    for _ in range(rounds + 1):
        for name, run in arms.items():
            started = time.perf_counter()
            sentences, loss = run()
            seconds[name].append(time.perf_counter() - started)
            done[name].append(sentences)
            losses[name].append(loss)
    rates = {name: sum(done[name][1:]) / sum(seconds[name][1:]) for name in arms}
    return rates, {name: statistics.fmean(losses[name][1:]) for name in arms}


def fastest(make: Callable[[int], Arm], sizes: Sequence[int]) -> tuple[Arm, int]:
    """The arm of the batch size that trains the most sentences a second, after a pass to warm up."""
    if len(sizes) == 1:
        return make(sizes[0]), sizes[0]
    arms = {str(size): make(size) for size in sizes}
    rates, _ = interleaved(arms, 1)
    best = max(rates, key=rates.get)
    return arms[best], int(best)


def torch_of(world: World) -> ArmsElsewhere:
    """The process in which torch trains the same world."""
    mapper = tuple(np.asarray(leaf[...]) for leaf in (world.plugin.mapper.kernel, world.plugin.mapper.bias))
    on_gpu = jax.default_backend() == "gpu"
    return ArmsElsewhere("map_tuning_torch", world.folder / "host", mapper, world.shuffled(), RATE, on_gpu)


def arms_of(arms: ArmsElsewhere, arguments: argparse.Namespace) -> dict[str, tuple[Arm, int]]:
    """The torch arms, and the batch size of each."""
    few = max(arguments.batch, arguments.sentences // 6)
    made = {"authors": (arms.arm("authors", arguments.batch, few), arguments.batch)}
    for half, (name, order, gathered) in itertools.product((False, True), WAYS):
        make = partial(arms.arm, "vectorised", order=order, gathered=gathered, half=half)
        name += ", bfloat16" if half else ""
        made[name] = fastest(make, arguments.their_batches)
        if arguments.compile:
            made[f"{name}, compiled"] = make(made[name][1], compiled=True), made[name][1]
    return made


def cut(config: EncoderConfig, layers: int, vocabulary: int) -> EncoderConfig:
    """The lowest layers of a model, with the vocabulary of the benchmark's tokenizer."""
    own = config.own
    if hasattr(own, "layer_types"):
        own = dataclasses.replace(own, layer_types=own.layer_types[:layers])
    return dataclasses.replace(config, num_hidden_layers=layers, vocab_size=vocabulary, pad_token_id=0, own=own)


def check_losses(losses: dict[str, float]) -> None:
    """Raises SystemExit where an arm did not compute what the others did; those of few sentences differ by chance."""
    middle = statistics.median(losses.values())
    for name, loss in losses.items():
        if abs(loss - middle) > 0.02 * middle:
            raise SystemExit(f"{name} has a mean loss of {loss:.4f}, the others of {middle:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=192)
    parser.add_argument("--shape", choices=sorted(SHAPES), metavar="NAME", help="a model by name, but for --layers")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch", type=int, default=32, help="sentences a batch, ours and the authors'")
    parser.add_argument("--their-batches", type=int, nargs="+", default=[8, 16, 32], help="the fastest is taken")
    parser.add_argument("--compile", action="store_true", help="the torch arms by torch.compile too")
    parser.add_argument("--buckets", type=int, default=6, help="padded lengths of ours")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved, after one that compiles")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, default=cores(), help="ours; of a CPU, a core each")
    arguments = parser.parse_args()
    tune_malloc()  # as training by command does; torch is elsewhere
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the GPU
    split_cpu(arguments.devices)
    on_gpu = jax.default_backend() == "gpu"
    mine = {"bfloat16": jnp.bfloat16} if on_gpu else {"float32": jnp.float32, "bfloat16_dots": jnp.bfloat16}
    config = shape_of(arguments.layers, arguments.hidden, arguments.vocabulary)
    if arguments.shape:
        config = cut(SHAPES[arguments.shape], arguments.layers, arguments.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), config, arguments.sentences, arguments.buckets)
        with torch_of(world) as elsewhere:
            theirs = arms_of(elsewhere, arguments)
            arms = {name: ours(world, name, arguments.batch) for name in mine}
            rates, losses = interleaved({**arms, **{name: arm for name, (arm, _) in theirs.items()}}, arguments.rounds)
            their_peaks = {
                name: elsewhere.arm("product", half)() for name, half in (("float32", False), ("bfloat16", True))
            }
        per_sentence, filled = world.useful_flops().mean(), world.fill()
        check_losses(losses)
    peaks = {name: roofline(dtype) for name, dtype in mine.items()}
    print(f"{100 * filled:.0f}% of the tokens in our batches are real; products reach", end=" ")
    print(", ".join(f"{most / 1e9:.0f} GFLOP/s in {peak}" for peak, most in peaks.items()), end="; torch's ")
    print(", ".join(f"{most / 1e9:.0f} in {peak}" for peak, most in their_peaks.items()))
    rows, named = [], f"{arguments.shape or 'bert'}, {arguments.layers} x {config.hidden_size}"
    for name in mine:
        reached = rates[name] * per_sentence
        share = {f"share_of_{peak}_matmul": reached / most for peak, most in peaks.items()}
        of = ", ".join(f"{100 * reached / most:.0f}% of {peak}" for peak, most in peaks.items())
        print(
            f"{name}: {rates[name]:.1f} sentences/s, loss {losses[name]:.4f}, {reached / 1e9:.0f} useful GFLOP/s ({of})"
        )
        for other, (_, size) in theirs.items():
            rows.append(
                {
                    "name": f"map_tuning, {name} / {other}",
                    "ratio": rates[name] / rates[other],
                    "ours": rates[name],
                    "theirs": rates[other],
                    "unit": "sentences a second, mention-masked LM, training step",
                    "hardware": f"{jax.devices()[0].device_kind}, {platform.machine()}, {cores()} cores",
                    "versions": f"jax {jax.__version__}",
                    "shape": f"{named}, batches of {arguments.batch}, theirs {size}",
                    "loss": {"ours": losses[name], "theirs": losses[other]},
                    **share,
                    "products": {"ours": peaks, "torch": their_peaks},
                }
            )
            told = f"{rates[other]:.1f}/s in batches of {size}; loss {losses[other]:.4f}"
            print(f"  {rows[-1]['ratio']:6.2f}x of {other} ({told})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
