"""Masked language modelling: which pieces are masked, that they are drawn anew, and the corpora it reads."""

import json
import zlib

import numpy as np
import pytest
from tiny_world import run_experiment

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.data.sources import read_corpus
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.stages.memory import read_passages
from kinject.tasks.base import make_task


def texts(count=40):
    lines = [{"tokens": [f"city{(i + k) % 40}" for k in range(3 + i % 9)]} for i in range(count)]
    return [parse_record(line, f"text:{number}") for number, line in enumerate(lines, 1)]


def feed_of(world, rate=0.3, records=None, buckets=1):
    host = open_host(world / "host", head="masked_lm")
    task = make_task("masked_lm", rate=rate)
    return host, Feed(task.examples(records or texts(), host.encoder(None), None, buckets=buckets))


def test_masks_a_share_of_each_text_and_asks_for_what_stood_there(world):
    host, feed = feed_of(world)
    tokenizer = host.tokenizer
    original = feed.examples.buckets[0]["token_ids"]
    for batch in feed.evaluation(40):
        real = batch["weights"] > 0
        pieces = (batch["segment_ids"] > 0).sum(1) - 2
        assert (real.sum(1) == np.clip(np.round(0.3 * pieces), 1, None)).all()
        row, place = np.nonzero(real)
        where = batch["positions"][row, place]
        assert (batch["labels"][row, place] == original[batch["index"][row], where]).all()
        assert not np.isin(batch["labels"][row, place], [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]).any()
        assert all(len(set(at[mask])) == mask.sum() for at, mask in zip(batch["positions"], real, strict=True))
        untouched = np.ones_like(original, bool)
        untouched[row, where] = False
        assert (batch["token_ids"] == original[batch["index"]])[untouched].all()


def test_replaces_eight_of_ten_by_the_mask(world):
    host, feed = feed_of(world, rate=0.5, records=texts(400))
    tokenizer = host.tokenizer
    counts = np.zeros(3)
    for batch in feed.evaluation(400):
        row, place = np.nonzero(batch["weights"])
        now = batch["token_ids"][row, batch["positions"][row, place]]
        was = batch["labels"][row, place]
        masked = now == tokenizer.mask_id
        counts += [masked.sum(), ((now != was) & ~masked).sum(), ((now == was) & ~masked).sum()]
    share = counts / counts.sum()
    assert np.abs(share - [0.8, 0.1, 0.1]).max() < 0.04


def test_training_draws_anew_and_evaluation_does_not(world):
    _, feed = feed_of(world)
    stream = iter(feed.training(40, seed=0))
    first, second = next(stream), next(stream)  # two epochs of the same 40 texts
    order = [np.argsort(batch["index"]) for batch in (first, second)]
    assert not (first["positions"][order[0]] == second["positions"][order[1]]).all()
    again = next(iter(feed.training(40, seed=0)))
    assert all((first[name] == again[name]).all() for name in first)
    (one,), (other,) = list(feed.evaluation(40)), list(feed.evaluation(40))
    assert all((one[name] == other[name]).all() for name in one)


def test_refuses_a_rate_that_is_none():
    with pytest.raises(InputError, match="rate"):
        make_task("masked_lm", rate=1.5)


def host_config(world, steps):
    fit = {"batch_size": 20, "steps": steps, "optimizer": {"learning_rate": 0.01}, "log_every": 5}
    return {
        "kind": "host",
        "task": "masked_lm",
        "base": str(world / "host"),
        "data": (str(world / "train.jsonl"),),
        "dev_data": (str(world / "dev.jsonl"),),
        "train": ((".*", "train"),),
        "fit": fit | {"checkpoint_every": 10, "buckets": 1, "compute_dtype": "bfloat16_dots"},
    }


def test_trains_a_host_all_of_it_also_in_rounded_products(world, tmp_path):
    results = run_experiment({"stages": {"host": host_config(world, 60)}}, tmp_path)
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert 0 < results["host"]["dev_accuracy"] <= 1 and results["host"]["dev_perplexity"] > 1


def test_wordnet_corpora_say_what_they_are_about():
    plain, sentences = {}, list(read_corpus("wordnet"))
    for about, record in sentences:
        plain.setdefault(about, record["text"])
    assert len(plain) > 100_000
    definitions, examples = (list(read_corpus(f"wordnet_{part}")) for part in ("definitions", "examples"))
    assert {about: record["text"] for about, record in definitions} == plain and len(definitions) == len(plain)
    order = {about: number for number, about in enumerate(plain)}
    assert sorted([*definitions, *examples], key=lambda one: order[one[0]]) == sentences
    linked = dict(read_corpus("wordnet_linked"))
    several = 0
    for about, record in linked.items():
        for number, mention in enumerate(record["mentions"]):
            assert 0 <= mention["start"] < mention["end"] <= len(record["text"])
            assert mention["entity"] in linked
            assert (mention["entity"] == about) == (number == 0)
        several += len(record["mentions"]) > 1
        assert about in plain
    assert several > 5000


def test_corpus_stage_keeps_out_what_will_be_asked_about(tmp_path):
    linked = dict(read_corpus("wordnet_linked"))
    asked = next(about for about, record in linked.items() if len(record["mentions"]) > 1)
    target = linked[asked]["mentions"][1]["entity"]
    question = {"text": "x", "mentions": [{"start": 0, "end": 1, "entity": target}]}
    (tmp_path / "asked.jsonl").write_text(json.dumps(question) + "\n")
    stage = {"kind": "corpus", "source": "wordnet_linked", "exclude": (str(tmp_path / "asked.jsonl"),), "every": 3}
    results = run_experiment({"stages": {"sentences": stage}}, tmp_path / "run")
    splits = {}
    for split in ("train", "test"):
        lines = (tmp_path / "run" / "sentences" / "records" / f"{split}.jsonl").read_text().splitlines()
        splits[split] = {record["id"]: record for record in map(json.loads, lines)}
        assert len(lines) == results["sentences"][split] > 0
        for record in splits[split].values():
            assert target not in {mention["entity"] for mention in record["mentions"]}
    assert not splits["train"].keys() & splits["test"].keys()
    assert results["sentences"]["excluded"] >= 2


def test_corpus_stage_refuses_what_there_is_not(tmp_path):
    with pytest.raises(InputError, match="wordnet_linked"):
        run_experiment({"stages": {"text": {"kind": "corpus", "source": "wordnet_link"}}}, tmp_path)


def test_corpora_with_the_same_share_are_about_the_same_things_and_are_passages(tmp_path):
    share = {"kind": "corpus", "every": 40, "test_share": 0.2}
    parts = ("definitions", "examples")
    run_experiment({"stages": {part: share | {"source": f"wordnet_{part}"} for part in parts}}, tmp_path / "run")
    about = {}
    for part in parts:
        for split in ("train", "test"):
            file = tmp_path / "run" / part / "records" / f"{split}.jsonl"
            about[part, split] = [passage.entity for passage in read_passages(file)]
    chosen = {about for about, _ in read_corpus("wordnet_definitions") if zlib.crc32(about.encode()) % 40 == 0}
    assert {*about["definitions", "train"], *about["definitions", "test"]} == chosen and len(chosen) > 2000
    for split in ("train", "test"):
        assert 0 < len(set(about["examples", split]) - {""}) < len(about["definitions", split])
        assert set(about["examples", split]) <= set(about["definitions", split])
    assert not set(about["definitions", "train"]) & set(about["definitions", "test"])
