"""Cloze questions whose answers have several pieces: scored as choices, asked of the entities of the test."""

import jax
import numpy as np
import pytest
from tiny_world import VOCABULARY, evaluate_stage, plugin_stage, question, run_experiment, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.data.sources.kinds import Dealing, Subject, deal, fair_subjects, one_piece, record
from kinject.data.sources.wordings import Wordings
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.models.heads import logits
from kinject.tasks.base import make_task

LONG = "land1 of land2"
CHOICES = [LONG, "land0", "faraway"]


def asked(i, **fields):
    return {**question(i), "label": "land0", "choices": CHOICES, **fields}


def parsed(*values):
    return [parse_record(value, f"test:{number}") for number, value in enumerate(values, 1)]


def test_a_choice_has_the_mean_log_probability_of_its_pieces_at_the_blank(world):
    host, task = open_host(world / "host", head="masked_lm"), make_task("cloze_choices")
    records = parsed(asked(3), asked(4, choices=["land0", "land4"], label="land4"))
    examples = task.examples(records, host.encoder(None), None, buckets=1)
    batch = Feed(examples).batch(0, np.arange(2))
    outputs = logits(host.loaded.host, batch)
    scores = np.asarray(task.choices(outputs, batch))
    likely = np.asarray(jax.nn.log_softmax(outputs[:, 0]))
    at = VOCABULARY.index
    assert scores[0, 0] == pytest.approx(np.mean([likely[0, at(word)] for word in LONG.split()]), abs=1e-5)
    assert scores[0, 1] == pytest.approx(likely[0, at("land0")], abs=1e-5)
    assert scores[0, 2] == pytest.approx((likely[0, at("far")] + likely[0, at("##away")]) / 2, abs=1e-5)
    assert scores[1, 2] < -1e8, "the second question has two choices"
    found = task.predict(outputs, batch)
    assert np.asarray(found["label"]).tolist() == [1, 1]
    assert np.asarray(found["predicted"]).tolist() == scores.argmax(1).tolist()
    losses, weights = task.loss(outputs, batch)
    of_right = np.exp(scores)[:, 1] / np.exp(scores).sum(1)
    np.testing.assert_allclose(np.exp(-np.asarray(losses)), of_right, rtol=1e-4)
    assert np.asarray(weights).tolist() == [1, 1]
    assert task.choice_name(0, records[0], host.tokenizer) == LONG


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "land3"}, "field label: 'land3' is none of the choices"),
        ({"choices": ["land0", "land0"]}, "field choices names an answer twice"),
        ({"choices": "land0"}, "field choices is 'land0'"),
        ({"choices": ["land0", "ñandú"]}, "field choices: the host's vocabulary cannot spell 'ñandú'"),
        ({"text": "city3 is in land0", "mentions": []}, r"field text has 0 \[MASK\]"),
    ],
)
def test_records_that_cannot_be_asked_are_told(world, fields, message):
    encoder = open_host(world / "host", head="masked_lm").encoder(None)
    with pytest.raises(InputError, match=rf"test:1: {message}"):
        make_task("cloze_choices").examples(parsed(asked(3, **fields)), encoder, None)


def test_a_plugin_names_the_answer_among_the_choices(world, tmp_path):
    every = [f"land{i}" for i in range(5)]
    values = [{**question(i), "choices": every, "kind": "land", "wording": "w"} for i in range(40, 60)]
    stage = evaluate_stage(world, {"plugin": "@plugin"}) | {"task": "cloze_choices", "examples": 2}
    (domain,) = stage["domains"].values()
    domain |= {"data": (str(write_records(tmp_path / "test.jsonl", values)),), "by_kind": True, "reference_data": ()}
    config = {"seed": 0, "stages": {"plugin": plugin_stage(world), "choices": stage}}
    (rows,) = run_experiment(config, tmp_path / "run")["choices"].values()
    assert rows["plugin"] > rows["host"] and rows["plugin"] > rows["shuffled"]
    assert rows["kinds"]["land"]["n"] == 20
    assert {one["plugin"] for one in rows["examples"]} <= set(every), "names, not numbers"
    assert KnowledgeBase.open(world / "knowledge").size == 60


def test_answers_of_several_pieces_are_asked_of_the_test_alone_and_last():
    def split(word):
        return [word] if word != "two pieces" else word.split()

    kinds = {
        kind: Wordings((f"{kind} [X] [MASK]",), (f"{kind} d [X] [MASK]",), (f"{kind} t [X] [MASK]",)) for kind in "ab"
    }
    pool = [Subject(i, f"n{i}", {"a": f"a{i % 3}", "b": "two pieces" if i % 2 else "one"}, {}) for i in range(40)]
    fair = fair_subjects(pool, [one.name for one in pool], split, kinds, least=1, seed=0)
    assert {tuple(one.longer) for one in fair if one.entity % 2} == {("b",)}
    sizes = {"host": 10, "plugin": 10, "dev": 10, "test": 10}
    how = Dealing(one_kind="a", per_answer=99, sizes=sizes, hinted=0.0, least=1)
    splits = deal(fair, [], kinds, how, "here")
    short = [Subject(one.entity, one.name, one.answers, {}) for one in fair]
    assert {**splits, "choices": None} == {**deal(short, [], kinds, how, "here"), "choices": None}
    assert "choices" not in deal(short, [], kinds, how, "here")
    choices = splits["choices"]
    assert {one.kind for one in choices} == {"b"} and {one.wording for one in choices} == {"b t [X] [MASK]"}
    assert {one.choices for one in choices} == {("one", "two pieces")}
    assert {one.entity for one in choices} <= {one.entity for one in splits["test"]}
    assert all("choices" not in record(one, "Q") for one in splits["test"])
    assert record(choices[0], "Q")["choices"] == ["one", "two pieces"]
    share = np.mean([one.answer == "one" for one in choices])
    assert one_piece(choices, split) == {"b": pytest.approx(share)}
