"""Text that people bring: packed, marked, cut, in another dialect, in arrays, or no text at all; every reader alike."""

import bz2
import gzip
import io
import json
import lzma
import re
import struct

import numpy as np
import pytest

from kinject.cli.main import main
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.knowledge.importers import import_knowledge
from kinject.linking import AliasLinker
from kinject.text_files import array_items, as_bio, read_lines, read_whole, split_columns

NAMES = {"Q90": "Paris", "Q586": "Bonn", "Q64": "Berlin", "Q60": "New York", "Q220": "Rome", "Q1": "ﬁne"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kb") / "kb"
    vectors = np.eye(len(NAMES), dtype=np.float32)
    write_knowledge(folder, name="kb", ids=list(NAMES), vectors=vectors, labels=list(NAMES.values()))
    return folder


@pytest.fixture
def link(base, tmp_path, capsys):
    """`kinject link` of a file with this content: the records, and what was said."""

    def link(name, content, *more):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        code = main(["link", "--knowledge", str(base), *more, str(path)])
        told = capsys.readouterr()
        assert "Traceback" not in told.err and code in (0, 2)
        return [json.loads(line) for line in told.out.splitlines()], told.err

    return link


def entities(records):
    return [[(one["start"], one["end"], one["entity"]) for one in record["mentions"]] for record in records]


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, "": gzip.compress}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_are_read_by_every_reader_whatever_they_are_called(link, tmp_path, ending):
    pack = PACKERS[ending]
    assert entities(link(f"a.jsonl{ending}", pack(b'{"text": "Paris is big"}\n'))[0]) == [[(0, 5, "Q90")]]
    assert entities(link(f"a.csv{ending or '.csv'}", pack(b'text,l\n"Paris, big",A\n'))[0]) == [[(0, 5, "Q90")]]
    path = tmp_path / f"r.jsonl{ending}"
    path.write_bytes(pack(b'\xef\xbb\xbf{"text": "a"}\n\n'))
    assert [one.text for one in read_records(path)] == ["a"]
    assert list(read_lines(path)) == [(1, '{"text": "a"}')]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Paris".encode("utf-16"), "it is UTF-16"),
        ("Paris is big".encode("utf-16-le"), "every other byte is 0"),
        (b"PK\x03\x04rest", "unzip FILE"),
        (b"\x93NUMPY\x01", "it is a NumPy array"),
        (b"ARROW1\0\0", "it is an Arrow file"),
        (b"PAR1aaaa", "it is a Parquet file"),
        (b"\x80\x04\x95\x10", "a pickle, which can execute anything"),
        (gzip.compress(b'{"text": "a"}\n' * 100, mtime=0)[:-12], "cannot be read to its end|damaged|corrupt"),
    ],
)
def test_what_is_no_text_is_named_with_what_to_do(link, tmp_path, content, says):
    path = tmp_path / "x.txt"
    path.write_bytes(content)
    for read in (read_records, read_lines, read_whole):
        with pytest.raises((InputError, EOFError)) as error:
            result = read(path)
            for _ in result if not isinstance(result, bytes) else ():
                pass
        assert isinstance(error.value, EOFError) or re.search(says, str(error.value))
    _, said = link("y.txt", content)
    assert re.search(says, said)


def test_a_small_file_of_one_huge_line_takes_no_memory(link, tmp_path):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(40):
            file.write(b" " * (1 << 20))
    for read in (read_records, read_lines):
        with pytest.raises(InputError, match="line 1: the line has more than 16777216 bytes"):
            next(iter(read(path)))
    with pytest.raises(InputError, match="more than 1000 bytes unpacked"):
        read_whole(path, 1000)
    with pytest.raises(ValueError, match="an item has more than 100 characters"):
        list(array_items(io.StringIO('[{"a": "' + "x" * 5_000_000), longest=100))


def test_arrays_of_json_are_read_and_objects_over_lines_are_named(link, tmp_path):
    array = '[{"text":"Paris is big"},\n{"text":"Bonn is small"}]'
    records, _ = link("arr.json", array)
    assert entities(records) == [[(0, 5, "Q90")], [(0, 4, "Q586")]]
    path = tmp_path / "records.json"
    path.write_text(array)
    assert [one.where for one in read_records(path)] == [f"{path}:[0]", f"{path}:[1]"]
    records, said = link("pretty.json", '{\n "text":"Paris is big"\n}\n')
    assert records == [] and "a JSON object goes on over several lines; write one object a line" in said
    assert "not JSON" in link("cut.json", array[:-5])[1]
    assert entities(link("t.txt", "[Paris] is big\n")[0]) == [[(1, 6, "Q90")]], "a bracket begins a text too"


def test_a_key_that_stands_twice_and_nan_are_refused_by_every_reader(link, tmp_path):
    twice = '{"text": "Paris", "text": "Bonn"}\n'
    records, said = link("dup.jsonl", twice + '{"text": "Bonn"}\n')
    assert len(records) == 1 and "dup.jsonl:1: not readable JSON: key 'text' stands twice in one object" in said
    path = tmp_path / "e.jsonl"
    path.write_text('{"id": "Q1", "label": "a", "label": "b", "vector": [1]}\n')
    with pytest.raises(InputError, match="key 'label' stands twice"):
        import_knowledge("table", tmp_path / "kb", entities=path)
    path.write_text('{"text": "a", "score": NaN}\n')
    with pytest.raises(InputError, match="NaN is no JSON number"):
        list(read_records(path))


def test_tsv_has_no_quotes_and_csv_has(link):
    lines = 'text\tlabel\n"Paris is big\tA\nBonn is small\tB\nhe calls Rome "home"\tC\nBerlin is "hip"\tD\n'
    records, said = link("a.tsv", lines)
    assert [one["label"] for one in records] == list("ABCD") and not said
    assert "is no row of a table" in link("a.csv", lines.replace("\t", ","))[1]


def test_columns_of_words(link):
    sentence = "Paris B-LOC\nis O\n# O\n1 O\nin O\nBonn B-LOC\n"
    (record,), _ = link("a.conll", f"# id = 1\n{sentence}\n", "--format", "conll")
    assert record["tokens"] == ["Paris", "is", "#", "1", "in", "Bonn"] and len(record["mentions"]) == 2
    (record,), _ = link("b.conll", "# O\nParis B-LOC\n", "--format", "conll")
    assert record["tokens"] == ["#", "Paris"]
    (record,), _ = link("c.conll", "New\u00a0York\tB-LOC\n10\u2009000\tO\n", "--format", "conll")
    assert record["tokens"] == ["New\u00a0York", "10\u2009000"] and entities([record]) == [[(0, 1, "Q60")]]
    assert split_columns("a  b\u00a0c O\r\n") == ["a", "b\u00a0c", "O"] and split_columns("a b\t\tO") == [
        "a b",
        "",
        "O",
    ]


def test_bilou_and_bioes_are_understood(link):
    words = "Paris U-LOC\nBonn S-LOC\nand O\nBerlin U-LOC\nNew B-LOC\nYork L-LOC\n"
    (record,), _ = link("a.conll", words, "--format", "conll")
    assert entities([record]) == [[(0, 1, "Q90"), (1, 2, "Q586"), (3, 4, "Q64"), (4, 6, "Q60")]]
    assert record["tags"] == ["B-LOC", "B-LOC", "O", "B-LOC", "B-LOC", "I-LOC"]
    assert as_bio(["B", "I", "E", "S", "O", "B-X-Y", "LOC"]) == ["B", "I", "I", "B", "O", "B-X-Y", "LOC"]


@pytest.mark.parametrize(
    "text",
    [
        "New  York",
        "New \n York",
        "New\u00a0 York",
        "N\u00adew Yo\u200brk",
        "Ｎｅｗ Ｙｏｒｋ",
        "New\u2060 York",
        "NEW\u3000\u3000York",
    ],
)
def test_what_a_name_folds_a_text_folds_too(base, text):
    linker = AliasLinker(KnowledgeBase.open(base))
    (span,) = linker(f"in {text}, far")
    assert (span.entity, f"in {text}, far"[span.start : span.end]) == ("Q60", text)
    assert [one.entity for one in linker("a fine day, Bonn\u00ad.")] == ["Q1", "Q586"]


def write_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def ids(folder):
    base = KnowledgeBase.open(folder)
    return base.ids(range(base.size))


def test_triples_with_headers_and_white_space(tmp_path):
    said = ["--dim", "2", "--epochs", "1", "--quiet"]
    for number, header in enumerate(("Subject\tPredicate\tObject", "head\trelation\ttail", "h\tr\tt")):
        path = write_lines(
            tmp_path / f"{number}.tsv", header, "Q90\tcapital of\tQ142 ", "Q64 \tcapital of\tQ183", "", ""
        )
        assert main(["knowledge", "build", "--triples", str(path), "--out", str(tmp_path / f"k{number}"), *said]) == 0
        assert ids(tmp_path / f"k{number}") == ["Q90", "Q142", "Q64", "Q183"]


def test_formats_of_vectors_that_people_have(tmp_path):
    table = np.arange(8, dtype=np.float32).reshape(4, 2) / 7
    np.save(tmp_path / "v.npy", table)
    want = ["Q90", "Q586", "Q64", "Q220"]
    names = write_lines(tmp_path / "entities.tsv", "2\tQ64", "0\tQ90", "1\tQ586", "3\tQ220", "")
    assert ids(import_knowledge("npy", tmp_path / "dglke", vectors=tmp_path / "v.npy", ids=names)) == want
    plain = write_lines(tmp_path / "ids.txt", *want, "", "")
    assert ids(import_knowledge("npy", tmp_path / "plain", vectors=tmp_path / "v.npy", ids=plain)) == want
    counted = write_lines(tmp_path / "entity2id.txt", "4", *(f"{one}\t{row}" for row, one in enumerate(want)), "")
    assert ids(import_knowledge("openke", tmp_path / "ke", vectors=tmp_path / "v.npy", entities=counted)) == want
    vec = write_lines(tmp_path / "entity2vec.vec", *("\t".join(map(repr, row.tolist())) + "\t" for row in table))
    made = KnowledgeBase.open(import_knowledge("openke", tmp_path / "ernie", vectors=vec, entities=counted))
    np.testing.assert_array_equal(made.gather(made.rows(want))[0], table)
    wiki = tmp_path / "enwiki.txt.bz2"
    wiki.write_bytes(bz2.compress(b"2 2\nENTITY/New_York 1 2\nthe 3 4\n"))
    assert ids(import_knowledge("wikipedia2vec", tmp_path / "wiki", vectors=wiki)) == ["New_York"]
    twice = write_lines(tmp_path / "two.txt", "a\tb", "c\td", "e\tf", "g\th")
    with pytest.raises(InputError, match="has a tab, and its row is not the other column"):
        import_knowledge("npy", tmp_path / "none", vectors=tmp_path / "v.npy", ids=twice)


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_word2vecs_binary_format(tmp_path, newline):
    table = np.random.default_rng(0).normal(size=(3, 5)).astype("<f4")
    rows = b"".join(
        word + b" " + row.tobytes() + newline
        for word, row in zip([b"Paris", "Köln".encode(), b"a"], table, strict=True)
    )
    path = tmp_path / "GoogleNews.bin"
    path.write_bytes(b"3 5\n" + rows)
    made = KnowledgeBase.open(import_knowledge("word2vec", tmp_path / "kb", vectors=path))
    assert made.ids(range(3)) == ["Paris", "Köln", "a"]
    np.testing.assert_array_equal(made.gather(np.arange(3))[0], table)
    for content, says in ((b"3 5\n" + rows[:-9], "the file is cut"), (b"2 5\n" + rows, "goes on behind them")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            import_knowledge("word2vec", tmp_path / "none", vectors=path)
    path.write_bytes(b"1 2\n" + b"x " + struct.pack("<2f", float("nan"), 1))
    with pytest.raises(InputError, match="not finite"):
        import_knowledge("word2vec", tmp_path / "none", vectors=path)
