"""Texts behind the input: the input stays whole, the budget holds, the control gets another's, a host trains on it."""

import numpy as np
import pytest
from fact_world import write_facts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level_folder, wordpiece_folder
from tiny_world import evaluate_stage, question, run_experiment, sentence

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.facts import append_texts, mean_length
from kinject.data.pipeline import make_examples
from kinject.data.records import parse_record
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.host import attach_knowledge, open_host, task_examples
from kinject.inference.mesh import Placement
from kinject.plugins.base import make_plugin, method_without_parameters
from kinject.tasks.base import make_task

TOKEN_ARRAYS = ("token_ids", "segment_ids", "position_ids", "type_ids", "entity_slot")


@pytest.fixture(scope="module")
def host(world):
    return open_host(world / "host")


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    return write_facts(tmp_path_factory.mktemp("retrieved") / "base")


@pytest.fixture(scope="module", params=[wordpiece_folder, byte_level_folder])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(request.param(tmp_path_factory.mktemp("tokenizer") / "files"))


def encoded(tokenizer, inputs):
    encoder = EntityEncoder(tokenizer, 40)
    rows = encoder.encode_batch([Passage(text) for text in inputs])
    return make_examples([len(one) for one in rows], lambda index, n: encoder.pad([rows[i] for i in index], n, 0))


WORDS = st.lists(st.sampled_from(["the", "city", "of", "berlin", "Germans", "42", "é"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, max_size=3)), min_size=1, max_size=6), st.integers(1, 9))
@settings(deadline=None, max_examples=40)
def test_the_input_is_never_cut_and_no_text_takes_more_than_its_budget(tokenizer, drawn, budget):
    inputs = [" ".join(words) for words, _ in drawn]
    texts = [[[" ".join(words) for words in some]] for _, some in drawn]
    before = encoded(tokenizer, inputs)
    after = append_texts(before, texts, tokenizer, budget=budget, longest=48)
    assert [len(bucket["index"]) for bucket in before.buckets] == [len(bucket["index"]) for bucket in after.buckets]
    for old, new, length in zip(before.buckets, after.buckets, after.lengths, strict=True):
        assert new["token_ids"].shape[1] == length <= 48
        for row, size in enumerate((old["segment_ids"] > 0).sum(1)):
            for name in TOKEN_ARRAYS:
                np.testing.assert_array_equal(new[name][row, :size], old[name][row, :size])
            total = (new["segment_ids"][row] > 0).sum()
            own = texts[old["index"][row]][0]
            frame = len(tokenizer.between)
            assert total - size <= len(own) * (budget + frame)
            more = new["token_ids"][row, size:total].tolist()
            expected = []
            for text in own:
                ids = tokenizer.pieces([text])[0].ids[:budget]
                room = 48 - size - len(expected) - frame
                if ids and room >= 1:
                    expected += [*tokenizer.between[len(tokenizer.after) :], *ids[:room], *tokenizer.after]
            assert more == expected
            assert (new["position_ids"][row, size:total] == np.arange(size, total)).all()
            assert (new["type_ids"][row, size:total] == tokenizer.pair_type).all()
            assert (new["token_ids"][row, total:] == tokenizer.pad_id).all()


def asked(numbers):
    return [parse_record(question(i), f"test:{row}") for row, i in enumerate(numbers, 1)]


def test_a_question_reads_its_entity_s_facts_and_in_the_control_another_s(host, knowledge):
    records, plugin = asked(range(4)), make_plugin({"name": "retrieved_text"}, hidden_size=16, knowledge_dim=8)
    examples = task_examples(make_task("cloze"), plugin, records, host, knowledge, max_length=None, buckets=1)

    def shown(donors=None):
        given = attach_knowledge(examples, plugin, records, host, knowledge, donors).buckets[0]
        rows = [row[row != host.tokenizer.pad_id] for row in given["token_ids"]]
        return [host.tokenizer.decode(row) for row in rows]

    assert shown()[1] == "[CLS] city1 is in [MASK]. [SEP] city1 is in land1 [UNK] city1 [UNK] city2 [SEP]"
    assert shown(np.array([1, 0, 3, 2]))[1].startswith("[CLS] city1 is in [MASK]. [SEP] city0 [UNK] a place in land0")
    bare = make_plugin({"name": "retrieved_text", "drop_answers": True}, hidden_size=16, knowledge_dim=8)
    text = attach_knowledge(examples, bare, records, host, knowledge)
    assert (
        mean_length(examples)
        < mean_length(text)
        < mean_length(attach_knowledge(examples, plugin, records, host, knowledge))
    )


def test_texts_serve_several_examples_of_a_record(host, knowledge):
    records = [parse_record(sentence(i, i + 1), f"test:{i}") for i in range(3)]
    plugin = make_plugin({"name": "retrieved_text", "entities": 2}, hidden_size=16, knowledge_dim=8)
    comparison = Comparison(host, make_task("mention_masked_lm"), None, Placement.single(), batch_size=9)
    _, alone = comparison.host_alone(records, knowledge)
    _, found = comparison.with_plugin(plugin, knowledge, records)
    assert found["pieces"].tolist() == alone["pieces"].tolist() and (found["lost"] != alone["lost"]).all()


def test_a_host_that_is_trained_with_texts_reads_them(world, tmp_path, knowledge):
    text = {"name": "retrieved_text", "budget": 20}
    host = {
        "kind": "host",
        "task": "cloze",
        "base": str(world / "host"),
        "data": (str(world / "train.jsonl"),),
        "train": (("host/.*", "train"),),
        "plugin": text,
        "knowledge": str(knowledge.folder),
        "fit": {"batch_size": 20, "steps": 120, "checkpoint_every": 120, "optimizer": {"learning_rate": 0.01}},
    }
    rows = {"text": text, "without": text | {"drop_answers": True}}
    table = evaluate_stage(world, rows, host="@made")
    table["domains"]["cities"] |= {"knowledge": str(knowledge.folder), "reference_data": ()}
    found = run_experiment({"stages": {"made": host, "table": table}}, tmp_path / "run")["table"]["cities"]
    assert found["text"] >= 0.8 > max(found["host"], found["without"], found["shuffled"])
    assert found["shuffled_follows_vector"] >= 0.8


def test_a_method_with_parameters_needs_its_folder(world, tmp_path):
    with pytest.raises(InputError, match="method: map_tuning has parameters; train it in a stage plugin"):
        method_without_parameters({"name": "kformer"} | {"name": "map_tuning"}, hidden_size=16, where="method")
    table = evaluate_stage(world, {"text": {"name": "retrieved_txt"}})
    with pytest.raises(InputError, match=r"cities\.plugins\.text\.name: .* did you mean retrieved_text"):
        run_experiment({"stages": {"table": table}}, tmp_path / "run")
    table = evaluate_stage(world, {"text": {"name": "retrieved_text", "budget": 0}})
    with pytest.raises(InputError, match="budget 0 must be 1 or more"):
        run_experiment({"stages": {"table": table}}, tmp_path / "run")
