"""Every format is read as its tool writes it, and a bad line is named by file and number."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase
from kinject.knowledge.importers import import_knowledge
from kinject.text_files import read_lines


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def save(path, array):
    np.save(path, array)
    return path


def put(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8", newline="")
    return path


def row(numbers, separator=" "):
    return separator.join(repr(float(number)) for number in numbers)


def read(folder):
    kb = KnowledgeBase.open(folder)
    assert kb.verify() == kb.fingerprint
    return kb


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_openke_rows_names_and_later_lines_override(tmp_path, vectors):
    table = save(tmp_path / "transe.npy", vectors)
    entities = put(tmp_path / "entity2id.txt", "3\nQ7\t2\nQ5 0\nQ6\t1\n")
    names = put(
        tmp_path / "entity_map.txt", "Paris\tx\tQ5\nRome\tQ6\nParis\tQ7\nparis\tQ5\nOslo\tQ99\nBonn\tQ6\nBonn\tQ99\n"
    )
    about = {"source": "THUNLP", "license": "MIT", "metrics": {"mrr": 0.3}}
    folder = import_knowledge("openke", tmp_path / "kb", vectors=table, entities=entities, names=names, **about)
    kb = read(folder)
    assert kb.ids(range(3)) == ["Q5", "Q6", "Q7"]
    np.testing.assert_array_equal(kb.vectors, vectors)
    assert [kb.entity(row).aliases for row in range(3)] == [("paris",), ("Rome",), ("Paris",)]
    assert kb.name == "kb" and kb.manifest["license"] == "MIT"
    assert kb.manifest["metrics"] == {"mrr": 0.3, "names": 3, "names_of_unknown_entities": 2}


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ("Q5\t0\nQ6\t1\nQ7\t2\n", "line 1: the count"),
        ("3\nQ5\t0\nQ6\nQ7\t2\n", "line 3: 'Q6' is not an id and a row"),
        ("3\nQ5\t0\nQ6\tone\nQ7\t2\n", "line 3: the row is 'one'"),
        ("3\nQ5\t0\nQ6\t-1\nQ7\t2\n", "line 3: the row is '-1'"),
        ("3\nQ5\t0\nQ6\t0\nQ7\t2\n", "line 3: row 0 belongs to both 'Q5' and 'Q6'"),
        ("3\nQ5\t0\nQ6\t1\nQ7\t3\n", "line 4: 'Q7' has row 3, there are 3 vectors"),
        ("2\nQ5\t0\nQ7\t2\n", "no id for 1 of 3 vectors, the first of them row 1"),
        ("4\nQ5\t0\nQ6\t1\nQ7\t2\n", "announces 4 entities and holds 3"),
        ("3\nQ5\t0\nQ5\t1\nQ7\t2\n", "id 'Q5' stands twice"),
    ],
)
def test_openke_names_the_bad_line(tmp_path, vectors, entities, message):
    table = save(tmp_path / "transe.npy", vectors)
    path = put(tmp_path / "entity2id.txt", entities)
    with pytest.raises(InputError, match=message):
        import_knowledge("openke", tmp_path / "kb", vectors=table, entities=path)
    assert not (tmp_path / "kb").exists() and not leftovers(tmp_path)


def test_openke_names_a_bad_line_of_names(tmp_path, vectors):
    files = {"vectors": save(tmp_path / "v.npy", vectors), "entities": put(tmp_path / "e", "3\na 0\nb 1\nc 2\n")}
    with pytest.raises(InputError, match=r"entity_map\.txt, line 2: 'Rome'"):
        import_knowledge("openke", tmp_path / "kb", names=put(tmp_path / "entity_map.txt", "A\tb\nRome\n"), **files)


def test_umls_has_the_fields_the_other_way_round(tmp_path, vectors):
    files = {"vectors": save(tmp_path / "transe.npy", vectors)}
    entities = put(tmp_path / "entities.tsv", "id\tcui\n1\tC0000002\n0\tC0000001\n2\tC0000003\n")
    kb = read(import_knowledge("umls", tmp_path / "kb", entities=entities, **files))
    assert kb.rows(["C0000001", "C0000002", "C0000003"]).tolist() == [0, 1, 2]
    entities = put(tmp_path / "bad.tsv", "id\tcui\n0\tC1\nC2\t1\n2\tC3\n")
    with pytest.raises(InputError, match=r"bad\.tsv, line 3: the row is 'C2'"):
        import_knowledge("umls", tmp_path / "other", entities=entities, **files)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("header", ["", "3 4\n"])
def test_word_vectors_with_and_without_counts(tmp_path, vectors, header, suffix):
    words = ["the", ". . .", "été"]
    lines = "".join(f"{word} {row(vector)} \n" for word, vector in zip(words, vectors, strict=True))
    path = put(tmp_path / f"words.txt{suffix}", header + lines)
    kb = read(import_knowledge("word2vec" if header else "glove", tmp_path / "kb", vectors=path))
    assert kb.ids(range(3)) == words and kb.entity(2).label == "été"
    np.testing.assert_array_equal(kb.vectors, vectors)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 2\nb 1\n", "line 2: 'b 1' has 1 numbers, not 2"),
        ("a 1 2\nb 1 2 3\n", "line 2: 'b 1 2 3' has more than 2 numbers"),
        ("a 1 2\nb 1 x\n", "line 2: the vector of 'b' is not made of numbers"),
        ("a 1 2\nb 1 nan\n", "line 2: .*not finite"),
        ("a 1 2\nb 1 1e39\n", "line 2: .*not finite"),
        ("a 1 2\na 1 2\n", "line 2: id 'a' stands in an earlier line"),
        ("a 1 2\n\nb 1 2\n", "line 2: '' has 0 numbers"),
        ("3 2\na 1 2\n", "announces 3 lines and holds 1"),
        ("", "holds no entity"),
    ],
)
def test_word_vectors_name_the_bad_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        import_knowledge("word2vec", tmp_path / "kb", vectors=put(tmp_path / "words.txt", text))
    assert not (tmp_path / "kb").exists() and not leftovers(tmp_path)


def test_a_dimension_given_by_hand_is_held_to(tmp_path):
    path = put(tmp_path / "words.txt", "new york 1 2\na 3 4\n")
    assert read(import_knowledge("glove", tmp_path / "kb", vectors=path, dim=2)).ids([0]) == ["new york"]
    path = put(tmp_path / "counted.txt", "1 2\na 3 4\n")
    with pytest.raises(InputError, match="announces 2 numbers a line, not 3"):
        import_knowledge("word2vec", tmp_path / "other", vectors=path, dim=3)


def test_wikipedia2vec_keeps_entities_words_or_both(tmp_path, vectors):
    keys = ["paris", "ENTITY/Paris_(band)", "ENTITY/paris"]
    path = put(tmp_path / "wiki.txt", "3 4\n" + "".join(f"{k} {row(v)}\n" for k, v in zip(keys, vectors, strict=True)))
    kb = read(import_knowledge("wikipedia2vec", tmp_path / "entities", vectors=path))
    assert kb.ids(range(kb.size)) == ["Paris_(band)", "paris"]
    assert kb.entity(0).label == "Paris (band)"
    np.testing.assert_array_equal(kb.vectors, vectors[1:])
    words = read(import_knowledge("wikipedia2vec", tmp_path / "words", vectors=path, keep="words"))
    np.testing.assert_array_equal(words.vectors, vectors[:1])
    both = read(import_knowledge("wikipedia2vec", tmp_path / "both", vectors=path, keep="both"))
    assert both.ids(range(3)) == keys and both.entity(2).label == "paris"
    with pytest.raises(InputError, match="did you mean entities"):
        import_knowledge("wikipedia2vec", tmp_path / "no", vectors=path, keep="entitys")


def test_biggraph_stops_after_the_entities_and_takes_the_id_from_the_pattern(tmp_path, vectors):
    base = "<http://www.wikidata.org/entity/"
    keys = [f"{base}Q5>", '"a literal"@en', f"{base}Q7>", f"{base}Q7>"]
    lines = [f"{key}\t{row(vector, chr(9))}\n" for key, vector in zip(keys, [*vectors, vectors[0]], strict=True)]
    path = put(tmp_path / "wikidata.tsv.gz", "3\t1\t4\n" + "".join(lines))
    pattern = r"<http://www\.wikidata\.org/entity/(Q\d+)>"
    kb = read(import_knowledge("biggraph", tmp_path / "kb", vectors=path, pattern=pattern))
    assert kb.ids(range(kb.size)) == ["Q5", "Q7"]
    np.testing.assert_array_equal(kb.vectors, vectors[[0, 2]])
    plain = put(tmp_path / "plain.tsv", "".join(lines[:3]))
    assert read(import_knowledge("biggraph", tmp_path / "plain", vectors=plain)).ids(range(3)) == keys[:3]
    with pytest.raises(InputError, match="no regular expression"):
        import_knowledge("biggraph", tmp_path / "no", vectors=plain, pattern="(")
    wide = put(tmp_path / "wide.tsv", "a\t1\t2\nb\t1\t2\t3\n")
    with pytest.raises(InputError, match=r"line 2: .* more than 2 numbers"):
        import_knowledge("biggraph", tmp_path / "no", vectors=wide)


def test_npy_with_a_list_of_ids(tmp_path, vectors):
    table = save(tmp_path / "v.npy", np.asfortranarray(vectors.astype(np.float16)))
    kb = read(
        import_knowledge("npy", tmp_path / "kb", vectors=table, ids=put(tmp_path / "i.txt", "é b\r\na\nc"), name="n")
    )
    assert kb.ids(range(3)) == ["é b", "a", "c"] and kb.name == "n" and kb.vectors.dtype == np.float16
    np.testing.assert_array_equal(kb.vectors, vectors.astype(np.float16))
    for text, message in (
        ("a\nb\n", "no id for 1 of 3"),
        ("a\nb\nc\nd\n", "line 4: 'd' has row 3"),
        ("a\n\nc\n", "line 2: is empty"),
    ):
        with pytest.raises(InputError, match=message):
            import_knowledge("npy", tmp_path / "other", vectors=table, ids=put(tmp_path / "i.txt", text))
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9\nc\n")
    with pytest.raises(InputError, match=r"latin\.txt, line 2: is not UTF-8"):
        import_knowledge("npy", tmp_path / "other", vectors=table, ids=tmp_path / "latin.txt")


def test_arrays_that_are_not_vectors_and_pickles_are_refused(tmp_path, vectors):
    ids = put(tmp_path / "i.txt", "a\nb\nc\n")
    np.save(tmp_path / "object.npy", np.array([[object()]]), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=vectors)
    put(tmp_path / "text.npy", "hello")
    save(tmp_path / "int.npy", np.ones((3, 2), int))
    save(tmp_path / "flat.npy", np.ones(3, np.float32))
    for name, message in (
        ("object.npy", "not a plain .npy"),
        ("archive.npz", "an archive"),
        ("text.npy", "not a plain .npy"),
        ("int.npy", "int64"),
        ("flat.npy", r"\(3,\)"),
        ("none.npy", "is not there"),
    ):
        with pytest.raises(InputError, match=message):
            import_knowledge("npy", tmp_path / "kb", vectors=tmp_path / name, ids=ids)


@pytest.fixture
def pykeen_folder(tmp_path):
    folder = tmp_path / "result" / "training_triples"
    folder.mkdir(parents=True)
    put(folder / "entity_to_id.tsv.gz", 'id\tlabel\n0\tbrazil\n1\t"say ""hi"""\n2\tchina\n')
    put(folder / "relation_to_id.tsv.gz", "id\tlabel\n0\tlikes\n1\tborders\n")
    put(folder / "numeric_triples.tsv.gz", "head\trelation\ttail\n0\t1\t2\n2\t0\t1\n")
    return folder.parent


def test_pykeen_from_an_array_with_triples(tmp_path, vectors, pykeen_folder):
    table = save(tmp_path / "e.npy", vectors)
    kb = read(import_knowledge("pykeen", tmp_path / "kb", folder=pykeen_folder, vectors=table))
    assert kb.ids(range(3)) == ["brazil", 'say "hi"', "china"]
    assert kb.triples.tolist() == [[0, 1, 2], [2, 0, 1]]
    assert [relation["id"] for relation in kb.relations] == ["likes", "borders"]
    turned = save(tmp_path / "c.npy", vectors[:, :2] + 1j * vectors[:, 2:])
    kb = read(import_knowledge("pykeen", tmp_path / "complex", folder=pykeen_folder, vectors=turned))
    np.testing.assert_array_equal(kb.vectors, vectors)


def test_pykeen_from_a_state_dict_but_never_from_a_pickle(tmp_path, vectors, pykeen_folder):
    torch = pytest.importorskip("torch")
    path = pykeen_folder / "trained_model.pkl"
    torch.save({"entity_representations.0._embeddings.weight": torch.tensor(vectors)}, path)
    kb = read(import_knowledge("pykeen", tmp_path / "kb", folder=pykeen_folder))
    np.testing.assert_array_equal(kb.vectors, vectors)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"pickled model.*numpy\.save"):
        import_knowledge("pykeen", tmp_path / "other", folder=pykeen_folder)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(InputError, match="has no tensor"):
        import_knowledge("pykeen", tmp_path / "other", folder=pykeen_folder)
    path.unlink()
    with pytest.raises(InputError, match="is not there"):
        import_knowledge("pykeen", tmp_path / "other", folder=pykeen_folder)


def test_a_table_of_ones_own_in_three_spellings(tmp_path):
    rows = [
        {"id": "a", "label": "Alpha, the", "aliases": ["A", "first"], "description": "", "vector": [1.0, 2.5]},
        {"id": "b", "label": "", "aliases": [], "description": "no vector", "vector": None},
        {"id": "c", "label": "", "aliases": [], "description": "", "vector": [3.0, -4.0]},
    ]
    put(tmp_path / "t.jsonl", "".join(json.dumps(one) + "\n" for one in [rows[1], rows[0], rows[2]]))
    put(
        tmp_path / "t.csv",
        'id,label,aliases,description,vector\nb,,,no vector,\na,"Alpha, the",A|first,,1.0 2.5\nc,,,,3 -4\n',
    )
    put(
        tmp_path / "t.tsv.gz",
        "\ufeffvector\tid\tlabel\taliases\tdescription\n"
        "\tb\t\t\tno vector\n1 2.5\ta\tAlpha, the\tA|first\t\n3 -4\tc\t\t\t\n",
    )
    bases = []
    for name in ("t.jsonl", "t.csv", "t.tsv.gz"):
        bases.append(read(import_knowledge("table", tmp_path / f"kb {name}", entities=tmp_path / name)))
    for kb in bases:
        assert kb.fingerprint == bases[0].fingerprint
        gathered, found = kb.gather(kb.rows(["a", "b", "c"]))
        assert found.tolist() == [True, False, True]
        assert gathered.tolist() == [[1.0, 2.5], [0.0, 0.0], [3.0, -4.0]]
        assert kb.entity(1) == ("a", "Alpha, the", ("A", "first"), "")
        assert kb.entity(0).description == "no vector"


def test_a_table_beside_an_array(tmp_path, vectors):
    table = save(tmp_path / "v.npy", vectors)
    entities = put(tmp_path / "t.tsv", 'id\tlabel\nx\tX\ny\t"Y\nz\tZ\n')
    kb = read(import_knowledge("table", tmp_path / "kb", entities=entities, vectors=table))
    assert kb.entity(1).label == '"Y'
    np.testing.assert_array_equal(kb.vectors, vectors)
    short = put(tmp_path / "short.tsv", "id\nx\n")
    with pytest.raises(InputError, match="1 entities, but 3 vectors"):
        import_knowledge("table", tmp_path / "no", entities=short, vectors=table)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "id,lable\na,b\n", "line 1: has a column 'lable'; did you mean label"),
        ("t.csv", "label\na\n", "line 1: the columns are"),
        ("t.csv", "id,vector\na,1 2\nb\n", "line 3: has 1 fields, the first line names 2"),
        ("t.csv", 'id,vector\na,1 2\nb,"1 2\n', "line 3: is not well-formed"),
        ("t.csv", "id,vector\na,1 2\nb,1 2 3\n", "line 3: the vector of 'b' has 3 numbers, not 2"),
        ("t.csv", "id,vector\na,\n", "no entity with a vector"),
        ("t.csv", "id,vector\n,1 2\n", "line 2: the id is empty"),
        ("t.jsonl", '{"id": "a", "vector": [1]}\n{"id": "b"\n', "line 2: is not JSON"),
        ("t.jsonl", '{"label": "a"}\n', "line 1: is not an object with an id"),
        ("t.jsonl", '{"id": 7}\n', "line 1: field 'id' is 7, not a string"),
        ("t.jsonl", '{"id": "a", "aliases": "b"}\n', "line 1: field 'aliases' is 'b', not a list of strings"),
        ("t.jsonl", '{"id": "a", "vector": [[1]]}\n', "line 1: the vector of 'a'"),
        ("t.jsonl", '{"id": "a", "vector": ["x"]}\n', "line 1: the vector of 'a' is not made of numbers"),
        ("t.txt", "a\n", "ends in '.txt'"),
    ],
)
def test_a_table_names_the_bad_line(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        import_knowledge("table", tmp_path / "kb", entities=put(tmp_path / name, text))
    assert not (tmp_path / "kb").exists() and not leftovers(tmp_path)


def test_wrong_arguments_are_told_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match="did you mean openke"):
        import_knowledge("open_ke", tmp_path / "kb")
    with pytest.raises(InputError, match="takes no argument 'vector'; did you mean vectors"):
        import_knowledge("npy", tmp_path / "kb", vector="x")
    with pytest.raises(InputError, match="needs the argument 'ids'"):
        import_knowledge("npy", tmp_path / "kb", vectors="x")
    (tmp_path / "kb").mkdir()
    with pytest.raises(InputError, match="exists already"):
        import_knowledge("glove", tmp_path / "kb", vectors="x")


def test_a_cut_archive_is_told(tmp_path):
    path = put(tmp_path / "words.txt.gz", "a 1 2\n" * 1000)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="is damaged"):
        list(read_lines(path))


def test_importing_the_importers_loads_no_framework():
    program = (
        "import sys, kinject.knowledge.importers; print({'torch', 'jax', 'transformers', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
