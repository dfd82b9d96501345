"""Typing by the mean over a mention; look-ups and classifiers beside a plugin; the mean over folds."""

import numpy as np
import pytest
from task_runs import TaskWorld, as_device, parsed
from tiny import fast_jit
from tiny_world import LANDS, run_experiment, write_records

from kinject.data.encode import Passage
from kinject.data.pipeline import Feed
from kinject.data.records import Mention
from kinject.errors import InputError
from kinject.models.pretrained import load_host
from kinject.stages.folds import mean_rows
from kinject.stages.typing_rivals import choose, chosen, most_frequent, retold
from kinject.tasks.base import make_task
from kinject.tasks.entity_typing import read_mentions

NAMES = [f"land{i}" for i in range(LANDS)]
OPTIONS = {"labels": NAMES, "never_empty": True, "reads": "mention"}


def typed(i, *labels):
    tokens = ["a", "place", "of", f"city{i}", "far", "."]
    labels = labels or (NAMES[i % LANDS],)
    return {"tokens": tokens, "mentions": [{"start": 3, "end": 4, "entity": f"Q{i}"}], "labels": [*labels]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return TaskWorld(tmp_path_factory.mktemp("typing"), layers=2)


@pytest.mark.parametrize("slots", [True, False])
def test_the_head_reads_the_mean_over_the_mention_and_its_slot(world, slots):
    task = make_task("marker_entity_typing", **OPTIONS)
    host = load_host(world.folder / "raw", head=task.head, num_labels=LANDS, fresh_head=True, seed=3).host
    batch = as_device(world.batch(task, [typed(4), {**typed(7), "tokens": [*typed(7)["tokens"], "far"]}], slots=slots))
    outputs = fast_jit(lambda batch: task.outputs(host, None, batch))(batch)
    states = np.asarray(fast_jit(lambda batch: host.encoder(batch).last)(batch))
    # [CLS] a place of @ slot / city @ …, or [CLS] a place of @ city @ …
    read = states[:, [5, 7] if slots else [5]].mean(1)
    kernels = [np.asarray(part.kernel[...]) for part in (host.head.dense, host.head.output)]
    biases = [np.asarray(part.bias[...]) for part in (host.head.dense, host.head.output)]
    expected = (read @ kernels[0] + biases[0]) @ kernels[1] + biases[1]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    with pytest.raises(InputError, match=r"task_options\.reads: is 'cls'"):
        make_task("marker_entity_typing", **{**OPTIONS, "reads": "cls"})


def test_vectors_of_mentions_are_means_over_their_pieces(world):
    texts = [["a", "place", "of", "city4", "far", "."], ["city7", "faraway", "is", "in", "far", "."]]
    passages = [Passage(tuple(texts[0]), (Mention(3, 4),)), Passage(tuple(texts[1]), (Mention(0, 2),))]
    found, sentences = read_mentions(world.host, passages, 1, None)[::-1]
    encoder = world.host.encoder(None)
    batch = as_device(encoder.pad(encoder.encode_batch(passages), 12, 0))
    states = np.asarray(fast_jit(lambda batch: world.host.loaded.host.encoder(batch).hidden_states[1])(batch))
    np.testing.assert_allclose(found[0], states[0, 4], atol=1e-4)
    np.testing.assert_allclose(found[1], states[1, 1:4].mean(0), atol=1e-4)  # faraway is two pieces
    last = np.asarray(fast_jit(lambda batch: world.host.loaded.host.encoder(batch).last)(batch))
    for row, one in enumerate(last):
        np.testing.assert_allclose(sentences[row], one[np.asarray(batch["segment_ids"][row]) > 0].mean(0), atol=1e-4)
    with pytest.raises(InputError, match="layer: is 3, the encoder has 2 layers"):
        read_mentions(world.host, passages, 3, None)


def test_the_stages_of_two_folds_end_in_one_table(world):
    folder = world.folder
    parts = {"train": range(30), "dev": range(30, 40), "test": range(40, 60)}
    data = {name: (str(write_records(folder / f"{name}.jsonl", map(typed, rows))),) for name, rows in parts.items()}
    task = {"task": "marker_entity_typing", "task_options": OPTIONS}
    fit = {"batch_size": 8, "steps": 2, "buckets": 1, "optimizer": {"learning_rate": 0.01}}
    host = {"kind": "host", **task, "base": str(folder / "raw"), "data": data["train"], "fit": fit}
    rivals = {"kind": "typing_rivals", **task, "host": "@host", "encoder": str(folder / "raw"), "layer": 1}
    rivals |= {"knowledge": str(folder / "knowledge"), "data": data["train"]}
    rivals |= {"dev_data": data["dev"], "test_data": data["test"]}
    stages = {"host": host, "one": {**rivals, "keep_dev": True}, "other": {**rivals, "test_data": data["dev"]}}
    stages["folds"] = {"kind": "folds", "folds": (("one",), ("other",))}
    results = run_experiment({"seed": 0, "stages": stages}, folder / "run")
    one, other, mean = (results[name]["types"] for name in ("one", "other", "folds"))
    # a vector is a code of the answer, and a name says nothing
    assert one["classifier_vector"] == one["nearest_neighbour"] == 1.0 > one["classifier_mention"]
    assert one["classifier_mention_vector"] > one["majority"] and 0 <= one["name_substituted"] <= 1
    assert one["settings"]["classifier_vector"]["parameters"] == 9 * LANDS
    assert mean["n"] == 30 and mean["metric"] == "f1"
    for row in ("majority", "classifier_mention", "name_substituted"):
        assert mean[row] == pytest.approx((one[row] + other[row]) / 2)


def test_what_development_data_chose_is_trained_on_them_too_where_asked():
    task = make_task("marker_entity_typing", **OPTIONS)
    corners = np.eye(LANDS, dtype=np.float32)
    known, unknown = np.tile(corners[:-1], (8, 1)), np.tile(corners[-1:], (8, 1))
    both = [known, np.concatenate([known[:LANDS], unknown]), unknown]  # the last type is among the second part alone
    first, kept = (choose(task, both, both, 0, keep_dev) for keep_dev in (False, True))
    assert not (first.test.argmax(1) == LANDS - 1).any() and (kept.test.argmax(1) == LANDS - 1).all()
    assert first.decay == kept.decay and first.parameters == kept.parameters == (LANDS + 1) * LANDS


def test_a_share_of_the_mentions_is_hidden_in_training_alone(world):
    values = [typed(i) for i in range(20)]
    shown, hidden, half = (make_task("marker_entity_typing", **OPTIONS, hide=hide) for hide in (0.0, 1.0, 0.5))
    plain, all_masked = world.batch(shown, values), world.batch(hidden, values)
    mask = world.host.tokenizer.mask_id
    for row, (start, end) in enumerate(plain["mention_spans"]):
        expected = plain["token_ids"][row].copy()
        expected[start:end] = mask
        assert (all_masked["token_ids"][row] == expected).all() and (plain["entity_slot"][row, start:end] < 0).all()
    examples = half.examples(parsed(*values), world.host.encoder(None), world.knowledge, buckets=1)
    drawn = [Feed(examples).batch(0, np.arange(20), np.arange(20) + 20 * epoch)["token_ids"] for epoch in range(20)]
    assert 0.4 < np.mean([(ids == mask).any(1) for ids in drawn]) < 0.6 and (drawn[0] != drawn[1]).any()
    assert (world.batch(half.for_evaluation(), values)["token_ids"] == plain["token_ids"]).all() and half.hide == 0.5
    with pytest.raises(InputError, match=r"task_options\.hide: is 2"):
        make_task("marker_entity_typing", **OPTIONS, hide=2)


def test_types_are_chosen_as_the_task_does():
    assert chosen(np.array([[0.6, 0.7, 0.1], [0.2, 0.4, 0.3]])).tolist() == [[True, True, False], [False, True, False]]
    assert most_frequent(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist() == [1, 0]


def test_a_named_type_stands_where_the_mention_stood():
    (record,) = parsed({**typed(4), "tokens": ["a", "place", "of", "city4", "city5", "."]})
    (text,) = parsed({"text": "see city4 .", "mentions": [{"start": 4, "end": 9, "entity": "Q4"}], "labels": []})
    said = retold(record, "sovereign state")
    assert said.source == ("a", "place", "of", "sovereign", "state", "city5", ".")
    assert (said.mentions[0].start, said.mentions[0].end, said.mentions[0].entity) == (3, 5, None)
    assert retold(text, "river").source == "see river ."


def test_what_cannot_be_averaged_is_one_line(world):
    with pytest.raises(InputError, match="not every fold has a row plugin"):
        mean_rows([{"n": 1, "plugin": 0.5}, {"n": 2}], "stages.folds")
    for folds, said in (((("on",),), "there is no stage on"), ((("late",),), "the stage late has not run yet")):
        late = {"kind": "folds", "folds": (("folds",),)}
        stages = {"folds": {"kind": "folds", "folds": folds}, "late": late}
        with pytest.raises(InputError, match=said):
            run_experiment({"seed": 0, "stages": stages}, world.folder / said.replace(" ", "_"))
