"""How votes are read: a relation that tells one thing says nothing of another, and any of them serve."""

import numpy as np
import pytest

from kinject.knowledge import KnowledgeBase, readings
from kinject.knowledge.space import graph_part, votes
from kinject.knowledge.vectors import Vectors
from kinject.knowledge.write import Entries, write_entries

PLACES, SIZES, TOWNS, DIM = 6, 3, 300, 6


@pytest.fixture
def made(tmp_path):
    """Towns: three numbers tell the place, three the size; both relations are noughts, so a vote is the tail itself."""
    rng = np.random.default_rng(0)
    places = np.concatenate([2 * rng.normal(size=(PLACES, 3)), np.zeros((PLACES, 3))], axis=1)
    sizes = np.concatenate([np.zeros((SIZES, 3)), rng.normal(size=(SIZES, 3))], axis=1)
    place, size = np.arange(TOWNS) % PLACES, rng.integers(SIZES, size=TOWNS)
    towns = places[place] + sizes[size] + 0.05 * rng.normal(size=(TOWNS, DIM))
    stored = np.concatenate([places, sizes, towns]).astype(np.float32)
    first = PLACES + SIZES
    triples = [[first + i, 0, place[i]] for i in range(TOWNS)] + [
        [first + i, 1, PLACES + size[i]] for i in range(TOWNS)
    ]
    triples = np.array(triples, np.int32)
    ids = [*(f"P{i}" for i in range(PLACES)), *(f"S{i}" for i in range(SIZES)), *(f"T{i}" for i in range(TOWNS))]
    part = graph_part("transe", np.zeros((2, DIM)), stored, triples)
    entries = Entries(ids, triples=triples, relations=["in", "size"])
    folder = write_entries(tmp_path / "kb", entries, Vectors(stored, parts=(part,)), name="towns")
    return KnowledgeBase.open(folder), places, sizes


def vector(base, one):
    return base.gather(base.rows([one]))[0][0]


def test_each_relation_is_read_for_what_it_tells(made):
    base, places, sizes = made
    facts = {"both": [("in", "P2"), ("size", "S1")], "place": [("in", "P2")], "size": [("size", "S1")]}
    base.add([{"id": one, "triples": some} for one, some in facts.items()])
    np.testing.assert_allclose(vector(base, "both"), places[2] + sizes[1], atol=0.15)
    middle = base.gather(np.arange(PLACES + SIZES, base.size - 3))[0].mean(axis=0)
    np.testing.assert_allclose(vector(base, "place")[:3], places[2][:3], atol=0.15)
    np.testing.assert_allclose(vector(base, "place")[3:], middle[3:], atol=0.2, err_msg="of its size nothing is known")
    np.testing.assert_allclose(vector(base, "size")[3:], sizes[1][3:], atol=0.15)
    weighted = (places[2] + sizes[1]) / 2
    assert np.abs(vector(base, "both") - weighted).max() > 0.5, "a mean of votes would be half of either"


def test_they_are_kept_and_where_they_are_too_large_the_mean_serves(made, monkeypatch):
    base, places, sizes = made
    base.add([{"id": "N1", "triples": [("in", "P2"), ("size", "S1")]}])
    kept = base.folder.with_name("kb.readings")
    before = (kept / "space.npz").stat().st_mtime_ns
    again = KnowledgeBase.open(base.folder)
    again.add([{"id": "N2", "triples": [("in", "P2"), ("size", "S1")]}])
    assert (kept / "space.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(vector(again, "N1"), vector(again, "N2"))
    many = [{"id": f"M{i}", "triples": [("in", "P2"), ("size", "S1")]} for i in range(600)]
    again.add(many)
    np.testing.assert_allclose(vector(again, "M599"), vector(again, "N1"), atol=1e-5)
    monkeypatch.setattr(readings, "WIDEST", DIM - 1)
    again.compact()
    wide = KnowledgeBase.open(base.folder)
    wide.add([{"id": "N3", "triples": [("in", "P2"), ("size", "S1")]}])
    between = vector(wide, "N3") @ (places[2] + sizes[1]) / ((places[2] + sizes[1]) ** 2).sum()
    assert 0.2 < between < 0.9, "somewhere on the way"


def test_where_nothing_can_be_written_beside_the_base_it_is_learned_each_time(made):
    base, places, sizes = made
    base.folder.with_name("kb.readings").write_text("a file in its place")
    base.folder.with_name("kb.told").write_text("a file in its place")
    base.add([{"id": "N1", "triples": [("in", "P2"), ("size", "S1")]}])
    np.testing.assert_allclose(vector(base, "N1"), places[2] + sizes[1], atol=0.15)
    assert base.add([{"id": "N2", "description": "words"}]).placed[0].by == ""


@pytest.fixture
def repeated():
    """Towns of two numbers, the second by half the place's and half the size's; five relations repeat the place."""
    rng = np.random.default_rng(1)
    places, sizes = rng.normal(size=(40, 2)), np.array([[0.0, -1.0], [0.0, 1.0]])
    place, size = rng.integers(40, size=TOWNS), rng.integers(2, size=TOWNS)
    towns = places[place] * (1, 0.5) + sizes[size] * 0.5 + 0.1 * rng.normal(size=(TOWNS, 2))
    stored = np.concatenate([places, sizes, towns]).astype(np.float32)
    triples = [[42 + i, relation, place[i]] for i in range(TOWNS) for relation in range(5)]
    triples = np.array(triples + [[42 + i, 5, 40 + size[i]] for i in range(TOWNS)], np.int32)
    return graph_part("transe", np.zeros((6, 2)), stored, triples), stored, triples


def placed(part, stored, triples, reading):
    """Every town made of its triples."""
    made = votes(part, triples[:, 1], stored[triples[:, 2]], True)
    return readings.read_votes(reading, TOWNS, triples[:, 0] - 42, triples[:, 1], made, np.ones(len(triples), bool))


def test_what_several_relations_repeat_counts_once(repeated, monkeypatch):
    weighed = readings.learn(*repeated)
    monkeypatch.setattr(readings, "_weighed", lambda part, reading, vectors, triples: reading)
    plain = readings.learn(*repeated)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.nanmedian(weighed.gain / plain.gain, axis=(2, 3))
    assert (weights[1, :5] < 0.7).all() and weights[1, 5] > 2 * weights[1, :5].max(), weights[1]
    errors = [((placed(*repeated, one) - repeated[1][42:]) ** 2).mean() for one in (weighed, plain)]
    assert errors[0] < 0.9 * errors[1], errors


def test_what_an_earlier_rule_learned_is_learned_anew(made, monkeypatch):
    base, *_ = made
    monkeypatch.setattr(readings, "VERSION", readings.VERSION - 1)
    base.add([{"id": "N1", "triples": [("in", "P2")]}])
    kept = base.folder.with_name("kb.readings") / "space.npz"
    before = kept.stat().st_mtime_ns
    monkeypatch.undo()
    KnowledgeBase.open(base.folder).add([{"id": "N2", "triples": [("in", "P2")]}])
    assert kept.stat().st_mtime_ns != before


def test_a_relation_that_came_later_is_no_evidence_after_compaction_either(made):
    base, places, sizes = made
    base.add([{"id": "N1", "triples": [("in", "P2"), ("mayor", "P3")]}])
    base.compact()
    again = KnowledgeBase.open(base.folder)
    again.add([{"id": "N2", "triples": [("in", "P2"), ("size", "S1"), ("mayor", "P3")]}])
    np.testing.assert_allclose(vector(again, "N2"), places[2] + sizes[1], atol=0.15)


def test_few_entities_teach_the_weights_of_wide_vectors(repeated, monkeypatch):
    whole = readings.learn(*repeated)
    monkeypatch.setattr(readings, "WORK", 6 * 4 * 100)  # numbers of a hundred towns
    some = readings.learn(*repeated)
    assert not np.array_equal(some.gain, whole.gain)
    np.testing.assert_allclose(some.gain, whole.gain, rtol=0.5, atol=0.05)


def test_vectors_that_are_all_alike_teach_nothing_and_break_nothing():
    triples = np.array([(2, 0, 0), (3, 0, 1), (4, 0, 0), (2, 1, 1)], np.int32)
    stored = np.ones((5, 2), np.float32)
    learned = readings.learn(graph_part("transe", np.zeros((2, 2)), stored, triples), stored, triples)
    assert all(np.isfinite(one).all() for one in learned)
