"""FewRel evaluation: queries a second of our batches against one forward per query and class, on the same backend.

    python benchmarks/fewrel_evaluation.py --json fewrel.json
    python benchmarks/fewrel_evaluation.py --layers 12 --hidden 768 --episodes 2 --torch      (bert-base's shape)

5-way 1-shot, 5 queries a class, made-up sentences. Ours: `kinject.inference.program.evaluate`, which computes the
pairs of many queries in batches of like lengths, shared by all devices (of a CPU: a device a core, `--devices`), in
float32 and with products in bfloat16. Theirs: one forward a query and class, as the authors' code calls its model, in
float32 and with all cores: by the same jitted program, padded to one length (or it would compile for each), and by
transformers in torch, unpadded. All include the composition of their pairs, and run in turns; medians. Scores and
choices are compared with one by one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from made_up import SPECIAL, random_host, shape_of, tokenizer_folder, words
from rows import write

from kinject.data.encode import EntityEncoder
from kinject.data.pipeline import Feed
from kinject.data.records import Record, parse_record
from kinject.data.tokenizer import load_tokenizer
from kinject.inference.mesh import Placement, place_params
from kinject.inference.program import evaluate, make_evaluation_step, split_program
from kinject.inference.xla import split_cpu
from kinject.models.config import EncoderConfig
from kinject.models.heads import HostModel
from kinject.models.precision import Precision
from kinject.tasks.base import Task, make_task

WORDS = words(1000)
RELATIONS, INSTANCES = 16, 40


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


def ours(task: Task, feed: Feed, host: HostModel, rows: int, precision: Precision) -> Callable[[], np.ndarray]:
    """Scores of all queries, float32 [n, N], by the product's evaluation on batches of `rows` queries."""
    place = Placement.over()
    program, params = split_program(host, None, task)
    program = dataclasses.replace(program, precision=precision, row_parts=place.row_parts)
    _, params = place_params({}, params, precision, place, program.tables)
    step = make_evaluation_step(program)
    return lambda: evaluate(program, params, feed, rows, place, step)[1]["logits"]


def one_by_one(task: Task, feed: Feed, host: HostModel, queries: int) -> Callable[[], np.ndarray]:
    """The first queries' scores by one forward a query and class, all padded to one length, in float32."""
    program, params = split_program(host, None, task)
    step = jax.jit(lambda params, batch: program.outputs(params, batch, None))

    def run() -> np.ndarray:
        found = []
        for batch in islice(feed.evaluation(1), queries):
            shape = batch["token_ids"].shape[:3]  # [1, N, K]
            scores = [float(step(params, _device(_pair(batch, at)))[0, 0]) for at in np.ndindex(shape)]
            found.append(np.reshape(scores, shape).mean(-1))
        return np.concatenate(found)

    return run


def in_torch(feed: Feed, config: EncoderConfig, queries: int) -> Callable[[], np.ndarray]:
    """One forward a query and class through transformers' BERT, without any padding, weights at random."""
    import torch
    from transformers import BertConfig, BertModel

    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    model = BertModel(BertConfig(**{name: getattr(config, name) for name in names})).eval()
    score = torch.nn.Linear(config.hidden_size, 1)

    def run() -> np.ndarray:
        found = []
        with torch.inference_mode():
            for batch in islice(feed.evaluation(1), queries):
                for at in np.ndindex(batch["token_ids"].shape[:3]):
                    real = batch["segment_ids"][at] > 0
                    ids, types = (
                        torch.tensor(batch[name][at][real])[None].long() for name in ("token_ids", "type_ids")
                    )
                    words = model.embeddings.word_embeddings(ids)
                    pooled = model(inputs_embeds=words, token_type_ids=types).pooler_output
                    found.append(float(score(pooled)))
        return np.array(found)

    return run


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


def interleaved(ways: Mapping[str, Callable[[], np.ndarray]], rounds: int) -> tuple[dict, dict]:
    """(median seconds, scores) of each way; the first round, which compiles, is not counted."""
    seconds, scores = {name: [] for name in ways}, {}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            scores[name] = run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--theirs", type=int, default=25, help="how many of the queries are computed one by one")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--tokens", type=int, default=25, help="words a sentence, on average")
    parser.add_argument("--batch", type=int, default=25, help="queries a batch of ours: 5 pairs each")
    parser.add_argument("--buckets", type=int, default=6, help="padded lengths of ours")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved, after one that compiles")
    parser.add_argument("--torch", action="store_true", help="one by one through transformers' BERT too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)), help="ours; of a CPU, a core each")
    arguments = parser.parse_args()
    split_cpu(arguments.devices)
    config = shape_of(arguments.layers, arguments.hidden, len(SPECIAL) + len(WORDS))
    host = random_host(config, "pair_score")
    task = make_task("few_shot_relations", protocol="thunlp", evaluation_episodes=arguments.episodes).for_evaluation()
    with tempfile.TemporaryDirectory() as folder:
        encoder = EntityEncoder(load_tokenizer(tokenizer_folder(Path(folder), len(WORDS))), 128)
    records = sentences(arguments.tokens)
    bucketed, padded = (Feed(task.examples(records, encoder, None, buckets=count)) for count in (arguments.buckets, 1))
    ways = {
        "float32": ours(task, bucketed, host, arguments.batch, "float32"),
        "bfloat16_dots": ours(task, bucketed, host, arguments.batch, "bfloat16_dots"),
        "one by one, jax": one_by_one(task, padded, host, arguments.theirs),
    }
    if arguments.torch:
        ways["one by one, torch"] = in_torch(padded, config, arguments.theirs)
    seconds, scores = interleaved(ways, arguments.rounds)
    queries = bucketed.examples.size
    exact = scores["one by one, jax"]
    compared = len(exact)
    rows = []
    for theirs in [name for name in ways if name.startswith("one by one")]:
        for mine in ("float32", "bfloat16_dots"):
            agreement = float((scores[mine][:compared].argmax(-1) == exact.argmax(-1)).mean())
            rows.append(
                {
                    "name": f"fewrel_evaluation, {mine} / {theirs}",
                    "ratio": queries / seconds[mine] / (compared / seconds[theirs]),
                    "ours": queries / seconds[mine],
                    "theirs": compared / seconds[theirs],
                    "unit": "queries a second, 5-way 1-shot (theirs: one forward per query and class, float32)",
                    "hardware": f"{jax.default_backend()} on {platform.machine()}, {os.cpu_count()} cores",
                    "versions": f"jax {jax.__version__}",
                    "episodes": arguments.episodes,
                    "layers": arguments.layers,
                    "hidden": arguments.hidden,
                    "largest_difference": float(np.abs(scores[mine][:compared] - exact).max()),
                    "same_choices": agreement,
                }
            )
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
