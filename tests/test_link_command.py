"""`kinject link`: what goes in as lines, JSON, CoNLL and BRAT comes out as records; a bad line costs only itself."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from test_linking import write_names

from kinject.cli.main import main
from kinject.data.records import LONGEST_LINE, read_records
from kinject.errors import EXIT_BAD_INPUT


@pytest.fixture
def kb(tmp_path):
    return write_names(tmp_path / "kb", [["Rome", "Roma"], ["New York"], ["WHO"]]).folder


@pytest.fixture
def link(kb, tmp_path, monkeypatch, capsys):
    """Runs the command on some input; returns its exit code, its records and the lines on standard error."""

    def run(text, *arguments):
        standard_input = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
        monkeypatch.setattr(sys, "stdin", standard_input)
        capsys.readouterr()
        code = main(["link", "--knowledge", str(kb), *map(str, arguments)])
        told = capsys.readouterr()
        (tmp_path / "out.jsonl").write_text(told.out)
        return code, [json.loads(line) for line in told.out.splitlines()], told.err.splitlines()

    return run


def found(record):
    return [(one["start"], one["end"], one["entity"]) for one in record["mentions"]]


def test_texts_and_json_lines_become_records(link, tmp_path):
    lines = ["From Rome to New York", json.dumps({"text": "roma", "label": "x", "id": 7})]
    lines.append(json.dumps({"tokens": ["In", "New", "York", "Rome-based"]}))
    code, records, errors = link("\n\n".join(lines))
    assert code == 0 and errors == []
    assert [found(one) for one in records] == [[(5, 9, "Q0"), (13, 21, "Q1")], [(0, 4, "Q0")], [(1, 3, "Q1")]]
    assert records[1]["label"] == "x" and records[1]["id"] == 7 and records[2]["tokens"][0] == "In"
    read = list(read_records(tmp_path / "out.jsonl"))
    assert [mention.entity for mention in read[0].mentions] == ["Q0", "Q1"], "what comes out goes in again"


def test_a_table_keeps_its_columns(link, tmp_path):
    rows = b'\xef\xbb\xbflabel,text\r\ngood,"From Rome,\r\nto ""New York"""\r\n,Oslo\r\n'
    wanted = [("good", [(5, 9, "Q0"), (15, 23, "Q1")]), ("", [])]
    (tmp_path / "in.CSV").write_bytes(rows)
    for _, records, errors in (link("", tmp_path / "in.CSV"), link(rows, "--format", "csv")):
        assert errors == [] and [(one["label"], found(one)) for one in records] == wanted
        assert records[0]["text"] == 'From Rome,\nto "New York"'
    (tmp_path / "in.tsv").write_bytes(b"text\tlabel\nin Rome, today\tx\n")
    assert found(link("", tmp_path / "in.tsv")[1][0]) == [(3, 7, "Q0")]


def test_a_bad_row_of_a_table_costs_only_itself(link):
    table = b"text,label\nin Rome, today,x\nin \xff,y\nRome,z\n" + b'"Rome,last\n'
    code, records, errors = link(table, "--format", "csv")
    assert code == 0 and [one["label"] for one in records] == ["z"]
    assert errors[0] == (
        "kinject: standard input:2: it has 3 cells, and the table 2 columns; "
        "put cells that hold the delimiter in quotes"
    )
    assert "standard input:3: byte 4 of the line is not UTF-8" in errors[1]
    assert "standard input:5: is no row of a table: unexpected end of data; close the quotes" in errors[2]
    for table, said in (("texts,label\n", "there is no column text; it has texts, label"), ("text,a,a\n", "two col")):
        code, records, errors = link(table + "x,y,z\n", "--format", "csv")
        assert (code, records, len(errors)) == (EXIT_BAD_INPUT, [], 1) and said in errors[0]


def test_given_mentions_are_named_and_no_others_looked_for(link):
    text = "Rome, who, Oslo, New York"
    given = [{"start": 0, "end": 4}, {"start": 6, "end": 9, "entity": "mine"}, {"start": 11, "end": 15}]
    wanted = [(0, 4, "Q0"), (6, 9, "mine"), (11, 15, None)]
    _, (objects, lists), _ = link(
        "\n".join(
            json.dumps({"text": text, **more})
            for more in ({"mentions": given}, {"spans": [[0, 4], [6, 9, "mine"], [11, 15]]})
        )
    )
    assert found(objects) == found(lists) == wanted and "spans" not in lists
    _, (both,), _ = link(json.dumps({"text": text, "mentions": given}), "--search")
    assert found(both) == [*wanted, (17, 25, "Q1")]


def test_bad_lines_are_named_by_number_and_the_rest_is_linked(link):
    lines = [b"Rome", b'{"text": 3}', b"\xff Rome", b'{"text": "Rome", "spans": [[0]]}', b'{"text": "Rome"', b"Rome"]
    code, records, errors = link(b"\n".join(lines))
    assert code == 0 and [found(one) for one in records] == [[(0, 4, "Q0")]] * 2
    assert errors.pop() == "kinject: 4 could not be read, 2 were linked"
    assert [error.split(": ")[1] for error in errors] == [f"standard input:{number}" for number in (2, 3, 4, 5)]
    for error, part in zip(errors, ("'text'", "not UTF-8", "spans[0]", "not JSON"), strict=True):
        assert part in error
    code, records, errors = link(b"Rome " * (LONGEST_LINE // 3) + b"\nRome\n")
    assert code == 0 and len(records) == 1 and "standard input:1: the line has more than" in errors[0]
    code, records, _ = link(b'{"text": 3}')
    assert code == EXIT_BAD_INPUT and not records, "nothing could be linked"


def test_conll_tags_are_mentions(link, tmp_path):
    plain = "-DOCSTART- -X- O\n\nIn IN O\nNew NNP B-LOC\nYork NNP I-LOC\n\nOslo NNP I-LOC\n. . O\n"
    code, records, _ = link(plain, "--format", "conll")
    assert code == 0 and [found(one) for one in records] == [[(1, 3, "Q1")], [(0, 1, None)]]
    assert records[0]["tags"] == ["O", "B-LOC", "I-LOC"]
    aida = tmp_path / "aida.tsv"
    aida.write_text("Rome\tB\tRome\tQ99\nand\nNew\tB\tNew York\t--NME--\nYork\tI\tNew York\t--NME--\n")
    _, (record,), _ = link("", "--format", "conll", "--columns", "token,tag,_,entity", aida)
    assert found(record) == [(0, 1, "Q99"), (2, 4, "Q1")]


def test_a_bad_conll_line_costs_its_sentence(link):
    code, records, errors = link("Rome B-LOC\n\nRome\n\nRome NNP\n\nRome B-LOC\n", "--format", "conll")
    assert code == 0 and len(records) == 2
    assert "standard input:3: 'Rome' has one column" in errors[0] and "'tag' is 'NNP'" in errors[1]
    code, _, (error,) = link("Rome B-LOC\n", "--format", "conll", "--columns", "word,tag")
    assert code == EXIT_BAD_INPUT and "names no token" in error


def test_brat_annotations_are_mentions_and_notes_their_entities(link, tmp_path):
    (tmp_path / "a.txt").write_text("Rome and\nNew York,\nthe WHO", newline="")
    ann = tmp_path / "a.ann"
    ann.write_text(
        "T1\tCity 0 4\tRome\nT2\tCity 9 17\tNew York\nN1\tReference T2 Wikidata:Q60\tNew York\n#1\tNote T1\thm\n"
        "T3\tOrg 23 26\tWH0\nT4\tOrg 19 22;23 26\tthe WHO\nT5\tCity 13 17\tYork\nN2\tReference T9 W:Q1\tx\n"
    )
    code, (record,), errors = link("", "--format", "brat", ann)
    assert code == 0 and record["id"] == "a" and found(record) == [(0, 4, "Q0"), (9, 17, "Q60")]
    places = [f"{ann}:5: T3 is 'WH0'", f"{ann}:6: T4", f"{ann}:8: ", f"{ann}: characters 13 to 17 overlap"]
    assert all(place in error for place, error in zip(places, errors[:-1], strict=True))
    code, records, (error, _) = link("", "--format", "brat", tmp_path / "kb" / "knowledge.json")
    assert code == EXIT_BAD_INPUT and not records and "go together" in error


def test_a_summary_and_wrong_arguments(link, tmp_path):
    code, _, (line,) = link("Rome", "--summary")
    assert code == 0 and line == "1 texts, 1 mentions, 1 linked; 4 names, 0 of several entities"
    for arguments, part in (
        (("--case", "lower"), "invalid choice"),
        ((tmp_path / "nowhere.txt",), "no such file"),
        (("--format", "brat"), "name the .ann files"),
    ):
        code, records, (error,) = link("Rome", *arguments)
        assert code == EXIT_BAD_INPUT and not records and part in error


def test_each_line_is_answered_before_the_next_one_comes(kb):
    command = [sys.executable, "-m", "kinject", "link", "--knowledge", str(kb)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        for number in range(3):
            print(f"Rome {number}", file=process.stdin, flush=True)
            assert json.loads(process.stdout.readline())["text"] == f"Rome {number}"
        process.stdout.close()  # the reader has enough
        print("Rome", file=process.stdin, flush=True)
        process.stdin.close()
        assert process.wait(timeout=1800) == 0 and process.stderr.read() == ""


def test_the_command_imports_no_jax(kb):
    code = (
        f"import io, sys\nsys.stdin = io.TextIOWrapper(io.BytesIO(b'Rome'))\nfrom kinject.cli.main import main\n"
        f"main(['link', '--knowledge', {str(kb)!r}])\n"
        "print([name for name in ('jax', 'torch', 'tensorflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_context_is_chosen_from_the_command_line(tmp_path, capsys, monkeypatch):
    vectors = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    kb = write_names(tmp_path / "two", [["Paris"], ["Paris"], ["Dallas"]], vectors=vectors)
    for ambiguous, wanted in (("prior", "Q0"), ("context", "Q1")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Paris near Dallas")))
        assert main(["link", "--knowledge", str(kb.folder), "--ambiguous", ambiguous]) == 0
        assert json.loads(capsys.readouterr().out)["mentions"][0]["entity"] == wanted
