import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import grain
import numpy as np
import pytest
from dataset_files import TOKENS, WRITERS, fewrel_item, line, write_files, write_json, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject.cli.data import main
from kinject.data.records import Mention, Record, parse_record, read_records
from kinject.datasets.prepare import BUILDERS, prepare
from kinject.datasets.records import Dataset, read_dataset, read_datasets
from kinject.datasets.storage import decode, encode, features
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase, write_knowledge

SHARED = Path(__file__).parents[2] / "shared/data/fewrel_val_wiki.json"
steady = settings(derandomize=True, max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every data set in every config that can be made of its files, in one data_dir."""
    root = tmp_path_factory.mktemp("datasets")
    for name in WRITERS:
        prepare(name, write_files(root / "files" / name, name), root / "data", check=False)
    fewrel = root / "files/fewrel"
    prepare("wiki80/from_fewrel", fewrel, root / "data", check=False)
    prepare("wiki_et/rows", root / "files/wiki_et", root / "data", check=False)
    prepare("entity_questions/all", root / "files/entity_questions", root / "data", check=False)
    return root / "data"


def read(data, name, split):
    return list(read_dataset(f"tfds:{name}@{data}?split={split}"))


def pairs(*entities, spans=((1, 3), (5, 7))):
    return tuple(Mention(*span, entity) for span, entity in zip(spans, entities, strict=True))


# ---- every data set, against what its files say ------------------------------------------------------------------


def test_fewrel_keeps_order_and_takes_the_first_occurrence(data):
    records = read(data, "fewrel/train_wiki", "train")
    assert [record.fields for record in records] == [
        {"label": label, "id": f"{label}/{index}"}
        for label, count in (("P9", 2), ("P177", 3))
        for index in range(count)
    ]
    assert [record.mentions for record in records] == [pairs(one, "Q2") for one in ("Q1", "Q3", "Q4", "Q5", "Q1")]
    assert all(record.source == tuple(TOKENS) for record in records)
    assert records[3].where == "train_wiki.json:P177[1]"
    assert Dataset(f"tfds:fewrel/train_wiki@{data}").labels == ["P9", "P177"]


def test_fewrel_domains(data):
    (pubmed,) = read(data, "fewrel/val_pubmed", "validation")
    assert pubmed.mentions == pairs("C0012", "C1") and pubmed.fields["label"] == "occurs in"
    (semeval,) = read(data, "fewrel/val_semeval", "validation")
    assert semeval.mentions == pairs(None, None)
    unlabelled = read(data, "fewrel/pubmed_unsupervised", "train")
    assert [record.fields for record in unlabelled] == [{"id": "0"}, {"id": "1"}]


def test_wiki80_from_its_files(data):
    assert [(record.fields, record.mentions) for record in read(data, "wiki80/files", "train")] == [
        ({"label": "P177", "id": "train/1"}, pairs("Q1", "Q2")),
        ({"label": "P26", "id": "train/2"}, pairs("Q8", "Q2")),
    ]
    assert Dataset(f"tfds:wiki80/files@{data}?split=test").labels == ["P177", "P26"]  # by number, not by name


def test_wiki80_from_fewrel_deals_every_sentence_once(tmp_path):
    for file, relations in {"train_wiki.json": ["P1", "P2"], "val_wiki.json": ["P3"]}.items():
        items = {p: [fewrel_item(f"Q{p[1]}{index:02d}") for index in range(20)] for p in relations}
        write_json(tmp_path / "files" / file, items)
    (summary,) = prepare("wiki80", tmp_path / "files", tmp_path / "a", check=False)
    assert summary.splits == {"train": 42, "validation": 6, "test": 12} and summary.labels == 3
    dealt = [(r.fields["label"], r.mentions[0].entity) for split in summary.splits for r in
             read(tmp_path / "a", "wiki80/from_fewrel", split)]  # fmt: skip
    assert sorted(dealt) == [(f"P{p}", f"Q{p}{index:02d}") for p in (1, 2, 3) for index in range(20)]
    assert [entity for label, entity in dealt[:14]] != [f"Q1{index:02d}" for index in range(14)]


def test_wiki_et_in_characters_with_rows_made_ids(data):
    records = read(data, "wiki_et/wikidata", "all")
    assert {record.text[slice(record.mentions[0].start, record.mentions[0].end)] for record in records} == {"Köln"}
    assert [record.mentions[0].entity for record in records] == ["Q365", "Q64", "Q365", "Q0"]
    assert [record.fields.get("labels") for record in records] == [["city"], ["city", "river"], ["city"], []]
    assert Dataset(f"tfds:wiki_et/wikidata@{data}?split=train").labels == ["city", "river", "person"]
    assert [record.mentions[0].entity for record in read(data, "wiki_et/rows", "all")] == ["3", "0", "3", "2"]


def test_entity_questions_by_template_and_map(data):
    records = read(data, "entity_questions/linked", "train")
    found = [(record.text[record.mentions[0].start : record.mentions[0].end], record.mentions[0].entity) for record in
             records]  # fmt: skip
    # case-sensitive: "peru" is left out; a later line of the map wins; a template may end with its subject
    assert found == [("Peru", "Q419"), ("Zoë Ångström", "Q5"), ("Peru", "Q419")]
    assert [record.fields["relation"] for record in records] == ["P36", "P19", "P30"]
    assert [record.fields["answers"] for record in records] == [["Lima"], ["Köln"], []]
    both = Dataset(f"tfds:entity_questions/linked@{data}?split=train")
    assert both.metadata["left_out"] == {"subject not in entity_map.txt": 3}
    unlinked = [r.mentions[0] for r in read(data, "entity_questions/all", "train") if r.mentions[0].entity is None]
    assert unlinked == [Mention(23, 27)]


def test_wiki20m_in_tokens_or_characters_without_overlaps(data):
    records = read(data, "wiki20m", "train+test")
    assert [record.where for record in records] == [
        *(f"wiki20m_train.txt:{number}" for number in (1, 3, 4)),
        "wiki20m_test.txt.gz:1",
    ]
    assert records[1].mentions == pairs("Q3", "Q2") and records[1].fields == {"label": "NA", "id": "train/3"}
    assert records[2].source == "Wye flows"
    assert records[2].mentions == pairs("Q1", None, spans=((0, 3), (4, 9)))
    assert Dataset(f"tfds:wiki20m@{data}?split=train").metadata["left_out"] == {"head and tail overlap": 1}


def test_jsonl_comes_back_as_it_was(data):
    files = data.parent / "files/jsonl"
    for split, name in {"train": "train.jsonl", "held_out": "held_out.jsonl.gz"}.items():
        given_records = list(read_records(files / name))
        for got, record in zip(read(data, "jsonl/corpus", split), given_records, strict=True):
            assert (got.source, got.mentions, got.fields) == (record.source, record.mentions, record.fields)
            assert record.where == f"{files}/{got.where}"


# ---- the one feature form ---------------------------------------------------------------------------------------

strings = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@st.composite
def records(draw):
    source = draw(strings | st.lists(strings, max_size=6).map(tuple))
    ends = sorted(draw(st.sets(st.integers(0, len(source)), max_size=4)))
    mentions = [
        {"start": start, "end": end, "entity": draw(st.none() | strings.filter(bool))}
        for start, end in zip(ends[::2], ends[1::2], strict=False)
    ]
    names = st.sampled_from(["id", "label", "labels", "answers", "relation", "x"])
    fields = draw(st.dictionaries(names, json_values | strings | st.lists(strings, max_size=3), max_size=6))
    key = "text" if isinstance(source, str) else "tokens"
    value = source if isinstance(source, str) else list(source)
    return parse_record({**fields, key: value, "mentions": mentions}, "a.jsonl:1")


@steady
@given(records())
def test_any_record_comes_back(record):
    assert decode(encode(record, "a.jsonl:1")) == record


@steady
@given(records())
def test_the_form_is_that_of_tensorflow_datasets(record):
    found = features().deserialize_example_np(encode(record, "here"))
    tokens = () if isinstance(record.source, str) else record.source
    assert found["text"] == (record.source.encode() if isinstance(record.source, str) else b"")
    assert list(found["tokens"]) == [token.encode() for token in tokens]
    assert list(found["mentions"]["start"]) == [mention.start for mention in record.mentions]
    assert [name.decode() or None for name in found["mentions"]["entity"]] == [m.entity for m in record.mentions]
    assert found["where"] == b"here" and features()["labels"].feature.np_dtype == np.object_


# ---- reading ----------------------------------------------------------------------------------------------------


def test_a_data_set_is_a_source_for_grain_and_travels(data):
    source = Dataset(f"tfds:fewrel/train_wiki@{data}")
    everything = list(source)
    assert [source[index] for index in range(len(source))] == everything == source[:]
    assert source[np.int64(-1)] == everything[-1] and source[1:4:2] == everything[1:4:2]
    with pytest.raises(IndexError):
        source[len(source)]
    again = pickle.loads(pickle.dumps(source))
    assert list(again) == everything and again.labels == source.labels
    dealt = list(grain.MapDataset.source(source).seed(0).shuffle())
    assert sorted(record.fields["id"] for record in dealt) == sorted(record.fields["id"] for record in everything)


def test_slices_files_and_data_sets_together(data):
    assert read(data, "fewrel/train_wiki", "train[1:3]") == read(data, "fewrel/train_wiki", "train")[1:3]
    file = data.parent / "files/jsonl/held_out.jsonl.gz"
    mixed = list(read_datasets([file, f"tfds:wiki20m@{data}?split=test"], require=("id",)))
    assert [record.fields["id"] for record in mixed] == ["c", "test/1"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tfds:fewrel/train_wiki", "not a reference to a data set"),
        ("tfds:fewrel/train_wiki@", "not a reference"),
        ("tfds:fewrel/train_wiki@DATA?split=", "not a reference"),
        ("tfds:fewrel/train_wik@DATA", "prepare fewrel/train_wik --manual-dir"),
        ("tfds:fewrel@DATA", "has the configs pubmed_unsupervised, train_wiki"),
        ("tfds:fewrel/train_wiki:1.0.1@DATA", "has no version 1.0.1; did you mean 1.0.0?"),
        ("tfds:wiki20m@DATA", "there are the splits train, test"),
        ("tfds:wiki20m@DATA?split=trian", "there is no split trian; did you mean train?"),
        ("tfds:wiki20m@DATA?split=train[", "split train["),
    ],
)
def test_a_wrong_reference_is_said_in_one_line(data, reference, message):
    with pytest.raises(InputError) as caught:
        read_dataset(reference.replace("DATA", str(data)))
    assert message in str(caught.value)


def test_a_missing_field_names_record_and_data_set(data):
    with pytest.raises(InputError, match=r"tfds:wiki20m@.*\(wiki20m_train.txt:1\): field 'answers' is missing"):
        next(iter(Dataset(f"tfds:wiki20m@{data}?split=train", require=("answers",))))


def test_damaged_folders_are_refused(data, tmp_path):
    folder = tmp_path / "wiki20m/1.0.0"
    shutil.copytree(data / "wiki20m/1.0.0", folder)
    reference = f"tfds:wiki20m@{tmp_path}?split=train"
    (shard,) = folder.glob("*train.array_record*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"train\.array_record.*: cannot be read"):
        Dataset(reference)[0]
    shard.unlink()
    with pytest.raises(InputError, match=r"train\.array_record.*: no such file"):
        Dataset(reference)
    shard.write_bytes(content)
    assert len(list(Dataset(reference))) == 3
    (folder / "metadata.json").write_text("{")
    with pytest.raises(InputError, match=r"metadata\.json: cannot be read"):
        Dataset(f"tfds:wiki20m@{tmp_path}?split=train")
    (folder / "dataset_info.json").unlink()
    with pytest.raises(InputError, match="not a prepared data set"):
        Dataset(f"tfds:wiki20m@{tmp_path}?split=train")


# ---- preparing --------------------------------------------------------------------------------------------------


def test_what_was_prepared_stays(tmp_path):
    files = write_files(tmp_path / "files", "wiki20m")
    (first,) = prepare("wiki20m", files, tmp_path / "data")
    (second,) = prepare("wiki20m", files, tmp_path / "data")
    assert first.fresh and not second.fresh and first.splits == second.splits == {"train": 3, "test": 1}
    write_lines(files / "wiki20m_train.txt", [line()])
    with pytest.raises(InputError, match=r"was prepared from other files .*wiki20m_train.txt"):
        prepare("wiki20m", files, tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["wiki20m"]


def test_a_large_corpus_is_streamed_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("kinject.datasets.storage.write_shards.__defaults__", (1_000, 200_000))
    (tmp_path / "files").mkdir()
    path, count = tmp_path / "files/wiki20m_train.txt", 6_000
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps(line("NA", f"Q{number}", filler=TOKENS * 20)) + "\n")
    import tensorflow_datasets  # noqa: F401  (its own memory is not what is measured)

    tracemalloc.start()
    (summary,) = prepare("wiki20m", tmp_path / "files", tmp_path / "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.splits == {"train": count} and peak < path.stat().st_size / 2
    source = Dataset(f"tfds:wiki20m@{tmp_path / 'data'}")
    assert len(list((source.folder).glob("*.array_record-*-of-*"))) > 3
    assert [record.mentions[0].entity for record in source] == [f"Q{number}" for number in range(count)]
    assert [record.mentions[0].entity for record in source.__getitems__([5_999, 0, 4_321])] == ["Q5999", "Q0", "Q4321"]
    cut = Dataset(f"tfds:wiki20m@{tmp_path / 'data'}?split=train[1234:4000]")  # begins and ends inside of shards
    assert [record.mentions[0].entity for record in cut] == [f"Q{number}" for number in range(1_234, 4_000)]
    assert cut[2_000].mentions[0].entity == "Q3234"


def test_the_command_line_counts_links(tmp_path, capsys):
    base = write_knowledge(
        tmp_path / "kb", name="kb", ids=["Q1", "Q3"], vectors=np.ones((2, 3), np.float32),
        has_vector=np.array([True, False]),
    )  # fmt: skip
    files, data = write_files(tmp_path / "files", "wiki20m"), tmp_path / "data"
    command = ["prepare", "wiki20m", "--manual-dir", str(files), "--data-dir", str(data), "--knowledge", str(base)]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"tfds:wiki20m@{data}\n  train: 3 records\n" in out
    # Q1, Q2; Q3, Q2; Q1 and one without an id
    assert "6 mentions: 5 (83.3%) linked, 3 (50.0%) known, 2 (33.3%) with a vector" in out
    assert "1 left out: head and tail overlap" in out
    assert KnowledgeBase.open(base).size == 2
    assert main(["prepare", "wiki20n", *command[2:]]) == 2
    assert capsys.readouterr().err == "kinject: wiki20n: there is no such data set; did you mean wiki20m?\n"
    assert main(["prepare", "fewrel", "--manual-dir", str(tmp_path / "no"), "--data-dir", str(data)]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in BUILDERS) and "fewrel/val_pubmed: " in listed


def test_nothing_needs_tensorflow_or_torch(tmp_path):
    files = write_files(tmp_path / "files", "jsonl")
    code = f"""
import sys
from pathlib import Path
from kinject.datasets.records import Dataset
assert "tensorflow_datasets" not in sys.modules
from kinject.datasets.prepare import BUILDERS, builder_class, prepare
for name in BUILDERS: builder_class(name)
prepare("jsonl/mine", Path({str(files)!r}), Path({str(tmp_path / "data")!r}))
print(len(Dataset("tfds:jsonl/mine@{tmp_path / "data"}?split=train")))
print(sorted({{"tensorflow", "torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "4\n[]\n", done.stderr


def test_any_builder_works_through_tensorflow_datasets(tmp_path):
    import tensorflow_datasets as tfds

    import kinject.datasets.relations  # noqa: F401  (registers it)

    files = write_files(tmp_path / "files", "wiki80")
    builder = tfds.builder("wiki80/files", data_dir=tmp_path / "data", check=False)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=files))
    assert builder.as_data_source("test")[0]["label"] == b"P177"
    assert pickle.loads(pickle.dumps(builder)).check is False
    assert isinstance(Dataset(f"tfds:wiki80/files@{tmp_path / 'data'}?split=test")[0], Record)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_real_fewrel_file_record_by_record(tmp_path):
    (tmp_path / "files").mkdir()
    shutil.copy(SHARED, tmp_path / "files/val_wiki.json")
    (summary,) = prepare("fewrel", tmp_path / "files", tmp_path / "data")
    assert summary.splits == {"validation": 11_200} and summary.labels == 16 and not summary.left_out
    content = json.loads(SHARED.read_text())
    expected = [(label, index, item) for label, items in content.items() for index, item in enumerate(items)]
    for record, (label, index, item) in zip(Dataset(summary.reference), expected, strict=True):
        assert record.source == tuple(item["tokens"])
        assert record.fields == {"label": label, "id": f"{label}/{index}"}
        for mention, (_, entity, occurrences) in zip(record.mentions, (item["h"], item["t"]), strict=True):
            # the indices of every occurrence in the published file are consecutive
            assert list(range(mention.start, mention.end)) == occurrences[0] and mention.entity == entity
