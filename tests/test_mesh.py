"""Meshes: what is placed where, and that no arrangement of devices changes a number beyond rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from kinject.config import build
from kinject.errors import InputError
from kinject.inference.mesh import MeshConfig, Placement, place_params
from kinject.training.config import OptimizerConfig
from kinject.training.step import initial_state, make_optimizer


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Workdir of mesh_cases.py, run with four devices."""
    folder = tmp_path_factory.mktemp("meshes")
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"  # the last one counts
    script = Path(__file__).with_name("mesh_cases.py")
    done = subprocess.run(
        [sys.executable, str(script), str(world), str(folder)],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join([str(script.parents[1]), str(script.parent)]),
        },
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", ["map", "full", "lora"])
def test_every_mesh_trains_as_one_device(trained, case):
    found = json.loads((trained / "found.json").read_text())
    meshes = [name for name in found if name.startswith(f"{case} ") and not name.endswith("1x1")]
    assert meshes
    one, wanted = trained / f"{case} 1x1", np.load(trained / f"{case} 1x1" / "train.npz")
    assert found[f"{case} 1x1"]["moved"] > 1e-4, "nothing was trained"
    for mesh in meshes:
        arrays = np.load(trained / mesh / "train.npz")
        assert sorted(arrays) == sorted(wanted)
        for path in wanted:
            np.testing.assert_allclose(arrays[path], wanted[path], rtol=1e-4, atol=1e-6, err_msg=f"{mesh} {path}")
        for line, ours in zip(lines(one), lines(trained / mesh), strict=True):
            assert ours.pop("stage") == line.pop("stage")
            assert ours == pytest.approx(line, rel=1e-4), mesh


def test_a_run_moves_to_other_devices(trained):
    """SIGTERM after the first step on 4 devices and after the second on 2 x 2; the rest on one."""
    assert json.loads((trained / "found.json").read_text())["moved on"] == [1, 2]
    one, moved = trained / "map 1x1", trained / "map moved on"
    ours, wanted = np.load(moved / "train.npz"), np.load(one / "train.npz")
    for path in wanted:
        np.testing.assert_allclose(ours[path], wanted[path], rtol=1e-4, atol=1e-6)
    assert [line["step"] for line in lines(moved)] == [line["step"] for line in lines(one)]
    for line, other in zip(lines(moved), lines(one), strict=True):
        del line["stage"], other["stage"]
        assert line == pytest.approx(other, rel=1e-4)


def test_what_is_split(trained):
    found = json.loads((trained / "found.json").read_text())
    layer = "host/encoder/layers/0"
    split = found["full 2x2"]["split"]  # trained leaves of a host are split as frozen ones
    assert split[f"{layer}/attention/qkv/kernel"] == [[16, 3, 2, 8], "P(None, None, 'model', None)"]
    assert split[f"{layer}/attention/output/kernel"] == [[2, 8, 16], "P('model', None, None)"]
    assert split[f"{layer}/feed_forward/up/kernel"] == [[16, 32], "P(None, 'model')"]
    assert split[f"{layer}/feed_forward/down/kernel"] == [[32, 16], "P('model', None)"]
    # 81 words do not divide by 2, so their hidden size is split
    assert split["host/encoder/embeddings/word/embedding"] == [[81, 16], "P(None, 'model')"]
    assert not any(path.startswith("plugin/") or path.endswith("down/bias") for path in split)
    assert found["map 4x1"]["split"] == {}
    both = found["map 2x2 sharded"]["split"]
    assert both[f"{layer}/feed_forward/up/kernel"][1] == "P('data', 'model')"
    assert not any(path.startswith("plugin/") for path in both)


def test_the_table_of_vectors_is_split_over_all_devices(trained):
    found = json.loads((trained / "found.json").read_text())
    assert found["map 2x2 vectors"]["split"]["knowledge/vectors"] == [[60, 8], "P(('data', 'model'),)"]
    assert "knowledge/vectors" not in found["map 2x2 sharded"]["split"]


def test_what_does_not_divide_is_replicated_with_a_note(trained):
    found = json.loads((trained / "found.json").read_text())
    notes = found["map 1x4"]["notes"]
    assert (
        "host/encoder/layers/*/attention/qkv/kernel [16, 3, 2, 8] does not divide by model 4: replicated (3 leaves)"
        in (notes)
    )
    assert not any("feed_forward" in note for note in notes)
    assert "host/encoder/layers/0/attention/qkv/kernel" not in found["map 1x4"]["split"]
    assert found["map 1x1"]["notes"] == found["map 4x1"]["notes"] == []


@pytest.mark.parametrize(
    ("count", "axes", "message"),
    [
        (0, {}, "give 1 or more"),
        (3, {}, "3 asked for, there are 2"),
        (1, {"model": 2}, "1 devices do not make up data the rest x model 2"),
        (2, {"data": 1}, "2 devices do not make up data 1 x model 1"),
        (None, {"data": 2, "model": 2}, "4 asked for, there are 2"),
        (None, {"data": 0}, "0 parts"),
    ],
)
def test_devices_that_do_not_make_up_a_mesh_are_refused(count, axes, message):
    assert jax.device_count() == 2
    with pytest.raises(InputError, match=message):
        Placement.over(count, MeshConfig(**axes))


def test_mesh_of_a_config():
    with pytest.raises(InputError, match="did you mean model"):
        build(MeshConfig, {"modell": 2}, "mesh")
    assert Placement.over(None, MeshConfig(model=2)).describe() == "2 devices, data 1 x model 2"
    assert Placement.over(None, MeshConfig(data=1)).mesh is None
    assert Placement.over(None).describe() == "2 devices, data 2 x model 1"


def test_moments_lie_where_their_parameters_do():
    """On a mesh a program of zeros alone would put them onto one device, and then each whole onto all."""
    place = Placement.over(2, MeshConfig(model=2))
    path = "host/encoder/layers/0/feed_forward/up/kernel"
    train, _ = place_params({path: np.ones((4, 6), np.float32)}, {}, "float32", place)
    optimizer = make_optimizer(OptimizerConfig(name="adamw", learning_rate=1e-3), {path: "train"}, 10)
    state = place.state(initial_state(train, optimizer, {path: "train"}))
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == (4, 6)]
    assert len(moments) == 2
    for leaf in moments:
        assert leaf.sharding == train[path].sharding and not leaf.sharding.is_fully_replicated
