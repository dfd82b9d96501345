"""The paper's tasks: what stands in the text, which label is meant, what is predicted, and what is refused."""

import json

import numpy as np
import pytest
from encoding_cases import both, steady
from encoding_cases import host as tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from paper_records import LANDS, asked, parsed, relation, typed
from tiny_world import (
    VOCABULARY,
    write_host_and_base,
    write_records,
)

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.data.pipeline import Feed
from kinject.data.records import read_records
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.tasks.base import make_task
from kinject.tasks.entity_typing import EntityTyping
from kinject.tasks.labels import read_labels
from kinject.tasks.protocol import PROTOCOLS, Thunlp, cut_right, untruncated


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_host_and_base(tmp_path_factory.mktemp("paper"), "raw")


@pytest.fixture(scope="module")
def known(files):
    return KnowledgeBase.open(files / "knowledge")


@pytest.fixture(scope="module")
def raw(files):
    return open_host(files / "raw", head="masked_lm")


def unlinked(value):
    return {**value, "mentions": [{**one, "entity": None} for one in value["mentions"]]}


def unknown(value):
    return {**value, "mentions": [{**one, "entity": "Q999"} for one in value["mentions"]]}


def batch_of(task, values, raw, known, max_length=None):
    examples = task.examples(parsed(*values), raw.encoder(max_length), known, buckets=1)
    gather = None if known is None else known.gather
    (batch,) = Feed(examples, gather).evaluation(examples.size)
    return batch


def shown(batch, row=0):
    """The row's pieces; a slot is shown by its row in the knowledge base, one without a vector as E-1."""
    pieces = [VOCABULARY[i] for i in batch["token_ids"][row] if i > 0]
    for place, slot in enumerate(batch["entity_slot"][row]):
        if slot >= 0:
            pieces[place] = f"E{batch['entity_ids'][row, slot]}"
    return " ".join(pieces)


FORMS = [
    ("relation_classification", relation(7, 3), "# E7 / city7 # is in a place of $ E3 / city3 $ ."),
    ("entity_typing", typed(4), "a place of $ E4 / city4 $ far ."),
    ("entity_questions", asked(5), "$ E5 / city5 $ is in [MASK]"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("name", "value", "text"), FORMS)
def test_what_stands_in_the_text(name, value, text, protocol, raw, known):
    task = make_task(name, protocol=protocol, **({} if name == "entity_questions" else {"labels": LANDS}))
    assert task.head in ("masked_lm", "classification", "multi_label")
    assert shown(batch_of(task, [value], raw, known)) == f"[CLS] {text} [SEP]"
    bare = " ".join(word for word in text.split() if word != "/" and word[0] != "E")
    assert shown(batch_of(task, [value], raw, None)) == f"[CLS] {bare} [SEP]"
    # a linked entity without a vector: no slot by ours, a zero vector by theirs; an unlinked one never has any
    batch = batch_of(task, [unknown(value)], raw, known)
    slots = (batch["entity_slot"] >= 0).sum()
    if protocol == "kinject":
        assert slots == 0 and shown(batch) == f"[CLS] {bare} [SEP]"
    else:
        assert slots == text.count("E") and (batch["entity_ids"] == -1).all() and not batch["entity_vectors"].any()
    if name != "entity_questions":
        assert shown(batch_of(task, [unlinked(value)], raw, known)) == f"[CLS] {bare} [SEP]"


def test_head_is_the_first_mention_wherever_it_stands(raw, known):
    task = make_task("relation_classification", labels=LANDS)
    value = relation(7, 3)
    value["mentions"].reverse()
    assert shown(batch_of(task, [value], raw, known)) == "[CLS] $ E7 / city7 $ is in a place of # E3 / city3 # . [SEP]"


def test_authors_cut_at_the_right_and_lowercase_all(raw, known):
    value = relation(7, 3)
    value["tokens"] = [*value["tokens"][:2], "IN", *value["tokens"][3:]]  # an uncased vocabulary knows only "in"
    ours = make_task("relation_classification", labels=LANDS)
    theirs = make_task("relation_classification", labels=LANDS, protocol="thunlp")
    batch = batch_of(theirs, [value], raw, known, 12)
    assert shown(batch) == "[CLS] # E7 / city7 # is in a place of [SEP]" and batch["token_ids"].shape == (1, 12)
    assert shown(batch_of(ours, [value], raw, known, 15)) == "[CLS] # E7 / city7 # is [UNK] of $ E3 / city3 $ [SEP]"
    with pytest.raises(InputError, match=r"file\.jsonl:1: the question is cut before its mask"):
        batch_of(make_task("entity_questions", protocol="thunlp"), [asked()], raw, known, 8)


@both
@steady
@given(st.lists(st.sampled_from(["ka", "mo", "Ber", "[MASK]", "x"]), min_size=4, max_size=20), st.data())
def test_cut_right_keeps_the_left_end_as_it_is(family, tokens, data):
    start = data.draw(st.integers(0, len(tokens) - 1))
    passage = Passage(tokens, [Mention(start, start + 1, "Q1", "#", "$", masked=data.draw(st.booleans()))])
    encoder = EntityEncoder(tokenizer_of(family), data.draw(st.integers(6, 30)))
    (whole,) = untruncated(encoder).encode_batch([passage], lambda ids: np.zeros(len(ids), np.int32))
    short = cut_right(whole, encoder)
    keep = min(len(whole), encoder.max_length) - 1
    assert len(short) == keep + 1 and short.token_ids[-1] == encoder.tokenizer.sep_id
    for name in ("token_ids", "type_ids", "entity_slot"):
        assert getattr(short, name)[:keep].tolist() == getattr(whole, name)[:keep].tolist()
        assert getattr(short, name).dtype == np.int32
    for places in (short.mask_positions, short.blanks):
        assert all(short.token_ids[place] == encoder.tokenizer.mask_id for place in places)
    assert len(short.mask_positions) == len(short.label_ids)
    assert short.spans.max() <= keep or len(whole) <= encoder.max_length
    if len(whole) > encoder.max_length:
        assert short.markers.max() < keep


def test_all_is_lowercased():
    text = "İstanbul ŞEHRİ"
    assert Thunlp().text(text) == text.lower() and Thunlp().text("ABC") == "abc"
    assert Thunlp().text(("İ", "B")) == ("i\u0307", "b")


def test_answers(raw, known):
    lone = [
        asked(0, ["nothing known", "land2", "land1"]),
        asked(1, ["city3 city4", "Land4"]),
        asked(2, ["nothing"]),
        unlinked(asked(3, ["land1"])),
    ]
    task = make_task("entity_questions")
    examples = task.examples(parsed(*lone), raw.encoder(None), known, buckets=1)
    assert examples.notes == {"dropped: no answer of one piece": 2, "dropped: mention without entity": 1}
    assert [VOCABULARY[i] for i in examples.in_order("labels")[:, 0]] == ["land2"]
    theirs = make_task("entity_questions", protocol="thunlp")  # "Land4" is "land4" in the vocabulary
    examples = theirs.examples(parsed(*lone), raw.encoder(None), known, buckets=1)
    assert examples.notes == {"dropped: no answer of one piece": 1, "dropped: mention without entity": 1}
    assert [VOCABULARY[i] for i in examples.in_order("labels")[:, 0]] == ["land2", "land4"]
    batch = batch_of(task, lone, raw, known)
    assert (np.take_along_axis(batch["token_ids"], batch["positions"], 1) == raw.tokenizer.mask_id).all()
    with pytest.raises(InputError, match=r"no question can be used: no answer of one piece \(1\)"):
        task.examples(parsed(lone[2]), raw.encoder(None), known)


@steady
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_types_are_predicted_from_the_smaller_of_zero_and_the_largest_logit(types, rows, data):
    logit = st.floats(-3, 3, width=32).map(lambda value: round(value, 2))
    outputs = np.array(
        data.draw(st.lists(st.lists(logit, min_size=types, max_size=types), min_size=rows, max_size=rows))
    )
    right = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=types, max_size=types), min_size=rows, max_size=rows))
    )
    task = EntityTyping(LANDS)
    predicted = {name: np.asarray(value) for name, value in task.predict(outputs, {"labels": right * 1.0}).items()}
    chosen = [[value >= min(0, max(row)) for value in row] for row in outputs.tolist()]
    assert predicted["chosen"].tolist() == chosen and predicted["chosen"].any(1).all()
    hits = sum(c and r for cs, rs in zip(chosen, right, strict=True) for c, r in zip(cs, rs, strict=True))
    precision, recall = hits / sum(map(sum, chosen)), hits / max(right.sum(), 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    found = task.score(predicted)
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1])


def test_typing_labels_and_loss(raw, known):
    task = EntityTyping(LANDS)
    batch = batch_of(task, [typed(), typed(2, ["land1"])], raw, known)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 1, 0]]
    outputs = np.array([[0.5, -1.0, 2.0], [0.0, 0.25, -3.0]], np.float32)
    losses, weights = task.loss(outputs, batch)
    probability = 1 / (1 + np.exp(-outputs.astype(np.float64)))
    expected = -np.where(batch["labels"] > 0, np.log(probability), np.log(1 - probability)).mean(1)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert weights.tolist() == [1, 1]


def test_label_files(tmp_path):
    (tmp_path / "rel2id.json").write_text(json.dumps({"b": 1, "a": 0, "c": 2}))
    (tmp_path / "list.json").write_text(json.dumps(["x", "y"]))
    assert read_labels(tmp_path / "rel2id.json") == ("a", "b", "c") and read_labels(["q"]) == ("q",)
    assert make_task("entity_typing", labels=str(tmp_path / "list.json")).labels == ("x", "y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 0, "b": 2}', "not 0, 1, 2"),
        ('{"a": 0, "b": true}', "not 0, 1, 2"),
        ('{"a": 0, "a": 1}', "key 'a' twice"),
        ('["a", "b", "a"]', "label 'a' occurs twice"),
        ('["a", 3]', "3 is no name"),
        ("[]", "no list of labels"),
        ('"ab"', "no list of labels"),
        ("[", "no JSON file"),
        ("", "no JSON file"),
    ],
)
def test_bad_label_files(text, message, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=rf"labels\.json: .*{message}"):
        make_task("relation_classification", labels=str(tmp_path / "labels.json"))
    with pytest.raises(InputError, match=r"nowhere\.json: is not there"):
        read_labels(tmp_path / "nowhere.json")


def without(value, field):
    return {name: content for name, content in value.items() if name != field}


def outside(value, start=90):
    return {**value, "mentions": [{**value["mentions"][0], "start": start, "end": start + 1}, *value["mentions"][1:]]}


MALFORMED = {
    "no label": ("relation_classification", [relation(), without(relation(), "label")], r"2: field 'label' is missing"),
    "no types": ("entity_typing", [typed(), without(typed(), "labels")], r"2: field 'labels' is missing"),
    "no answers": ("entity_questions", [asked(), without(asked(), "answers")], r"2: field 'answers' is missing"),
    "no text": ("entity_questions", [without(asked(), "text")], r"1: has neither 'text' nor 'tokens'"),
    "no start": (
        "entity_typing",
        [{**typed(), "mentions": [{"end": 4}]}],
        r"1: field 'mentions\[0\]\.start' is missing",
    ),
    "outside tokens": ("relation_classification", [relation(), outside(relation())], r"2: mentions\[0\]: start 90"),
    "outside text": ("entity_typing", [outside(typed())], r"1: mentions\[0\]: start 90, end 91 in a text of 22"),
    "one mention": (
        "relation_classification",
        [{**relation(), "mentions": relation()["mentions"][:1]}],
        r"1: field mentions has 1 of them, 2 are needed; head first",
    ),
    "two mentions": ("entity_typing", [{**relation(), "labels": ["land0"]}], r"1: field mentions has 2 of them, 1"),
    "no mention": ("entity_questions", [{**asked(), "mentions": []}], r"1: field mentions has 0 of them, 1"),
    "unknown label": (
        "relation_classification",
        [relation(), relation(label="lnad1")],
        r"2: field label is 'lnad1', which is none of the labels; did you mean land1\?",
    ),
    "label of a type": ("relation_classification", [relation(label=3)], r"1: field label is 3, which is none"),
    "unknown type": ("entity_typing", [typed(labels=["land0", "sea"])], r"1: field labels\[1\] is 'sea'"),
    "type alone": ("entity_typing", [{**typed(), "labels": "land0"}], r"1: field labels is 'land0'; it must be a list"),
    "empty types": ("entity_typing", [typed(labels=[])], r"1: field labels is empty"),
    "answers alone": ("entity_questions", [{**asked(), "answers": "land1"}], r"1: field answers is 'land1'"),
    "own mask": ("entity_questions", [{**asked(), "text": "city1 [MASK]"}], r"1: field text holds a \[MASK\]"),
    "same id": (
        "relation_classification",
        [relation(id="a"), relation(id="b"), relation(id="a")],
        r"3: field id: 'a' is that of .*1 too",
    ),
    "odd id": ("entity_questions", [asked(id=[1])], r"1: field id is \[1\]; it must be a string"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_records_are_told_by_file_line_and_field(case, tmp_path, raw, known):
    name, values, message = MALFORMED[case]
    task = make_task(name, **({} if name == "entity_questions" else {"labels": LANDS}))
    path = write_records(tmp_path / "data.jsonl", values)
    with pytest.raises(InputError, match=rf"^{path}:{message}"):
        task.examples(list(read_records(path, task.required)), raw.encoder(None), known)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"data\.jsonl: there is no record in it"),
        (b"\n\n", r"data\.jsonl: there is no record in it"),
        (
            json.dumps(relation()).encode() + b"\n" + '{"text": "é"}'.encode("latin-1"),
            r"data\.jsonl:2: byte 11 of the line",
        ),
        (json.dumps(relation()).encode("utf-16"), r"data\.jsonl: it is UTF-16, not a text in UTF-8; convert it: iconv"),
    ],
)
def test_files_without_records_or_of_another_encoding(content, message, tmp_path):
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_records(tmp_path / "data.jsonl", ("label",)))


def test_unknown_protocol():
    with pytest.raises(InputError, match=r"task_options\.protocol: there is no protocol 'thunl'; did you mean thunlp"):
        make_task("entity_questions", protocol="thunl")
