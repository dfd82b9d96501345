"""Entity vectors on the devices: the same numbers as from the host, however the table is split."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_world import as_device, plugin_stage, run_experiment, same_bits, write_base

from kinject.errors import InputError
from kinject.inference.mesh import MeshConfig, Placement
from kinject.inference.vectors import LANES, TableShape, choose, device_memory, load_table
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.plugins.store import load_plugin
from kinject.stages import plugin as plugin_module
from kinject.stages.experiment import Experiment
from kinject.training.loop import Fit

FIT = {"steps": 12, "dropout": "all", "evaluate_every": 4, "evaluation_batch_size": 10, "buckets": 1}


def stage(world, **changes):
    fit = FIT | changes.pop("fit", {})
    return plugin_stage(world, fit=fit, dev_data=(str(world / "dev.jsonl"),), dropout=0.1, **changes)


def run(world, workdir, devices=1, **changes):
    config = {"seed": 1, "stages": {"plugin": stage(world, **changes)}}
    with Experiment.open(config, workdir, devices=devices, quiet=True) as experiment:
        for name in experiment.choose(None):
            experiment.execute(name)
    return experiment.run.results["plugin"]


def params_of(folder):
    return nnx.to_pure_dict(nnx.state(load_plugin(folder).plugin))


@pytest.fixture(scope="module")
def from_host(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("host")
    return workdir, run(world, workdir, vectors="host")


@pytest.fixture(scope="module", params=["float32", "float16"])
def base(request, tmp_path_factory):
    """Seven entities, of which one has no vector."""
    folder = tmp_path_factory.mktemp("base") / "base"
    vectors = np.random.default_rng(0).normal(size=(7, 3)).astype(request.param)
    has_vector = np.arange(7) != 5
    ids = [f"Q{i}" for i in range(7)]
    write_knowledge(folder, name="seven", ids=ids, vectors=vectors, has_vector=has_vector)
    return KnowledgeBase.open(folder)


@pytest.mark.parametrize("axes", [None, {}, {"model": 2}], ids=["one device", "data", "model"])
@pytest.mark.parametrize(("shape", "width"), [((4, 3), 3), ((2, 3, 2), 4)])
def test_a_look_up_is_a_gather(base, axes, shape, width, monkeypatch):
    monkeypatch.setitem(LANES, "cpu", width)
    place = Placement.single() if axes is None else Placement.over(2, MeshConfig(**axes))
    table, look_up = load_table(base, place)
    assert table.dtype == base.vectors.dtype, "it takes more room than on the disk"
    held = [shard.data.shape for shard in table.addressable_shards]
    assert set(held) == {(7 if axes is None else 4, width)}, "a device holds more than its share"
    assert {shard.data.nbytes for shard in table.addressable_shards} == {TableShape.of(base).bytes_held(place)}
    rows = np.array([-1, 0, 6, 3, 4, -1, 5, 2, 2, 1, 6, -1], np.int32).reshape(shape)
    batch = place.batch({"entity_ids": rows, "weights": np.ones(len(rows), np.float32)})
    found = jax.jit(look_up.give)(table, batch)
    expected, _ = base.gather(rows)
    assert found["entity_vectors"].dtype == np.float32
    np.testing.assert_array_equal(found["entity_vectors"], expected)
    none = as_device({"entity_ids": np.zeros((4, 0), np.int32)})
    assert look_up.give(table, none) == none, "rows without entities have no vectors, as on the host"


def test_what_auto_chooses():
    table = TableShape(1000, 100, "float32")
    one, two = Placement.single(), Placement.over(2)
    assert TableShape(999, 100, "float32").held(two) == (1000, 100)
    assert TableShape(1000, 100, "float16").bytes_held(one) == 200_000
    chosen = [choose("auto", table, two, memory) for memory in (800_000, 800_001, None)]
    assert [each.on for each in chosen] == ["host", "device", "host"]
    assert {each.bytes for each in chosen} == {200_000}
    assert "1,000 x 100 float32, 195.3 KiB of each of 2" in str(chosen[1])
    assert "no memory of their own" in str(chosen[2])
    assert choose("device", table, one, 1000).on == "device" and choose("host", table, two, 1 << 40).on == "host"
    assert device_memory() is None, "these are CPU devices"


@pytest.mark.parametrize("devices", [1, 2])
def test_training_is_that_from_the_host(world, from_host, tmp_path, devices):
    workdir, expected = from_host
    found = run(world, tmp_path, devices, vectors="device")
    assert expected["vectors"]["on"] == "host" and found["vectors"]["on"] == "device"
    assert found["vectors"]["bytes"] == 60 * 8 * 4 // devices
    ours, theirs = params_of(tmp_path / "plugin"), params_of(workdir / "plugin")
    if devices == 1:
        assert same_bits(ours, theirs)
        assert (tmp_path / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert found["dev_loss"] == pytest.approx(expected["dev_loss"], rel=1e-4)
    for file in ("plugin/plugin.json", "checkpoints/plugin/last/12/meta/metadata"):
        one, other = (json.loads((each / file).read_text()) for each in (tmp_path, workdir))
        parts = {"parameters", "leaves"} & set(one)
        assert parts and all(one[part] == other[part] for part in parts), "the table is in what was saved"


def test_a_run_that_was_cut_goes_on_either_way(world, from_host, tmp_path, monkeypatch):
    """From the devices to the host after four steps, and back after eight."""
    keep = Fit.save_if_due

    def cut(fit, stop):
        keep(fit, stop)
        if fit.step in (5, 9):
            fit.checkpoints.wait(), fit.best.wait()  # else they write on while the run is taken up again
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "save_if_due", cut)
        for way in ("device", "host"):
            with pytest.raises(KeyboardInterrupt):
                run(world, tmp_path, vectors=way)
    run(world, tmp_path, vectors="device")
    assert same_bits(params_of(tmp_path / "plugin"), params_of(from_host[0] / "plugin"))
    assert (tmp_path / "metrics.jsonl").read_text() == (from_host[0] / "metrics.jsonl").read_text()


def test_layers_kept_once_read_the_table_too(world, tmp_path):
    """Only the head is trained, above a map that stays: hidden states are computed once, with the vectors."""
    rules = (("host/head/.*", "train"), (".*", "freeze"))
    sgd = {"name": "sgd", "learning_rate": 0.05}
    for way in ("host", "device"):
        run(world, tmp_path / way, vectors=way, train=rules, fit={"dropout": "none", "optimizer": sgd})
    one, other = ((tmp_path / way / "metrics.jsonl").read_text() for way in ("host", "device"))
    assert one == other


@pytest.mark.slow
def test_trainings_together_share_a_table(world, tmp_path, monkeypatch):
    loaded = []
    load = plugin_module.load_table
    monkeypatch.setattr(plugin_module, "load_table", lambda *given: loaded.append(load(*given)) or loaded[-1])
    others = {"knowledge": str(write_base(tmp_path / "others", seed=7, name="others"))}
    fit = {"steps": 4, "buckets": 1, "checkpoint_every": 4}
    members = {name: plugin_stage(world, fit=fit, vectors="device") for name in ("one", "two", "three")}
    members["three"] |= others
    config = {"kind": "together", "host": str(world / "host"), "members": members}
    run_experiment({"seed": 1, "stages": {"all": config}}, tmp_path / "together")
    assert len(loaded) == 2, "one table a knowledge base"
    alone = {name: members[name] | {"vectors": "host"} for name in ("two", "three")}
    run_experiment({"seed": 1, "stages": alone}, tmp_path / "alone")
    for name in alone:
        ours, theirs = params_of(tmp_path / "together/all" / name), params_of(tmp_path / "alone" / name)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_is_told(world, tmp_path):
    def refused(**changes):
        with pytest.raises(InputError) as error:
            Experiment.open({"stages": {"p": stage(world) | changes}}, tmp_path / "no", quiet=True)
        return str(error.value)

    assert refused(vectors="devise").startswith("stages.p.vectors: input should be 'auto', 'host' or 'device', got")
    assert refused(vectors="devise").endswith("did you mean device?")
    assert "kformer reads no entity vectors" in refused(vectors="device", method={"name": "kformer", "layers": [1]})
    several = {name: values for name, values in stage(world).items() if name not in ("knowledge", "data", "dev_data")}
    domains = {"a": {"knowledge": str(world / "knowledge"), "data": (str(world / "train.jsonl"),)}}
    with pytest.raises(InputError, match="take their vectors from the host: use stages of kind plugin"):
        Experiment.open(
            {"stages": {"p": several | {"kind": "plugins", "domains": domains, "vectors": "device"}}}, tmp_path / "no"
        )
