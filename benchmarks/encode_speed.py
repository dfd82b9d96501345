"""Sentences a second of CPU that the encoder turns into ids, slots and spans.

    RAYON_NUM_THREADS=1 python benchmarks/encode_speed.py HOST_FOLDER [RECORDS.jsonl]

Without a file: generated sentences of about 20 words with two mentions, both with a slot.
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.records import Mention, read_records
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError

COUNT = 20_000
SENTENCE = "the river rises near Rewa town and flows through New Zealand to its mouth in the Tasman Sea by Hokitika"
WORDS = SENTENCE.split()


def generated() -> list[Passage]:
    """Sentences with a name at two varying places."""
    random = np.random.default_rng(0)
    starts = np.sort(random.choice(len(WORDS) - 1, (COUNT, 2)), axis=1)
    starts[:, 1] += starts[:, 0] == starts[:, 1]
    mentions = [
        (Mention(a, a + 1, f"Q{a}", "#", "#"), Mention(b, b + 1, f"Q{b}", "$", "$")) for a, b in starts.tolist()
    ]
    return [Passage(SENTENCE, _in_characters(pair)) for pair in mentions]


def _in_characters(mentions: tuple[Mention, ...]) -> list[Mention]:
    starts = [0, *itertools.accumulate(len(word) + 1 for word in WORDS)]
    return [Mention(starts[m.start], starts[m.end] - 1, m.entity, m.opening, m.closing) for m in mentions]


def main(folder: str, records: str | None = None) -> None:
    """Prints one line per batch size."""
    passages = generated()
    if records:
        passages = [Passage(one.source, one.mentions, where=one.where) for one in read_records(records)]
    encoder = EntityEncoder(load_tokenizer(folder), max_length=128)
    for size in (64, 1024):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = 0
        for batch in (passages[at : at + size] for at in range(0, len(passages), size)):
            tokens += sum(map(len, encoder.encode_batch(batch, lambda ids: np.zeros(len(ids), np.int32))))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        count = len(passages)
        print(f"batches of {size}: {count / cpu:,.0f} sentences and {tokens / cpu:,.0f} tokens a CPU second", end=", ")
        print(f"{count / wall:,.0f} sentences a second of wall time, {tokens / count:.1f} tokens a sentence")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
