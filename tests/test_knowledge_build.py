"""`kinject knowledge build` and `inspect`: what a user has becomes a folder, and what is wrong with it is named."""

import json

import numpy as np
import pytest
from tiny_tokenizers import wordpiece_folder

from kinject.cli.main import main
from kinject.errors import EXIT_BAD_INPUT
from kinject.knowledge import KnowledgeBase
from kinject.knowledge.build import Given, Making, build_knowledge
from kinject.knowledge.summary import nearest

CSV = (
    "id,label,aliases,description\n"
    'Q1,Rome,Roma|Urbs,"capital city of Italy, in the south"\n'
    "Q2,Paris,,capital city of France\n"
    "Q3,Milan,Milano,a city of Italy in the north\n"
    "Q4,Nobody,,\n"
)
TRIPLES = "Q1\tin\tQ3\nQ2\tin\tQ3\nQ3\tnear\tQ1\n"


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def build(tmp_path, capsys):
    """Builds into tmp_path/kb; returns the exit code, what was printed, and the one line of an error."""

    def run(*arguments):
        capsys.readouterr()
        code = main(
            ["knowledge", "build", "--out", str(tmp_path / "kb"), "--epochs", "2", "--dim", "4", *map(str, arguments)]
        )
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def refused(build, tmp_path):
    def run(*arguments):
        before = sorted(path.name for path in tmp_path.iterdir())
        code, out, error = build(*arguments)
        assert code == EXIT_BAD_INPUT and out == ""
        assert error.startswith("kinject: ") and error.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is left behind"
        return error

    return run


def read(folder):
    base = KnowledgeBase.open(folder)
    assert base.verify() == base.fingerprint
    return base


def test_a_table_and_triples_become_a_folder_and_a_summary(build, put, tmp_path):
    code, out, error = build("--entities", put("e.csv", CSV), "--triples", put("t.tsv", TRIPLES), "--license", "mine")
    assert code == 0 and error == ""
    base = read(tmp_path / "kb")
    assert base.ids(range(4)) == ["Q1", "Q2", "Q3", "Q4"] and base.dim == 4 and base.name == "kb"
    assert base.entity(0) == ("Q1", "Rome", ("Roma", "Urbs"), "capital city of Italy, in the south")
    assert base.triples.tolist() == [[0, 0, 2], [1, 0, 2], [2, 1, 0]]
    assert [one["id"] for one in base.relations] == ["in", "near"]
    assert base.has_vector.tolist() == [True, True, True, False], "Q4 stands in no triple"
    made = base.manifest["provenance"]
    assert (
        made["vectors"] == "made of triples"
        and made["graph"]["method"] == "transe"
        and made["files"]["triples"] == "t.tsv"
    )
    assert base.manifest["license"] == "mine"
    for part in (
        "kb: 4 entities",
        "with vectors                  3    75.0%",
        "with aliases                  2    50.0%  3 in all",
    ):
        assert part in out
    assert "3 triples of 2 relations" in out and "Rome (Q1): " in out and f"written: {tmp_path / 'kb'}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.csv", "kb", "t.tsv"]


def test_csv_tsv_and_json_with_triples_of_their_own_say_the_same(put, tmp_path):
    rows = [("Q1", "Rome", ["Roma"], "of Italy", [["in", "Q2"], ["is", "Q3"]]), ("Q2", "Italy", [], "of Europe", [])]
    rows.append(("Q3", "city", [], "", []))
    names = ("id", "label", "aliases", "description", "triples")
    flat = [
        [one, label, "|".join(aliases), text, "|".join(f"{r}={t}" for r, t in triples)]
        for one, label, aliases, text, triples in rows
    ]
    files = [
        put(f"e{suffix}", "".join(separator.join(line) + "\n" for line in [names, *flat]))
        for suffix, separator in ((".csv", ","), (".tsv", "\t"))
    ]
    files.append(put("e.jsonl", "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)))
    making = Making(of="triples", dim=4, epochs=2)
    prints = set()
    for number, file in enumerate(files):
        base = read(build_knowledge(tmp_path / f"kb{number}", Given(entities=file), making))
        assert base.triples.tolist() == [[0, 0, 1], [0, 1, 2]] and base.entity(0).aliases == ("Roma",)
        prints.add(base.fingerprint)
    assert len(prints) == 1


def test_vectors_out_of_descriptions_point_the_same_way_where_words_do(build, put, tmp_path):
    texts = {
        "A": "red wine of grapes",
        "B": "red wine from grapes",
        "C": "a fast racing car",
        "D": "the racing car is fast",
    }
    lines = [json.dumps({"id": one, "description": text}) for one, text in {**texts, "E": "", "F": "unheard"}.items()]
    code, out, _ = build("--entities", put("e.jsonl", "\n".join(lines)), "--dim", 64)
    base = read(tmp_path / "kb")
    assert code == 0 and base.dim < 64, "there are fewer words than numbers asked for"
    assert base.has_vector.tolist() == [True] * 4 + [False] * 2
    assert [near[0][0] for near in nearest(base, [0, 1, 2, 3], 1)] == [1, 0, 3, 2]
    assert abs(np.asarray(base.vectors[:4]).std() - 1) < 1e-5
    assert "TF-IDF and truncated SVD (scikit-learn)" in base.manifest["provenance"]["descriptions"] and "TF-IDF" in out


def test_both_stand_side_by_side_and_an_entity_may_lack_a_half(build, put, tmp_path):
    files = "--entities", put("e.csv", CSV + "Q5,Turin,,\n"), "--triples", put("t.tsv", TRIPLES + "Q5\tin\tQ1\n")
    assert build(*files, "--vectors-from", "both", "--dim", 2)[0] == 0
    base = read(tmp_path / "kb")
    assert base.dim == 4 and base.has_vector.tolist() == [True, True, True, False, True]
    assert not base.vectors[4, 2:].any() and base.vectors[4, :2].any() and base.vectors[:3].all()


def test_a_host_s_tokenizer_cuts_descriptions(build, put, tmp_path):
    table = put(
        "e.csv", "id,description\n" + "".join(f"Q{i},{'kamo rite' if i % 2 else 'zulan'} wick\n" for i in range(6))
    )
    host = wordpiece_folder(tmp_path / "host")
    code, _, error = build("--entities", table, "--tokenizer-of", host)
    assert code == 0, error
    assert "pieces" in read(tmp_path / "kb").manifest["provenance"]["descriptions_words"]


def test_vectors_of_a_column_a_plain_array_and_another_program(put, tmp_path):
    ids = ["Q1", "Q2", "Q3"]
    table = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    row = lambda i: " ".join(map(repr, table[i].tolist()))  # noqa: E731
    bare = put("e.csv", "id,label\n" + "".join(f"{one},{one}\n" for one in ids))
    np.save(tmp_path / "v.npy", table)
    column = put("v.csv", "id,vector\n" + "".join(f"{one},{row(i)}\n" for i, one in enumerate(ids)))
    words = put("w.txt", f"Q3 {row(2)}\nQ9 {row(0)}\nQ1 {row(0)}\n")
    plain = read(build_knowledge(tmp_path / "a", Given(bare, vectors={"": tmp_path / "v.npy"})))
    own = read(build_knowledge(tmp_path / "b", Given(column)))
    other = read(build_knowledge(tmp_path / "c", Given(bare, vectors={"": words}, vectors_format="word2vec")))
    alone = read(build_knowledge(tmp_path / "d", Given(vectors={"": words}, vectors_format="word2vec")))
    np.testing.assert_array_equal(plain.vectors, table)
    np.testing.assert_array_equal(own.vectors, table)
    np.testing.assert_array_equal(other.vectors, table * [[1], [0], [1]])
    assert other.has_vector.tolist() == [True, False, True] and alone.ids(range(3)) == ["Q3", "Q9", "Q1"]
    grown = Given(column, put("t.tsv", "Q1\tin\tthere\n"), unknown="add")
    base = read(build_knowledge(tmp_path / "e", grown))
    assert base.has_vector.tolist() == [True] * 3 + [False] and base.entity(3).label == "there"


def test_unknown_entities_of_triples_may_be_added_or_skipped(put, tmp_path):
    table, triples = put("e.csv", CSV), put("t.tsv", "head\trelation\ttail\n" + TRIPLES + "Q1\tcountry\tItaly\n")
    making = Making(dim=4, epochs=2)
    added = read(build_knowledge(tmp_path / "added", Given(table, triples, unknown="add"), making))
    assert added.size == 5 and added.entity(4) == ("Italy", "Italy", (), "") and len(added.triples) == 4
    skipped = read(build_knowledge(tmp_path / "skipped", Given(table, triples, unknown="skip"), making))
    assert skipped.size == 4 and len(skipped.triples) == 3 and skipped.manifest["provenance"]["triples_skipped"] == 1
    alone = read(build_knowledge(tmp_path / "alone", Given(triples=triples), making))
    assert alone.ids(range(4)) == ["Q1", "Q3", "Q2", "Italy"] and alone.entity(3).label == "Italy"


def test_empty_lines_are_passed_over(put, tmp_path):
    making = Making(of="triples", dim=4, epochs=2)
    triples = put("t.tsv", "Q1\tin\tQ2\n\n")
    for number, table in enumerate(
        (put("e.csv", "id\nQ1\n\nQ2\n\n"), put("e.jsonl", '{"id": "Q1"}\n\n{"id": "Q2"}\n\n'))
    ):
        assert read(build_knowledge(tmp_path / f"kb{number}", Given(table, triples), making)).ids([0, 1]) == [
            "Q1",
            "Q2",
        ]


def test_columns_of_other_names(build, put, tmp_path):
    table = put("e.csv", "name,population,qid,text\nRome,3,Q1,a city\nOslo,1,Q2,a city\nBonn,,Q3,the town city\n")
    code, _, error = build("--entities", table, "--columns", "id=qid,label=name,description=text")
    assert code == 0, error
    assert read(tmp_path / "kb").entity(1) == ("Q2", "Oslo", (), "a city")


@pytest.mark.parametrize(
    ("file", "content", "parts"),
    [
        ("e.csv", "label\nRome\n", ["line 1", "['label']", "id among them"]),
        ("e.csv", "id,lable\nQ1,Rome\n", ["line 1", "'lable'", "did you mean label?"]),
        ("e.csv", CSV + "Q1,Rome,,\n", ["line 6", "id 'Q1'", "earlier line"]),
        ("e.csv", CSV + "Q5\n", ["line 6", "1 fields", "names 4"]),
        ("e.csv", CSV.encode() + b"Q5,M\xfcnchen,,\n", ["line 6", "not UTF-8", "convert"]),
        ("e.csv", "", ["holds no entity", "id among them"]),
        ("e.csv", "id,label\n", ["holds no entity"]),
        ("e.csv", "id,label\n,Rome\n", ["line 2", "id is empty"]),
        ("e.csv", "id,triples\nQ1,in:Q2\n", ["line 2", "'triples'", "relation=tail"]),
        ("e.csv", "id,triples\nQ1,in=Q2\n", ["line 2", "'tail' is 'Q2'", "--unknown add"]),
        ("e.csv", "id;label\nQ1;Rome\n", ["line 1", "names one column, 'id;label'", "commas"]),
        ("e.csv", "id,vector\nQ1,1 2\nQ2,1 2 3\n", ["line 3", "3 numbers, not 2"]),
        ("e.csv", "id,description\nQ1,red\nQ2,blue\n", ["no two descriptions share a word"]),
        ("e.csv", "id,description\nQ1,red car\nQ2,red car\n", ["say the same"]),
        ("e.jsonl", '{"id": "Q1"}\n{"id": 2}\n', ["line 2", "'id' is 2"]),
        ("e.jsonl", '{"id": "Q1", "aliases": "x"}\n', ["line 1", "'aliases'", "list of strings"]),
        ("e.jsonl", '{"id": "Q1", "triples": [["in"]]}\n', ["line 1", "'triples'", "[relation, tail]"]),
        ("e.jsonl", '{"id": "Q1"\n', ["line 1", "not JSON"]),
        ("e.txt", "id\nQ1\n", ["'.txt'", ".csv, .tsv or .jsonl"]),
    ],
)
def test_a_table_that_cannot_be_used(refused, put, file, content, parts):
    path = put(file, content)
    error = refused("--entities", path)
    assert str(path) in error
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (TRIPLES + "Q1\tin\tQ9\n", ["line 4", "'tail' is 'Q9'", "no entity"]),
        ("Q9\tin\tQ1\n", ["line 1", "'head' is 'Q9'"]),
        ("Q1\tin\n", ["line 1", "head, relation and tail"]),
        ("", ["empty"]),
        (b"Q1\tin\t\xff\n", ["line 1", "UTF-8"]),
    ],
)
def test_triples_that_cannot_be_used(refused, put, content, parts):
    path = put("t.tsv", content)
    error = refused("--entities", put("e.csv", CSV), "--triples", path)
    for part in (str(path), *parts):
        assert part in error


def test_vectors_that_cannot_be_used(refused, put, tmp_path):
    table = put("e.csv", CSV)
    np.save(tmp_path / "v.npy", np.ones((3, 2), np.float32))
    error = refused("--entities", table, "--vectors", tmp_path / "v.npy")
    assert "v.npy: has 3 vectors, there are 4 entities" in error
    words = put("w.txt", "a 1 2\nb 3 4\n")
    assert "--vectors-format" in refused("--entities", table, "--vectors", words)
    error = refused("--entities", table, "--vectors", words, "--vectors-format", "word2vec")
    assert "'a', is one of the entities', such as 'Q1'" in error
    error = refused("--entities", put("own.csv", "id,vector\nQ1,1 2\n"), "--vectors", tmp_path / "v.npy")
    assert "has vectors although" in error
    assert "there is no" in refused("--entities", table, "--vectors", tmp_path / "nowhere.npy")
    broken = put("b.txt", "a 1 2\nb 3\n")
    error = refused("--entities", table, "--vectors", broken, "--vectors-format", "glove")
    assert f"{broken}, line 2" in error


def test_arguments_that_do_not_go_together(refused, put, tmp_path):
    table = put("e.csv", CSV)
    assert "nothing to build of" in refused()
    assert "there are no triples" in refused("--entities", table, "--vectors-from", "triples")
    assert "there are no descriptions" in refused("--triples", put("t.tsv", TRIPLES), "--vectors-from", "both")
    assert "did you mean label?" in refused("--entities", table, "--columns", "id=id,lable=label")
    assert "no column 'qid'" in refused("--entities", table, "--columns", "id=qid")
    assert "is not there" in refused("--entities", tmp_path / "nowhere.csv")
    assert "argument --dim: 0 is not from 1 to 65536" in refused("--entities", table, "--dim", 0)
    assert "argument --held-out: -1 is not from 0 to" in refused("--entities", table, "--held-out", "-1")
    assert "cannot be read or written" in refused("--entities", table, "--name", "x", "--out", table / "below")


def test_what_is_there_is_not_overwritten(refused, put, tmp_path):
    (tmp_path / "kb").mkdir()
    (tmp_path / "kb" / "mine").write_text("precious")
    assert "exists already" in refused("--entities", put("e.csv", CSV))
    assert (tmp_path / "kb" / "mine").read_text() == "precious"


def test_inspect_tells_the_same_and_more_of_single_entities(build, put, tmp_path, capsys):
    _, out, _ = build("--entities", put("e.csv", CSV), "--triples", put("t.tsv", TRIPLES))
    kb = str(tmp_path / "kb")
    assert main(["knowledge", "inspect", kb, "--verify"]) == 0
    again = capsys.readouterr().out.replace("verified: every file and the fingerprint\n", "")
    assert again == out[out.index("kb: 4 entities") : out.index("written")]
    assert main(["knowledge", "inspect", kb, "--entity", "Q1", "--near", "Q2", "--count", "1"]) == 0
    told = capsys.readouterr().out
    for part in ("Q1  Rome", "aliases: Roma | Urbs", "Rome -- in -> Milan", "and 1 more triples", "Paris (Q2): "):
        assert part in told
    assert main(["knowledge", "inspect", kb, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["with"] == {"vectors": 3, "labels": 4, "aliases": 2, "descriptions": 3}
    assert main(["knowledge", "inspect", kb, "--entity", "Q7"]) == EXIT_BAD_INPUT
    assert "no entity 'Q7'" in capsys.readouterr().err
    assert main(["knowledge", "inspect", str(tmp_path)]) == EXIT_BAD_INPUT


def test_the_choices_of_the_command_are_those_of_the_importers():
    from kinject.cli.knowledge import FORMATS
    from kinject.knowledge.importers import IMPORTERS

    assert set(FORMATS) == set(IMPORTERS)
