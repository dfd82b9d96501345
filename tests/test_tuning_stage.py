"""Stage `host` with a tuning: what a config line trains and writes, and a plugin that is trained through the result."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_world import plugin_stage, run_experiment

from kinject.config import build
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.models.pretrained import load_host
from kinject.models.saving import merge_folder
from kinject.plugins.store import load_plugin
from kinject.stages.host import HostConfig

LAST = 2  # of the three layers


def host_stage(world, tuning, *, fit=None, **changes):
    settings = {"batch_size": 50, "steps": 12, "checkpoint_every": 12, "log_every": 4, "buckets": 1}
    return {
        "kind": "host",
        "task": "cloze",
        "base": str(world / "raw_host"),
        "data": (str(world / "copying.jsonl"),),
        "tuning": tuning,
        "fit": settings | {"optimizer": {"learning_rate": 0.01}} | (fit or {}),
        **changes,
    }


def made(stage, workdir):
    """The host's folder, its tensors, and the losses on the way."""
    run_experiment({"seed": 0, "stages": {"host": stage}}, workdir)
    folder = workdir / "host"
    added = load_file(folder / "tuning.safetensors") if (folder / "tuning.safetensors").exists() else {}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return folder, load_file(folder / "model.safetensors"), added, [line["loss"] for line in lines]


def changed(world, tensors):
    raw = load_file(world / "raw_host" / "model.safetensors")
    assert raw.keys() == tensors.keys()
    return {name for name in raw if raw[name].tobytes() != tensors[name].tobytes()}


LORA = {"name": "lora", "rank": 8, "alpha": 8, "sites": ["query", "value", "up"], "dropout": 0.1}
DROPPING = {"fit": {"dropout": "all"}, "dropout": 0.0}  # the host's own rates are not LoRA's


@pytest.fixture(scope="module")
def lora(world, tmp_path_factory):
    return made(host_stage(world, LORA, **DROPPING), tmp_path_factory.mktemp("lora"))


def test_lora_alone_is_trained(world, lora):
    folder, tensors, added, losses = lora
    assert changed(world, tensors) == set() and losses[-1] < losses[0]
    assert len(added) == 3 * 4 and all(array.any() for array in added.values())
    manifest = json.loads((folder / "host.json").read_text())
    assert manifest["tuning"] == manifest["extra"]["tuning"] == LORA | {"layers": None}
    assert manifest["extra"]["lineage"] == [load_host(world / "raw_host").encoder_fingerprint]


def test_adapters_alone_are_trained(world, tmp_path):
    _, tensors, added, losses = made(host_stage(world, {"name": "houlsby"}), tmp_path)
    assert changed(world, tensors) == set() and losses[-1] < losses[0]
    assert len(added) == 3 * 8 and all(array.any() for array in added.values())  # biases start at zero


def test_bitfit_trains_every_bias_and_the_head(world, tmp_path):
    _, tensors, added, losses = made(host_stage(world, {"name": "bitfit"}), tmp_path)
    moved = changed(world, tensors)
    assert added == {} and losses[-1] < losses[0]
    still = [name for name in tensors if name.endswith(".bias") and name not in moved]
    # a key's bias adds the same to all scores of a query, so its gradient is a rounding error, or none
    assert all(name.endswith("attention.self.key.bias") for name in still)
    assert all(name.endswith(".bias") or name.startswith("cls.") for name in moved)


def test_rules_of_the_config_replace_those_of_the_tuning(world, tmp_path):
    train = ((r"host/encoder/layers/2/.*lora.*", "train"), ("host/head/bias", "train"), (".*", "freeze"))
    _, tensors, added, _ = made(host_stage(world, {"name": "lora"}, train=train), tmp_path / "a")
    assert changed(world, tensors) == {"cls.predictions.bias"}
    assert {path.split("/")[2] for path, array in added.items() if path.endswith("/b") and array.any()} == {str(LAST)}
    misspelt = host_stage(world, {"name": "lora"}, train=(("host/.*/lroa/.*", "train"), (".*", "freeze")))
    with pytest.raises(InputError, match=r"host\.train: rule 'host/\.\*/lroa/\.\*' matches no parameter"):
        made(misspelt, tmp_path / "b")


def test_frozen_layers_below_lora_are_computed_once(world, tmp_path):
    """With and without the cached prefix the same numbers are learned; only the work differs."""
    tuning = {"name": "lora", "layers": [LAST], "sites": ["query", "value", "down"]}
    _, _, cached, losses = made(host_stage(world, tuning), tmp_path / "cached")
    stage = host_stage(world, tuning, fit={"prefix_cache_mb": 0})
    _, _, computed, expected = made(stage, tmp_path / "computed")
    assert {path.split("/")[2] for path in cached} == {str(LAST)}
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for path in cached:
        np.testing.assert_allclose(cached[path], computed[path], atol=2e-3, err_msg=path)


def test_merge_writes_a_plain_host(world, lora, tmp_path):
    folder, tensors, added, _ = made(host_stage(world, LORA, merge=True, **DROPPING), tmp_path)
    assert added == {} and load_host(folder).host.tuning is None
    assert load_host(folder).manifest["extra"]["tuning"]["name"] == "lora"
    dense = ("query.weight", "value.weight", "intermediate.dense.weight")
    assert {name.partition("layer.")[2][2:] for name in changed(world, tensors)} == {
        f"attention.self.{name}" if name.count(".") == 1 else name for name in dense
    }
    serving = load_file(merge_folder(lora[0], tmp_path / "serving") / "model.safetensors")
    assert all(np.array_equal(tensors[name], serving[name]) for name in tensors)  # the same seed, the same training


def test_plugin_is_trained_through_lora_and_fits_the_merged_host(world, lora, tmp_path):
    stage = plugin_stage(world, host=str(lora[0]), fit={"steps": 4, "buckets": 1})
    run_experiment({"seed": 0, "stages": {"cities": stage}}, tmp_path)
    load_plugin(tmp_path / "cities", host=open_host(lora[0]).identity)
    load_plugin(tmp_path / "cities", host=open_host(merge_folder(lora[0], tmp_path / "serving")).identity)
    with pytest.raises(InputError, match="trained through the encoder"):
        load_plugin(tmp_path / "cities", host=open_host(world / "raw_host").identity)


def test_a_tuned_host_is_tuned_on_but_not_twice_over(world, lora, tmp_path):
    with pytest.raises(InputError, match="has lora in it already"):
        made(host_stage(world, {"name": "houlsby"}, base=str(lora[0])), tmp_path / "twice")
    train = (("host/.*/lora/.*", "train"), (".*", "freeze"))
    _, tensors, added, _ = made(host_stage(world, {"name": "full"}, base=str(lora[0]), train=train), tmp_path / "on")
    assert changed(world, tensors) == set()
    assert all(lora[2][path].tobytes() != added[path].tobytes() for path in lora[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": {"name": "lroa"}}, r"stages\.host\.tuning: .*there is no tuning 'lroa'; did you mean lora"),
        ({"tuning": {"name": "lora", "rank": 0}}, r"stages\.host\.tuning: .*tuning\.rank"),
        ({"tuning": {"name": "houlsby"}, "merge": True}, r"merge is for lora, and tuning is houlsby"),
        ({"merge": True}, r"merge is for lora, and tuning is full"),
    ],
)
def test_bad_configs_are_refused_before_anything_runs(changes, message):
    values = {"kind": "host", "task": "cloze", "base": "x", "data": ("x",), "fit": {"steps": 1}, **changes}
    with pytest.raises(InputError, match=message):
        build(HostConfig, values, "stages.host")
