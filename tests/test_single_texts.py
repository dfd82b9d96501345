"""One text of a classifier, with plugins, where ONNX Runtime begins at its ids and slots: the answers of XLA."""

import dataclasses
import shutil

import numpy as np
import pytest
from served import Served

import kinject
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.models.seams import Plugin
from kinject.plugins.k_adapter import KAdapter
from kinject.plugins.map_tuning import MapTuning
from kinject.serving import single
from kinject.serving.routing import Routed

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
LABELS = ["no", "yes", "so"]
TASK = "sequence_classification"


def mentioned(text, *entities, **more):
    spans = [(text.index(name), name, entity) for name, entity in entities]
    mentions = [{"start": start, "end": start + len(name), "entity": entity} for start, name, entity in spans]
    return {"text": text, "mentions": mentions, **more}


TEXTS = [
    mentioned("city1 is in land1 .", ("city1", "Q1")),
    mentioned("city2 is near city3 and city2 .", ("city2", "Q2"), ("city3", "Q3")),
    mentioned("city4 is in land1 .", ("city4", "Q4"), pair="city4 is near ."),
    mentioned("city5 is in land1 .", ("city5", "nobody")),
    "the land1 .",
    mentioned("city6 is in " + "land1 " * 80, ("city6", "Q6")),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    made = Served(tmp_path_factory.mktemp("single"))
    made.host(TASK, "classification", LABELS)
    return made


@pytest.fixture
def hosts(served):
    folder = served.host(TASK, "classification", LABELS)
    return [kinject.Host.load(folder, engine=engine) for engine in ("jax", "onnxruntime")]


def same(hosts, texts=TEXTS, **options):
    """The answers one by one, the first host's by XLA."""
    made = [[host.predict(text, **options) for text in texts] for host in hosts]
    for one, other in zip(*made, strict=True):
        assert [label.label for label in one.labels] == [label.label for label in other.labels]
        assert (one.entities, one.truncated, one.host_alone) == (other.entities, other.truncated, other.host_alone)
        for ours, theirs in ((one.labels, other.labels), (one.before or (), other.before or ())):
            np.testing.assert_allclose([each.score for each in ours], [each.score for each in theirs], atol=1e-5)
    return made[1]


def scores(answers):
    return np.array([dict(one.labels[i][:2] for i in range(3))["yes"] for one in answers])


@pytest.mark.parametrize("method", ["map_tuning", "e_bert"])
def test_answers_with_a_plugin_are_those_of_xla(served, hosts, method):
    bare = scores(same(hosts))
    plugin = served.plugin(method, method={"name": method}, task=TASK)
    for host in hosts:
        host.plug(plugin, knowledge=served.knowledge, name="it")
    answers = same(hosts, compare=True)
    step = hosts[1].engine.programs.answer(hosts[1].engine.model(hosts[1]._arrangement.plugin).program, 5)
    assert step._halves is None and step.embeds  # no half of a program was made
    moved = np.abs(scores(answers) - bare)
    assert (moved[[0, 1, 2, 5]] > 1e-5).all()
    assert (moved[[3, 4]] == 0).all() and answers[3].host_alone and answers[5].truncated
    with hosts[1].unplugged():
        assert scores([hosts[1].predict(one) for one in TEXTS]).tolist() == bare.tolist()


@pytest.mark.parametrize("few", [64, 2])
def test_an_answer_by_itself_is_the_one_that_is_collected(served, hosts, monkeypatch, few):
    """With the host alone beside it, an answer goes the engine's way: the same bits, equal scores in their order."""
    monkeypatch.setattr(single, "FEW", few)  # beyond, all go that way
    made, predict = [], single.SingleTexts.predict
    monkeypatch.setattr(
        single.SingleTexts, "predict", lambda self, *some: made.append(predict(self, *some)) or made[-1]
    )
    host = hosts[1].plug(served.plugin("one", task=TASK), knowledge=served.knowledge, name="it")
    told = [{**mentioned("city1 is in land1 .", ("city1", "Q1")), "id": "mine"}, *TEXTS]
    for top in (1, 2, 5):
        for text in told:
            alone, beside = host.predict(text, top=top), host.predict(text, top=top, compare=True)
            assert alone == dataclasses.replace(beside, before=None)
    assert [one is not None for one in made] == [few == 64] * 3 * len(told)
    layers = host.engine.layers
    for values, numbers in (([0.5, 0.25, 0.25], [0, 1, 2]), ([0.25, 0.5, 0.5], [1, 2, 0])):
        made_up = np.array([[values]], np.float32)
        monkeypatch.setattr(layers, "scores_of", lambda batch, slots, made_up=made_up: (made_up, made_up))
        for one in (host.predict(TEXTS[0]), host.predict(TEXTS[0], compare=True)):
            assert [label.label for label in one.labels] == [LABELS[number] for number in numbers]
    for bad in (np.nan, np.inf):
        bad_scores = np.array([[[0.5, bad, 0.5]]], np.float32)
        monkeypatch.setattr(layers, "scores_of", lambda batch, slots, bad=bad_scores: (bad, bad))
        with pytest.raises(InputError, match="not finite"):
            host.predict(TEXTS[0])


def test_slots_are_made_once_an_entity_and_swapped_with_the_plugin(served, hosts, monkeypatch):
    asked = []
    make = single.SingleTexts._made
    monkeypatch.setattr(single.SingleTexts, "_made", lambda self, rows: asked.append(rows) or make(self, rows))
    plugins = [served.plugin(name, seed=seed, task=TASK) for name, seed in (("one", 1), ("two", 2))]
    for host in hosts:
        host.plug(plugins[0], knowledge=served.knowledge, name="it")
    first = scores(same(hosts, TEXTS[:2]))
    known = len(asked)
    assert asked[:known] == [[1], [2, 3]]
    again = scores(same(hosts, TEXTS[:2]))
    assert asked[known:] == [[], []] and again.tolist() == first.tolist()
    compiled = hosts[1].engine.programs.compiled
    for host in hosts:
        host.plug(plugins[1], knowledge=served.knowledge, name="it")
    assert np.abs(scores(same(hosts, TEXTS[:2])) - first).max() > 1e-4
    assert hosts[1].engine.programs.compiled == compiled  # a swap compiles nothing
    for kept in (1, 2, 3):  # what is kept is bounded, and a text may name what is kept and what is new
        monkeypatch.setattr(single, "KEPT", kept)
        more = [mentioned("city2 is near city7 .", ("city2", "Q2"), ("city7", "Q7"))]
        same(hosts, [*TEXTS, *more, *TEXTS, *more])
        assert len(hosts[1].engine._single_texts[False]._known) <= max(kept, 2)


@pytest.mark.parametrize("length", [0, 3, 65])
def test_a_length_that_the_host_does_not_have_is_refused_as_ever(served, length):
    folder, told = served.host(TASK, "classification", LABELS), []
    for engine in ("jax", "onnxruntime"):
        with pytest.raises(InputError, match=f"{length} is not a length of this host") as refused:
            kinject.Host.load(folder, engine=engine, max_length=length).predict("land1 .")
        told.append(str(refused.value))
    assert told[0] == told[1]


def test_a_revision_and_two_bases_are_read_as_ever(served, hosts, tmp_path):
    folder = shutil.copytree(served.knowledge, tmp_path / "kb")
    base = KnowledgeBase.open(folder)
    for host in hosts:
        host.plug(served.plugin("one", task=TASK), knowledge=base, name="it")
    text = mentioned("city1 is in land1 .", ("city1", "new"))
    old = scores(same(hosts, [text]))
    KnowledgeBase.open(folder).add([{"id": "new", "label": "new"}], vectors={"new": np.ones(base.dim)})
    assert all(host.refresh() for host in hosts)
    assert np.abs(scores(same(hosts, [text])) - old).max() > 1e-6
    served.other_base()
    other = served.plugin("other", seed=3, knowledge="biology5", task=TASK)
    text = mentioned("city1 is near city2 .", ("city1", "Q1"), ("city2", "Q110"))
    alone = scores(same(hosts, [text]))
    for host in hosts:
        host.plug(other, knowledge=served.folder / "biology5", name="other")
    assert np.abs(scores(same(hosts, [text])) - alone).max() > 1e-6


def test_a_method_says_itself_that_it_maps_entities_alone():
    class Shifted(MapTuning):
        def embed(self, embeddings, batch, key=None):
            return super().embed(embeddings, batch, key) + 1.0

    class Named(MapTuning):
        """Overrides nothing."""

    class Noted(MapTuning):
        def prepare(self, examples, records, host, knowledge):
            return examples

    assert not Shifted.maps_entities and not Noted.maps_entities
    assert Named.maps_entities and not Plugin.maps_entities and not KAdapter.maps_entities
    assert single.SingleTexts.takes(None) and not single.SingleTexts.takes(Shifted(hidden_size=8, knowledge_dim=4))
    members = [Named(hidden_size=8, knowledge_dim=4), Shifted(hidden_size=8, knowledge_dim=4)]
    assert [Routed(some, np.arange(len(some))).maps_entities for some in (members[:1], members)] == [True, False]
