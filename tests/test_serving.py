"""Serving: a host with and without plugins answers texts, in order, with few programs, and says why."""

import dataclasses
import itertools
import json
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from served import Served
from tiny_world import question, sentence

import kinject
from kinject.data.pipeline import Feed
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.host import knowledge_identity, open_host, trained_head
from kinject.inference.program import evaluate, split_program
from kinject.knowledge.base import KnowledgeBase
from kinject.linking import Span
from kinject.plugins.store import load_plugin, save_plugin
from kinject.serving import Refused
from kinject.serving.programs import ladder
from kinject.serving.routing import JoinedKnowledge
from kinject.tasks.base import make_task

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def cloze(served):
    """A host that the tests share; each leaves it unplugged."""
    return kinject.Host.load(served.host(), batch_size=4, window=8)


@pytest.fixture
def host(cloze):
    yield cloze
    for name in cloze.plugged:
        cloze.unplug(name)


def asked(i):
    return {key: value for key, value in question(i).items() if key != "label"}


def mixed(count):
    """Questions of lengths from 7 to 40 tokens, in no order of length."""
    some = [asked(i) for i in range(count)]
    for i in range(0, count, 3):
        some[i]["text"] += " is far ." * (1 + i % 4 * 2)
    return some


def same(one, other):
    """Answers with the same labels and, to rounding, the same scores."""
    assert [each.label for each in one.labels] == [each.label for each in other.labels]
    np.testing.assert_allclose([each.score for each in one.labels], [each.score for each in other.labels], rtol=1e-4)


def bits(predictions):
    return [one.labels for one in predictions]


def test_importing_kinject_is_quick():
    code = (
        "import kinject, sys; print([one for one in ('jax', 'numpy', 'torch', 'transformers') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and {"Host", "Plugin", "Prediction"} <= set(dir(kinject))
    with pytest.raises(AttributeError, match="no attribute 'Hots'"):
        kinject.Hots  # noqa: B018


# ---- plugged and unplugged --------------------------------------------------------------------------------------


def test_unplugged_is_the_host_bit_for_bit(served, host):
    questions = mixed(9)
    alone = bits(host.predict(questions))
    host.plug(served.plugin(), knowledge=served.knowledge)
    plugged = list(host.predict(questions, compare=True))
    assert host.plugged == ("geo",) and bits(plugged) != alone
    assert [one.before for one in plugged] == alone
    with host.unplugged():
        assert bits(host.predict(questions)) == alone
        inside = host.stream(questions)  # what counts is what was plugged in when it was asked
    assert bits(inside) == alone and bits(host.predict(questions)) == bits(plugged)
    host.unplug("geo")
    assert host.plugged == () and bits(host.predict(questions)) == alone


def test_a_record_is_one_text(served, host):
    record = parse_record(question(1), "test:1")
    assert host.predict(record).labels == host.predict([record])[0].labels


def test_answers_are_the_evaluations(served, host):
    """The same host and plugin through the evaluation's own path, which is given the answers."""
    records = [parse_record(question(i), f"test:{i}") for i in range(9)]
    task, ready = make_task("cloze"), open_host(served.host())
    base, plugin = KnowledgeBase.open(served.knowledge), load_plugin(served.plugin()).plugin
    program, params = split_program(ready.loaded.host, plugin, task)
    feed = Feed(task.examples(records, ready.encoder(None), base), base.gather)
    _, found = evaluate(program, params, feed, 4)
    host.plug(served.plugin(), knowledge=served.knowledge)
    labels = [one.label for one in host.predict([asked(i) for i in range(9)])]
    assert labels == [ready.tokenizer.decode([piece]) for piece in found["predicted"].tolist()]


def test_a_plugin_of_the_same_shape_compiles_nothing(served, host):
    questions = mixed(9)
    host.plug(served.plugin(), knowledge=served.knowledge)
    first = bits(host.predict(questions))
    programs, compiled = host.engine.programs.compiled, len(COMPILED)
    assert programs and compiled
    before = host.engine.model(host._arrangement.plugin)[1]
    host.unplug("geo").plug(served.plugin("other", seed=5), knowledge=served.knowledge)
    second = bits(host.predict(questions))
    assert first != second
    assert host.engine.programs.compiled == programs and len(COMPILED) == compiled
    after = host.engine.model(host._arrangement.plugin)[1]  # the host is not put onto the devices again
    assert {path for path in after if after[path] is not before[path]} == {path for path in after if "plugin/" in path}


def test_order_ids_and_lengths(host):
    """However texts are sorted, answers come in the order of the questions, and are those of each alone."""
    questions = [{**one, "id": f"q{i}"} for i, one in enumerate(mixed(19))]
    together = list(host.predict(questions))
    assert [one.id for one in together] == [one["id"] for one in questions]
    assert [one.line for one in together] == list(range(1, 20))
    for i in (0, 3, 9, 18):
        same(next(host.stream(questions[i])), together[i])


def test_reading_ahead_is_bounded(host):
    taken = itertools.count()
    stream = ((next(taken), asked(i % 60))[1] for i in range(100_000))
    answers = host.stream(stream)
    next(answers)
    assert next(taken) <= 3 * host.engine.window


def test_ladder():
    assert ladder(100) == (16, 24, 32, 40, 48, 56, 64, 80, 96, 100) and ladder(20) == (16, 20) and ladder(8) == (8,)
    assert len(ladder(512)) == 19


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_changes_nothing(served, host):
    host.plug(served.plugin(), knowledge=served.knowledge)
    with pytest.raises(InputError, match="it was trained on the knowledge base 'cities'"):
        host.plug(served.plugin(), knowledge=served.other_base(dim=8), name="wrong")
    with pytest.raises(InputError, match="it reads the knowledge base 'cities', and none is named"):
        host.plug(served.plugin(), name="none")
    with pytest.raises(InputError, match="reads the same knowledge base as geo"):
        host.plug(served.plugin("other", seed=5), knowledge=served.knowledge)
    adapter = served.plugin("adapter", knowledge=None, method={"name": "k_adapter", "layers": [0], "heads": 2})
    with pytest.raises(InputError, match="plugged in alone"):
        host.plug(adapter)
    with pytest.raises(InputError, match="did you mean geo"):
        host.unplug("ge")
    assert host.plugged == ("geo",)
    stranger = kinject.Host.load(served.host(seed=7, task="cloze"))
    with pytest.raises(InputError, match="it was trained through the encoder"):
        stranger.plug(served.plugin(), knowledge=served.knowledge)


def test_bad_inputs_are_told_and_the_rest_answered(host):
    inputs = [asked(1), {"text": "no blank"}, "[MASK] is far .", {"id": 7, "tokens": 3}, asked(2)]
    answers = list(host.predict(inputs, errors="yield"))
    assert [isinstance(one, Refused) for one in answers] == [False, True, False, True, False]
    assert answers[1].error.startswith("input:2: field text has 0 [MASK]") and answers[1].line == 2
    assert answers[3].to_json() == {"id": 7, "error": answers[3].error, "line": 4}
    same(answers[4], next(host.stream(asked(2))))
    stream = host.stream(inputs)
    next(stream)
    with pytest.raises(InputError, match=r"^input:2: field text has 0 \[MASK\]"):
        next(stream)


def test_a_refusal_is_made_of_json_like_values_and_travels_between_processes(host):
    (refused,) = host.predict([{"id": 7, "text": "no blank"}], errors="yield")
    assert refused == Refused(1, refused.error, 7)
    assert json.loads(json.dumps(dataclasses.asdict(refused))) == {"line": 1, "error": refused.error, "id": 7}
    found = pickle.loads(pickle.dumps(refused))
    assert found == refused and str(found.cause) == refused.error and found.cause.problem == refused.cause.problem
    assert repr(refused) == f"Refused(line=1, error={refused.error!r}, id=7)"


def test_a_task_without_labels_is_refused(served):
    with pytest.raises(InputError, match="few_shot_relations cannot be served"):
        kinject.Host.load(served.host(), task="few_shot_relations", task_options={})
    with pytest.raises(InputError, match="there is no task"):
        kinject.Host.load(served.host(), task="clozy")


def test_the_head_that_came_with_a_plugin(served):
    labels = ["near", "far", "a"]
    tuned = served.host("sequence_classification_tuned", "classification", labels)
    loaded = open_host(tuned, head="classification")
    facts = {"task": "sequence_classification", "task_options": {}, "labels": labels}
    folder = save_plugin(
        served.folder / "with_head",
        load_plugin(served.plugin()).plugin,
        host=loaded.identity,
        knowledge=knowledge_identity(KnowledgeBase.open(served.knowledge)),
        config={},
        metrics={},
        head=trained_head(loaded.loaded.host, **facts),
    )
    one = {"text": "city3 is far .", "mentions": [{"start": 0, "end": 5, "entity": "Q3"}]}
    own = kinject.Host.load(tuned, task="sequence_classification").predict(one)
    other = kinject.Host.load(served.host(), head=folder)  # the masked-LM host has the same encoder
    same(next(other.stream(one)), own)
    assert other.plug(folder, knowledge=served.knowledge).predict(one).labels != own.labels
    with pytest.raises(InputError, match="its head was trained for sequence_classification, not for cloze"):
        kinject.Host.load(served.host(), head=folder, task="cloze")
    with pytest.raises(InputError, match="brings none along"):
        kinject.Host.load(served.host(), head=served.plugin())


# ---- several plugins --------------------------------------------------------------------------------------------


def test_each_entity_goes_through_the_plugin_that_knows_it(served, host):
    geo, bio = served.plugin(), served.plugin("bio", seed=2, knowledge=served.other_base().name)
    two = {"text": "city3 is in [MASK] . city7", "mentions": [{"start": 0, "end": 5, "entity": "Q3"}]}
    two["mentions"].append({"start": 21, "end": 26, "entity": "Q105"})
    questions = [asked(3), asked(55), {**asked(3), "mentions": [{"start": 0, "end": 5, "entity": "Q105"}]}, two]
    alone = list(host.predict(questions))
    by_geo = list(host.plug(geo, knowledge=served.knowledge).predict(questions))
    by_bio = list(host.unplug("geo").plug(bio, knowledge=served.other_base()).predict(questions))
    host.unplug("bio").plug(geo, knowledge=served.knowledge).plug(bio, knowledge=served.other_base())
    both = list(host.predict(questions))
    assert [[one.plugin for one in each.entities] for each in both] == [["geo"], ["geo"], ["bio"], ["geo", "bio"]]
    assert both[2].entities[0].name == "other Q105" and both[0].entities[0].name == "city3"
    same(both[0], by_geo[0])
    same(both[1], by_geo[1])  # both bases know Q55: the first that was plugged in
    same(both[2], by_bio[2])
    assert len({one[3].score for one in (alone, by_geo, by_bio, both)}) == 4
    explained = host.predict(two, explain=True)
    why = explained.explanation.contributions
    assert [one.entity for one in why] == ["Q3", "Q105"] and all(one.without and one.gradient for one in why)
    host.unplug("geo").unplug("bio").plug(bio, knowledge=served.other_base()).plug(geo, knowledge=served.knowledge)
    same(next(host.stream(questions[1])), by_bio[1])


def test_joined_knowledge(served):
    bases = [KnowledgeBase.open(one) for one in (served.knowledge, served.other_base())]
    joined = JoinedKnowledge(bases)
    rows = joined.rows(["Q105", "Q3", "Q55", "nobody"])
    assert rows.tolist() == [60 + 15, 3, 55, -1] and joined.owners(rows).tolist() == [1, 0, 0, -1]
    vectors, found = joined.gather(rows)
    assert found.tolist() == [True, True, True, False] and vectors.shape == (4, 8)
    np.testing.assert_array_equal(vectors[0, :5], bases[1].vectors[15])
    assert not vectors[0, 5:].any() and not vectors[3].any()


# ---- linking ----------------------------------------------------------------------------------------------------


def test_linkers(served, host):
    def short(text):
        return [(0, 5, "Q3")] if text.startswith("city3") else []

    def long(text):
        return [Span(0, 9, "Q4", 0.5)] if text.startswith("city3 far") else []

    host.plug(served.plugin(), knowledge=served.knowledge, linker=short)
    found = list(host.predict(["city3 is in [MASK] .", "city3 far [MASK]", asked(9)]))
    assert [one.entities[0].entity for one in found] == ["Q3", "Q3", "Q9"]
    same(found[0], next(host.stream(asked(3))))
    bare = {"text": "city3 is in [MASK] .", "mentions": [{"start": 0, "end": 5}]}
    same(next(host.stream(bare)), found[0])  # a mention without entity gets that of the span that it is
    assert next(host.stream({**bare, "mentions": []})).entities == ()
    bio = served.plugin("bio", seed=2, knowledge=served.other_base().name)
    host.plug(bio, knowledge=served.other_base(), linker=long)
    assert [one.entity for one in next(host.stream("city3 far [MASK]")).entities] == ["Q4"]
    wrong = next(host.stream("a [MASK]", errors="yield", linker=lambda text: [(0, 99, "Q1")]))
    assert "linked[0]: start 0, end 99" in wrong.error


# ---- why --------------------------------------------------------------------------------------------------------


def test_without_an_entity(served, host):
    host.plug(served.plugin(), knowledge=served.knowledge)
    two = {"text": "city3 is in [MASK] . city7", "mentions": [{"start": 0, "end": 5, "entity": "Q3"}]}
    one = {
        **two,
        "mentions": [
            *two["mentions"],
            {"start": 21, "end": 26, "entity": "Q7"},
            {"start": 9, "end": 11, "entity": "?"},
        ],
    }
    found, less = host.predict([one, two], explain=True, top=40)
    by_entity = {each.entity: each for each in found.explanation.contributions}
    assert list(by_entity) == ["Q3", "Q7"]
    less = {label.label: label.score for label in less.labels}[found.label]
    assert by_entity["Q7"].without == pytest.approx(found.score - less, abs=1e-5)
    assert by_entity["Q3"].without != by_entity["Q7"].without


def test_gradient_times_input_is_a_derivative(served):
    """Against the answer of plugins whose map is a little longer and shorter, hence their slots' vectors too."""
    types = ["town", "river", "hill"]
    host = kinject.Host.load(served.host("entity_typing", "multi_label", types))
    one = {"text": "city3 is far .", "mentions": [{"start": 0, "end": 5, "entity": "Q3"}]}
    logits = []
    for factor in (1.01, 0.99):
        plugin = kinject.Plugin.load(served.plugin("typed", task="entity_typing"))
        mapper = plugin.stored.plugin.mapper
        mapper.kernel[...], mapper.bias[...] = mapper.kernel[...] * factor, mapper.bias[...] * factor
        host.plug(plugin, knowledge=served.knowledge, name="scaled")
        labels = {label.label: label.score for label in host.predict(one).labels}
        logits.append({name: np.log(score / (1 - score)) for name, score in labels.items()})
    host.unplug("scaled").plug(served.plugin("typed", task="entity_typing"), knowledge=served.knowledge)
    found = next(host.stream(one, explain=True))
    slope = (logits[0][found.label] - logits[1][found.label]) / 0.02
    assert found.explanation.contributions[0].gradient == pytest.approx(slope, rel=2e-2, abs=1e-3)


# ---- other tasks ------------------------------------------------------------------------------------------------

NAMES = {"head": {"start": 0, "end": 5, "entity": "Q3"}, "tail": {"start": 12, "end": 17, "entity": "Q7"}}
TEXT = {"text": "city3 is in city7 ."}
TASKS = {
    "sequence_classification": (
        "classification",
        ["near", "far"],
        {**TEXT, "mentions": [NAMES["head"]], "label": "far"},
    ),
    "relation_classification": (
        "classification",
        ["a", "b", "c"],
        {**TEXT, "mentions": [*NAMES.values()], "label": "b"},
    ),
    "marker_entity_typing": ("mention", ["town", "river"], {**TEXT, "mentions": [NAMES["head"]], "labels": ["town"]}),
    "token_classification": (
        "token_classification",
        ["O", "B", "I"],
        {**sentence(3, 7), "tags": ["B", *"OOOOO", "B", "O"]},
    ),
    "multiple_choice": ("multiple_choice", None, {**TEXT, "mentions": [], "choices": ["far", "near", "a"], "label": 1}),
    "cloze_choices": ("masked_lm", None, {**question(3), "choices": ["far", "land3", "land1"], "label": "far"}),
    "lama": ("masked_lm", None, {**question(3), "relation": "P1"}),
    "entity_questions": ("masked_lm", None, {"text": "city3 is in", "mentions": [NAMES["head"]], "answers": ["land1"]}),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_with_labels(served, name):
    """Without their answers, questions are answered as the evaluation, which has them, says."""
    head, labels, value = TASKS[name]
    folder = served.host(name, head, labels)
    host = kinject.Host.load(folder)
    task = make_task(name).for_host(open_host(folder, head=head).loaded, "host").for_evaluation()
    ready = open_host(folder, head=head)
    program, params = split_program(ready.loaded.host, None, task)
    examples = task.bare_examples([parse_record(value, "test:1")], ready.encoder(None), None)
    _, found = evaluate(program, params, Feed(examples), 1)
    answer = {"label", "labels", "answers", "tags"} & value.keys()
    one = next(host.stream({key: field for key, field in value.items() if key not in answer}))
    record = parse_record(value, "test:1")
    names = (
        [task.choice_name(i, record, ready.tokenizer) for i in range(len(labels or ()) or ready.tokenizer.vocab_size)]
        if "choices" not in value
        else value["choices"]
    )
    if task.multi_label:
        assert {label.label for label in one.labels} == {
            each for each, chosen in zip(names, found["chosen"][0], strict=True) if chosen
        }
        assert all(0 <= label.score <= 1 for label in one.labels)
    elif name == "token_classification":
        assert [label.label for label in one.labels] == [names[i] for i in found["chosen"][0]]
    else:
        assert one.label == names[int(found["predicted" if name == "cloze_choices" else "chosen"][0])]
        if name != "lama" and name != "entity_questions":
            assert sum(label.score for label in one.labels) == pytest.approx(1, abs=1e-5)
    if name == "token_classification":
        with pytest.raises(InputError, match="one label is explained"):
            next(host.stream(value, explain=True))
