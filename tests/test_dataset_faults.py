"""Whatever can be wrong with the published files: each told in one line that names file, place and field."""

import json
from pathlib import Path

import pytest
from dataset_files import TOKENS, fewrel_item, line, write_files, write_json

from kinject.datasets.builder import Ids
from kinject.datasets.prepare import prepare
from kinject.errors import InputError


def edit(change):
    """A breaker that loads a JSON file, changes its content and writes it back."""

    def apply(path):
        content = json.loads(path.read_text())
        content = change(content) or content
        path.write_text(json.dumps(content))

    return apply


def edit_line(number, change):
    """A breaker of one line (from 1) of a JSON lines file."""

    def apply(path):
        lines = path.read_text().splitlines()
        value = json.loads(lines[number - 1])
        lines[number - 1] = json.dumps(change(value) or value)
        path.write_text("\n".join(lines))

    return apply


def text(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def drop(*keys):
    def change(value):
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


def put(*keys_and_value):
    *keys, last, new = keys_and_value

    def change(value):
        for key in keys:
            value = value[key]
        value[last] = new

    return change


FEWREL = ("fewrel", "train_wiki.json")
ET, W80, W20 = ("wiki_et", "train.json"), ("wiki80", "train.txt"), ("wiki20m", "wiki20m_train.txt")
EQ, OWN = ("entity_questions", "dev/P36.dev.json"), ("jsonl", "train.jsonl")
BROKEN = [
    (*FEWREL, text(b""), ["train_wiki.json: the file is empty"], None),
    (*FEWREL, text("{}"), ["train_wiki.json", "empty"], None),
    (*FEWREL, text(b'{"P1": \xff}'), ["train_wiki.json: byte 8 is not UTF-8"], None),
    (*FEWREL, text('{"P1":\n [}'), ["train_wiki.json:2: not JSON", "column 3"], None),
    (*FEWREL, text('{"P1": [1], "P1": [2]}'), ["train_wiki.json: key 'P1' stands twice"], None),
    (*FEWREL, edit(put("P9", [])), ["relation 'P9' has no instance"], None),
    (*FEWREL, edit(drop("P177", 1, "t")), ["train_wiki.json:P177[1]: field 't' is missing"], None),
    (*FEWREL, edit(drop("P177", 1, "tokens")), ["P177[1]: field 'tokens' is missing"], None),
    (*FEWREL, edit(put("P9", 0, "h", 2, 0, [7, 8])), ["P9[0]: field 'h[2][0]' spans 7 to 9"], None),
    (*FEWREL, edit(put("P9", 0, "h", 2, 0, [-1])), ["P9[0]: field 'h[2][0]' spans -1 to 0"], None),
    (*FEWREL, edit(put("P9", 0, "h", 2, 0, [])), ["P9[0]: field 'h[2][0]' is"], None),
    (*FEWREL, edit(put("P9", 0, "h", 1, "C77")), ["P9[0]: field 'h[1]' is 'C77'", "Q and digits"], None),
    (*FEWREL, edit(put("P9", 0, "tokens", 3, 4)), ["P9[0]: field 'tokens[3]'", "a string"], None),
    (*W80, Path.unlink, ["train.txt: no such file", "put it there"], "files"),
    ("wiki80", "rel2id.json", edit(put("P26", 0)), ["labels 'P26' and 'P177' are both number 0"], None),
    ("wiki80", "rel2id.json", edit(put("P26", 5)), ["label 'P26' is number 5"], None),
    (*W80, edit_line(2, put("relation", "P27")), ["train.txt:2: field 'relation' is 'P27'", "mean P26?"], None),
    (*W80, edit_line(2, drop("h", "pos")), ["train.txt:2: field 'h.pos' is missing"], None),
    (*W20, edit_line(3, put("t", "pos", [5, 9])), ["wiki20m_train.txt:3: field 't.pos' spans 5 to 9"], None),
    (*W20, edit_line(3, put("t", "pos", [5])), ["wiki20m_train.txt:3: field 't.pos'", "[start, end]"], None),
    (*W20, edit_line(3, put("h", "pos", [True, 2])), ["wiki20m_train.txt:3: field 'h.pos' is bool"], None),
    (*W20, edit_line(1, drop("h", "id")), ["wiki20m_train.txt:1: field 'h.id' is missing"], None),
    (*W20, text(b"\n\n"), ["wiki20m_train.txt: the file is empty"], None),
    (*W20, text(b"{}\n\xff\n"), ["wiki20m_train.txt:1: field 'token' is missing"], None),
    (*W20, text(json.dumps(line()).encode() + b"\n\xff\n"), ["wiki20m_train.txt, line 2", "UTF-8"], None),
    (*W20, text(json.dumps(line()) + "\n{"), ["wiki20m_train.txt:2: not JSON"], None),
    (*ET, edit_line(2, put("labels", ["city", "rivr"])), ["train.json:2: field 'labels[1]'", "mean river?"], None),
    (*ET, edit_line(2, put("end", 99)), ["train.json:2: field 'start, end' spans 22 to 99"], None),
    (*ET, edit_line(2, drop("sent")), ["train.json:2: field 'sent' is missing"], None),
    (*ET, edit_line(2, put("id", "1")), ["train.json:2: field 'id' is row 1, which entity2id.txt does not"], None),
    (*ET, edit_line(2, put("id", "x")), ["train.json:2: field 'id'", "'x', not a number"], None),
    ("wiki_et", "entity2id.txt", text("2\nQ1 0\nQ2 0"), ["line 3: row 0 belongs to both Q1 and Q2"], None),
    ("wiki_et", "entity2id.txt", text("2\nQ1 2"), ["line 2: row 2, but the first line counts 2"], None),
    ("wiki_et", "entity2id.txt", text("99999999\nQ1 2"), ["line 1", "fewer bytes"], None),
    ("wiki_et", "entity2id.txt", Path.unlink, ["entity2id.txt: no such file"], None),
    (*EQ, text("[]"), ["dev/P36.dev.json: the file is empty"], None),
    (*EQ, edit(drop(1, "answers")), ["dev/P36.dev.json:[1]: field 'answers' is missing"], None),
    (*EQ, edit(put(1, "answers", [5])), ["dev/P36.dev.json:[1]: field 'answers[0]'"], None),
    (*EQ, edit(put(0, "question", "Why?")), ["dev/P36.dev.json:[0]: field 'question' is 'Why?'"], None),
    ("entity_questions", "entity_map.txt", text("Lima\tQ1\nPeru\n"), ["entity_map.txt, line 2: no tab"], None),
    ("entity_questions", "entity_map.txt", text(""), ["entity_map.txt: the file is empty"], None),
    (
        *("entity_questions", "relation_query_templates.json"),
        *(edit(drop("P36")), ["P36.train.json: relation P36 has no template"], None),
    ),
    (
        *("entity_questions", "relation_query_templates.json"),
        *(edit(put("P36", "What?")), ["the template of P36 is 'What?'"], None),
    ),
    (*OWN, edit_line(3, put("id", "a")), ["train.jsonl:3: field 'id' is 'a', as at", "train.jsonl:1"], None),
    (*OWN, edit_line(3, put("id", "c")), ["field 'id' is 'c', as at", "held_out.jsonl.gz:1"], None),
    (*OWN, edit_line(3, put("id", 7)), ["train.jsonl:3: field 'id' is int 7"], None),
    (*OWN, edit_line(1, put("mentions", 0, "end", 70)), ["train.jsonl:1: mentions[0]", "end 70"], None),
    (*OWN, text(""), ["train.jsonl: there is no record"], None),
    (*OWN, lambda path: path.rename(path.with_name("a-b.jsonl")), ["'a-b' cannot be a split's name"], None),
]


@pytest.mark.parametrize(("name", "file", "breaker", "messages", "config"), BROKEN)
def test_what_is_wrong_is_named_by_file_place_and_field(tmp_path, name, file, breaker, messages, config):
    files = write_files(tmp_path / "files", name)
    breaker(files / file)
    config = config or {"fewrel": "train_wiki"}.get(name, "")
    with pytest.raises(InputError) as caught:
        prepare("/".join(filter(None, (name, config))), files, tmp_path / "data", check=False)
    assert str(caught.value).startswith(str(files)) and "\n" not in str(caught.value)
    assert all(message in str(caught.value) for message in messages), caught.value
    assert not list((tmp_path / "data").rglob("dataset_info.json"))


def test_only_the_files_that_are_there_are_prepared(tmp_path):
    files = write_files(tmp_path / "files", "fewrel")
    (files / "train_wiki.json").unlink()
    (files / "val_semeval.json").unlink()
    found = [summary.reference for summary in prepare("fewrel", files, tmp_path / "data", check=False)]
    assert found == [
        f"tfds:fewrel/{name}@{tmp_path / 'data'}" for name in ("val_wiki", "val_pubmed", "pubmed_unsupervised")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fewrel/train_wiki", "it has 2 relations, the published one has 64"),
        ("fewrel/val_semeval", "it has 1 relations, the published one has 17"),
        ("wiki80/files", "it has 2 labels, the published one has 80"),
        ("wiki_et", "it has 3 labels, the published one has 68"),
        ("entity_questions", "it has 4 questions, the published one has 176,560"),
    ],
)
def test_files_that_are_not_the_published_ones_are_refused(tmp_path, name, message):
    files = write_files(tmp_path / "files", name.partition("/")[0])
    with pytest.raises(InputError, match=message):
        prepare(name, files, tmp_path / "data")


def test_a_published_file_that_was_changed_is_refused_by_its_checksum(tmp_path):
    relations = {f"r{number}": [fewrel_item("C1", "C2")] * 100 for number in range(10)}
    write_json(tmp_path / "files/val_pubmed.json", relations)
    with pytest.raises(InputError, match="its SHA-256 is not that of the published file"):
        prepare("fewrel/val_pubmed", tmp_path / "files", tmp_path / "data")


def test_overlapping_mentions_are_refused_or_left_out_and_counted(tmp_path):
    nested = {"tokens": TOKENS, "h": ["a", "C1", [[1, 2]]], "t": ["b", "C2", [[2, 3]]]}
    write_json(tmp_path / "files/train_fewPubmed.json", {"r": [fewrel_item("C1", "C2"), nested]})
    with pytest.raises(InputError, match=r"train_fewPubmed.json:r\[1\]: fields 'h' and 't' overlap"):
        prepare("fewrel", tmp_path / "files", tmp_path / "data")
    (summary,) = prepare("fewrel", tmp_path / "files", tmp_path / "data", check=False)
    assert summary.splits == {"train": 1} and summary.left_out == {"head and tail overlap": 1}


def test_ids_that_only_share_a_hash_are_not_blamed(tmp_path):
    ids = Ids(tmp_path)
    for one in ("a", "b", "a"):
        ids.add(one)
    assert len(ids.repeated()) == 1
    ids.refuse_repeated([("b", "x:1"), ("a", "x:2"), ("c", "x:3")])  # on a second look, no id stands twice
    with pytest.raises(InputError, match="x:3: field 'id' is 'a', as at x:1 already"):
        ids.refuse_repeated([("a", "x:1"), ("b", "x:2"), ("a", "x:3")])


def test_a_misplaced_answer_is_left_out_and_counted_where_files_are_not_checked(tmp_path):
    answers = [{"text": "Paris", "answer_start": 0}], [{"text": "old", "answer_start": 18}]
    questions = [{"id": str(i), "question": "what ?", "answers": some} for i, some in enumerate(answers)]
    content = {"data": [{"paragraphs": [{"context": " Paris is big and old.", "qas": questions}]}]}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the passage has no 'Paris'; .*--no-check leaves such records out"):
        prepare("squad_json", tmp_path / "files", tmp_path / "checked")
    (made,) = prepare("squad_json", tmp_path / "files", tmp_path / "out", check=False)
    assert made.splits == {"train": 1} and made.left_out == {"a mention or an answer not where its place says": 1}


def test_a_word_of_a_treebank_may_hold_blanks(tmp_path):
    from kinject.datasets.corpora import _trees

    name = "1\tNew  York\tNew York\tPROPN\t_\t_\t2\tnsubj\t_\t_"
    lines = ["# text = New  York is", name, "2\tis\tbe\tAUX\t_\t_\t0\troot\t_\t_"]
    (tmp_path / "a.conllu").write_text("\n".join(lines) + "\n\n")
    (record,) = _trees("train", tmp_path / "a.conllu")
    assert record.source == ("New  York", "is") and record.fields["heads"] == [2, 0]
