"""ATOMIC, ConceptNet and CommonsenseQA in their own formats, and what a base of them is: facts found by their words."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from kinject.cli.knowledge import main as knowledge_command
from kinject.data.facts import FactReader
from kinject.data.records import parse_record
from kinject.datasets.prepare import prepare
from kinject.datasets.records import read_dataset
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.commonsense import Filter, atomic, atomic10x, conceptnet, label_of, relation_label
from kinject.linking import AliasLinker
from kinject.plugins.kformer import Kformer

RELATIONS = ["xNeed", "oReact", "AtLocation", "isFilledBy"]


def write_atomic(path, bad=None):
    """300 lines of ATOMIC-2020's form: 2 of 30 tails are none."""
    lines = [
        f"PersonX buys ___ {i}\t{RELATIONS[i % 4]}\t{'none' if i % 30 in (0, 1) else f'to find {i}'}"
        for i in range(300)
    ]
    if bad is not None:
        lines[bad[0] - 1] = bad[1]
    path.write_text("\n".join(lines) + "\n")
    return path


def edge(relation, head, tail, weight):
    name = f"/a/[/r/{relation}/,{head}/,{tail}/]"
    return f"{name}\t/r/{relation}\t{head}\t{tail}\t" + json.dumps({"surfaceText": None, "weight": weight})


def write_conceptnet(path, bad=None):
    """300 assertions of ConceptNet's form: senses, other languages, weights, web addresses."""
    lines = []
    for i in range(300):
        head = f"/c/en/thing_{i % 40}" + ("/n/wn/food" if i % 3 else "")
        tail = f"/c/{'fr' if i % 10 == 9 else 'en'}/place_{i % 7}"
        lines.append(edge("AtLocation" if i % 2 else "UsedFor", head, tail, 1.0 + i % 4))
    lines[7] = edge("ExternalURL", "/c/en/thing_1", "http://dbpedia.org/x", 1.0)
    if bad is not None:
        lines[bad[0] - 1] = bad[1]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


def test_atomic(tmp_path):
    left_out = Counter()
    found = list(atomic(write_atomic(tmp_path / "train.tsv"), Filter(), left_out))
    assert len(found) == 280 and left_out == {"tail is none": 20}
    assert found[0][1:] == ("PersonX buys ___ 2", "AtLocation", "to find 2") and found[0][0].endswith(
        "train.tsv, line 3"
    )
    lines = [
        {"head": "x", "relation": "any words", "tail": f"y {i}", "p_valid_model": i / 10, "split": "train"}
        for i in range(10)
    ]
    path = tmp_path / "atomic10x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    left_out = Counter()
    assert [tail for *_, tail in atomic10x(path, Filter(0.75), left_out)] == ["y 8", "y 9"]
    assert left_out == {"less valid than asked for": 8}


def test_conceptnet(tmp_path):
    path = write_conceptnet(tmp_path / "assertions.csv.gz")
    left_out = Counter()
    found = list(conceptnet(path, Filter(3.0), left_out))
    weights = [1.0 + i % 4 for i in range(300)]
    expected = [i for i in range(300) if weights[i] >= 3 and i % 10 != 9 and i != 7]
    assert [int(where.rsplit(" ", 1)[1]) - 1 for where, *_ in found] == expected
    assert left_out == {"of another language, or no concept": 31, "of less weight than asked for": 269 - len(expected)}
    assert found[0][1:] == ("/c/en/thing_2", "/r/UsedFor", "/c/en/place_2")  # without its sense
    assert len(list(conceptnet(path, Filter(0, ""), Counter()))) == 299


BAD = [
    (atomic, write_atomic, (5, "PersonX runs\txNeed"), r"train, line 5: 'PersonX runs\\txNeed' is not head, relation"),
    (conceptnet, write_conceptnet, (9, "a\tb"), r"train, line 9: it has 2 columns, not edge"),
    (conceptnet, write_conceptnet, (9, edge("IsA", "/c/en/a", "/c/en/b", "much")), r"line 9: field 'weight' is 'much'"),
    (
        conceptnet,
        write_conceptnet,
        (9, edge("IsA", "dog", "/c/en/b", 1)),
        r"line 9: the head is 'dog'; it begins with /c/",
    ),
    (conceptnet, write_conceptnet, (2, "x\tIsA\t/c/en/a\t/c/en/b\t{}"), r"line 2: the relation is 'IsA'"),
    (conceptnet, write_conceptnet, (3, "x\t/r/IsA\t/c/en/a\t/c/en/b\t[1"), r"line 3: '\[1' is no JSON"),
]


@pytest.mark.parametrize(("read", "write", "bad", "message"), BAD)
def test_bad_lines_are_named(read, write, bad, message, tmp_path):
    path = write(tmp_path / "train", bad)
    if read is conceptnet:
        path = path.rename(tmp_path / "train.gz")
        message = message.replace("train,", r"train\.gz,")
    with pytest.raises(InputError, match=message):
        list(read(path, Filter(), Counter()))


def test_in_words():
    assert label_of("/c/en/ice_cream") == "ice cream" and label_of("PersonX eats") == "PersonX eats"
    assert relation_label("/r/UsedFor") == "used for" and relation_label("oReact") == "so others feel"
    assert relation_label("leads people to") == "leads people to"


def test_a_base_of_facts_that_are_found_by_their_words(tmp_path, capsys):
    source, out = write_atomic(tmp_path / "train.tsv"), tmp_path / "kb"
    build = ["build", "--triples", str(source), "--out", str(out), "--vectors-from", "nothing"]
    assert knowledge_command([*build, "--triples-format", "atomic", "--quiet"]) == 0
    base = KnowledgeBase.open(out)
    assert base.size == 560 and len(base.triples) == 280 and not base.has_vector.any()
    assert base.manifest["provenance"]["left_out"] == {"tail is none": 20}
    reader = FactReader.of(Kformer.Config(form="triples", entities=1), base)
    ((groups,),) = reader.read([parse_record({"text": "PersonX buys ___ 142 today"}, "x")])
    assert groups == [["PersonX buys ___ 142 is found at to find 142"]]
    assert (
        knowledge_command(
            [*build[:-4], "--out", str(tmp_path / "no"), "--vectors-from", "nothing", "--triples-format", "conceptnet"]
        )
        == 2
    )
    assert "train.tsv, line 1: it has 3 columns" in capsys.readouterr().err
    assert knowledge_command([*build[:3], "--out", str(tmp_path / "no"), "--triples-format", "atomic10x"]) == 2
    assert "is no JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_concepts_are_entities_that_texts_can_be_linked_to(tmp_path):
    source, out = write_conceptnet(tmp_path / "assertions.csv.gz"), tmp_path / "kb"
    arguments = [
        "build",
        "--triples",
        str(source),
        "--triples-format",
        "conceptnet",
        "--least-weight",
        "2",
        "--out",
        str(out),
    ]
    assert knowledge_command([*arguments, "--dim", "4", "--epochs", "2", "--quiet"]) == 0
    base = KnowledgeBase.open(out)
    row = int(base.rows(["/c/en/thing_11"])[0])
    assert base.entity(row).label == "thing 11" and base.gather(np.array([row]))[1].all()
    (found,) = AliasLinker(base)("Put the thing 11 away")
    assert found.entity == "/c/en/thing_11"


def commonsense_question(number, **changes):
    choices = [{"label": letter, "text": f"choice {letter}"} for letter in "ABCDE"]
    question = {"question_concept": "dog", "choices": choices, "stem": f"Where is {number}?"}
    return {"answerKey": "ABCDE"[number % 5], "id": f"q{number}", "question": question, **changes}


def write_questions(folder, *lines):
    folder.mkdir()
    (folder / "train_rand_split.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_commonsenseqa(tmp_path):
    folder = write_questions(tmp_path / "files", *map(commonsense_question, range(200)))
    prepare("commonsenseqa", folder, tmp_path / "data", check=False)
    records = list(read_dataset(f"tfds:commonsenseqa@{tmp_path / 'data'}?split=train"))
    assert len(records) == 200 and records[7].source == "Where is 7?"
    assert records[7].fields == {"choices": [f"choice {x}" for x in "ABCDE"], "label": 2, "concept": "dog", "id": "q7"}
    bad = write_questions(tmp_path / "bad", commonsense_question(0), commonsense_question(1, answerKey="F"))
    with pytest.raises(
        InputError, match=r"train_rand_split\.jsonl:\S*2\S*: field 'answerKey' is 'F', and the choices are A, B"
    ):
        prepare("commonsenseqa", bad, tmp_path / "other", check=False)


def test_socialiqa_as_published(tmp_path):
    line = {"context": "Bo ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "AnswerKey": "2"}
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text(json.dumps(line) + "\n")
    prepare("socialiqa", tmp_path / "files", tmp_path / "data", check=False)
    (record,) = read_dataset(f"tfds:socialiqa@{tmp_path / 'data'}?split=train")
    assert record.fields["choices"] == ["a", "b", "c"] and record.fields["label"] == 1
