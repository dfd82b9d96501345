"""`kinject plugins push|pull`: what is sent, what is taken, and what is refused.

The hub is played by what it leaves on disk: `huggingface_hub`'s own cache, from which `snapshot_download` answers
offline, and an `HfApi` whose `upload_folder` puts into it what the real one would send.
"""

import hashlib
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers.utils.hub  # noqa: F401 (some versions name HfApi in a type as they are imported)
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from served import Served
from test_store import contents

from kinject.cli.plugins import main
from kinject.integrity import write_seal
from kinject.plugins import load_plugin

NAME = "me/geo"


class Remote:
    """One repository: `HfApi()`, whose commits are at once in the cache of this machine."""

    def __init__(self, cache):
        self.repository = cache / f"models--{NAME.replace('/', '--')}"
        self.asked, self.files = [], {}

    def __call__(self):
        return self

    def create_repo(self, repo_id, **options):
        self.asked.append(("create_repo", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, delete_patterns, **options):
        self.asked.append(("upload_folder", repo_id, options))
        gone = set(filter_repo_objects(list(self.files), allow_patterns=delete_patterns))
        self.files = {name: content for name, content in self.files.items() if name not in gone}
        here = {path.relative_to(folder_path).as_posix(): path for path in folder_path.rglob("*") if path.is_file()}
        sent = filter_repo_objects(list(here), allow_patterns=allow_patterns)
        self.files |= {name: here[name].read_bytes() for name in sent}
        return SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/{self.commit()}")

    def commit(self, **more):
        """Writes a snapshot as the cache has it: blobs, and links to them; `more` are files beside."""
        files = {**self.files, **{name.replace("__", "/"): content for name, content in more.items()}}
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        for name, content in files.items():
            blob = self.repository / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = self.repository / "snapshots" / digest / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(blob)
        (self.repository / "refs").mkdir(exist_ok=True)
        (self.repository / "refs" / "main").write_text(digest)
        return digest


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = Remote(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    return made


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main([str(one) for one in arguments])
        told = capsys.readouterr()
        assert code == 0 or (code == 2 and told.err.count("\n") == 1), told.err
        return told.err if code else told.out

    return run


def test_what_was_pushed_is_what_is_pulled(served, remote, run, tmp_path):
    plugin = shutil.copytree(served.plugin(), tmp_path / "geo")
    (plugin / ".notes.txt").write_text("mine")
    (plugin / "host").mkdir()
    (plugin / "host" / "model.bin").write_bytes(b"large")
    write_seal(plugin / "host")
    assert "/me/geo/commit/" in run("push", plugin, NAME, "--private")
    assert remote.asked[0] == ("create_repo", NAME, {"repo_type": "model", "private": True, "exist_ok": True})
    assert remote.asked[1][2]["commit_message"] == "kinject plugin geo"
    assert set(remote.files) == {"plugin.json", "README.md", "seal.json", *load_plugin(plugin).manifest["files"]}
    commit = remote.commit(**{".gitattributes": b"*.bin filter=lfs", "surprise.pkl": b"of the hub's"})
    said = run("pull", NAME, tmp_path / "back", "--host", served.host(), "--knowledge", served.knowledge)
    assert f"me/geo at {commit}" in said
    assert contents(tmp_path / "back") == contents(served.plugin()) and not any(tmp_path.glob(".*"))
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))
    other = served.plugin("other", seed=5)
    first = set(remote.files)
    run("push", other, NAME)
    assert set(remote.files) != first, "arrays of the plugin that was there before are gone"
    run("pull", NAME, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(other)
    assert f"at {commit}" in run("pull", NAME, tmp_path / "old", "--revision", commit)
    assert contents(tmp_path / "old") == contents(served.plugin())


def test_what_is_refused_leaves_nothing(served, remote, run, tmp_path):
    run("push", served.plugin(), NAME)
    out = tmp_path / "out"

    def refused(says, *arguments, **files):
        remote.commit(**files)
        assert says in run("pull", NAME, out, *arguments)
        assert not out.exists() and not list(tmp_path.glob(".*"))

    refused("params/x.pkl: plugin.json does not name it and may be a pickle", **{"params__x.pkl": b"\x80\x04."})
    refused("params/d/more: plugin.json does not name it", **{"params__d__more": b""})
    one = next(name for name in remote.files if name.startswith("params/d/"))
    refused("its content is not what plugin.json was written for", **{one.replace("/", "__"): b"other"})
    refused("it is not JSON", **{"plugin.json": b"{"})
    refused("vectors of another embedding space", "--knowledge", served.other_base(dim=8))
    remote.commit()
    out.mkdir()
    assert "it exists already" in run("pull", NAME, out)
    assert "name it OWNER/NAME" in run("pull", "geo", tmp_path / "new")
    assert "the hub did not give it" in run("pull", NAME, tmp_path / "new", "--revision", "elsewhere")


def test_a_damaged_plugin_is_not_sent(served, remote, run, tmp_path):
    plugin = shutil.copytree(served.plugin(), tmp_path / "geo")
    (plugin / "params" / "weights.pt").write_bytes(b"pickle")
    assert "may be a pickle" in run("push", plugin, NAME)
    (plugin / "params" / "weights.pt").unlink()
    next(path for path in (plugin / "params" / "d").iterdir()).write_bytes(b"")
    assert "its content is not" in run("push", plugin, NAME)
    assert "there is no plugin here" in run("push", tmp_path, NAME)
    assert "no repository on the hub" in run("push", served.plugin(), "https://hub.example/me/geo")
    assert not remote.asked


def test_without_a_network_it_is_said_in_one_line(served, run, tmp_path, monkeypatch):
    """The real library, offline as the tests run it: nothing is mocked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "me/geo: the hub did not take it" in run("push", served.plugin(), NAME)
    assert "me/geo: the hub did not give it" in run("pull", NAME, tmp_path / "out")


def test_the_card_says_what_a_stranger_must_know(served):
    card = (served.plugin() / "README.md").read_text()
    for said in ("Method `map_tuning`", "Host encoder: `sha256:", "60 entities. Source: made up.", "Trained on: not"):
        assert said in card
    assert "Licence of the knowledge: none" in card and "| loss | 0.5 |" in card
