"""The result table's rows: host alone, plugin, shuffled control, and the rows without a language model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import LANDS, evaluate_stage, question, run_experiment, sentence, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import derangement, knowledge_identity
from kinject.inference.mesh import Placement
from kinject.inference.program import evaluate, split_program
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.plugins.base import make_plugin
from kinject.plugins.map_tuning import initialise
from kinject.plugins.store import save_plugin
from kinject.reports.results import row_names, row_title
from kinject.stages.comparison import majority, nearest_neighbour
from kinject.tasks.base import make_task


@pytest.fixture(scope="module")
def comparison(host):
    return Comparison(host, make_task("cloze"), None, Placement.single(), batch_size=20)


@pytest.fixture(scope="module")
def plugin(host, knowledge):
    """Ridge regression onto the answers: good enough to follow its vectors."""
    made = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8, seed=0)
    examples = make_task("cloze").examples(asked(range(40)), host.encoder(None), knowledge)
    initialise(made, "ridge_label", Feed(examples, knowledge.gather), host.loaded.host, 1e-3, "initialise")
    return made


def parsed(values):
    return [parse_record(value, f"test:{number}") for number, value in enumerate(values, 1)]


def asked(numbers):
    return parsed(map(question, numbers))


@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.integers(0, 9))
@settings(deadline=None, max_examples=200)
def test_a_derangement_gives_everyone_another_group(groups, seed):
    groups = np.array(groups)
    donors = derangement(groups, seed)
    assert sorted(donors) == list(range(len(groups)))
    if np.bincount(groups).max() * 2 <= len(groups):
        assert (groups[donors] != groups).all()


@given(st.integers(2, 300), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_a_derangement_of_different_items_leaves_none_in_place_and_depends_on_the_seed(count, seed):
    donors = derangement(np.arange(count), seed)
    assert (donors != np.arange(count)).all()
    np.testing.assert_array_equal(donors, derangement(np.arange(count), seed))
    if count > 20:
        assert (donors != derangement(np.arange(count), seed + 1)).any()


def test_host_alone_is_an_evaluation_without_plugin_and_slots(comparison, host, knowledge):
    records = asked(range(30))
    found, predictions = comparison.host_alone(records)
    with_knowledge, _ = comparison.host_alone(records, knowledge)
    program, params = split_program(host.loaded.host, None, comparison.task)
    examples = comparison.task.examples(records, host.encoder(None), None)
    assert all((bucket["entity_slot"] == -1).all() for bucket in examples.buckets)
    expected, plain = evaluate(program, params, Feed(examples), 7)
    assert found["accuracy"] == expected["accuracy"] == with_knowledge["accuracy"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_array_equal(predictions["predicted"], plain["predicted"])
    encoder = host.encoder(None).tokenizer
    assert [encoder.decode([i]) for i in predictions["label"]] == [f"land{i % LANDS}" for i in range(30)]


def test_the_shuffled_control_gives_each_question_another_entity_and_its_answer_follows(comparison, plugin, knowledge):
    records = asked([*range(40, 60), *range(40, 50)])  # ten entities are asked about twice
    right, _ = comparison.with_plugin(plugin, knowledge, records)
    metrics, predictions, donors = comparison.shuffled(plugin, knowledge, records, seed=0)
    entities = np.array([record.mentions[0].entity for record in records])
    assert (entities[donors] != entities).all() and sorted(donors) == list(range(30))
    assert right["accuracy"] >= 0.9 and metrics["accuracy"] <= 0.5
    lands = [records[donor].fields["label"] for donor in donors]
    decode = comparison.host.tokenizer.decode
    followed = np.mean([decode([i]) == land for i, land in zip(predictions["predicted"], lands, strict=True)])
    assert followed >= 0.9


def test_questions_without_a_vector_keep_their_place_in_the_control(comparison, plugin, knowledge):
    strange = {**question(5), "mentions": [{**question(5)["mentions"][0], "entity": "Q999"}]}
    unlinked = {**question(6), "mentions": []}
    records = parsed([strange, *map(question, range(50, 58)), unlinked])
    _, alone = comparison.host_alone(records)
    _, predictions, donors = comparison.shuffled(plugin, knowledge, records, seed=0)
    assert donors[0] == 0 and donors[9] == 9
    assert sorted(donors[1:9]) == list(range(1, 9)) and (donors[1:9] != np.arange(1, 9)).all()
    assert predictions["predicted"][[0, 9]].tolist() == alone["predicted"][[0, 9]].tolist()
    assert comparison.coverage(knowledge, records) == 8 / 9


def test_host_alone_reads_the_sentences_that_the_plugin_reads(host, knowledge):
    """A sentence of which the knowledge base knows nothing would make the two losses those of different data."""
    strange = sentence(3, 4)
    strange = {**strange, "mentions": [{**mention, "entity": "Q999"} for mention in strange["mentions"]]}
    records = parsed([sentence(1, 2), strange, sentence(5, 6)])
    comparison = Comparison(host, make_task("mention_masked_lm"), None, Placement.single(), batch_size=4)
    _, alone = comparison.host_alone(records, knowledge)
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=16, knowledge_dim=8)
    _, plugged = comparison.with_plugin(plugin, knowledge, records)
    assert alone["pieces"].tolist() == plugged["pieces"].tolist() == [2, 1, 1, 2, 1, 1]
    assert comparison.host_alone(records)[1]["pieces"].sum() == 12


def by_hand(tmp_path):
    table = np.array([[0, 0], [10, 0], [0.4, 0.1], [9, 1], [5, 5]], np.float32)
    folder = write_knowledge(
        tmp_path / "knowledge",
        name="points",
        ids=list("abcde"),
        vectors=table,
        has_vector=np.array([True, True, True, True, False]),
        source="made up",
        license="none",
    )
    return KnowledgeBase.open(folder)


def labelled(*pairs):
    return parsed(
        {"text": "x", "mentions": [{"start": 0, "end": 1, "entity": entity}] if entity else [], "label": label}
        for entity, label in pairs
    )


def test_nearest_neighbour_by_hand(tmp_path):
    knowledge = by_hand(tmp_path)
    train = labelled(("a", "west"), ("b", "east"), ("e", "nowhere"), ("zz", "nowhere"), (None, "nowhere"))
    assert nearest_neighbour(knowledge, train, labelled(("c", "west"), ("d", "east"))).mean() == 1.0
    assert nearest_neighbour(knowledge, train, labelled(("c", "west"), ("d", "west"))).mean() == 0.5
    # without a vector there is no neighbour, whatever the label
    test = labelled(("c", "west"), ("e", "west"), ("zz", "west"), (None, "west"))
    assert nearest_neighbour(knowledge, train, test).mean() == 0.25
    assert nearest_neighbour(knowledge, train[2:], test).mean() == 0.0


def test_majority_by_hand():
    train = labelled(("a", "west"), ("b", "east"), ("c", "west"))
    assert majority(train, labelled(("a", "west"), ("b", "east"), ("c", "west"), ("d", "north"))) == 0.5


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory, plugin, host, knowledge):
    folder = tmp_path_factory.mktemp("comparison") / "plugin"
    facts = {"knowledge": knowledge_identity(knowledge), "config": {}, "metrics": {}}
    return save_plugin(folder, plugin, host=host.identity, **facts)


def test_the_stage_reports_every_row_and_survives_unlinked_questions(world, tmp_path, plugin_folder):
    strange = {**question(5), "mentions": [{**question(5)["mentions"][0], "entity": "Q999"}]}
    records = [strange, {**question(6), "mentions": []}, *map(question, range(50, 58))]
    data = write_records(tmp_path / "test.jsonl", records)
    stage = evaluate_stage(world, {"plugin": str(plugin_folder), "again": str(plugin_folder)}, examples=10)
    stage["domains"]["cities"]["data"] = (str(data),)
    found = run_experiment({"seed": 0, "stages": {"table": stage}}, tmp_path / "run")["table"]["cities"]
    rows = {"n", "metric", "host", "plugin", "again", "shuffled", "shuffled_follows_vector", "again_shuffled"}
    assert set(found) == rows | {"nearest_neighbour", "majority", "coverage", "examples"}
    assert found["n"] == 10 and found["coverage"] == 8 / 9 and found["plugin"] == found["again"]
    assert found["plugin"] > found["host"] and found["shuffled"] == found["again_shuffled"] < found["plugin"]
    assert row_title("again_shuffled") == "again, wrong vectors" and "shuffled" in row_names({"cities": found})
    shown = {one["text"]: one for one in found["examples"]}
    assert len(shown) == 10 and shown[strange["text"]]["entity"] == "Q999"
    assert shown[question(6)["text"]]["entity"] == "" and shown[question(51)["text"]]["entity"] == "city51"


def test_reference_data_is_for_tasks_with_a_label(world, tmp_path, plugin_folder):
    stage = evaluate_stage(world, {"plugin": str(plugin_folder)}, task="mention_masked_lm")
    stage["domains"]["cities"]["data"] = (str(world / "sentences.jsonl"),)
    with pytest.raises(InputError, match=r"cities\.reference_data: the task mention_masked_lm has no label"):
        run_experiment({"stages": {"table": stage}}, tmp_path / "run")
