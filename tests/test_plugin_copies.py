"""A plugin's folder written once more: copied as it is, or saved anew with another account of how it came about."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_store import DIM, HEAD, HIDDEN, arrays, contents, save

from kinject.errors import InputError
from kinject.plugins.base import make_plugin
from kinject.plugins.store import NO_KNOWLEDGE, copy_plugin, load_plugin, read_head, save_again


@pytest.fixture(scope="module")
def with_head(tmp_path_factory):
    """A plugin that brings a head along, read from its folder. Read only."""
    return load_plugin(save(tmp_path_factory.mktemp("copies") / "plugin", head=HEAD))


@pytest.fixture
def own(with_head, tmp_path):
    """The same in a folder that may be changed."""
    return load_plugin(shutil.copytree(with_head.folder, tmp_path / "plugin"))


def test_a_copy_holds_every_file_in_a_folder_whose_parents_do_not_exist(with_head, tmp_path):
    copy = copy_plugin(with_head, tmp_path / "some" / "where" / "else")
    assert copy == tmp_path / "some" / "where" / "else"
    assert contents(copy) == contents(with_head.folder) and any(name.count("/") > 1 for name in contents(copy))
    assert [path.name for path in copy.parent.iterdir()] == ["else"]
    assert read_head(load_plugin(copy)).params.keys() == HEAD.params.keys()


def test_a_copy_takes_the_plugins_own_files_alone(own, tmp_path):
    before = contents(own.folder)
    (own.folder / "notes.txt").write_text("mine")
    (own.folder / "README.md").unlink()
    left = tmp_path / "again.partial" / "of a copy that was killed"
    left.mkdir(parents=True)
    copy = copy_plugin(own, tmp_path / "again")
    assert contents(copy) == {name: told for name, told in before.items() if name != "README.md"}
    assert not left.parent.exists()


def test_a_copy_may_go_to_the_users_home_or_a_relative_path(with_head, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert copy_plugin(with_head, Path("~/mine")) == tmp_path / "mine"
    assert copy_plugin(with_head, Path("here")) == tmp_path / "here"


def test_a_copy_overwrites_nothing(with_head, own):
    (own.folder / "params" / "mine.txt").write_text("mine")
    before = contents(own.folder)
    with pytest.raises(InputError, match="it exists already; choose another folder; nothing was overwritten"):
        copy_plugin(with_head, own.folder)
    assert contents(own.folder) == before


def test_a_damaged_plugin_is_not_copied(own, tmp_path):
    next(path for path in (own.folder / "params").rglob("*") if path.is_file()).write_bytes(b"")
    with pytest.raises(InputError, match=r"its content is not what plugin\.json was written for"):
        copy_plugin(own, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["plugin"]


@pytest.mark.parametrize("metrics", [None, {}, {"accuracy": 0.5}])
def test_a_plugin_saved_again_says_how_it_came_about_and_keeps_the_rest(with_head, tmp_path, metrics):
    again = load_plugin(save_again(with_head, tmp_path / "again", config={"tried": []}, metrics=metrics))
    changed = {"config": {"tried": []}, "metrics": {"loss": 0.25} if metrics is None else metrics}
    assert {**with_head.manifest, **changed, "files": again.manifest["files"]} == again.manifest
    before, after = arrays(with_head.plugin), arrays(again.plugin)
    assert before.keys() == after.keys() and all(np.array_equal(before[path], after[path]) for path in before)
    heads = read_head(with_head).params, read_head(again).params
    assert all(np.array_equal(heads[0][path], heads[1][path]) for path in HEAD.params)


def test_a_plugin_saved_again_has_a_head_only_if_it_had_one(tmp_path):
    stored = load_plugin(save(tmp_path / "plugin"))
    again = save_again(stored, tmp_path / "again", config={})
    assert not (again / "head").exists() and json.loads((again / "plugin.json").read_text())["format_version"] == 1
    with pytest.raises(InputError, match="it exists already"):
        save_again(stored, again, config={})


@pytest.mark.parametrize("width", [8, 24])
def test_the_width_of_the_hosts_word_embeddings_comes_back(tmp_path, width):
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=HIDDEN, knowledge_dim=DIM, embedding_size=width)
    again = load_plugin(save(tmp_path / "plugin", plugin))
    assert again.plugin.embedding_size == width and again.plugin.mapper.kernel.shape == (DIM, width)
    assert "embedding_size" not in load_plugin(save(tmp_path / "other")).manifest


def test_a_plugin_without_knowledge_says_so(tmp_path):
    folder = save(tmp_path / "some" / "where" / "plugin", knowledge=NO_KNOWLEDGE)
    told = json.loads((folder / "plugin.json").read_text())["knowledge"]
    assert told == {"name": "none", "fingerprint": None, "dim": 0, "count": 0}


def test_metrics_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(tmp_path / "plugin", metrics={"loss": float("nan")})
    assert not (tmp_path / "plugin").exists()
