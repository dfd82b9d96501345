"""The data sets of K-Adapter, Kformer and PlugLM: what their files say, and whatever can be wrong with them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_files import WRITERS, tacred, typed, write
from test_dataset_faults import drop, edit, edit_line, put, text

from kinject import text_files
from kinject.data.records import Mention
from kinject.datasets.corpora import as_bio
from kinject.datasets.files import read_objects
from kinject.datasets.prepare import prepare
from kinject.datasets.records import Dataset, read_dataset
from kinject.errors import InputError
from kinject.tasks.labels import read_labels

steady = settings(derandomize=True, max_examples=60, deadline=None)
CONFIGS = {
    "lama": ("google_re", "trex"),
    "open_qa": ("quasar_t",),
    "ner": ("conll2003",),
    "text_classification": ("own",),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every data set here, prepared, in one data_dir."""
    root = tmp_path_factory.mktemp("task_datasets")
    for name, write_files in WRITERS.items():
        files = root / "files" / name
        write_files(files)
        for config in CONFIGS.get(name, ("",)):
            prepare("/".join(filter(None, (name, config))), files, root / "data", check=False)
    return root / "data"


def read(data, name, split):
    return list(read_dataset(f"tfds:{name}@{data}?split={split}"))


def spelled(record):
    source = record.source
    return [source[one.start : one.end] for one in record.mentions]


def test_cosmosqa(data):
    plain, with_facts = read(data, "cosmosqa", "train")
    fields = {"question": "Why?", "choices": [f"choice {i}" for i in range(4)]}
    assert plain.source == "Story 1." and plain.fields == {**fields, "id": "c1", "label": 1}
    facts = [[], ["ev 1"], ["ev 2"] * 2, ["ev 3"] * 3]
    assert with_facts.fields == {**fields, "id": "c2", "label": 2, "facts": facts}
    assert read(data, "cosmosqa", "validation")[0].fields["label"] == 3
    assert "label" not in read(data, "cosmosqa", "test")[0].fields


def test_socialiqa_shares_its_facts_and_counts_from_one(data):
    first, second = read(data, "socialiqa", "train")
    assert (first.source, first.fields["question"]) == ("Kai met Bo 0 times.", "How?")
    assert (first.fields["label"], second.fields["label"]) == (0, 1)
    assert first.fields["facts"] == [["PersonX is glad", "PersonX meets"]]
    (plain,) = read(data, "socialiqa", "validation")
    assert (plain.fields["choices"], plain.fields["label"]) == (["a", "b", "c"], 2)


def test_medqa_has_facts_of_each_choice(data):
    first, second = read(data, "medqa", "train")
    assert first.source == "A man of 1 years?" and "question" not in first.fields
    assert first.fields["choices"] == [f"drug {i}" for i in range(4)]
    assert first.fields["facts"] == [[], ["fact 1.0"], ["fact 2.0", "fact 2.1"], ["fact 3.0", "fact 3.1", "fact 3.2"]]
    assert (first.fields["label"], second.fields["label"]) == (1, 2)
    assert len(read(data, "medqa", "test")) == 1


@pytest.mark.parametrize("name", ["open_entity", "figer"])
def test_typed_mentions_are_linked_where_ents_name_them(name, data):
    records = read(data, name, "train")
    assert [spelled(record) for record in records] == [["Köln"]] * 4
    assert [record.mentions[0].entity for record in records] == [None, "Q365", None, "Q365"]
    assert [record.fields["labels"] for record in records] == [[], ["location"], ["location", "entity"], []]
    assert Dataset(f"tfds:{name}@{data}?split=test").labels == ["entity", "location"]
    assert read_labels(f"tfds:{name}@{data}") == ("entity", "location")


def test_tacred_ends_are_inclusive(data):
    records = read(data, "tacred", "train")
    assert spelled(records[0]) == [("Wye", "Bridge"), ("River", "Wye")]
    assert records[1].fields == {"label": "org:founded", "id": "e1"}
    assert Dataset(f"tfds:tacred@{data}?split=train").labels == ["no_relation", "org:founded", "per:age"]


def test_squad_json(data):
    france, paris = read(data, "squad_json", "train")
    assert france.fields == {"question": "Where is Paris?", "id": "a", "answers": ["France"], "starts": [12]}
    assert paris.source[20:25] == "Paris" and paris.where == "train-v1.1.json:data[0].paragraphs[0].qas[1]"
    assert len(read(data, "squad_json", "validation")) == 1
    assert Dataset(f"tfds:squad_json@{data}?split=train").metadata["left_out"] == {"no answer": 1}


def test_squad_v2_keeps_questions_without_an_answer(data):
    answered, unanswered = read(data, "squad_v2", "train")
    assert answered.fields["answers"] == ["France"]
    assert unanswered.fields == {"question": "Where is Paris?", "id": "train b", "answers": [], "starts": []}
    assert len(read(data, "squad_v2", "validation")) == 2


def test_open_qa_makes_a_record_a_passage(data):
    records = read(data, "open_qa/quasar_t", "train")
    assert [record.source for record in records] == ["It is Bo .", "Mr Bo", "In Rome ."]
    assert [record.fields["id"] for record in records] == ["train/1/0", "train/1/2", "train/2/0"]
    shared = {"question": "Who is it ?", "question_id": "train/1", "answers": ["Bo", "Mr Bo"]}
    assert records[1].fields == {**shared, "id": "train/1/2"}
    assert Dataset(f"tfds:open_qa/quasar_t@{data}?split=train").metadata["left_out"] == {"empty passage": 2}


def test_ner_columns_and_lines(data):
    first, second = read(data, "ner/conll2003", "train")
    assert first.source == ("EU", "rejects", "German", "British")
    assert first.fields["tags"] == ["B-ORG", "O", "B-MISC", "B-MISC"] and first.where == "train.txt:3"
    assert (second.source, second.fields["tags"]) == (("Bo",), ["B-PER"])
    (line,) = read(data, "ner/conll2003", "validation")
    assert line.mentions == (Mention(1, 2, "Q365"),)
    labels = ["B-LOC", "B-MISC", "B-ORG", "B-PER", "O"]
    assert Dataset(f"tfds:ner/conll2003@{data}?split=train").labels == labels


@steady
@given(st.lists(st.sampled_from(["O", "I-a", "B-a", "I-b", "B-b"]), max_size=8))
def test_bio_tags_mean_what_the_others_meant(tags):
    """Names by both schemes: one begins at B-, and at I- where nothing of its type goes on."""
    begins = [
        tag != "O" and (tag[0] == "B" or i == 0 or tags[i - 1] == "O" or tags[i - 1][2:] != tag[2:])
        for i, tag in enumerate(tags)
    ]
    found = as_bio(tags, "here")
    assert [tag[2:] for tag in found] == [tag[2:] for tag in tags]
    assert [tag[0] for tag in found] == ["O" if tag == "O" else "IB"[b] for tag, b in zip(tags, begins, strict=True)]
    assert as_bio(found, "here") == found


def test_text_classification(data):
    first, second = read(data, "text_classification/own", "train")
    assert (first.source, first.fields) == ("a drug", {"label": "INHIBITOR", "id": "train/1"})
    assert second.fields == {"label": "7", "pair": "c", "id": "train/2"}
    assert read(data, "text_classification/own", "test")[0].mentions[0].entity == "Q365"
    assert Dataset(f"tfds:text_classification/own@{data}?split=train").labels == ["7", "INHIBITOR"]


def test_lama_fills_templates(data):
    lima, born, unlinked = read(data, "lama/trex", "test")
    assert lima.source == "The capital of Peru is [MASK] ." and spelled(lima) == ["Peru"]
    assert (lima.mentions[0].entity, lima.fields) == ("Q419", {"label": "Lima", "relation": "P36", "id": "P36/1"})
    # a subject may look like a template, and the answer may come first
    assert born.source == "[MASK] is where Zoë [Y] was born ." and spelled(born) == ["Zoë [Y]"]
    assert unlinked.mentions[0].entity is None
    assert Dataset(f"tfds:lama/trex@{data}?split=test").labels == ["P36", "P19"]
    dates = [one for one in read(data, "lama/google_re", "test") if one.fields["relation"] == "date_of_birth"]
    assert [one.source for one in dates] == ["Bo Li (born [MASK])."] * 2
    assert [one.mentions[0].entity for one in dates] == [None, "Q7"]


# ---- whatever can be wrong --------------------------------------------------------------------------------------

COSMOS, SOCIAL, MED = ("cosmosqa", "train.jsonl"), ("socialiqa", "train.jsonl"), ("medqa", "train.jsonl")
TYPES, TACRED, SQUAD = ("open_entity", "train.json"), ("tacred", "train.json"), ("squad_json", "train-v1.1.json")
OPEN, NER, TEXT = ("open_qa", "train.txt"), ("ner", "train.txt"), ("text_classification", "train.jsonl")
TREX = ("lama", "TREx/P36.jsonl")
QAS = ("data", 0, "paragraphs", 0, "qas", 1)


def both_lines(change):
    return lambda path: path.write_text("".join(json.dumps(change(json.loads(one))) + "\n" for one in path.open()))


BROKEN = [
    (*COSMOS, text(b""), ["train.jsonl: the file is empty"]),
    (*COSMOS, text(b"\xff"), ["train.jsonl, line 1", "UTF-8"]),
    (*COSMOS, text("{"), ["train.jsonl:1: not JSON"]),
    (*COSMOS, Path.unlink, ["train.json: no such file", "(or as train.jsonl)"]),
    (*COSMOS, edit_line(2, drop("answer3")), ["train.jsonl:2: field 'answer3' is missing"]),
    (*COSMOS, edit_line(2, put("label", 4)), ["train.jsonl:2: field 'label' is 4, and there are 4 choices"]),
    (*COSMOS, edit_line(2, put("label", "x")), ["train.jsonl:2: field 'label' is 'x'"]),
    (
        *COSMOS,
        edit_line(2, put("answer1_searched_evidence", {"basic": ["x"]})),
        ["'answer1_searched_evidence.basic[0]'"],
    ),
    (*SOCIAL, edit_line(1, put("AnswerKey", 0)), ["train.jsonl:1: field 'AnswerKey' is 0", "counted from 1"]),
    (*SOCIAL, edit_line(1, put("knowledges", "x")), ["train.jsonl:1: field 'knowledges'", "a list"]),
    (*SOCIAL, edit_line(1, put("choices", [{"text": "x"}])), ["train.jsonl:1: field 'choices' has 1"]),
    (*SOCIAL, edit_line(1, put("choices", 1, {})), ["train.jsonl:1: field 'choices[1].text' is missing"]),
    (*MED, edit_line(2, put("choices", 0, "knowledge", [3])), ["train.jsonl:2: field 'choices[0].knowledge[0]'"]),
    (*MED, edit_line(2, put("answer_idx", True)), ["train.jsonl:2: field 'answer_idx' is bool"]),
    (*TYPES, text("[]"), ["train.json: the file is empty"]),
    (*TYPES, text('[{"sent": "a"}'), ["train.json:[0]: field 'start' is missing"]),
    (*TYPES, text('[{"sent": "a", "start": 0, "end": 1, "labels": []}'), ["train.json:[1]: not JSON"]),
    (*TYPES, text(b'[{"sent": "\xff"}]'), ["train.json:[0]: is not UTF-8"]),
    (*TYPES, text("[3]"), ["train.json:[0]: expected a JSON object, got int 3"]),
    (*TYPES, edit(put(2, "end", 99)), ["train.json:[2]: field 'start, end' spans"]),
    (*TYPES, edit(put(1, "labels", [1])), ["train.json:[1]: field 'labels[0]'"]),
    (*TYPES, edit(put(1, "ents", 1, 1, "x")), ["train.json:[1]: field 'ents[1][1]'"]),
    (*TACRED, edit(put(2, "subj_end", 8)), ["train.json:[2]: field 'subj_start, subj_end' spans 1 to 9"]),
    (*TACRED, edit(put(2, "obj_end", 4)), ["train.json:[2]: field 'obj_start, obj_end' spans 5 to 5"]),
    (*TACRED, edit(drop(3, "token")), ["train.json:[3]: field 'token' is missing"]),
    (*TACRED, edit(put(3, "id", "e1")), ["field 'id' is 'e1', as at", "train.json:[1]"]),
    (*SQUAD, edit(drop(*QAS, "question")), ["qas[1]: field 'question' is missing"]),
    (*SQUAD, edit(put(*QAS, "id", "a")), ["field 'id' is 'a', as at", "qas[0]"]),
    (*SQUAD, edit(put("data", [])), ["train-v1.1.json: there is no question in it"]),
    (
        *OPEN,
        edit_line(2, put("question", "Who?")),
        ["train.json:2: field '[0].question' is not the question of train.txt"],
    ),
    (*OPEN, edit_line(2, put("answers", [])), ["train.txt:2: field 'answers' is []"]),
    (
        *OPEN,
        text('{"question": ["Who", "is", "it", "?"], "answers": ["Bo"]}\n'),
        ["train.txt: has fewer lines than train.json"],
    ),
    (*NER, text("EU I-ORG\nwhat\n"), ["train.txt:2: the line is 'what'"]),
    (*NER, text("EU ORG\n"), ["train.txt:1: field 'tags[0]' is 'ORG'"]),
    (*NER, text("\n-DOCSTART- O\n"), ["train.txt: the file is empty"]),
    ("ner", "dev.jsonl", edit_line(1, put("tags", ["O"])), ["dev.jsonl:1: field 'tags' has 1 of them for 2 tokens"]),
    ("ner", "dev.jsonl", edit_line(1, put("mentions", 0, "end", 3)), ["split validation holds no", "1 left out"]),
    (*TEXT, edit_line(1, put("label", "")), ["train.jsonl:1: field 'label' is empty"]),
    (*TEXT, edit_line(2, put("pair", 3)), ["train.jsonl:2: field 'pair'"]),
    (*TREX, both_lines(lambda one: {**one, "sub_label": " "}), ["P36.jsonl:1: field 'sub_label' is empty"]),
    (*TREX, both_lines(lambda one: {**one, "obj_label": 3}), ["P36.jsonl:1: field 'obj_label'"]),
    ("lama", "relations.jsonl", edit_line(1, put("template", "[X] is")), ["relations.jsonl:1: field 'template' is"]),
    (
        "lama",
        "relations.jsonl",
        edit_line(2, put("relation", "P36")),
        ["relations.jsonl:2: field 'relation': P36 stands"],
    ),
    ("lama", "relations.jsonl", Path.unlink, ["relations.jsonl: no such file"]),
]


@pytest.mark.parametrize(("name", "file", "breaker", "messages"), BROKEN)
def test_what_is_wrong_is_named_by_file_place_and_field(tmp_path, name, file, breaker, messages):
    files = tmp_path / "files"
    WRITERS[name](files)
    breaker(files / file)
    config = {"lama": "trex", "open_qa": "searchqa"}.get(name, "")
    with pytest.raises(InputError) as caught:
        prepare("/".join(filter(None, (name, config))), files, tmp_path / "data", check=False)
    assert str(caught.value).startswith(str(files)) and "\n" not in str(caught.value)
    assert all(message in str(caught.value) for message in messages), caught.value
    assert not list((tmp_path / "data").rglob("dataset_info.json"))


@pytest.mark.parametrize(
    ("name", "file", "values", "message"),
    [
        (
            "open_entity",
            "train.json",
            [typed(1), typed(2, labels=["locatoin"])],
            r"\[1\]: field 'labels\[0\]' is 'locatoin'",
        ),
        (
            "tacred",
            "dev.json",
            [tacred(0), tacred(1, relation="per:sex")],
            r"\[1\]: field 'relation' is 'per:sex', not in",
        ),
        (
            "text_classification",
            "test.jsonl",
            [{"text": "a", "label": "x"}],
            "1: field 'label' is 'x', not in label2id.json",
        ),
    ],
)
def test_a_label_file_is_strict_and_its_order_counts(tmp_path, name, file, values, message):
    files = tmp_path / "files"
    WRITERS[name](files)
    labels = ["per:age", "no_relation", "org:founded", "location", "entity", "INHIBITOR", "7"]
    write(files / "label2id.json", {label: number for number, label in enumerate(labels)})
    (summary,) = prepare(name, files, tmp_path / "good", check=False)
    assert Dataset(f"{summary.reference}?split=train").labels == labels
    write(files / file, values)
    with pytest.raises(InputError, match=message):
        prepare(name, files, tmp_path / "data", check=False)


def test_published_files_are_told_by_their_numbers(tmp_path):
    for name, message in (
        ("tacred", "it has 5 records, the published one has 68,124"),
        ("open_entity", "it has 2 labels, the published one has 9"),
    ):
        WRITERS[name](tmp_path / name)
        with pytest.raises(InputError, match=message):
            prepare(name, tmp_path / name, tmp_path / "data")


def test_overlapping_subjects_and_objects_are_left_out(tmp_path):
    write(tmp_path / "files/train.json", [tacred(1), tacred(2, obj_start=2)])
    (summary,) = prepare("tacred", tmp_path / "files", tmp_path / "data", check=False)
    assert summary.splits == {"train": 1} and summary.left_out == {"head and tail overlap": 1}


json_objects = st.lists(
    st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6) | st.lists(st.floats(0, 1), max_size=2)),
    min_size=1,
    max_size=6,
)


@steady
@given(json_objects, st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_arrays_are_read_object_by_object(objects, chunk, indent, lines):
    import tempfile

    before, text_files.CHUNK = text_files.CHUNK, chunk  # a chunk may end anywhere
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.json"
            content = "\n".join(map(json.dumps, objects)) if lines else json.dumps(objects, indent=indent)
            path.write_text("\n" * 70 + content)
            found = [value for _, _, value in read_objects(path)]
    finally:
        text_files.CHUNK = before
    assert found == objects


@pytest.mark.parametrize("content", ["[{}", "[{} {}]", "[{},]", "[{}] x", "[,{}]", "[{}}", "["])
def test_broken_arrays_are_refused(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        list(read_objects(tmp_path / "x.json"))
