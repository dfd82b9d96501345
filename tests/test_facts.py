"""Facts of entities and records in words: triples by head, BM25, records' own, answers left out."""

import json

import numpy as np
import pytest
from fact_world import write_facts
from tiny_world import CITIES, LANDS, question

from kinject.data.facts import FactReader
from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.knowledge.base import write_knowledge
from kinject.knowledge.facts import Facts, TextIndex


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_facts(tmp_path_factory.mktemp("facts") / "base")


def record(value, where="test:1"):
    return parse_record(value, where)


def city(i, form="all"):
    said = [f"city{i}: a place in land{i % LANDS}"] if i % 2 == 0 and form != "triples" else []
    told = [f"city{i} is in land{i % LANDS}", f"city{i} near city{(i + 1) % CITIES}"] if form != "description" else []
    return said + told


@pytest.mark.parametrize("form", ["all", "triples", "description"])
def test_an_entity_s_facts_are_its_description_and_its_own_triples(base, form):
    asked = [7, 4, 4, 59, CITIES, -1]
    assert Facts(base, form).of(asked) == [*(city(i, form) for i in (7, 4, 4, 59)), [], []]
    assert Facts(base, form).of([]) == []


def test_the_index_is_made_once_mapped_and_made_anew_for_another_base(base, tmp_path, caplog):
    facts = Facts(base)
    assert all(isinstance(part, np.memmap) for part in facts._by_head)
    folder = base.folder.with_name("base.facts")
    before = (folder / "order.npy").stat().st_mtime_ns
    Facts(base)
    assert (folder / "order.npy").stat().st_mtime_ns == before
    (folder / "made_of.json").write_text(json.dumps({"triples.npy": "of another"}))
    np.save(folder / "order.npy", np.zeros(3, np.int64))
    assert Facts(base).of([7]) == [city(7)]
    (folder / "order.npy").write_bytes(b"cut")
    assert Facts(base).of([7]) == [city(7)] and "it is made anew" in caplog.text
    (folder / "order.npy").write_bytes(b"cut")
    (folder / "seal.json").unlink()
    with pytest.raises(InputError, match=r"base\.facts: cannot be made or read: .*; delete it"):
        Facts(base)
    (folder / "made_of.json").unlink()
    assert Facts(base).of([7]) == [city(7)]


def test_a_base_without_names_speaks_in_ids(tmp_path):
    write_knowledge(
        tmp_path / "bare",
        name="bare",
        ids=["a", "b"],
        vectors=np.zeros((2, 2), np.float32),
        triples=np.array([[0, 0, 1]], np.int32),
        relations=["knows"],
        source="made up",
        license="none",
    )
    from kinject.knowledge.base import KnowledgeBase

    assert Facts(KnowledgeBase.open(tmp_path / "bare")).of([0, 1]) == [["a knows b"], []]


def test_bm25_finds_a_planted_entity_and_nothing_where_no_word_is_shared(base):
    pytest.importorskip("bm25s")
    index = TextIndex(base)
    rows = index.search(["what is near city31 ?", "nothing of this kind", "city44", ""], 3)
    assert rows.shape == (4, 3) and rows.dtype == np.int32
    assert set(rows[0].tolist()) >= {30, 31} and rows[2, 0] in (43, 44)
    assert rows[1].tolist() == rows[3].tolist() == [-1, -1, -1]
    assert isinstance(index._index.scores["data"], np.memmap)
    assert TextIndex(base).search(["city44"], 500).shape == (1, 500)


def test_linked_entities_come_first_then_those_that_the_words_find(base):
    pytest.importorskip("bm25s")
    linked = record({**question(7), "text": "city7 is in [MASK] near city31 ."})
    unlinked = record({**question(7), "mentions": [], "text": "in [MASK] near city31 ."})
    two = FactReader(base, groups=2).read([linked, unlinked])
    assert two[0][0][0] == city(7) and two[0][0][1] in (city(30), city(31))
    assert len(two[1]) == 1 and sorted(two[1][0]) == sorted([city(30), city(31)])
    assert FactReader(base, groups=2, retrieve=False).read([linked, unlinked]) == [[[city(7)]], [[]]]
    assert FactReader(base, groups=1).read([linked]) == [[[city(7)]]]


def test_records_are_taken_at_their_word(base):
    choices = {"text": "who ?", "choices": ["a", "b"], "label": 0}
    own, shared = {**choices, "facts": [["x"], ["y", "z"]]}, {**choices, "facts": [["x"]]}
    for knowledge in (None, base):
        found = FactReader(knowledge).read([record(own), record(shared)])
        assert found == [[[["x"]], [["y", "z"]]], [[["x"]], [["x"]]]]
    with pytest.raises(InputError, match="test:1: it carries no facts, and no knowledge base is named"):
        FactReader(None).read([record(choices)])
    for wrong in ("x", ["x"], [[1]], [["x"], ["y"], ["z"]]):
        with pytest.raises(InputError, match="test:1: field facts is"):
            FactReader(base).read([record({**choices, "facts": wrong})])


def test_each_choice_is_a_query_of_its_own(base):
    pytest.importorskip("bm25s")
    asked = record({"text": "which is it ?", "choices": ["city12", "city40"], "label": 0})
    found = FactReader(base, groups=2).read([asked])[0]
    assert city(12) in found[0] and city(40) in found[1] and found[0] != found[1]


def test_facts_that_hold_the_answer_are_left_out_when_asked(base):
    kept = FactReader(base, drop_answers=True).read([record(question(4))])
    assert kept == [[[["city4 near city5"]]]] and len(city(4)) == 3
    several = record({**question(4), "label": 0, "answers": ["NEAR"]})
    kept = FactReader(base, drop_answers=True).read([several])
    assert kept == [[[[fact for fact in city(4) if "near" not in fact]]]]
