"""Stage `text_vectors` over passages, and E-BERT by the labels of entities: no words and no corpus of one's own."""

import numpy as np
import pytest
from tiny_world import CITIES, VOCABULARY, run_experiment, write_base, write_host

from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.inference.occurrences import Reading, build_from_text
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.plugins.store import load_plugin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_vectors")
    write_host(folder / "host", layers=1)
    write_base(folder / "kb")
    triples = np.array([[i, i % 2, (i + 1) % CITIES] for i in range(CITIES)], np.int32)
    about = {"name": "facts", "ids": [f"Q{i}" for i in range(CITIES)], "labels": [f"City{i}" for i in range(CITIES)]}
    vectors = np.random.default_rng(0).normal(size=(CITIES, 8)).astype(np.float32)
    write_knowledge(folder / "facts", **about, vectors=vectors, triples=triples, relations=["in", "near"])
    return folder


def test_passages_are_read_as_a_corpus(folder):
    """The stage's vectors are those of the command; it needs no file but what the stage before it wrote."""
    templates = {"in": "[tail] is a place in [head] .", "near": "[head] is far of [tail] ."}
    said = {"kind": "passages", "knowledge": str(folder / "facts"), "templates": templates}
    made = {"kind": "text_vectors", "host": str(folder / "host"), "texts": ("@said/passages.jsonl",), "least": 3}
    found = run_experiment({"seed": 0, "stages": {"said": said, "pelt": made}}, folder / "run")
    assert found["pelt"] == {"entities": CITIES, "vectors": CITIES}
    host = open_host(folder / "host", head="masked_lm")
    base = KnowledgeBase.open(folder / "run" / "pelt" / "knowledge")
    again = build_from_text(folder / "again", host, [folder / "run/said/passages.jsonl"], Reading(least=3))
    assert np.array_equal(base.vectors, KnowledgeBase.open(again).vectors) and base.dim == 16
    assert base.entity(0).id == "Q0" and base.entity(0).label == "City0"
    with pytest.raises(InputError, match=r"stages\.pelt\.texts: @other/x names no stage"):
        run_experiment({"stages": {"said": said, "pelt": made | {"texts": ("@other/x",)}}}, folder / "wrong")


def test_labels_are_the_words_where_vectors_come_without(folder):
    """Entities called as the host spells a piece of its own are what the matrix is fitted by; others are not."""
    host = open_host(folder / "host")
    table = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...], np.float64)
    labels = ["land1", "city3", "far", "farawayaway", "land1", "nowhere", "", "place", *(f"city{i}" for i in range(20))]
    vectors = np.random.default_rng(1).normal(size=(len(labels), 6)).astype(np.float32)
    ids = [f"E{i}" for i in range(len(labels))]
    write_knowledge(folder / "graph", name="graph", ids=ids, vectors=vectors, labels=labels)
    fit = {"kind": "e_bert", "host": str(folder / "host"), "knowledge": str(folder / "graph")}
    found = run_experiment({"seed": 0, "stages": {"fit": fit}}, folder / "fitted")
    shared = [labels.index(word) for word in dict.fromkeys(labels) if word in VOCABULARY]
    assert found["fit"]["shared_words"] == len(shared) == 23
    aims = table[[VOCABULARY.index(labels[row]) for row in shared]]
    expected = np.linalg.lstsq(vectors[shared].astype(np.float64), aims, rcond=None)[0].astype(np.float32)
    plugin = load_plugin(folder / "fitted" / "fit", host=host.identity).plugin
    np.testing.assert_array_equal(np.asarray(plugin.kernel[...]), expected)
