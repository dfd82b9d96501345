"""Each file of a knowledge base is held to what knowledge.json says of it, with a seal and without one."""

import hashlib
import json
import os
import pickle
import shutil

import marisa_trie
import numpy as np
import pyarrow as pa
import pytest
from fault_world import flip

from kinject import integrity
from kinject.errors import InputError
from kinject.integrity import SEAL
from kinject.knowledge import Entity, KnowledgeBase, write_knowledge
from kinject.knowledge import manifest as layout

COUNT, DIM = 300, 3
IDS = [f"Q{row}" for row in range(COUNT)]
VECTORS = np.random.default_rng(0).normal(size=(COUNT, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A base with everything that one may have; copied before it is changed."""
    return write_knowledge(
        tmp_path_factory.mktemp("files") / "kb",
        name="all",
        ids=IDS,
        vectors=VECTORS,
        has_vector=np.arange(COUNT) != 7,
        labels=[f"city {row}" for row in range(COUNT)],
        triples=np.array([[0, 1, 1], [2, 0, 0], [299, 1, 2]]),
        relations=["P1", "P2"],
    )


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "kb")


@pytest.fixture
def unsealed(folder):
    (folder / SEAL).unlink()
    return folder


def told_anew(folder, **fields):
    """The base without a seal, where knowledge.json names the files as they are now."""
    (folder / SEAL).unlink(missing_ok=True)
    path = folder / "knowledge.json"
    told = json.loads(path.read_text()) | fields
    for name in told["files"]:
        content = (folder / name).read_bytes()
        told["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(told))
    return folder


def table_of(folder, change):
    """The base with another entities.arrow."""
    with pa.OSFile(str(folder / "entities.arrow")) as file:
        table = change(pa.ipc.open_file(file).read_all())
    with pa.OSFile(str(folder / "entities.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return told_anew(folder)


def read_whole(*args, **options):
    raise AssertionError("the files were read whole")


@pytest.mark.parametrize("sealed", [True, False])
def test_hundreds_of_entities_are_read_as_they_were_written(folder, sealed):
    if not sealed:
        (folder / SEAL).unlink()
    kb = KnowledgeBase.open(folder)
    assert kb.verify() == kb.fingerprint and kb.has_names
    assert kb.rows([*IDS[::-1], "Q300"]).tolist() == [*range(COUNT)[::-1], -1]
    assert kb.entity(299) == Entity("Q299", "city 299") and kb.triples.tolist()[2] == [299, 1, 2]
    assert kb.present(np.arange(COUNT)).sum() == COUNT - 1


def test_a_base_of_one_entity_without_names(tmp_path):
    kb = KnowledgeBase.open(write_knowledge(tmp_path / "kb", name="one", ids=["Q1"], vectors=VECTORS[:1]))
    assert kb.rows(["Q1", "Q2", "Q3"]).tolist() == [0, -1, -1]
    assert not kb.has_names and kb.entities is None and kb.relations == []
    assert kb.entity(0) == Entity("Q1")


@pytest.mark.parametrize("name", ["key_of_row.npy", "row_of_key.npy", "ids.marisa", "has_vector.npy"])
def test_the_index_of_an_unsealed_base_is_checked_on_opening(unsealed, name):
    flip(unsealed / name, -9)
    with pytest.raises(InputError, match=f"{name}: its content is not what was sealed"):
        KnowledgeBase.open(unsealed)


@pytest.mark.parametrize("name", ["key_of_row.npy", "row_of_key.npy"])
def test_an_index_of_many_blocks_is_checked_on_opening(tmp_path, monkeypatch, name):
    monkeypatch.setattr(integrity, "BLOCK", 256)  # what has more bytes is checked when it is first read
    folder = write_knowledge(tmp_path / "kb", name="kb", ids=IDS, vectors=VECTORS)
    flip(folder / name, -9)
    with pytest.raises(InputError, match=f"{name}: its content is not what was sealed"):
        KnowledgeBase.open(folder)


@pytest.mark.parametrize(("name", "read"), [("entities.arrow", "entities"), ("relations.json", "relations")])
def test_words_of_an_unsealed_base_are_checked_when_they_are_read(unsealed, name, read):
    flip(unsealed / name, 40)
    kb = KnowledgeBase.open(unsealed)
    with pytest.raises(InputError, match=f"{name}: its content is not what was sealed"):
        getattr(kb, read)
    with pytest.raises(InputError, match=rf"{name}: content differs from what knowledge\.json says; copy the whole"):
        kb.verify()


@pytest.mark.parametrize("digit", "0f")
def test_verify_holds_a_file_to_the_hash_that_is_told(unsealed, digit):
    path = unsealed / "knowledge.json"
    told = json.loads(path.read_text())
    told["files"]["relations.json"]["sha256"] = digit * 64
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"relations\.json: content differs from what knowledge\.json says"):
        KnowledgeBase.open(unsealed).verify()


def test_verify_reads_again_what_the_seal_lists(folder):
    kb = KnowledgeBase.open(folder)
    kb.verify()
    flip(folder / "knowledge.json", 40)
    with pytest.raises(InputError, match=r"knowledge\.json: its content is not what was sealed"):
        kb.verify()


def test_verify_reads_blocks_of_a_size(folder, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 100 * 4 * DIM)
    sizes, add = [], layout.Fingerprint.add_vectors

    def counted(self, block):
        sizes.append(len(block))
        add(self, block)

    monkeypatch.setattr(layout.Fingerprint, "add_vectors", counted)
    kb = KnowledgeBase.open(folder)
    assert kb.verify() == kb.fingerprint and sizes == [100, 100, 100]


@pytest.mark.parametrize("digit", "0f")
def test_an_unsealed_base_that_claims_another_fingerprint_is_refused(folder, digit):
    kb = KnowledgeBase.open(told_anew(folder, fingerprint=digit * 64))
    for check in (kb.check_claim, kb.verify):
        with pytest.raises(InputError, match=rf"fingerprint is [0-9a-f]{{64}}, knowledge\.json says {digit}"):
            check()


def test_a_claim_is_checked_once_and_that_of_a_sealed_base_never(folder, monkeypatch):
    sealed = KnowledgeBase.open(folder)
    unsealed = KnowledgeBase.open(told_anew(folder))
    unsealed.check_claim()
    monkeypatch.setattr(layout, "file_hash", read_whole)
    sealed.check_claim()
    unsealed.check_claim()
    with pytest.raises(AssertionError, match="read whole"):
        KnowledgeBase.open(folder).check_claim()


def test_a_claim_for_vectors_that_take_long_to_read_is_left_to_verify(folder, monkeypatch):
    monkeypatch.setattr(integrity, "READ_WHOLE", VECTORS.nbytes)
    kb = KnowledgeBase.open(told_anew(folder, fingerprint="0" * 64))
    kb.check_claim()
    with pytest.raises(InputError, match="fingerprint is"):
        kb.verify()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (VECTORS.astype(np.float16), r"is <f2 \(300, 3\), knowledge.json asks for <f4 \(300, 3\)"),
        (VECTORS.astype(np.float64), r"is <f8 \(300, 3\)"),
        (VECTORS.astype(">f4"), r"is >f4 \(300, 3\)"),
        (VECTORS[:, 0], r"is <f4 \(300,\)"),
        (VECTORS[:, :, None], r"is <f4 \(300, 3, 1\)"),
        (VECTORS[1:], r"is <f4 \(299, 3\)"),
        (VECTORS[:, :2], r"is <f4 \(300, 2\)"),
        (np.asfortranarray(VECTORS), r"is <f4 \(300, 3\)"),
        (VECTORS.astype(object), "is not a readable .npy file: .*Python objects"),
    ],
)
def test_vectors_that_are_not_what_the_manifest_says_are_refused(folder, array, says):
    np.save(folder / "vectors.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=rf"vectors\.npy: {says}"):
        KnowledgeBase.open(told_anew(folder))


class Unpickled:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["vectors.npy", "key_of_row.npy", "row_of_key.npy", "has_vector.npy", "triples.npy"])
def test_a_pickle_is_refused_and_not_executed(folder, tmp_path, name):
    (folder / name).write_bytes(pickle.dumps(Unpickled(tmp_path / "executed")))
    with pytest.raises(InputError, match=rf"{name}: is not a readable \.npy file"):
        KnowledgeBase.open(told_anew(folder))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (3,)])
def test_triples_have_three_columns(folder, shape):
    np.save(folder / "triples.npy", np.zeros(shape, np.int32))
    with pytest.raises(InputError, match=r"triples\.npy: is <i4 .* asks for <i4 \(-1, 3\)"):
        KnowledgeBase.open(told_anew(folder))


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + 1])
def test_an_index_of_more_or_fewer_ids_is_refused(folder, count):
    (folder / "ids.marisa").unlink()
    marisa_trie.Trie([f"Q{row}" for row in range(count)]).save(str(folder / "ids.marisa"))
    with pytest.raises(InputError, match=rf"ids\.marisa: holds {count} ids, knowledge\.json says 300"):
        KnowledgeBase.open(told_anew(folder))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.slice(0, 299), r"has 299 rows and lacks columns \[\]; knowledge.json says 300 rows"),
        (lambda table: pa.concat_tables([table, table.slice(0, 1)]), r"has 301 rows and lacks columns \[\]"),
        (lambda table: table.drop_columns(["label"]), r"has 300 rows and lacks columns \['label'\]"),
        (lambda table: table.select(["id", "label"]), r"has 300 rows and lacks columns \['aliases', 'description'\]"),
    ],
)
def test_a_table_of_names_that_lacks_something_is_refused(folder, change, says):
    kb = KnowledgeBase.open(table_of(folder, change))
    with pytest.raises(InputError, match=rf"entities\.arrow: {says}"):
        kb.entity(0)


def test_a_table_of_names_may_have_further_columns(folder):
    kb = KnowledgeBase.open(table_of(folder, lambda table: table.append_column("rank", pa.array(range(COUNT)))))
    assert kb.entity(299).label == "city 299"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("entities.arrow", b"ARROW1 no more", "is not a readable Arrow file"),
        ("entities.arrow", b"", "cannot be read: "),
        ("relations.json", b"", "cannot be read: "),
        ("relations.json", b"[{", "is not JSON: "),
        ("relations.json", b"\xff", "is not JSON: "),
        ("ids.marisa", b"none", "is not a readable id index: "),
    ],
)
def test_what_cannot_be_read_is_named(folder, name, content, says):
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^{folder / name}: {says}.*; copy the whole folder again"):
        kb = KnowledgeBase.open(told_anew(folder))
        _ = kb.entities, kb.relations
