"""Types of mentions in natural sentences: the folds of the data set, and the config's stages on a small cut."""

import json
from pathlib import Path

import pytest
from dataset_files import fewrel_item, write_json
from tiny_world import run_experiment

from kinject.config import read_config
from kinject.datasets.fewrel_types import AROUND, PER_ENTITY, deal
from kinject.datasets.prepare import prepare
from kinject.datasets.records import Dataset
from kinject.errors import InputError
from kinject.stages.experiment import read_stages

CONFIG = Path(__file__).parent.parent / "configs/natural_text.py"
SHARED = Path(__file__).parents[2] / "shared/data"
SPLITS = ("train", "validation", "test")


def write_world(folder):
    """Forty entities, each the head of six sentences: even ones rivers, odd ones cities, the first of a rare type."""
    folder.mkdir()
    long = [f"w{i}" for i in range(40)]
    items = []
    for i in range(40):
        item = fewrel_item(f"Q{i}", "Q999", [*long, "The", "Wye", "Bridge", *long])
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
        stages = read_config(f"{CONFIG}:{arg or 'fold=4,'}data_dir={data},text")["stages"]
        read_stages({"stages": stages})
        for name, stage in stages.items():
            used = stage.get("data", ()) or stage.get("domains", {}).get("types", {}).get("data", ())
            splits = {reference.partition("split=")[2] for reference in used}
            if name.startswith("rivals"):
                assert splits == {"train"} and [one.partition("split=")[2] for one in stage["test_data"]] == [tested]
            elif name.startswith("evaluate"):
                assert splits == {tested}
            elif used:
                assert tested not in splits and "test" not in splits


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_real_files(tmp_path):
    summaries = prepare("fewrel_types", SHARED, tmp_path / "data")
    assert sum(one.splits["test"] for one in summaries) == 1_792
    assert len(set.union(*(entities(read(tmp_path / "data", fold, "test")) for fold in range(5)))) == 757
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
    assert results["folds"]["types"]["n"] == 94 and {"host", "plugin", "shuffled"} < results["folds"]["types"].keys()
