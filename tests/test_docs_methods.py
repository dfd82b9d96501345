"""docs/own_method.md and docs/thunlp.md do what they say: their files are written, their settings and commands run."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny_world import DIM, evaluate_stage, plugin_stage, run_experiment, vectors

import kinject
from kinject.knowledge import KnowledgeBase
from kinject.linking import AliasLinker
from kinject.plugins import MapTuning, base, load_plugin
from kinject.stages.experiment import read_stages

DOCS = Path(__file__).resolve().parents[1] / "docs"
OWN, THUNLP = ((DOCS / name).read_text() for name in ("own_method.md", "thunlp.md"))


def block(page, mark):
    (found,) = re.findall(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    return found


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The page's package, as `pip install` leaves one."""
    project = tomllib.loads(block(OWN, "file: pyproject.toml"))
    (module,) = project["tool"]["setuptools"]["py-modules"]
    (tmp_path / f"{module}.py").write_text(block(OWN, f"file: {module}.py"))
    info = tmp_path / "gated_map-0.1.dist-info"
    info.mkdir()
    about = project["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    points = "\n".join(f"{name} = {where}" for name, where in about["entry-points"]["kinject.plugins"].items())
    (info / "entry_points.txt").write_text(f"[kinject.plugins]\n{points}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(module, None)
    base._REGISTERED.pop("gated_map", None)


def test_your_own_method(installed, world, tmp_path):
    stage = plugin_stage(world, fit={"steps": 40, "buckets": 1})
    exec(block(OWN, "run"), {"stage": stage})
    results = run_experiment(
        {"seed": 0, "stages": {"gated": stage, "table": evaluate_stage(world, {"gated": "@gated"})}}, tmp_path / "run"
    )
    rows = results["table"]["cities"]
    assert rows["gated"] > rows["host"] + 0.2 and rows["shuffled"] < rows["gated"], "it learns, and from the vectors"
    stored = load_plugin(tmp_path / "run/gated")
    assert stored.plugin.name == "gated_map" and bool(np.any(np.asarray(stored.plugin.gate[...])))
    sizes = {"hidden_size": 16, "knowledge_dim": DIM, "embedding_size": 24}
    assert base.make_plugin({"name": "gated_map"}, **sizes).gate.shape == (24,), "for any host"


def test_your_own_method_has_types():
    """A copy of it in the package passes mypy, which asks for all of them there."""
    nodes = ast.walk(ast.parse(block(OWN, "file: gated_map.py")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert len(functions) == 2
    for function in functions:
        taken = (*function.args.args[1:], *function.args.kwonlyargs, *filter(None, [function.args.kwarg]))
        assert all(one.annotation for one in taken), function.name


def test_the_released_weights_of_thunlp(world, tmp_path, monkeypatch):
    """Files of the released form, with the tiny world's vectors: the page's command and stage, with its names."""
    torch = pytest.importorskip("torch")
    table = vectors()
    np.save(tmp_path / "transe.npy", table)
    lines = [str(len(table)), *(f"Q{row}\t{row}" for row in range(len(table)))]
    (tmp_path / "entity2id.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "entity_map.txt").write_text("".join(f"city{row}\tQ{row}\n" for row in range(len(table))))
    weight, bias = torch.linspace(-1, 1, 16 * DIM).reshape(16, DIM), torch.linspace(0, 1, 16)
    torch.save({"model.weight": weight, "model.bias": bias}, tmp_path / "Affine_5.bin")

    shell = f'set -e\nkinject() {{ "{sys.executable}" -m kinject "$@"; }}\n' + block(THUNLP, "build")
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 1800}
    done = subprocess.run(["bash", "-c", shell], **options)
    assert done.returncode == 0 and f"{len(table)} entities, {DIM} numbers a vector" in done.stdout, done.stderr

    monkeypatch.chdir(tmp_path)
    Path("bert-base-uncased").symlink_to(world / "raw_host")
    exec(block(THUNLP, "run"), {})
    plugin = load_plugin("released").plugin
    assert isinstance(plugin, MapTuning)
    np.testing.assert_array_equal(plugin.mapper.kernel[...].T, weight.numpy())
    np.testing.assert_array_equal(plugin.mapper.bias[...], bias.numpy())
    host = kinject.Host.load(world / "host")  # made from the raw one
    host.plug("released", knowledge="wikidata", linker=AliasLinker(KnowledgeBase.open("wikidata")))
    (linked,) = next(host.stream("city3 is in [MASK] .")).entities
    assert (linked.plugin, linked.entity) == ("released", "Q3")
    (config,) = read_stages({"stages": {"tuned": ast.literal_eval(block(THUNLP, "stage"))}}).values()
    assert config.initialise == "Affine_5.bin", "the stage is of the schema"
