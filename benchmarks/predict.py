"""Texts a second of prediction, with and without a plugin, beside transformers in torch; memory by size of input.

    python benchmarks/predict.py --json out.json
    python benchmarks/predict.py --json out.json --memory-mb 10 --memory-mb 100

All arms go from the same texts, one string each, to a label and its score: tokenising counts. `kinject` is
`Host.predict`, `rounded` the same with products in bfloat16, `auto` and `auto_int8` with `engine="auto"` in float32 and
int8; `plugin` has a map-tuning plugin and one linked entity a text. `torch_batches` pads batches in the order of the
texts, `torch_sorted` sorts the texts of a window by length first, as kinject does, also under bfloat16 autocast; `ort`
and `ort_int8` are ONNX Runtime's (ort_arms.py). An arm `…_one` takes the first --one texts one at a time, 20 in a turn
with the other such arms, as a machine is not as fast in one minute as in the next. The host is random (its shape is
--hidden, --layers; by default that of MiniLM-L6), with a classification head, and labels must agree. Each round runs
every arm, in turn; told are the medians, and the ratios of one round as the median and the range over rounds: by the
clock, and by the CPU's time, which other processes of a busy machine change less (on an accelerator
it means nothing, and ONNX Runtime's threads count while they wait). Nothing is downloaded.

--memory-mb: resident memory of `kinject predict` on a file of so many MB, with a tiny host, in a process of its own:
the peak, which compiling makes, and the medians over the second and the last fifth of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import ort_arms
from flax import nnx
from one_text import around, p99, singly
from rows import row, write

import kinject
from kinject.data.records import Mention, Record
from kinject.errors import InputError
from kinject.inference.host import knowledge_identity, open_host
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.models.saving import save_host
from kinject.plugins.base import make_plugin
from kinject.plugins.store import save_plugin

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "/", "."]
Arm = Callable[[], list[float]]
Scorers = dict[str, Callable[[str], float]]
WORDS, ENTITIES, DIM, LABELS = 28_000, 1_000, 128, ["no", "yes"]
TURN = 20  # texts that an arm takes one at a time before the next does


def write_files(folder: Path, hidden: int, layers: int, words: int = WORDS) -> None:
    """A random host, a knowledge base and a plugin."""
    vocabulary = [*SPECIAL, *(f"word{i}" for i in range(words)), *(f"name{i}" for i in range(ENTITIES))]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tokenizer / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    config = EncoderConfig(
        model_type="bert",
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads_of(hidden),
        intermediate_size=4 * hidden,
        max_position_embeddings=128,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        pad_token_id=0,
    )
    rngs = nnx.Rngs(0)
    host = HostModel(Encoder(config, rngs=rngs), build_head("classification", config, len(LABELS), rngs=rngs))
    about = {"task": "sequence_classification", "labels": LABELS}
    save_host(host, folder / "host", tokenizer_files_from=tokenizer, host_json=about)
    vectors = np.random.default_rng(0).normal(size=(ENTITIES, DIM)).astype(np.float32)
    ids = [f"Q{i}" for i in range(ENTITIES)]
    write_knowledge(folder / "knowledge", name="names", ids=ids, vectors=vectors, source="made up", license="none")
    save_plugin(
        folder / "plugin",
        make_plugin({"name": "map_tuning"}, hidden_size=hidden, knowledge_dim=DIM),
        host=open_host(folder / "host").identity,
        knowledge=knowledge_identity(KnowledgeBase.open(folder / "knowledge")),
        config={},
        metrics={},
    )


def heads_of(hidden: int) -> int:
    """Twelve, as MiniLM and BERT have them; fewer in tiny hosts."""
    return 12 if hidden >= 384 else max(1, hidden // 32)


def questions(count: int, words: int = WORDS, seed: int = 0, long: bool = False) -> list[Record]:
    """Texts of 5 to 100 words, most of them short (log-normal around 20), or of 150 to 450, each with one entity."""
    draw = np.random.default_rng(seed)
    lengths = np.clip(np.exp(draw.normal(np.log(20), 0.6, count)), 5, 100).astype(int)
    lengths = draw.integers(150, 450, count) if long else lengths
    made = []
    for number, length in enumerate(lengths):
        some = [f"word{i}" for i in draw.integers(words, size=length)]
        entity, place = int(draw.integers(ENTITIES)), int(draw.integers(min(length, 100)))
        start = sum(len(word) + 1 for word in some[:place])
        text = " ".join([*some[:place], f"name{entity}", *some[place:]])
        mention = Mention(start, start + len(f"name{entity}"), f"Q{entity}")
        made.append(Record(text, (mention,), {}, f"made:{number}"))
    return made


def torch_arms(folder: Path, texts: list[str], batch_size: int, window: int) -> tuple[dict[str, Arm], Scorers]:
    """The alternatives: each yields the score of "yes" of every text, in order; and what scores one text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "host").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "host")

    def scores(some: list[str], half: bool) -> list[float]:
        batch = tokenizer(some, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model(**batch).logits.float().softmax(-1)[:, 1].tolist()

    def batches(order: list[int], size: int, half: bool = False) -> list[float]:
        made = [0.0] * len(order)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            for number, score in zip(chosen, scores([texts[i] for i in chosen], half), strict=True):
                made[number] = score
        return made

    def by_length(half: bool = False) -> list[float]:
        windows = (range(start, min(start + window, len(texts))) for start in range(0, len(texts), window))
        return batches([i for one in windows for i in sorted(one, key=lambda i: len(texts[i]))], batch_size, half)

    arms = {
        "torch_batches": lambda: batches(list(range(len(texts))), batch_size),
        "torch_sorted": by_length,
        "torch_sorted_bfloat16": lambda: by_length(half=True),
    }
    return arms, {"torch_one": lambda text: scores([text], False)[0]}


def yes(answer: kinject.Prediction) -> float:
    """The score of that label."""
    return next(one.score for one in answer.labels if one.label == "yes")


def our_arms(folder: Path, records: list[Record], options: dict[str, Any]) -> tuple[dict[str, Arm], Scorers, Any]:
    """`Host.predict` in its precisions and engines: arms, what scores one text, and the hosts."""
    settings: dict[str, dict[str, str]] = {
        "kinject": {},
        "rounded": {"precision": "bfloat16_dots"},
        "auto": {"engine": "auto"},
        "auto_int8": {"precision": "int8", "engine": "auto"},
    }
    hosts = {name: kinject.Host.load(folder / "host", **options, **some) for name, some in settings.items()}
    hosts["plugin"] = kinject.Host.load(folder / "host", **options)
    hosts["plugin"].plug(folder / "plugin", knowledge=folder / "knowledge")

    def batches(host: kinject.Host) -> list[float]:
        return [yes(answer) for answer in host.predict(records)]

    def alone(host: kinject.Host, text: str) -> float:
        return yes(host.predict(text))

    arms = {name: partial(batches, host) for name, host in hosts.items()}
    return arms, {f"{name}_one": partial(alone, hosts[name]) for name in settings}, hosts


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, arguments.hidden, arguments.layers)
        records = questions(arguments.texts)
        texts = [one.text for one in records]
        options = {"batch_size": arguments.batch_size, "window": arguments.window, "max_length": 128}
        arms, alone, hosts = our_arms(folder, records, options)
        rivals = [torch_arms(folder, texts, arguments.batch_size, arguments.window)]
        if find_spec("onnxruntime") is not None:
            rivals.append(ort_arms.arms(folder, texts, arguments.window, arguments.hidden, heads_of(arguments.hidden)))
        for more, scorers in rivals:
            arms, alone = arms | more, alone | scorers
        taken: dict[str, list[float]] = {name: [] for name in alone}
        for name, score in alone.items():
            arms[name] = partial(singly, score, texts[: arguments.one], taken[name])
        started = time.perf_counter()
        first = {name: np.array(run()) for name, run in arms.items()}
        warm = time.perf_counter() - started
        check(first)
        for some in taken.values():
            some.clear()  # the first round compiled
        wall: dict[str, list[float]] = {name: [] for name in arms}
        cpu: dict[str, list[float]] = {name: [] for name in arms}
        turns = [slice(start, start + TURN) for start in range(0, min(arguments.one, len(texts)), TURN)]
        for _ in range(arguments.rounds):
            for name in arms:
                wall[name].append(0.0)
                cpu[name].append(0.0)
            for name in [name for name in arms if name not in alone]:
                clock(arms[name], wall[name], cpu[name])
            for name, turn in ((name, turn) for turn in turns for name in alone):
                clock(partial(singly, alone[name], texts[: arguments.one][turn], taken[name]), wall[name], cpu[name])
        python = around(hosts["kinject"], texts[: arguments.one])
    counts = {name: min(arguments.one, len(texts)) if name.endswith("_one") else len(texts) for name in arms}
    return {
        "wall": compared(wall, counts),
        "cpu": compared(cpu, counts),
        "one_text_ms": {name: {"p50": 1e3 * statistics.median(some), "p99": p99(some)} for name, some in taken.items()},
        "python_around_ms": python,
        "programs_compiled": {name: host.engine.programs.compiled for name, host in hosts.items()},
        "engines": {name: hosts[name].engine.told for name in ("auto", "auto_int8")},
        "batches": {name: run.size for name, run in arms.items() if isinstance(run, ort_arms.Batched)},
        "first_round_seconds": warm,
        "largest_change_of_a_score_by_the_plugin": float(np.abs(first["kinject"] - first["plugin"]).max()),
        "labels_as_in_float32": {
            name: float(((first[name] > 0.5) == (first["kinject"] > 0.5)[: len(first[name])]).mean()) for name in arms
        },
    }


def clock(run: Callable[[], Any], wall: list[float], cpu: list[float]) -> None:
    """Adds what a run takes to the last of the seconds by the clock, and of the CPU's."""
    started = time.perf_counter(), time.process_time()
    run()
    wall[-1] += time.perf_counter() - started[0]
    cpu[-1] += time.process_time() - started[1]


def check(first: dict[str, np.ndarray]) -> None:
    """Raises AssertionError unless all arms give about the same scores."""
    for name, scores in first.items():
        near = 0.05 if "int8" in name else 0.02 if "rounded" in name or "bfloat16" in name else 1e-4
        if name != "plugin":
            np.testing.assert_allclose(scores, first["kinject"][: len(scores)], atol=near, err_msg=name)


def compared(seconds: dict[str, list[float]], counts: dict[str, int]) -> dict[str, Any]:
    """Rates, and ratios within rounds: how many times faster one is than another, and what the plugin adds."""

    def against(ours: str, name: str) -> list[float]:
        return [
            (other / counts[name]) / (one / counts[ours])
            for one, other in zip(seconds[ours], seconds[name], strict=True)
        ]

    theirs = [name for name in seconds if name.startswith(("torch", "ort"))]
    ours = ("kinject", "rounded", "auto", "auto_int8")
    return {
        "texts_a_second": {name: counts[name] / statistics.median(some) for name, some in seconds.items()},
        "faster_than": {
            one: {name: spread(against(f"{one}_one" if name.endswith("_one") else one, name)) for name in theirs}
            for one in ours
        },
        "plugin_added_percent": spread([100 * (ratio - 1) for ratio in against("kinject", "plugin")]),
        "seconds": seconds,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def memory(megabytes: list[int], window: int, long: bool) -> list[dict[str, Any]]:
    """Peak resident memory and seconds of `kinject predict` by size of input."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files(folder, hidden=16, layers=1, words=500)
        some = [(one.text, one.mentions[0]) for one in questions(5_000, words=500, long=long)]
        lines = [
            json.dumps({"text": text, "mentions": [{"start": m.start, "end": m.end, "entity": m.entity}]}) + "\n"
            for text, m in some
        ]
        block = "".join(lines).encode()
        for size in megabytes:
            source = folder / f"{size}.jsonl"
            with source.open("wb") as file:
                while file.tell() < size * 1_000_000:
                    file.write(block)
            options = ["--host", folder / "host", "--plugin", folder / "plugin", "--knowledge", folder / "knowledge"]
            options += ["--window", str(window), "--no-compilation-cache"]  # each compiles, so that peaks compare
            started = time.perf_counter()
            samples, used = watched([sys.executable, "-m", "kinject", "predict", *options], source, folder / "out")
            fifth = max(1, len(samples) // 5)
            rows.append(
                {
                    "input_mb": source.stat().st_size / 1e6,
                    "output_mb": (folder / "out").stat().st_size / 1e6,
                    "seconds": time.perf_counter() - started,
                    "peak_rss_mb": peak(used),
                    "rss_mb_second_fifth": statistics.median(samples[fifth : 2 * fifth]),
                    "rss_mb_last_fifth": statistics.median(samples[-fifth:]),
                }
            )
            source.unlink()
    return rows


def watched(command: list[Any], source: Path, target: Path) -> tuple[list[float], resource.struct_rusage]:
    """Runs a command; returns its resident memory in MB, twice a second, and what it used in all."""
    samples = []
    with source.open("rb") as given, target.open("wb") as out:
        process = subprocess.Popen(command, stdin=given, stdout=out)
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
            time.sleep(0.5)
    if status:
        raise SystemExit(f"kinject predict ended with {status}")
    return samples, used


def peak(used: resource.struct_rusage) -> float:
    """Peak resident memory in MB of 10^6 bytes; Linux counts kilobytes of 1024."""
    return used.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", type=int, default=100, help="texts of the arms that take one at a time")
    parser.add_argument("--memory-mb", type=int, action="append", default=[])
    parser.add_argument("--long", action="store_true", help="with --memory-mb: texts of 2 KB, most of which is cut off")
    arguments = parser.parse_args()
    if arguments.json.exists():
        raise InputError(arguments.json, "it exists", "choose another file; nothing was overwritten")
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "memory_mb")}
    about = {"settings": settings, "device": str(jax.devices()[0])}
    if arguments.memory_mb:
        found = memory(arguments.memory_mb, arguments.window, arguments.long)
        rows = [
            row(f"predict, peak memory on {one['input_mb']:.0f} MB", one["peak_rss_mb"], None, "MB", **one, **about)
            for one in found
        ]
    else:
        rows = list(rate_rows(throughput(arguments), about))
    write(arguments.json, rows)


def rate_rows(found: dict[str, Any], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows by the clock, with those of CPU time in them; ratios are the medians of those within rounds."""
    cpu, wall = found.pop("cpu"), found.pop("wall")
    unit, rates = "texts a second, texts to labels", wall["texts_a_second"]
    for ours in ("kinject", "rounded", "auto", "auto_int8"):
        for name, ratio in wall["faster_than"][ours].items():
            mine = f"{ours}_one" if name.endswith("_one") else ours
            more = {"range": ratio, "cpu": cpu["faster_than"][ours][name], **found, **about}
            yield {**row(f"predict, {mine} / {name}", rates[mine], rates[name], unit, **more), "ratio": ratio["median"]}
    base = found["one_text_ms"]["kinject_one"]["p50"]
    for name, ms in found["one_text_ms"].items():
        yield row(f"predict, one text, p50: {name} / kinject_one", ms["p50"], base, "ms", **ms, **about)
    ms = found["python_around_ms"]
    unit_ms, goal = "ms of this thread's CPU time, p50", "<= 0.5"
    yield row(
        "predict, one text: Python around the compiled program", ms["p50"], None, unit_ms, goal=goal, **ms, **about
    )
    more = {"added_percent": wall["plugin_added_percent"], "cpu": cpu["plugin_added_percent"], **found, **about}
    yield row("predict, with a plugin (a slot more a text) / without", rates["plugin"], rates["kinject"], unit, **more)


if __name__ == "__main__":
    main()
