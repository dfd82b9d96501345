"""A knowledge base that grows: what comes is placed, what is old keeps its bits, and every revision can be read."""

import json
import pickle
import shutil

import numpy as np
import pytest

from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.knowledge.graph import GraphConfig
from kinject.knowledge.space import graph_part
from kinject.knowledge.vectors import Vectors, description_vectors, graph_vectors
from kinject.knowledge.write import Entries, write_entries
from kinject.linking import AliasLinker

COUNTRIES, CITIES, DIM = 4, 24, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Countries K0…, cities C0… "in" country i % 4, with vectors that are exactly tail - relation plus a little."""
    rng = np.random.default_rng(0)
    countries, relation = rng.normal(size=(COUNTRIES, DIM)), rng.normal(size=DIM)
    cities = countries[np.arange(CITIES) % COUNTRIES] - relation + 0.02 * rng.normal(size=(CITIES, DIM))
    ids = [f"K{i}" for i in range(COUNTRIES)] + [f"C{i}" for i in range(CITIES)]
    folder = write_knowledge(
        tmp_path_factory.mktemp("living") / "kb",
        name="small",
        ids=ids,
        vectors=np.concatenate([countries, cities]).astype(np.float32),
        labels=[f"name {one}" for one in ids],
        aliases=[[f"alias {one}"] for one in ids],
        triples=np.array([[COUNTRIES + i, 0, i % COUNTRIES] for i in range(CITIES)]),
        relations=["in"],
    )
    return folder, countries - relation


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "kb")


@pytest.fixture
def base(folder):
    return KnowledgeBase.open(folder)


def vector(base, one):
    (vector,), (found,) = base.gather(base.rows([one]))
    return vector if found else None


def test_what_comes_is_placed_by_its_triples_and_what_is_old_keeps_its_bits(base, made):
    before = base.gather(np.arange(base.size))[0].tobytes()
    change = base.add([{"id": "N1", "label": "New Town", "triples": [("in", "K2")]}])
    (placed,) = change.placed
    assert (placed.by, placed.evidence, placed.waiting) == ("triples", 1, 0) and placed.trust > 0.9
    np.testing.assert_allclose(vector(base, "N1"), made[1][2], atol=0.05)
    assert base.gather(np.arange(COUNTRIES + CITIES))[0].tobytes() == before
    assert base.entity(base.size - 1).label == "New Town" and base.triples[-1].tolist() == [28, 0, 2]
    assert (base.revision, base.size, len(base.vectors), base.vectors[28].shape) == (1, 29, 29, (DIM,))
    assert np.asarray(base.vectors).shape == (29, DIM) and base.entities.num_rows == 29


def test_readers_keep_their_revision_until_they_refresh(base, folder):
    reader = KnowledgeBase.open(folder)
    linker = AliasLinker(reader)
    first = base.add([{"id": "N1", "label": "New Town", "triples": [("in", "K2")]}])
    base.edit([{"id": "N1", "label": "Newer Town"}])
    assert first.revision == 1 and base.revision == 2
    assert reader.rows(["N1"]) == [-1] and reader.latest() is not reader
    assert linker("from New Town to name C3") == [(17, 24, "C3", 1.0)]
    assert reader.refresh() and not reader.refresh() and reader.revision == 2
    assert [one.entity for one in linker.refreshed(reader)("Newer Town, name c3, New Town")] == ["N1", "C3"]
    assert [one.entity for one in linker.refreshed(base.at(1))("Newer Town, name c3, New Town")] == ["C3", "N1"]
    assert linker.refreshed(reader).refreshed(reader)("NEW TOWN") == []
    assert base.at(1).entity(28).label == "New Town" and base.at(0).size == 28
    assert pickle.loads(pickle.dumps(base.at(1))).revision == 1
    with pytest.raises(InputError, match="there is no revision 7: its are 0 to 2"):
        base.at(7)


def test_an_entity_waits_for_what_it_names(base, made):
    change = base.add(["N1", {"id": "N2", "triples": [("in", "N1")]}], triples=[("N1", "in", "Z")])
    assert [(one.id, one.by, one.waiting) for one in change.placed] == [("N1", "", 2), ("N2", "", 1)]
    assert vector(base, "N1") is None and not base.has_vector[base.rows(["N1"])[0]]
    assert str(change.placed[0]) == "N1: it has no vector yet; 2 of its triples wait for what they name"
    change = base.add([{"id": "Z", "vector": np.ones(DIM)}])
    assert [(one.id, one.by) for one in change.placed] == [("Z", "given"), ("N1", "triples"), ("N2", "triples")]
    relation = np.ones(DIM) - vector(base, "N1")
    np.testing.assert_allclose(vector(base, "N2"), np.ones(DIM) - 2 * relation, atol=0.02)
    assert {tuple(one) for one in base.triples[-2:].tolist()} == {(28, 0, 30), (29, 0, 28)}


def test_a_changed_fact_moves_its_entity_and_no_other(base, made):
    before = base.gather(np.arange(base.size))[0]
    change = base.edit(triples=[("C0", "in", "K3")])
    after = base.gather(np.arange(base.size))[0]
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [COUNTRIES]
    np.testing.assert_allclose(after[COUNTRIES], made[1][3], atol=0.05)
    assert [one.id for one in change.placed] == ["C0"]
    assert [4, 0, 0] not in base.triples.tolist() and [4, 0, 3] in base.triples.tolist()
    base.edit(triples=[("C0", "in", "K0")])
    assert sorted(base.triples.tolist()) == sorted(base.at(0).triples.tolist())
    base.edit(drop=[("C0", "in", "K0")])
    assert vector(base, "C0") is None, "nothing is left that says where it lies"
    base.edit([{"id": "C1", "aliases": ["port"]}], vectors={"C2": np.zeros(DIM)})
    assert base.entity(5).label == "name C1" and base.entity(5).aliases == ("port",)
    assert not vector(base, "C2").any() and np.array_equal(vector(base, "C1"), before[5])


def test_what_is_removed_is_gone_and_after_compact_from_the_disk(base, folder):
    AliasLinker(base)
    base.add([{"id": "secret7", "label": "Secret Name", "triples": [("in", "K1")]}])
    open_before = KnowledgeBase.open(folder)
    base.remove(["secret7", "C4"])
    assert base.rows(["secret7", "C4"]).tolist() == [-1, -1] and vector(base.at(1), "secret7") is not None
    assert [one.entity for one in AliasLinker(base)("Secret Name, alias C4, alias C5")] == ["C5"]
    assert (base.triples != 8).all() and base.size == 29
    assert base.compact() == 2 and base.compact() == 0
    left = [one for one in folder.parent.rglob("*") if one.is_file()]
    assert not any(word in one.read_bytes() for one in left for word in (b"secret7", b"Secret Name", b"name C4"))
    assert base.size == 27 and base.verify() == base.fingerprint and KnowledgeBase.open(folder).revision == 2
    assert open_before.entity(28).label == "Secret Name" and open_before.ids([8]) == ["C4"]
    assert base.add([{"id": "secret7", "triples": [("in", "K1")]}]).revision == 3
    assert [one["kind"] for one in base.log()] == ["add", "remove", "add"]


def test_compact_keeps_what_it_is_told_to(base, folder, made):
    base.add([{"id": "N1", "label": "New Town", "triples": [("in", "Z")]}])
    base.edit([{"id": "C0", "description": "a port"}])
    base.remove(["C1"])
    grown = {one: base.at(one) for one in (2, 3)}
    assert base.compact(keep=1) == 2 and base.revision == 3
    for revision, old in grown.items():
        new = base.at(revision)
        assert new.fingerprint == old.fingerprint and new.space["id"] == old.space["id"]
        ids = [one for one in old.ids(range(old.size)) if old.rows([one])[0] >= 0]
        for got, wanted in zip(new.gather(new.rows(ids)), old.gather(old.rows(ids)), strict=True):
            np.testing.assert_array_equal(got, wanted)
        assert [new.entity(row) for row in new.rows(ids)] == [old.entity(row) for row in old.rows(ids)]
        named = [[base.ids([head])[0], base.ids([tail])[0]] for base in (new, old) for head, _, tail in base.triples]
        assert named[: len(named) // 2] == named[len(named) // 2 :]
    with pytest.raises(InputError, match="there is no revision 1"):
        base.at(1)
    assert [one.id for one in base.add(["Z"], vectors={"Z": np.ones(DIM)}).placed] == ["Z", "N1"]


def test_compact_deletes_what_is_its_own_alone(folder):
    (folder / "seal.json").unlink()  # a sealed folder with a file more is refused
    theirs = [folder / "note.txt", folder / "base" / "mine", folder / "revisions" / "1.txt"]
    base = KnowledgeBase.open(folder)
    base.add(["N1"], triples=[("N1", "in", "K1")])
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("keep me")
    assert base.compact() == 1 and base.add(["N2"]).revision == 2 and base.compact() == 1
    assert all(path.read_text() == "keep me" for path in theirs)
    assert {path.name for path in folder.iterdir()} == {"HEAD.json", "base", "revisions", "note.txt"}
    assert {path.name for path in (folder / "base").iterdir()} == {"000002", "mine"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda base: base.add(["C0"]), "entity 'C0': it is there already"),
        (lambda base: base.add([]), "there is nothing to add"),
        (lambda base: base.add([{"id": "N", "lable": "x"}]), "did you mean label"),
        (lambda base: base.add([{"id": "a\nb"}]), "is unusable"),
        (lambda base: base.add([{"id": "N", "aliases": "x"}]), "not a list of strings"),
        (lambda base: base.add(["N"], vectors={"N": np.ones(2)}), r"the vector has shape \(2,\)"),
        (lambda base: base.add(["N"], vectors={"N": np.full(DIM, np.nan)}), "not finite"),
        (lambda base: base.add(triples=[("X", "in", "Y")]), "neither of its entities is known"),
        (lambda base: base.add(["N", "N"]), "it stands twice"),
        (lambda base: base.edit([{"id": "N"}]), "it is not in small; add it first"),
        (lambda base: base.edit(drop=[("C0", "in", "K1")]), "it is not there"),
        (lambda base: base.remove(["N"]), "it is not in small"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(base, call, message):
    with pytest.raises(InputError, match=message):
        call(base)
    assert base.revision == 0 and not base.refresh()


@pytest.mark.parametrize(
    "name", ["revisions/000001.json", "revisions/000002.json", "revisions/000002.npy", "HEAD.json"]
)
def test_a_revision_that_was_tampered_with_is_refused(base, folder, name):
    base.add([{"id": "N1", "triples": [("in", "K2")]}])
    many = [{"id": f"M{i}", "vector": np.ones(DIM)} for i in range(3000)]
    base.add(many)
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"revisions|HEAD\.json"):
        KnowledgeBase.open(folder)


def test_a_pointer_of_another_base_is_refused(base, folder, tmp_path):
    base.add(["N1"], vectors={"N1": np.ones(DIM)})
    other = write_knowledge(tmp_path / "other", name="other", ids=["a"], vectors=np.ones((1, DIM), np.float32))
    shutil.copytree(folder / "revisions", other / "revisions")
    shutil.copy(folder / "HEAD.json", other)
    with pytest.raises(InputError, match="it follows"):
        KnowledgeBase.open(other)
    head = json.loads((folder / "HEAD.json").read_text())
    (folder / "HEAD.json").write_text(json.dumps({**head, "base": "../elsewhere"}))
    with pytest.raises(InputError, match="field 'base'"):
        KnowledgeBase.open(folder)


@pytest.mark.parametrize("method", ["transe", "rotate", "distmult"])
def test_each_graph_method_places_in_closed_form(method, tmp_path):
    """Heads that lie just where the method has them, given their tails, are found from one or two triples."""
    rng = np.random.default_rng(0)
    mean, deviation, size, dim = rng.normal(size=8), 0.7, 50, 8
    tails = rng.normal(size=(size, dim))
    relations = rng.normal(size=(2, dim // 2 if method == "rotate" else dim))
    if method == "transe":
        heads = tails - relations[0]
    elif method == "rotate":
        turned = (tails[:, :4] + 1j * tails[:, 4:]) * np.exp(-1j * relations[0])
        heads = np.concatenate([turned.real, turned.imag], axis=1)
    else:
        heads = 1.5 * tails * relations[0]
    stored = ((np.concatenate([heads, tails]) + 0.01 * rng.normal(size=(2 * size, dim)) - mean) / deviation).astype(
        "f4"
    )
    triples = np.array([[i, 0, size + i] for i in range(10, size)], np.int32)  # the first ten have none
    part = graph_part(method, relations, stored, triples, mean=mean, deviation=deviation)
    ids = [f"E{i}" for i in range(2 * size)]
    entries = Entries(ids, triples=triples, relations=["of", "never"])
    folder = write_entries(tmp_path / "kb", entries, Vectors(stored, parts=(part,)), name="graph")
    base = KnowledgeBase.open(folder)
    assert base.space["parts"] == [{"kind": method, "start": 0, "stop": dim}] and base.space["id"] != base.fingerprint
    facts = [[("of", f"E{size + i}")] for i in range(10)]
    facts[1] += [("never", "E60")]
    change = base.add([{"id": f"N{i}", "triples": some} for i, some in enumerate(facts)])
    np.testing.assert_allclose(base.gather(base.rows([f"N{i}" for i in range(10)]))[0], stored[:10], atol=0.15)
    assert [one.evidence for one in change.placed] == [1] * 10 and change.placed[0].trust > 0.95
    change = base.add(["N"], triples=[("N", "of", "E60"), ("N", "of", "E70")])
    assert change.placed[0].trust < 0.7, "its evidence does not agree"
    before = base.space["id"]
    base.compact()
    assert base.space["id"] == before and base.add(["M"], triples=[("M", "of", "E60")]).placed[0].trust > 0.95
    with np.load(base.stored.folder / "space.npz") as arrays:
        changed = {name: np.array(one) for name, one in arrays.items()}
    changed["0.relations"][0] += 1
    np.savez(base.stored.folder / "space.npz", **changed)
    with pytest.raises(InputError, match=r"space\.npz|seal"):
        KnowledgeBase.open(folder).add(["L"], triples=[("L", "of", "E60")])


def test_a_graph_that_is_trained_tells_its_space(tmp_path):
    """Entities added by the facts of those that were trained land nearest to their kind."""
    kind = np.arange(40) % 4
    triples = np.array([[4 + i, 0, kind[i]] for i in range(40)], np.int32)
    vectors = graph_vectors(
        triples, 44, 1, GraphConfig(method="rotate", dim=8, epochs=300, batch=40, negatives=8), seed=0
    )
    ids = [f"E{i}" for i in range(44)]
    entries = Entries(ids, triples=triples, relations=["is"])
    base = KnowledgeBase.open(write_entries(tmp_path / "kb", entries, vectors, name="graph"))
    base.add([{"id": f"N{i}", "triples": [("is", f"E{i}")]} for i in range(4)])
    means = np.stack([vectors.values[4:][kind == one].mean(axis=0) for one in range(4)])
    cosine = base.gather(base.rows([f"N{i}" for i in range(4)]))[0] @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    assert cosine.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_a_description_is_placed_as_it_was_made(tmp_path):
    texts = [f"a {kind} in {place}" for kind in ("hotel", "bakery", "port") for place in ("Oslo", "Ghent", "Lima")]
    made = description_vectors(texts, 5, tmp_path / "spool", seed=0)
    ids = [f"E{i}" for i in range(9)]
    entries = Entries(ids, labels=ids, descriptions=texts)
    base = KnowledgeBase.open(write_entries(tmp_path / "kb", entries, made, name="described"))
    change = base.add([{"id": "N1", "description": texts[4]}, {"id": "N2", "description": "a zoo in Lima"}])
    np.testing.assert_allclose(vector(base, "N1"), made.values[4], atol=1e-5)
    assert [(one.by, one.trust) for one in change.placed] == [("description", 1.0), ("description", 0.75)]
    base.edit([{"id": "E0", "description": texts[8]}])
    np.testing.assert_allclose(vector(base, "E0"), made.values[8], atol=1e-5)
    base.compact()
    base.add([{"id": "N3", "description": texts[4]}])
    np.testing.assert_array_equal(vector(base, "N3"), vector(base, "N1"))


def test_sentences_place_by_regression_on_known_entities(base, made):
    """A host whose output at a mention is a linear image of the vector: the regression finds it."""
    image = np.random.default_rng(1).normal(size=(DIM, 12))
    known = {f"C{i}": vector(base, f"C{i}")[None] @ image for i in range(CITIES)}
    new = np.stack([made[1][1]] * 2) @ image
    change = base.add(["N1"], read={**known, "N1": new})
    assert (change.placed[0].by, change.placed[0].evidence) == ("sentences", 2) and change.placed[0].trust > 0.9
    np.testing.assert_allclose(vector(base, "N1"), made[1][1], atol=0.1)
    with pytest.raises(InputError, match="they mention 2 entities that have a vector"):
        base.add(["N2"], read={"C1": known["C1"], "C2": known["C2"], "N2": new})
