"""A corpus in a stream: its names linked, and vectors of the linked names made of a host's outputs (PELT).

    python benchmarks/text_vectors.py --json out.json

A million made-up sentences of twenty words with two names of --entities each are linked into a file of records, then
`sum_outputs` reads at most --most occurrences of each entity through a random host (two layers of 128: what is asked is
whether memory stays flat and how much is not the host's own time; a real host's is in predict.py). Told are sentences a
second of a core (processor time, whatever else runs) and resident memory at a tenth of the way and at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flax import nnx
from made_up import tokenizer_folder, words
from measuring import options, resident_mb
from rows import row, write

from kinject.inference.host import open_host
from kinject.inference.occurrences import Reading, sum_outputs
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.linking import AliasLinker
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head
from kinject.models.saving import save_host

VOCABULARY, LENGTH = 5000, 20


def sentences(count: int, entities: int) -> Iterator[str]:
    """Sentences of made-up words, with two of the names in each."""
    draw, spoken = np.random.default_rng(0), np.array(words(VOCABULARY))
    for low in range(0, count, 1000):
        some = draw.integers(0, VOCABULARY, (min(1000, count - low), LENGTH))
        named = draw.integers(0, entities, (len(some), 2))
        for line, (one, other) in zip(spoken[some], named, strict=True):
            line = line.tolist()
            line[3], line[12] = f"Name{one}", f"Name{other}"
            yield " ".join(line)


def host_folder(folder: Path) -> Path:
    """A random masked language model."""
    source = tokenizer_folder(folder / "tokenizer", VOCABULARY)
    config = EncoderConfig(
        vocab_size=json.loads((source / "config.json").read_text())["vocab_size"],
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )
    rngs = nnx.Rngs(0)
    host = HostModel(Encoder(config, rngs=rngs), build_head("masked_lm", config, rngs=rngs))
    return save_host(host, folder / "host", tokenizer_files_from=source, host_json={"task": "cloze"})


def main() -> None:
    args = options(__doc__, sentences=1_000_000, entities=50_000, most=256).parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), args)
    write(args.json, rows)


def measure(folder: Path, args: argparse.Namespace) -> list[dict]:
    names = [f"Name{i}" for i in range(args.entities)]
    vectors = np.zeros((args.entities, 1), np.float32)
    base = KnowledgeBase.open(write_knowledge(folder / "kb", name="names", ids=names, labels=names, vectors=vectors))
    linker, memory = AliasLinker(base), []
    linker("Name1")
    started = time.process_time()
    with (folder / "linked.jsonl").open("w") as file:
        for number, text in enumerate(sentences(args.sentences, args.entities)):
            mentions = [{"start": one.start, "end": one.end, "entity": one.entity} for one in linker(text)]
            file.write(json.dumps({"text": text, "mentions": mentions}) + "\n")
            if number in (args.sentences // 10, args.sentences - 1):
                memory.append(resident_mb(mapped=False))
    linking = args.sentences / (time.process_time() - started)
    host = open_host(host_folder(folder), head="masked_lm")
    held: list[float] = []

    def progress(done: int, total: int) -> None:
        if (not held and done >= total / 10) or done > total - 5000:
            held.append(resident_mb(mapped=False))

    started, clock = time.process_time(), time.perf_counter()
    reading = Reading(most=args.most)
    counted, sums = sum_outputs(host, [folder / "linked.jsonl"], folder / "work", reading, progress=progress)
    spent, clock = time.process_time() - started, time.perf_counter() - clock
    read = int(np.sum(sums.counts))
    note = f"resident {memory[0]:,.0f} MB at a tenth, {memory[-1]:,.0f} MB at the end"
    about = f"{counted.records:,} sentences, {read:,} occurrences of {len(counted.ids):,} entities in {clock:,.0f} s"
    grown = f"resident {held[0]:,.0f} MB at a tenth, {held[-1]:,.0f} MB at the end" if held else "too short for memory"
    return [
        row("linking in a stream", linking, None, "sentences a second of a core", note=note),
        row("vectors of texts (PELT)", counted.records / spent, None, "sentences a second of a core", note=about),
        row("occurrences read", read / spent, None, "occurrences a second of a core", note=grown),
    ]


if __name__ == "__main__":
    main()
