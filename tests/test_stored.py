"""What an earlier version wrote is opened by this one, and is the same to the bit.

tests/stored/f5eefac holds hosts, plugins, knowledge bases with the indices beside them, a passage memory and runs, as
that commit wrote them (tests/stored/make.py). What is read must be the same bits. What is computed is compared with the
stored answers and with a stored run to float tolerance: another processor, another jax, and a formula that was written
out otherwise since (GELU by `erf`, where it was by `erfc`) round otherwise. It is the same to the bit with hosts and
plugins that this version has read and written again.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from stored.observe import ASKED, answers, content

from kinject.models.pretrained import load_host
from kinject.models.saving import save_host
from kinject.plugins.store import HostIdentity, load_plugin, read_head, save_plugin
from kinject.tree import flatten

STORED = Path(__file__).with_name("stored") / "f5eefac"
EXPECTED = json.loads((STORED / "expected.json").read_text())
TRAINED = 1e-5  # of parameters after 24 steps, each of which takes the rounding of those before


def copied(folder: Path) -> Path:
    """A copy of the stored set: a run, or an index that is made anew, writes beside what it reads."""
    return Path(shutil.copytree(STORED, folder / "set"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return copied(tmp_path_factory.mktemp("stored"))


@pytest.fixture(scope="module")
def found(opened):
    return json.loads(json.dumps(content(opened)))


@pytest.mark.parametrize("part", EXPECTED["content"])
def test_what_is_read_is_the_same(found, part):
    assert found[part] == EXPECTED["content"][part]


def test_indices_beside_a_base_are_read_and_not_made_anew(opened, found):
    for name in ("facts.names", "facts.facts", "facts.bm25_all"):
        made = {path.name: path.stat().st_mtime_ns for path in (opened / name).iterdir()}
        assert made == {path.name: path.stat().st_mtime_ns for path in (STORED / name).iterdir()}, name


@pytest.fixture(scope="module")
def rewritten(opened, tmp_path_factory):
    """The hosts and plugins, read and written by this version, beside the other files."""
    folder = copied(tmp_path_factory.mktemp("rewritten"))
    for name in {host for host, *_ in ASKED.values()}:
        shutil.rmtree(folder / name)
        loaded = load_host(opened / name)
        about = {"task": loaded.manifest["task"], "extra": loaded.manifest["extra"]}
        save_host(loaded.host, folder / name, tokenizer_files_from=opened / name, host_json=about)
    for name in {plugin for _, plugin, *_ in ASKED.values() if plugin}:
        stored = load_plugin(opened / name)
        about, size = stored.manifest["host"], stored.manifest["hidden_size"]
        save_plugin(
            folder / name,
            stored.plugin,
            host=HostIdentity(about["fingerprint"], (about["encoder_fingerprint"],), size),
            knowledge=stored.manifest["knowledge"],
            config={},
            metrics={},
            head=read_head(stored) if "head" in stored.manifest else None,
            replace=True,
        )
    return folder


@pytest.mark.parametrize("name", ASKED)
def test_answers_are_the_same(opened, rewritten, name):
    now = answers(opened, name)
    assert now == answers(rewritten, name)
    stored = [[(label, float.fromhex(score)) for label, score in one] for one in EXPECTED["answers"][name]]
    for here, there in zip(now, stored, strict=True):
        assert dict(here) == pytest.approx(dict(there), abs=1e-6)


def run(folder: Path, workdir: str, *overrides: str) -> str:
    command = [sys.executable, "-m", "kinject.train", "--config", "config.py", "--workdir", workdir, "--devices", "1"]
    command += overrides
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def arrays(plugin: Path) -> dict[str, np.ndarray]:
    made = flatten(nnx.to_pure_dict(nnx.state(load_plugin(plugin).plugin, nnx.Param)))
    return {path: np.asarray(leaf) for path, leaf in made.items()}


def test_a_finished_run_is_reported_and_not_run_again(tmp_path):
    folder = copied(tmp_path)
    said = run(folder, "finished")
    assert "done already" in said and "plugin, evaluate" in said
    for name in ("results.json", "metrics.jsonl", "provenance.jsonl", "config.json", "plugin/plugin.json"):
        assert (folder / "finished" / name).read_bytes() == (STORED / "finished" / name).read_bytes(), name


def test_a_run_that_was_cut_short_ends_as_a_whole_one(tmp_path):
    folder = copied(tmp_path)
    assert not (folder / "half" / "plugin").exists()
    run(folder, "whole", "--config.stages.plugin.initialise=random")  # as a plugin started then, unless told otherwise
    assert "step 8" in run(folder, "half")
    resumed, whole = (arrays(folder / workdir / "plugin") for workdir in ("half", "whole"))
    before = arrays(STORED / "finished" / "plugin")
    for path in before:
        np.testing.assert_allclose(resumed[path], before[path], atol=TRAINED, err_msg=path)
        np.testing.assert_allclose(resumed[path], whole[path], atol=10 * TRAINED, err_msg=path)  # rounded from step 0
    logs = [
        [json.loads(line) for line in (folder / workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in ("half", "whole")
    ]
    for one, other in zip(*logs, strict=True):
        assert one.pop("stage") == other.pop("stage") and one == pytest.approx(other, rel=1e-3)
