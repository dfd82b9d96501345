"""Whatever bytes stand in a file, and whatever a manifest or an override says: it is read, or refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
from fault_world import edit_json
from faults import texts
from hypothesis import given, settings
from hypothesis import strategies as st

from kinject.config import read_config
from kinject.data.tables import read_table
from kinject.errors import InputError
from kinject.integrity import SEAL, read_seal
from kinject.knowledge import KnowledgeBase
from kinject.linking.readers import read_brat
from kinject.plugins.store import read_plugin_manifest
from kinject.stages.experiment import read_stages
from kinject.stages.memory import read_passages
from kinject.tasks.labels import read_labels

FEW = settings(max_examples=15)
SIGNS = b'\n\t ,"|{}[]:-0159.eE#\\/\xff\x00\xc3\xa9 B-LOC NaN null true Q1 1e999 \xef\xbb\xbf'


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "t"
    texts.write_texts(folder)
    for path in folder.glob("large_*"):
        path.unlink()
    (folder / "brat.ann").write_text("T1\tCity 0 5\tParis\nN1\tReference T1 Wikidata:Q90\tParis\n")
    (folder / "labels.json").write_text('{"a": 0, "b": 1}')
    (folder / "passages.jsonl").write_text('{"text": "one", "entity": "Q1"}\n')
    return folder


def other_readers(path, scratch):
    found = {"brat.ann": read_brat, "labels.json": read_labels, "passages.jsonl": read_passages}
    if path.name == "brat.ann":
        path.with_suffix(".txt").write_text("Paris is big")
    return list(found[path.name](path))


def tables(path, scratch):
    return list(read_table(path))


def read_or_refuse(read, *arguments):
    try:
        read(*arguments)
    except InputError as error:
        assert "\n" not in str(error) and str(error).isprintable()


FILES = [
    *((name, texts.read) for name in ("records.jsonl", "records.json", "entities.csv", "entities.tsv", "triples.tsv")),
    *(
        (name, texts.read)
        for name in ("vectors.txt", "vectors.bin", "words.conll", "records.jsonl.gz", "records.jsonl.xz")
    ),
    *((name, other_readers) for name in ("brat.ann", "labels.json", "passages.jsonl")),
    *((name, tables) for name in ("entities.csv", "entities.tsv", "records.jsonl")),
]


@pytest.mark.parametrize(("name", "read"), FILES)
@FEW
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_one_line(whole, tmp_path_factory, name, read, data):
    content = (whole / name).read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        gone = data.draw(st.sampled_from([0, 1, 1, 7, len(content)]))
        some = st.lists(st.sampled_from([SIGNS[i : i + 1] for i in range(len(SIGNS))]), max_size=6).map(b"".join)
        content = content[:at] + data.draw(st.one_of(some, st.binary(max_size=4))) + content[at + gone :]
    folder = tmp_path_factory.mktemp("f")
    (folder / name).write_bytes(content)
    read_or_refuse(read, folder / name, folder)
    shutil.rmtree(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(width=16) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def changed(value, draw):
    """The value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 4)):
            return {key: one for key, one in value.items() if key != name}
        return {**value, name: changed(value[name], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed(value[at], draw), *value[at + 1 :]]
    return draw(VALUES)


MANIFESTS = {
    "knowledge/knowledge.json": lambda folder: KnowledgeBase.open(folder).check_claim(),
    "plugin/plugin.json": read_plugin_manifest,
    f"memory/{SEAL}": read_seal,
    "knowledge/HEAD.json": KnowledgeBase.open,
    "memory/memory.json": lambda folder: __import__("kinject.memory").memory.PassageMemory.open(folder),
}


@pytest.fixture(scope="module")
def unsealed(small_world, tmp_path_factory):
    world = Path(shutil.copytree(small_world, tmp_path_factory.mktemp("m") / "w"))
    base = KnowledgeBase.open(world / "knowledge")
    base.add([{"id": "N1", "label": "new", "vector": [1.0] * base.dim}])
    for name in ("knowledge", "plugin"):
        (world / name / SEAL).unlink()
    return world


@pytest.mark.parametrize("name", MANIFESTS)
@FEW
@given(data=st.data())
def test_odd_manifests_are_read_or_refused_in_one_line(unsealed, name, data):
    path = unsealed / name
    before = path.read_bytes()
    try:
        value = changed(json.loads(before), data.draw)
        path.write_text(json.dumps(value))
        read_or_refuse(MANIFESTS[name], path.parent)
    finally:
        path.write_bytes(before)


@FEW
@given(data=st.data())
def test_odd_settings_and_overrides_are_taken_or_refused_in_one_line(small_world, tmp_path_factory, data):
    from tiny_world import plugin_stage

    stage = changed(plugin_stage(small_world), data.draw)
    read_or_refuse(read_stages, {"seed": 0, "stages": {"plugin": stage}})
    place = data.draw(st.sampled_from(["seed", "stages.plugin.fit.steps", "stages.plugin.train", "stages.x", "name"]))
    given_ = data.draw(st.one_of(VALUES.map(repr), st.text(max_size=6), st.just("(1,")))
    path = tmp_path_factory.getbasetemp() / "config.py"
    if not path.exists():
        config = {"seed": 0, "stages": {"plugin": plugin_stage(small_world)}}
        path.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
    read_or_refuse(lambda: read_stages(read_config(str(path), [f"{place}={given_}"])))


def test_the_fuzzer_s_own_files_are_good(whole, unsealed, tmp_path):
    for name, read in FILES:
        read(whole / name, tmp_path)
        shutil.rmtree(tmp_path / "kb", ignore_errors=True)
    for name, read in MANIFESTS.items():
        read((unsealed / name).parent)
    edit_json(unsealed / "plugin/plugin.json", lambda j: j.update(hidden_size=0))
    with pytest.raises(InputError, match="not at least 1"):
        read_plugin_manifest(unsealed / "plugin")
