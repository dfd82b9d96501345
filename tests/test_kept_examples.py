"""Encoded examples that a run keeps: the same as those made anew, read without a text, never those of other data."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_world import plugin_stage

from kinject.cli.train import main
from kinject.data.kept import read_examples, write_examples
from kinject.data.pipeline import Examples
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.stages.encoded import _hash_of, _modules, _named_files
from kinject.tasks.base import make_task

CONFIG = "import json\ndef get_config():\n    return json.loads({text!r})\n"


def run(workdir, stage, capsys=None):
    """Trains; returns the exit code, and what was said where `capsys` is given."""
    config = workdir.with_suffix(".py")
    config.write_text(CONFIG.format(text=json.dumps({"seed": 5, "stages": {"plugin": stage}})))
    code = main(["--config", str(config), "--workdir", str(workdir), "--devices", "1"])
    told = None if capsys is None else capsys.readouterr()
    return code if told is None else (code, told.out + told.err)


def kept(world, **changes):
    return plugin_stage(world, dev_data=(str(world / "dev.jsonl"),), keep_encoded=True, **changes)


def begin_again(workdir):
    """Takes away what a run has made but for what it keeps, as if it had just been started."""
    for name in ("checkpoints", "plugin"):
        shutil.rmtree(workdir / name)
    for name in ("results.json", "metrics.jsonl"):
        (workdir / name).unlink()


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """A workdir whose run kept its examples. Read only."""
    workdir = tmp_path_factory.mktemp("kept") / "w"
    assert run(workdir, kept(world)) == 0
    return workdir


@pytest.fixture
def copied(done, tmp_path):
    shutil.copytree(done, tmp_path / "w")
    begin_again(tmp_path / "w")
    return tmp_path / "w"


def trained(workdir):
    """A plugin's parameters, and what its training reports."""
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(workdir / "plugin" / "params")
    return {path: np.asarray(leaf).tobytes() for path, leaf in params.items()}, results(workdir)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())["plugin"]


def test_a_run_that_keeps_its_examples_trains_the_same(world, done, tmp_path):
    plain = kept(world)
    del plain["keep_encoded"]
    assert run(tmp_path / "w", plain) == 0
    assert trained(tmp_path / "w") == trained(done)
    assert not (tmp_path / "w" / "encoded").exists()
    assert json.loads((done / "config.json").read_text()) == json.loads((tmp_path / "w" / "config.json").read_text())


def test_what_is_kept_is_read_without_a_text(world, done, copied, monkeypatch, capsys):
    def no_text(*arguments):
        raise AssertionError("a text was read")

    monkeypatch.setattr("kinject.stages.encoded.read_datasets", no_text)
    code, told = run(copied, kept(world), capsys)
    assert code == 0 and told.count("the examples are those of") == 2
    assert trained(copied) == trained(done)


@pytest.mark.parametrize("change", ["text", "length", "buckets", "revision", "code"])
def test_examples_of_anything_else_are_made_anew(world, copied, tmp_path, monkeypatch, change, capsys):
    stage = kept(world)
    before = json.loads((copied / "encoded" / "plugin.data" / "examples.json").read_text())
    (copied / "config.json").unlink()
    if change == "text":
        lines = (world / "train.jsonl").read_text().splitlines()
        (tmp_path / "train.jsonl").write_text("\n".join(lines[1:]) + "\n")
        stage["data"] = (str(tmp_path / "train.jsonl"),)
    elif change == "length":
        stage["max_length"] = 24
    elif change == "buckets":
        stage["fit"]["buckets"] = 1
    elif change == "revision":
        shutil.copytree(world / "knowledge", tmp_path / "knowledge")
        base = KnowledgeBase.open(tmp_path / "knowledge")
        base.remove([base.ids([0])[0]])
        stage["knowledge"] = str(tmp_path / "knowledge")
    else:
        monkeypatch.setattr("kinject.stages.encoded.CODE", ("data",))
    code, told = run(copied, stage, capsys)
    assert code == 0 and "plugin.data" not in "".join(line for line in told.splitlines() if "are those of" in line)
    after = json.loads((copied / "encoded" / "plugin.data" / "examples.json").read_text())
    assert after["made_of"] != before["made_of"]


def test_rows_that_compaction_renumbers_are_not_taken_for_those_before(world, tmp_path, capsys):
    shutil.copytree(world / "knowledge", tmp_path / "knowledge")
    base = KnowledgeBase.open(tmp_path / "knowledge")
    base.remove([base.ids([0])[0]])
    stage = kept(world, knowledge=str(tmp_path / "knowledge"))
    assert run(tmp_path / "w", stage) == 0
    first = trained(tmp_path / "w")
    KnowledgeBase.open(tmp_path / "knowledge").compact()
    begin_again(tmp_path / "w")
    code, told = run(tmp_path / "w", stage, capsys)
    assert code == 0 and "are those of" not in told and trained(tmp_path / "w")[0] == first[0]


def test_two_splits_of_a_data_set_are_two_sources(monkeypatch, tmp_path):
    (tmp_path / "shard").write_text("both splits' records")
    monkeypatch.setattr("kinject.stages.encoded.find_dataset", lambda *given: tmp_path)
    one, other = (_hash_of(f"tfds:few@{tmp_path}?split={split}") for split in ("train", "test"))
    assert one != other and one == _hash_of(f"tfds:few@{tmp_path}?split=train")


def test_files_that_options_name_count_with_their_content(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labels.txt").write_text("a")
    options = {"labels": str(tmp_path / "labels.txt"), "more": [{"words": "\0", "n": 3}, tmp_path / "none"]}
    (before,) = _named_files(options)
    (tmp_path / "labels.txt").write_text("b")
    (after,) = _named_files(options)
    assert after != before and _named_files({"labels": "~/labels.txt"}) == [after]


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "add"])
def test_damaged_examples_are_told_and_made_anew(world, done, copied, damage, capsys):
    path = copied / "encoded" / "plugin.data" / "0.token_ids.npy"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-4])
    elif damage == "lose":
        path.unlink()
    else:
        path.with_name("0.other.npy").write_bytes(content)
    code, told = run(copied, kept(world), capsys)
    (line,) = [line for line in told.splitlines() if "encoded anew" in line]
    assert code == 0 and "plugin.data" in line
    assert trained(copied) == trained(done)


def test_what_no_file_can_keep_is_refused(world, tmp_path, capsys, monkeypatch):
    drawn = kept(world, task="masked_lm", method={"name": "map_tuning"})
    code, told = run(tmp_path / "w", drawn, capsys)
    assert code == 2 and "stages.plugin.keep_encoded: this task draws or joins its examples" in told
    monkeypatch.setattr("kinject.stages.encoded.PROBED", 0)  # as where none of the first is an example
    code, told = run(tmp_path / "w", drawn, capsys)
    assert code == 2 and "stages.plugin.keep_encoded: this task draws or joins its examples" in told
    assert not (tmp_path / "w" / "encoded").exists()


def test_a_task_of_no_file_is_refused(world):
    (module, *_) = _modules(make_task("cloze"), "stages.p.keep_encoded")
    assert module.name == "cloze.py"
    nowhere = type("Nowhere", (type(make_task("cloze")),), {"__module__": "__nowhere__"})
    with pytest.raises(InputError, match=r"stages\.p\.keep_encoded: the class Nowhere stands in no file"):
        _modules(nowhere.__new__(nowhere), "stages.p.keep_encoded")


def examples(rows=200_000):
    bucket = {"token_ids": np.arange(rows * 8, dtype=np.int32).reshape(rows, 8), "index": np.arange(rows)}
    return Examples((bucket,), (8,), record_index=np.arange(rows)[::-1].copy(), notes={"dropped: two": 2})


def test_large_arrays_stay_on_the_disk_and_are_checked_as_they_are_read(tmp_path):
    write_examples(tmp_path / "kept", examples(), {"made": "here"})
    found = read_examples(tmp_path / "kept", {"made": "here"})
    rows = np.array([3, 199_999, 7])
    np.testing.assert_array_equal(found.buckets[0]["token_ids"][rows], examples().buckets[0]["token_ids"][rows])
    assert (found.lengths, dict(found.notes), found.size) == ((8,), {"dropped: two": 2}, 200_000)
    np.testing.assert_array_equal(found.record_index, examples().record_index)
    assert read_examples(tmp_path / "kept", {"made": "elsewhere"}) is None
    assert read_examples(tmp_path / "none", {}) is None

    path = tmp_path / "kept" / "0.token_ids.npy"
    with path.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    with pytest.raises(InputError, match="not what was sealed"):  # what decides whether they are made again
        read_examples(tmp_path / "kept", {"made": "here"}, whole=True)
    found = read_examples(tmp_path / "kept", {"made": "here"})
    found.buckets[0]["token_ids"][rows[:1]]
    with pytest.raises(InputError, match="not what was sealed"):
        found.buckets[0]["token_ids"][rows]


def test_what_a_kill_left_is_replaced(tmp_path):
    (tmp_path / "kept.partial").mkdir()
    (tmp_path / "kept.partial" / "0.token_ids.npy").write_bytes(b"half")
    write_examples(tmp_path / "kept", examples(10), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    write_examples(tmp_path / "kept", examples(20), {})
    assert read_examples(tmp_path / "kept", {}).size == 20


def test_examples_with_more_than_arrays_are_not_written(tmp_path):
    with pytest.raises(InputError, match="not arrays alone"):
        write_examples(tmp_path / "kept", examples(3).with_redraw(lambda batch, seeds: batch), {})
    assert not list(tmp_path.iterdir())
