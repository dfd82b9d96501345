"""A knowledge base is written whole, opens without being loaded, and never answers silently with zeros."""

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject.errors import InputError
from kinject.integrity import SEAL
from kinject.knowledge import Entity, KnowledgeBase, write_knowledge

IDS = ["Q90", "Q1", "Q42", "é clair", "Q4"]


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, vectors):
    return write_knowledge(
        tmp_path / "kb",
        name="small",
        ids=IDS,
        vectors=vectors,
        labels=["Paris", "universe", "Douglas Adams", "éclair", ""],
        aliases=[["City of Light", "Paname"], [], ["DNA"], [], []],
        descriptions=["capital of France", "", "writer", "pastry", ""],
        triples=np.array([[0, 1, 1], [2, 0, 0]]),
        relations={"P1": "likes", "P2": "part of"},
        source="made up",
        license="CC0",
        metrics={"mrr": 0.5},
    )


def edit_manifest(folder, **fields):
    path = folder / "knowledge.json"
    manifest = json.loads(path.read_text())
    manifest.update(fields)
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value != "DROP"}))
    (folder / SEAL).unlink()


def test_round_trip_keeps_the_order_of_the_user(folder, vectors):
    kb = KnowledgeBase.open(folder)
    assert (kb.name, kb.size, kb.dim) == ("small", 5, 3)
    assert isinstance(kb.vectors, np.memmap)
    np.testing.assert_array_equal(kb.vectors, vectors)
    assert kb.rows(IDS).tolist() == [0, 1, 2, 3, 4]
    assert kb.rows(IDS).dtype == np.int32
    assert kb.ids(range(5)) == IDS
    assert kb.entity(0) == Entity("Q90", "Paris", ("City of Light", "Paname"), "capital of France")
    assert kb.entity(4) == Entity("Q4")
    assert kb.triples.tolist() == [[0, 1, 1], [2, 0, 0]]
    assert kb.relations == [{"id": "P1", "label": "likes"}, {"id": "P2", "label": "part of"}]
    assert (kb.manifest["license"], kb.manifest["metrics"]) == ("CC0", {"mrr": 0.5})
    assert kb.verify() == kb.fingerprint


def test_an_unknown_entity_is_reported_and_never_a_silent_zero(folder, vectors):
    kb = KnowledgeBase.open(folder)
    rows = kb.rows(["Q42", "Q", "Q421", "Q1"])
    assert rows.tolist() == [2, -1, -1, 1]
    gathered, found = kb.gather(rows.reshape(2, 2))
    assert gathered.shape == (2, 2, 3) and gathered.dtype == np.float32
    assert found.tolist() == [[True, False], [False, True]]
    np.testing.assert_array_equal(gathered[found], vectors[[2, 1]])
    assert not gathered[~found].any()
    assert kb.rows([]).shape == (0,) and kb.gather(np.zeros((2, 0), np.int32))[0].shape == (2, 0, 3)
    for rows in ([5], [-2]):
        with pytest.raises(InputError, match="there are 5 entities"):
            kb.gather(np.array(rows))
    with pytest.raises(InputError, match="row -1"):
        kb.ids([-1])
    with pytest.raises(InputError, match="not integers"):
        kb.gather(np.array([0.5]))
    with pytest.raises(TypeError):
        kb.rows("Q42")


def test_an_entity_without_a_vector_is_known_but_not_found(tmp_path, vectors):
    vectors[1] = np.nan  # whatever stands there is not read
    has = np.array([True, False, True, True, True])
    folder = write_knowledge(tmp_path / "kb", name="gaps", ids=IDS, vectors=vectors, has_vector=has)
    kb = KnowledgeBase.open(folder)
    rows = kb.rows(["Q1", "Q90"])
    gathered, found = kb.gather(rows)
    assert rows.tolist() == [1, 0] and found.tolist() == [False, True]
    assert not gathered[0].any()
    assert kb.verify() == kb.fingerprint
    zeroed = np.where(has[:, None], vectors, 0)
    full = write_knowledge(tmp_path / "full", name="full", ids=IDS, vectors=zeroed)
    assert KnowledgeBase.open(full).fingerprint != kb.fingerprint
    allowed = write_knowledge(tmp_path / "all", name="all", ids=IDS, vectors=zeroed, has_vector=np.ones(5, bool))
    assert KnowledgeBase.open(allowed).fingerprint == KnowledgeBase.open(full).fingerprint


def test_the_fingerprint_covers_vectors_and_ids_and_nothing_else(tmp_path, folder, vectors):
    kb = KnowledgeBase.open(folder)
    header = b"kinject knowledge 5 3 float32\n"
    assert (
        kb.fingerprint
        == hashlib.sha256(header + vectors.tobytes() + "Q90\nQ1\nQ42\né clair\nQ4\n".encode()).hexdigest()
    )
    variants = {
        "nameless": {"ids": IDS, "vectors": vectors},
        "reordered": {"ids": IDS[::-1], "vectors": vectors},
        "moved": {"ids": IDS, "vectors": vectors + 1},
        "half": {"ids": IDS, "vectors": vectors, "dtype": "float16"},
    }
    prints = {}
    for name, given_ in variants.items():
        prints[name] = KnowledgeBase.open(write_knowledge(tmp_path / name, name=name, **given_)).fingerprint
    assert prints.pop("nameless") == kb.fingerprint
    assert len({kb.fingerprint, *prints.values()}) == 4


def test_half_precision_is_kept_and_gathered_as_float32(tmp_path, vectors):
    folder = write_knowledge(tmp_path / "kb", name="half", ids=IDS, vectors=vectors.astype(np.float16))
    kb = KnowledgeBase.open(folder)
    assert kb.vectors.dtype == np.float16
    gathered, found = kb.gather(np.arange(5))
    assert gathered.dtype == np.float32 and found.all()
    np.testing.assert_array_equal(gathered, vectors.astype(np.float16).astype(np.float32))


def test_it_pickles_as_its_path(folder):
    kb = KnowledgeBase.open(folder)
    raw = pickle.dumps(kb)
    assert len(raw) < 1000
    assert pickle.loads(raw).rows(["Q42"]).tolist() == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "b", "a", "c", "b"]}, "id 'a' stands twice, in rows 0 and 2"),
        ({"ids": ["a", "b", "c"]}, "3 ids but 5 vectors"),
        ({"ids": ["a", "b", "", "c", "d"]}, "id '' of row 2"),
        ({"ids": ["a", "b", "c\n", "d", "e"]}, "of row 2"),
        ({"ids": ["a", "b", 7, "c", "d"]}, "id 7 of row 2"),
        ({"labels": ["x"]}, "5 ids but 1 labels"),
        ({"labels": ["x", "y", "z", "v", 3]}, "labels, descriptions or aliases"),
        ({"aliases": [["x"]] * 4}, "5 ids but 4 aliases"),
        ({"vectors": np.ones((5, 2), int)}, "not floating"),
        ({"vectors": np.ones(5, np.float32)}, "shape"),
        ({"vectors": np.full((5, 2), 1e6), "dtype": "float16"}, "row 0 .*not finite as float16"),
        ({"vectors": np.array([[1.0], [2], [3], [np.inf], [5]])}, "row 3 .*'é clair'.*not finite"),
        ({"dtype": "float64"}, "'float64'"),
        ({"name": " "}, "'name' is empty"),
        ({"triples": np.array([[0, 0, 5]]), "relations": ["r"]}, r"triple 0 is \[0, 0, 5\], but there are 5 entities"),
        (
            {"triples": np.array([[0, 1, 2]]), "relations": ["r"]},
            r"triple 0 is \[0, 1, 2\], but there are 5 entities and 1 relations",
        ),
        ({"triples": np.array([[0, 0, 2]])}, "come together"),
        ({"triples": np.array([[0, 0, 2]]), "relations": ["r", "r"]}, "'r' twice"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(tmp_path, vectors, change, message):
    given_ = {"name": "bad", "ids": IDS, "vectors": vectors, **change}
    with pytest.raises(InputError, match=message):
        write_knowledge(tmp_path / "kb", **given_)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_untouched(tmp_path, vectors):
    (tmp_path / "kb").mkdir()
    (tmp_path / "kb" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_knowledge(tmp_path / "kb", name="kb", ids=IDS, vectors=vectors)
    assert [path.name for path in (tmp_path / "kb").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "name",
    [
        "vectors.npy",
        "ids.marisa",
        "key_of_row.npy",
        "row_of_key.npy",
        "entities.arrow",
        "triples.npy",
        "relations.json",
    ],
)
def test_every_file_is_missed_cut_and_altered(folder, name):
    path = folder / name
    content = path.read_bytes()
    middle = len(content) - 8
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(InputError, match=f"{name}: its content is not what was sealed"):
        KnowledgeBase.open(folder).verify()
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name}: has {len(content) - 1} bytes"):
        KnowledgeBase.open(folder)
    path.unlink()
    with pytest.raises(InputError, match=f"{name}: is missing"):
        KnowledgeBase.open(folder)


def test_verify_sees_a_manifest_that_lies_consistently(folder, vectors):
    np.save(folder / "vectors.npy", vectors + 1)
    files = json.loads((folder / "knowledge.json").read_text())["files"]
    files["vectors.npy"]["sha256"] = hashlib.sha256((folder / "vectors.npy").read_bytes()).hexdigest()
    edit_manifest(folder, files=files)
    with pytest.raises(InputError, match="fingerprint is"):
        KnowledgeBase.open(folder).verify()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version is 2"),
        ({"fingerprint": "DROP"}, "'fingerprint' is missing"),
        ({"count": "5"}, "'count' is '5'"),
        ({"count": 0}, "not positive"),
        ({"dim": 4}, r"asks for <f4 \(5, 4\)"),
        ({"dtype": "float16"}, "asks for <f2"),
        ({"dtype": "int8"}, "'int8'"),
        ({"files": {}}, "does not name vectors.npy"),
        ({"has_vector": "../x.npy"}, "does not name ../x.npy"),
    ],
)
def test_open_believes_no_manifest_that_does_not_fit(folder, fields, message):
    edit_manifest(folder, **fields)
    with pytest.raises(InputError, match=message):
        KnowledgeBase.open(folder)


def test_open_names_what_is_not_a_knowledge_base(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        KnowledgeBase.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no knowledge\.json"):
        KnowledgeBase.open(tmp_path)
    (tmp_path / "knowledge.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        KnowledgeBase.open(tmp_path)


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, unique=True))
def test_any_text_may_be_an_id(tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp("any") / "kb"
    write_knowledge(folder, name="any", ids=ids, vectors=np.arange(len(ids), dtype=np.float32)[:, None])
    kb = KnowledgeBase.open(folder)
    assert kb.rows(ids).tolist() == list(range(len(ids)))
    assert kb.ids(range(len(ids))) == ids
    assert kb.verify() == kb.fingerprint


def test_opening_reads_no_table_and_importing_no_framework(tmp_path):
    count, dim = 200_000, 64  # 51 MB of vectors
    vectors = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    write_knowledge(tmp_path / "kb", name="big", ids=[f"Q{i}" for i in range(count)], vectors=vectors)
    program = """
import resource, sys
import kinject.knowledge
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kb = kinject.knowledge.KnowledgeBase.open(sys.argv[1])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 20_000, grown
assert kb.rows(["Q199999", "Q200000"]).tolist() == [199999, -1]
assert not {"torch", "transformers", "tensorflow", "jax"} & set(sys.modules), "imported for nothing"
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "kb")], check=True, timeout=1800)
