"""FewRel evaluation: queries a second of our batches against one forward per query and class, on the same backend.

    python benchmarks/fewrel_evaluation.py --json fewrel.json
    python benchmarks/fewrel_evaluation.py --episodes 200 --layers 12 --hidden 768      (the paper's size)

5-way 1-shot, 5 queries a class, made-up sentences. Both ways run the same jitted program on the same pairs, compiled
beforehand: ours on batches of queries, the other on batches of one pair (as the authors' code calls its model), each
with the scores fetched to be averaged. Both include the composition of their pairs. The logits are checked to be equal.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from kinject.data.encode import EntityEncoder
from kinject.data.pipeline import Feed
from kinject.data.records import Record, parse_record
from kinject.data.tokenizer import load_tokenizer
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import Host, build_head
from kinject.tasks.base import Task, make_task
from kinject.training.step import split_program

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "#", "$", "/"]
WORDS = [f"w{i}" for i in range(1000)]
RELATIONS, INSTANCES = 16, 40


def tokenizer_folder(folder: Path) -> Path:
    """A tokenizer of made-up words, as Hugging Face writes it."""
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    config = {"model_type": "bert", "vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sentences(tokens: int) -> list[Record]:
    """Sentences of about the length of FewRel's, two mentions each."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(RELATIONS * INSTANCES):
        words = [WORDS[i] for i in draw.integers(len(WORDS), size=int(draw.integers(tokens // 2, tokens * 3 // 2)))]
        mentions = [{"start": 1, "end": 2, "entity": "Q1"}, {"start": 4, "end": 6, "entity": "Q2"}]
        line = {"tokens": words, "mentions": mentions, "label": f"P{number % RELATIONS}", "id": str(number)}
        made.append(parse_record(line, f"sentence {number}"))
    return made


def measure(task: Task, feed: Feed, host: Host, rows: int) -> tuple[float, float, float]:
    """(our seconds, seconds pair by pair, largest difference of a logit)."""
    program, params = split_program(host, None, task)
    step = jax.jit(lambda params, batch: program.outputs(params, batch, None))

    def batched() -> np.ndarray:
        return np.concatenate([np.asarray(step(params, _device(batch))) for batch in feed.evaluation(rows)])

    def pair_by_pair() -> np.ndarray:
        found = []
        for batch in feed.evaluation(1):
            shape = batch["token_ids"].shape[:3]  # [1, N, K]
            scores = [float(step(params, _device(_pair(batch, at)))[0, 0]) for at in np.ndindex(shape)]
            found.append(np.reshape(scores, shape).mean(-1))
        return np.concatenate(found)

    ours, mine = _timed(batched)
    theirs, other = _timed(pair_by_pair)
    return ours, theirs, float(np.abs(mine[: len(other)] - other).max())


def _pair(batch: dict, at: tuple[int, ...]) -> dict:
    row, way, shot = at
    one = {name: values for name, values in batch.items() if values.ndim < 3 or name == "labels"}
    pairs = {
        name: values[row : row + 1, way : way + 1, shot : shot + 1]
        for name, values in batch.items()
        if values.ndim >= 4 and name != "labels"
    }
    return {**one, **pairs}


def _device(batch: dict) -> dict:
    return {name: values for name, values in batch.items() if name != "index"}


def _timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    run()  # compiles
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=25, help="words a sentence, on average")
    parser.add_argument("--batch", type=int, default=25, help="queries a batch of ours")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = EncoderConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=12,
        intermediate_size=4 * arguments.hidden,
    )
    host = Host(Encoder(config, rngs=nnx.Rngs(0)), build_head("pair_score", config, rngs=nnx.Rngs(1)))
    task = make_task("few_shot_relations", protocol="thunlp", evaluation_episodes=arguments.episodes).for_evaluation()
    with tempfile.TemporaryDirectory() as folder:
        encoder = EntityEncoder(load_tokenizer(tokenizer_folder(Path(folder))), 128)
    feed = Feed(task.examples(sentences(arguments.tokens), encoder, None, buckets=1))
    ours, theirs, difference = measure(task, feed, host, arguments.batch)
    queries = arguments.episodes * 25
    row = {
        "name": "fewrel_evaluation",
        "ratio": theirs / ours,
        "ours": queries / ours,
        "theirs": queries / theirs,
        "unit": "queries a second, 5-way 1-shot (theirs: one forward per query and class)",
        "hardware": f"{jax.default_backend()} on {platform.machine()}, jax {jax.__version__}",
        "episodes": arguments.episodes,
        "layers": arguments.layers,
        "hidden": arguments.hidden,
        "largest_difference": difference,
    }
    print(f"{row['ours']:.1f} queries a second, one by one {row['theirs']:.1f}: ratio {row['ratio']:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row], indent=2) + "\n")


if __name__ == "__main__":
    main()
