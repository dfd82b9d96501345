"""A plugin's folder: what is written comes back, in another process too, and what does not belong is refused."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from kinject.errors import InputError
from kinject.plugins.base import make_plugin
from kinject.plugins.store import HostIdentity, TrainedHead, hash_files, load_plugin, read_head, save_plugin
from kinject.tree import flatten

HIDDEN, DIM = 16, 8
HOST = HostIdentity("sha256:host", ("sha256:tuned", "sha256:raw"), HIDDEN)
KNOWLEDGE = {"name": "cities", "fingerprint": "f" * 64, "dim": DIM, "count": 60, "license": "CC0"}
METHODS = (
    {"name": "map_tuning"},
    {"name": "map_tuning", "mapper": "identity"},
    {"name": "map_tuning", "mapper": "residual_mlp", "width": 4, "dropout": 0.25},
)


def make(method=METHODS[2], seed=3):
    return make_plugin(method, hidden_size=HIDDEN, knowledge_dim=DIM, seed=seed)


def save(folder, plugin=None, **changes):
    facts = {"host": HOST, "knowledge": KNOWLEDGE, "config": {"seed": 0}, "metrics": {"loss": 0.25}}
    return save_plugin(folder, make() if plugin is None else plugin, **(facts | changes))


def arrays(plugin):
    return {path: np.asarray(leaf) for path, leaf in flatten(nnx.to_pure_dict(nnx.state(plugin))).items()}


def contents(folder: Path) -> dict[str, str]:
    """Every file's hash, and every folder, by path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A plugin folder; copied before it is changed."""
    return save(tmp_path_factory.mktemp("store") / "plugin")


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "plugin")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.get("mapper", "affine"))
def test_a_plugin_comes_back_bit_for_bit(tmp_path, method):
    plugin = make(method)
    drawn = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    stored = load_plugin(save(tmp_path / "plugin", plugin), host=HOST, knowledge=KNOWLEDGE)
    before, after = arrays(plugin), arrays(stored.plugin)
    assert before.keys() == after.keys()
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)
    assert stored.plugin.config == plugin.config and type(stored.plugin) is type(plugin)
    np.testing.assert_array_equal(stored.plugin.map(drawn), plugin.map(drawn))


def test_another_process_computes_the_same(saved):
    plugin = make()
    drawn = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    code = (
        "import sys, numpy as np\n"
        "from kinject.plugins.store import load_plugin\n"
        "plugin = load_plugin(sys.argv[1]).plugin\n"
        f"drawn = np.random.default_rng(0).normal(size=(5, {DIM})).astype(np.float32)\n"
        "print(np.asarray(plugin.map(drawn)).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == np.asarray(plugin.map(drawn)).tobytes().hex()


def test_the_folder_holds_the_plugin_and_nothing_else(saved):
    manifest = json.loads((saved / "plugin.json").read_text())
    assert {path.name for path in saved.iterdir()} == {"plugin.json", "params", "README.md", "seal.json"}
    assert manifest["method"] == "map_tuning"
    assert manifest["method_config"] == {"mapper": "residual_mlp", "width": 4, "depth": 1, "dropout": 0.25}
    assert manifest["host"] == {"fingerprint": "sha256:host", "encoder_fingerprint": "sha256:tuned"}
    assert manifest["knowledge"] == KNOWLEDGE
    assert set(manifest["versions"]) == {"kinject", "jax", "flax", "optax", "orbax-checkpoint"}
    assert "unknown" not in manifest["versions"].values()
    with ocp.StandardCheckpointer() as checkpointer:
        on_disk = checkpointer.restore(saved / "params")
    assert {path: list(leaf.shape) for path, leaf in on_disk.items()} == {
        path: leaf["shape"] for path, leaf in manifest["parameters"].items()
    }
    assert sorted(on_disk) == ["down/kernel", "mapper/bias", "mapper/kernel", "up/bias", "up/kernel"]


def test_the_card_says_what_a_reader_needs(saved):
    card = (saved / "README.md").read_text()
    size = DIM * HIDDEN + HIDDEN + DIM * 4 + 4 + 4 * HIDDEN
    for part in (f"`map_tuning`, {size} parameters", "hidden size 16", "vectors of 8", "sha256:tuned", "f" * 64):
        assert part in card
    for part in (
        "cities",
        "60 entities",
        "Licence of the knowledge: CC0",
        "| loss | 0.25",
        "kinject",
        "holds no entity vectors",
    ):
        assert part in card


def test_an_existing_folder_is_not_overwritten(copied):
    before = contents(copied)
    with pytest.raises(InputError, match="it exists already; choose another folder; nothing was overwritten"):
        save(copied, make(seed=9))
    assert contents(copied) == before
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_replacing_leaves_the_new_one_whole_and_nothing_beside_it(copied):
    other = make(METHODS[0], seed=9)
    save(copied, other, replace=True)
    np.testing.assert_array_equal(load_plugin(copied).plugin.mapper.kernel[...], other.mapper.kernel[...])
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_a_save_that_fails_leaves_the_old_one(copied, monkeypatch):
    before = contents(copied)
    monkeypatch.setattr(
        "kinject.plugins.store.card", lambda manifest: (_ for _ in ()).throw(KeyboardInterrupt("disk gone"))
    )
    with pytest.raises(KeyboardInterrupt):
        save(copied, make(seed=9), replace=True)
    assert contents(copied) == before
    monkeypatch.undo()
    save(copied, make(seed=9), replace=True)  # what the failed one left does not hinder
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (HostIdentity("sha256:host", ("sha256:raw",), HIDDEN), r"neither this host's \(sha256:raw…\) nor one that"),
        (HostIdentity("x", ("sha256:sibling", "sha256:raw"), HIDDEN), "train a plugin for this host"),
        (HostIdentity("x", ("sha256:tuned",), 24), "hidden_size is 16, the host's is 24"),
    ],
)
def test_another_host_is_refused(saved, host, message):
    with pytest.raises(InputError, match=message):
        load_plugin(saved, host=host)


def test_a_host_made_from_its_host_is_accepted(saved):
    made = HostIdentity("other", ("sha256:newer", "sha256:tuned", "sha256:raw"), HIDDEN)
    assert load_plugin(saved, host=made).manifest["host"]["encoder_fingerprint"] == "sha256:tuned"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 64}, "trained on the knowledge base 'cities'"),
        ({"dim": 9}, "knowledge_dim is 8, the knowledge base has 9"),
    ],
)
def test_another_knowledge_base_is_refused(saved, change, message):
    with pytest.raises(InputError, match=message):
        load_plugin(saved, knowledge=KNOWLEDGE | change)


def rewritten(folder: Path, **changes) -> Path:
    path = folder / "plugin.json"
    manifest = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format_version is 3, this kinject reads 1 and 2"),
        ({"format_version": 2}, "format_version is 2, and the field head is None"),
        ({"format_version": None}, "format_version is None"),
        ({"method": "map_tunning"}, "no plugin called 'map_tunning'; did you mean map_tuning"),
        ({"method": ["map_tuning"]}, "the field method is .* not of type str"),
        ({"method_config": {"maper": "affine"}}, "method_config.maper: unknown key maper; did you mean mapper"),
        ({"method_config": "affine"}, "the field method_config is 'affine'"),
        ({"method_config": None}, "the field method_config is missing"),
        ({"hidden_size": "16"}, "the field hidden_size is '16'"),
        ({"host": "sha256:tuned"}, "the field host is"),
        ({"hidden_size": 17}, "parameter down/kernel is"),
        ({"method_config": {"mapper": "affine"}}, "parameter down/kernel is .* map_tuning has None"),
    ],
)
def test_a_bad_manifest_is_one_line(copied, changes, message):
    with pytest.raises(InputError, match=message) as refusal:
        load_plugin(rewritten(copied, **changes))
    assert "\n" not in str(refusal.value)


def with_params(folder: Path, change) -> Path:
    """The folder with other leaves on disk."""
    leaves = arrays(make())
    change(leaves)
    shutil.rmtree(folder / "params")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "params", leaves)
    return rewritten(folder, files=hash_files(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaves: leaves.pop("up/bias"), "parameter up/bias is missing"),
        (lambda leaves: leaves.update({"extra/kernel": np.ones(3, np.float32)}), "extra/kernel is .* has None"),
        (lambda leaves: leaves.update({"up/bias": np.ones(5, np.float32)}), r"up/bias is \(\(5,\), 'float32'\)"),
        (lambda leaves: leaves.update({"up/bias": jnp.ones(4, jnp.bfloat16)}), "'bfloat16'"),
    ],
)
def test_leaves_that_the_method_does_not_have_are_refused_unread(copied, monkeypatch, change, message):
    folder = with_params(copied, change)
    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", None)  # what is there may be of any size
    with pytest.raises(InputError, match=message):
        load_plugin(folder)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(copied, number):
    folder = with_params(copied, lambda leaves: leaves.update({"up/bias": np.array([0, 1, number, 2], np.float32)}))
    with pytest.raises(InputError, match="parameter up/bias holds a number that is not finite; its training"):
        load_plugin(folder)


def test_no_cut_or_lost_file_goes_unnoticed(saved, tmp_path):
    names = [path.relative_to(saved) for path in (saved / "params").rglob("*") if path.is_file()]
    assert len(names) >= 4
    folder = shutil.copytree(saved, tmp_path / "plugin")
    for name in names:
        whole = (saved / name).read_bytes()
        middle = len(whole) // 2
        for content in (whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], None):
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            problem = "it is missing" if content is None else "its content is not what plugin.json was written for"
            with pytest.raises(InputError, match=f"^{re.escape(str(folder / name))}: {problem}; "):
                load_plugin(folder)
        (folder / name).write_bytes(whole)
    load_plugin(folder)  # whole again


def test_what_is_no_plugin_is_refused(copied, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "nowhere", copied / "plugin.json"):
        with pytest.raises(InputError, match="there is no plugin here"):
            load_plugin(folder)
    for text in ("{", "[]", "\xff"):
        (copied / "plugin.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"plugin.json: it is not (JSON|a JSON object)"):
            load_plugin(copied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"method.name: it is missing"),
        ({"name": "map_tunning"}, "did you mean map_tuning"),
        ({"name": "map_tuning", "widht": 3}, "method.widht: unknown key widht; did you mean width"),
        ({"name": "map_tuning", "mapper": "cubic"}, r"method.mapper: input should be 'affine', .* got 'cubic'"),
        ({"name": "map_tuning", "width": "wide"}, r"method.width: .* got 'wide'"),
    ],
)
def test_bad_method_settings_name_the_key(settings, message):
    with pytest.raises(InputError, match=message):
        make_plugin(settings, hidden_size=HIDDEN, knowledge_dim=DIM)


HEAD = TrainedHead(
    {"kind": "classification", "num_labels": 2, "labels": ["no", "yes"], "task": "relation_classification"},
    {"output/bias": np.arange(2, dtype=np.float32), "output/kernel": np.ones((HIDDEN, 2), np.float32)},
)


def test_a_head_travels_with_its_plugin(tmp_path):
    folder = save(tmp_path / "plugin", head=HEAD)
    manifest = json.loads((folder / "plugin.json").read_text())
    assert manifest["format_version"] == 2 and {path.name for path in folder.iterdir()} >= {"head", "params"}
    assert {path.partition("/")[0] for path in manifest["files"]} == {"head", "params"}
    assert "The `classification` head of 2 outputs that was trained with it" in (folder / "README.md").read_text()
    stored = load_plugin(folder, host=HOST, knowledge=KNOWLEDGE)
    assert {path.tobytes() for path in arrays(stored.plugin).values()} == {v.tobytes() for v in arrays(make()).values()}
    head = read_head(stored)
    assert {name: head.facts[name] for name in HEAD.facts} == HEAD.facts
    assert head.params.keys() == HEAD.params.keys()
    assert all(np.asarray(head.params[path]).tobytes() == HEAD.params[path].tobytes() for path in HEAD.params)


def test_a_plugin_without_a_head_is_of_the_first_version_and_says_so(saved):
    assert json.loads((saved / "plugin.json").read_text())["format_version"] == 1
    with pytest.raises(InputError, match="brings none along; use the host's head"):
        read_head(load_plugin(saved))


def test_a_head_that_is_gone_or_of_another_shape_is_refused(tmp_path):
    folder = save(tmp_path / "plugin", head=HEAD)
    manifest = json.loads((folder / "plugin.json").read_text())
    manifest["head"]["parameters"]["output/bias"]["shape"] = [3]
    (folder / "seal.json").unlink()
    (folder / "plugin.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"head: parameter output/bias is \(\(2,\), 'float32'\), plugin.json has \(\(3,\)"
    ):
        read_head(load_plugin(folder))
    shutil.rmtree(folder / "head")
    with pytest.raises(InputError, match=r"head/.*: it is missing; the folder is damaged"):
        load_plugin(folder)
