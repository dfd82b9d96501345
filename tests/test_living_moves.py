"""A changed fact moves its entity by what the new fact says and the old one did not."""

import numpy as np
import pytest

from kinject.knowledge import KnowledgeBase
from kinject.knowledge.space import graph_part
from kinject.knowledge.vectors import Vectors
from kinject.knowledge.write import Entries, write_entries

DIM = 8


@pytest.fixture
def base(tmp_path):
    """Cities C0… in K0… and near S0…; both relations are translations, and each city is a little off."""
    rng = np.random.default_rng(0)
    tails = rng.normal(size=(8, DIM)).astype(np.float32)  # K0 … K3, S0 … S3
    relations = rng.normal(size=(2, DIM)).astype(np.float32)
    which = np.arange(20) % 4
    cities = ((tails[which] - relations[0]) + (tails[4 + which] - relations[1])) / 2 + 0.1 * rng.normal(size=(20, DIM))
    stored = np.concatenate([tails, cities]).astype(np.float32)
    triples = [[8 + i, 0, which[i]] for i in range(20)] + [[8 + i, 1, 4 + which[i]] for i in range(20)]
    ids = [*(f"K{i}" for i in range(4)), *(f"S{i}" for i in range(4)), *(f"C{i}" for i in range(20))]
    part = graph_part("transe", relations, stored, np.array(triples, np.int32))
    entries = Entries(ids, triples=np.array(triples, np.int32), relations=["in", "near"])
    return KnowledgeBase.open(write_entries(tmp_path / "kb", entries, Vectors(stored, parts=(part,)), name="moves"))


def vector(base, one):
    return base.gather(base.rows([one]))[0][0]


def test_it_goes_as_far_as_the_fact_and_keeps_what_else_it_is(base):
    before = {one: vector(base, one) for one in ("C0", "C1", "K0", "K3", "S0", "S2")}
    (placed,) = base.edit(triples=[("C0", "in", "K3")]).placed
    np.testing.assert_allclose(vector(base, "C0"), before["C0"] + before["K3"] - before["K0"], atol=1e-5)
    assert (placed.id, placed.by, placed.evidence) == ("C0", "changed triples", 1) and 0 <= placed.trust <= 1
    assert np.array_equal(vector(base, "C1"), before["C1"])
    base.edit(triples=[("C0", "in", "K0"), ("C0", "near", "S2")])
    np.testing.assert_allclose(vector(base, "C0"), before["C0"] + before["S2"] - before["S0"], atol=1e-5)
    base.edit(triples=[("C0", "near", "S0")])
    np.testing.assert_allclose(vector(base, "C0"), before["C0"], atol=1e-5, err_msg="there and back again")


def test_a_fact_that_comes_or_goes_places_anew(base):
    before = vector(base, "C1")
    placed = base.edit(triples=[("C0", "in", "K3"), ("C1", "twin", "C2")], drop=[("C0", "near", "S0")]).placed
    assert {one.id: one.by for one in placed} == {"C0": "triples"}, "the space knows nothing of twins"
    assert np.array_equal(vector(base, "C1"), before)
    assert base.edit(triples=[("C3", "in", "nowhere")]).placed[0].waiting == 1
    (placed,) = base.edit(triples=[("C4", "in", "K3")], vectors={"C4": np.ones(DIM)}).placed
    assert placed.by == "given" and vector(base, "C4").tolist() == [1] * DIM


def test_a_description_places_in_a_graph_too(tmp_path):
    """Words tell the kind and the place, and vectors are the sum of both: a regression finds them."""
    rng = np.random.default_rng(0)
    kinds, places = ("port", "hotel", "zoo"), ("oslo", "ghent", "lima", "rome")
    table = {word: rng.normal(size=DIM) for word in (*kinds, *places)}
    pairs = [(kinds[i % 3], places[i % 4]) for i in range(120)]
    stored = np.array([table[kind] + table[place] for kind, place in pairs]) + 0.05 * rng.normal(size=(120, DIM))
    ids = [f"E{i}" for i in range(120)]
    texts = [f"a {kind} in {place}" for kind, place in pairs]
    entries = Entries(ids, labels=ids, descriptions=texts, triples=np.array([[0, 0, 1]]), relations=["near"])
    base = KnowledgeBase.open(write_entries(tmp_path / "kb", entries, Vectors(stored.astype("f4")), name="graph"))
    new = {"id": "N1", "description": "a zoo in ghent"}
    placed = base.add([new, {"id": "N2", "description": "nothing of the sort"}, {**new, "id": "N3"}]).placed
    assert [(one.id, one.by) for one in placed] == [("N1", "description"), ("N2", ""), ("N3", "description")]
    assert 0.9 < placed[0].trust <= 1 and base.gather(base.rows(["N2"]))[1].tolist() == [False]
    np.testing.assert_allclose(vector(base, "N1"), table["zoo"] + table["ghent"], atol=0.2)
    base.edit([{"id": "N1", "description": "a port in lima"}])
    np.testing.assert_allclose(vector(base, "N1"), table["port"] + table["lima"], atol=0.2)
    assert (tmp_path / "kb.told").is_dir() and base.compact() == 2
    np.testing.assert_allclose(vector(base, "N3"), table["zoo"] + table["ghent"], atol=0.2)
