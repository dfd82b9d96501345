"""Types of mentions in natural sentences: the folds of the data set, and the config's stages on a small cut."""

import json
from collections import Counter
from pathlib import Path

import pytest
from dataset_files import fewrel_item, write_json
from tiny_world import run_experiment

from kinject.config import read_config
from kinject.datasets.fewrel_types import AROUND, PER_ENTITY, _Mention, _records, deal
from kinject.datasets.prepare import prepare
from kinject.datasets.records import Dataset
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.stages.experiment import read_stages

CONFIG = Path(__file__).parent.parent / "configs/natural_text.py"
SHARED = Path(__file__).parents[2] / "shared/data"
TRIPLES = SHARED / "codex_m_triples.tsv"
SPLITS = ("train", "validation", "test")


def write_world(folder):
    """Forty entities, each the head of six sentences: even ones rivers, odd ones cities, the first of a rare type."""
    folder.mkdir()
    long = [f"w{i}" for i in range(40)]
    items = []
    for i in range(40):
        item = fewrel_item(f"Q{i}", "Q999", [*long, "The", "Wye", "Bridge", *long, f"end{i}"])
        items += [{**item, "h": ["wye bridge", f"Q{i}", [[41, 42]]], "t": ["w3", "Q999", [[3]]]}] * 6
    write_json(folder / "val_wiki.json", {"P1": items})
    types = {f"Q{i}": [("QR", "QC")[i % 2]] for i in range(1, 40)} | {"Q0": ["QX"], "Q998": ["QR"]}
    write_json(folder / "entity2types.json", types)
    write_json(folder / "types.json", {"QR": {"label": "river"}, "QC": {"label": "city"}, "QX": {"label": "odd"}})
    triples = [f"Q{i}\tP\tQ{(i + 2) % 40}\n" for i in range(40)]
    (folder / "codex_m_triples.tsv").write_text("".join(triples))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("natural")
    prepare("fewrel_types", write_world(root / "files"), root / "data", check=False)
    return root / "data"


def read(data, fold, split):
    return list(Dataset(f"tfds:fewrel_types/fold{fold}@{data}?split={split}"))


def entities(records):
    return {mention.entity for record in records for mention in record.mentions}


def sentences(records):
    return {record.fields["id"].rpartition("/")[0] for record in records}


def wordings(records):
    spans = [(record.source, record.mentions[0]) for record in records]
    return {" ".join(words[one.start : one.end]).lower() for words, one in spans}


def test_every_entity_is_tested_in_one_fold_and_never_learned_from_there(data):
    tested = []
    for fold in range(5):
        parts = [entities(read(data, fold, split)) for split in SPLITS]
        assert set.union(*parts) == {f"Q{i}" for i in range(40)} and sum(map(len, parts)) == 40
        tested += parts[-1]
    assert sorted(tested) == sorted({f"Q{i}" for i in range(40)})


def test_a_record_has_the_words_around_its_mention_and_the_types_of_its_entity(data):
    for split in SPLITS:
        records = read(data, 0, split)
        for record in records:
            (mention,) = record.mentions
            assert record.source[mention.start : mention.end] == ("Wye", "Bridge")
            assert len(record.source) == 2 + 2 * AROUND
            number = int(mention.entity.removeprefix("Q"))
            assert record.fields["labels"] == (["other"] if number == 0 else [("river", "city")[number % 2]])
        times = len(records) / len(entities(records))
        assert times == (6 if split == "test" else PER_ENTITY)
    assert Dataset(f"tfds:fewrel_types/fold0@{data}?split=test").labels == ["city", "river", "other"]


def test_what_a_sentence_with_a_tested_entity_says_of_others_is_not_learned_from():
    part = {"Q1": "train", "Q2": "validation", "Q3": "test"}
    stands = [("Q1", "a"), ("Q3", "a"), ("Q1", "b"), ("Q2", "b"), ("Q2", "c"), ("Q3", "c"), ("Q1", "d"), ("Q3", "e")]
    mentions = []
    for number, (entity, sentence) in enumerate(stands):
        fields = {"tokens": [sentence], "mentions": [{"start": 0, "end": 1, "entity": entity}], "id": str(number)}
        mentions.append(_Mention("here", entity, sentence, fields))
    labels = {entity: ["river"] for entity in part}
    found = {
        split: ["".join(one.source) for one in _records(mentions, part, labels, split)]
        for split in ("train", "validation", "test")
    }
    assert found == {"train": ["d"], "validation": ["b"], "test": ["a", "c", "e"]}


def test_dealing_is_the_same_whenever_it_is_done():
    names = [f"Q{i}" for i in range(100)]
    assert deal(names, 2) == deal(names, 2) != deal(names, 3)
    assert [list(deal(names, 2).values()).count(split) for split in SPLITS] == [70, 10, 20]


def test_other_files_than_the_published_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"it has 240 mentions .* the published one has 1,792"):
        prepare("fewrel_types/fold0", write_world(tmp_path / "files"), tmp_path / "data")


@pytest.mark.parametrize(
    ("arg", "said"),
    [("fold=5", "fold is '5'"), ("folds=1", "unknown setting 'folds=1'"), ("dev=1", "unknown setting 'dev=1'")],
)
def test_a_wrong_argument_is_one_line(arg, said):
    with pytest.raises(InputError, match=said):
        read_config(f"{CONFIG}:{arg}")


def test_no_stage_reads_what_it_must_not(data):
    for arg, tested in (("", "test"), ("dev,", "validation")):
        stages = read_config(f"{CONFIG}:{arg or 'fold=4,'}data_dir={data},text,untyped")["stages"]
        read_stages({"stages": stages})
        for name, stage in stages.items():
            used = stage.get("data", ()) or [
                one for domain in stage.get("domains", {}).values() for one in domain["data"]
            ]
            splits = {reference.partition("split=")[2] for reference in used}
            if name.startswith("rivals"):
                assert splits == {"train"} and [one.partition("split=")[2] for one in stage["test_data"]] == [tested]
                assert stage["keep_dev"] is (tested == "test")
            elif name.startswith("evaluate"):
                assert splits == {tested}
            elif used:
                assert tested not in splits and "test" not in splits


def test_triples_of_some_relations_with_names(tmp_path):
    (tmp_path / "t.tsv").write_text("Q1\tP1\tQ2\nQ3\tP2\tQ2\nQ4\tP3\tQ3\nQ2\tP3\tQ4\n")
    write_json(tmp_path / "relations.json", {"P3": {"label": "near"}, "P1": {"label": "in"}})
    stage = {"kind": "triples", "triples": str(tmp_path / "t.tsv"), "held_out": 0, "graph": {"dim": 4, "epochs": 1}}
    some = {**stage, "only": ("P3", "P2"), "relation_labels": str(tmp_path / "relations.json")}
    run_experiment({"seed": 0, "stages": {"some": some}}, tmp_path / "run")
    base = KnowledgeBase.open(tmp_path / "run/some/knowledge")
    ids = base.ids(range(base.size))
    assert ids == ["Q2", "Q3", "Q4"] and [(one["id"], one["label"]) for one in base.relations] == [
        ("P2", ""),
        ("P3", "near"),
    ]
    said = [(ids[head], base.relations[kind]["id"], ids[tail]) for head, kind, tail in base.triples.tolist()]
    assert said == [("Q3", "P2", "Q2"), ("Q4", "P3", "Q3"), ("Q2", "P3", "Q4")]
    with pytest.raises(InputError, match=r"stages\.some\.only: .*t\.tsv has no relation P4"):
        run_experiment({"seed": 0, "stages": {"some": {**stage, "only": ("P4",)}}}, tmp_path / "other")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_relations_of_the_row_without_types_have_no_type_in_common():
    types = json.loads((SHARED / "codex_entity_types.json").read_text())
    ends = {}
    for head, relation, tail in map(str.split, TRIPLES.read_text().splitlines()):
        for side, one in enumerate((head, tail)):
            ends.setdefault((relation, side), []).extend([one] if one in types else [])
    telling = set()
    for (relation, _), some in ends.items():
        for counted in filter(None, (some, set(some))):
            most = max(Counter(kind for one in counted for kind in set(types[one])).values())
            telling |= {relation} if most >= 0.9 * len(counted) else set()
    stages = read_config(f"{CONFIG}:fold=0,untyped")["stages"]
    assert set(stages["untyped"]["only"]) == {relation for relation, _ in ends} - telling


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_real_files(tmp_path):
    summaries = prepare("fewrel_types", SHARED, tmp_path / "data")
    assert sum(one.splits["test"] for one in summaries) == 1_792
    assert len(set.union(*(entities(read(tmp_path / "data", fold, "test")) for fold in range(5)))) == 757
    for fold in range(5):  # head and tail of a sentence are of one split, though an entity of each may be
        parts = [read(tmp_path / "data", fold, split) for split in SPLITS]
        for said in (entities, sentences, wordings):
            assert len(set.union(*map(said, parts))) == sum(len(said(part)) for part in parts)
    types = json.loads((SHARED / "codex_entity_types.json").read_text())
    names = json.loads((SHARED / "codex_types.json").read_text())
    for record in read(tmp_path / "data", 1, "validation"):
        labels = {names[one]["label"] for one in types[record.mentions[0].entity]}
        assert set(record.fields["labels"]) <= labels | {"other"}


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_config_runs_two_steps_on_the_real_files(tmp_path):
    prepare("fewrel_types/fold0", SHARED, tmp_path / "data")
    triples = (SHARED / "codex_m_triples.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "triples.tsv").write_text("".join(triples[::20]))
    arg = f"fold=0,dev,data_dir={tmp_path}/data,triples={tmp_path}/triples.tsv"
    config = read_config(f"{CONFIG}:{arg}")
    stages = {name: config["stages"][name] for name in ("knowledge", "head0", "host0", "plugin0", "evaluate0")}
    stages["folds"] = {"kind": "folds", "folds": (("evaluate0",),)}
    stages["knowledge"]["graph"]["epochs"] = 1
    for name in ("head0", "host0", "plugin0"):
        stages[name]["data"] = (f"tfds:fewrel_types/fold0@{tmp_path}/data?split=validation",)
        stages[name]["fit"] = {**stages[name]["fit"], "epochs": None, "steps": 2}
    results = run_experiment({**config, "stages": stages}, tmp_path / "run")
    assert results["host0"]["steps"] == results["plugin0"]["steps"] == 2
    assert results["folds"]["types"]["n"] == 89 and {"host", "plugin", "shuffled"} < results["folds"]["types"].keys()
