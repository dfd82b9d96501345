"""Weights in 8 bits: the formula, their bytes, what they cost in digits, and that all else goes on as with others."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from served import Served
from test_fit import Setting
from tiny import random_host, tiny_config
from tiny_world import evaluate_stage, leaves, plugin_stage, question, run_experiment, same_bits

import kinject
from kinject.cli.parser import PRECISIONS
from kinject.errors import InputError
from kinject.inference.mesh import MeshConfig, Placement, place_params
from kinject.inference.program import evaluate, split_program
from kinject.models import precision as precisions
from kinject.models.manifest import fingerprint
from kinject.models.precision import Precision, held, multiplied
from kinject.plugins.store import read_plugin_manifest
from kinject.serving import Host
from kinject.stages.experiment import Experiment
from kinject.tasks.base import Extent
from kinject.training.aot import compile_step
from kinject.training.partition import split
from kinject.training.prefix import PrefixPlan
from kinject.training.states import attach_prefix

LAYER = "host/encoder/layers/0"
KINDS = {
    "host/encoder/embeddings/word/embedding": (50, 16),
    f"{LAYER}/attention/qkv/kernel": (16, 3, 2, 8),
    f"{LAYER}/attention/output/kernel": (2, 8, 16),
    f"{LAYER}/feed_forward/up/kernel": (16, 32),
    "host/head/output/kernel": (16, 3),
}


def shared(path):
    """The axes of a matrix of a host that share a scale, None for what is not held in 8 bits."""
    if path.endswith("/embedding"):
        return (1,)
    return None if not path.endswith("/kernel") else (0, 1) if path.endswith("/attention/output/kernel") else (0,)


def by_formula(path, matrix, leaf):
    """Holds a leaf to symmetric quantisation in plain numpy, and returns what it stands for, float32.

    The largest magnitude of a channel is 127.5 steps. It lies between two whole numbers, so that the last digit of the
    scale says which it becomes; everything else is the nearest. That digit is the library's, or a rounding to bfloat16
    would go the other way here and there.
    """
    scale = np.abs(matrix).max(shared(path), keepdims=True) / np.float32(127.5)
    ratio = matrix / scale
    inner = np.abs(ratio) < 127.49
    assert leaf.qvalue.shape == matrix.shape and leaf.scale.shape == scale.shape
    np.testing.assert_allclose(leaf.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(leaf.qvalue)[inner], np.round(ratio[inner]))
    assert np.abs(np.asarray(leaf.qvalue) - ratio).max() < 0.501 and inner.mean() > 0.7
    return np.asarray(leaf.qvalue) * np.asarray(leaf.scale)


def norm(array):
    return float(np.sqrt((np.asarray(array, np.float64) ** 2).sum()))


@pytest.fixture(scope="module")
def setting(world, tmp_path_factory):
    """The trained tiny host and a random plugin."""
    return Setting(world, tmp_path_factory.mktemp("int8"), compute_dtype="int8")


@pytest.fixture(scope="module")
def batch(setting):
    one = setting.feed("train").batch(0, np.arange(8))
    return {name: jnp.asarray(values) for name, values in one.items()}


def in_precision(setting, precision, params=None):
    """(the program, the parameters as they are held)."""
    program = replace(setting.program, precision=precision)
    return program, place_params({}, setting.params if params is None else params, precision)[1]


# ---- what is held -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", KINDS)
def test_matrices_are_held_by_the_formula(path):
    matrix = np.random.default_rng(0).normal(size=KINDS[path]).astype(np.float32)
    leaf = held("int8", path, matrix)
    assert leaf.qvalue.dtype == jnp.int8 and leaf.scale.dtype == jnp.float32 and leaf.zero_point is None
    wanted = by_formula(path, matrix, leaf)
    assert np.abs(wanted - matrix).max() <= 0.501 * np.abs(matrix).max() / 127.5
    found = multiplied("float32", path, leaf)  # what it is held in tells, not the program
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8)


def test_what_is_not_a_matrix_of_the_host_is_held_as_before():
    for path, leaf in (
        (f"{LAYER}/feed_forward/up/bias", jnp.ones(4)),
        (f"{LAYER}/attention/qkv/lora/a", jnp.ones((4, 2))),
        ("plugin/mapper/kernel", jnp.ones((4, 4))),
        ("host/ids", jnp.ones((4, 4), jnp.int32)),
    ):
        found, wanted = held("int8", path, leaf), held("bfloat16_dots", path, leaf)
        assert found.dtype == wanted.dtype and not precisions.is_quantised(found)
    zeros = multiplied("int8", f"{LAYER}/feed_forward/up/kernel", held("int8", f"{LAYER}/up/kernel", jnp.zeros((4, 4))))
    np.testing.assert_array_equal(zeros, 0)


def test_bytes_are_a_quarter():
    host = random_host(tiny_config(hidden_size=256, intermediate_size=1024, vocab_size=600), "masked_lm")
    _, params = split_program(host, None, None)
    sizes = {one: sum(leaf.nbytes for leaf in jax.tree.leaves(in_bytes(params, one))) for one in get_args(Precision)}
    assert 0.25 < sizes["int8"] / sizes["float32"] < 0.26
    assert 0.50 < sizes["bfloat16_dots"] / sizes["float32"] < 0.51


def in_bytes(params, precision):
    return place_params({}, params, precision)[1]


def test_command_lines_know_every_precision():
    assert get_args(Precision) == PRECISIONS


# ---- what it computes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outputs(setting, batch):
    """The scores of all words, [B, P, V], by precision; and of a host that went through the formula."""
    made = {name: in_precision(setting, name) for name in ("float32", "bfloat16_dots", "int8")}
    params = dict(setting.params)
    for path, leaf in made["int8"][1].items():
        if precisions.is_quantised(leaf):
            params[path] = by_formula(path, np.asarray(params[path]), leaf)
    made["formula"] = in_precision(setting, "bfloat16_dots", params)
    return {name: np.asarray(jax.jit(one.outputs)(params, batch, None)) for name, (one, params) in made.items()}


def test_outputs_are_those_of_the_formula_in_bfloat16(outputs):
    np.testing.assert_array_equal(outputs["int8"], outputs["formula"])


def test_outputs_are_near_float32(outputs):
    """The stated error: 3% by norm, for weights that spread as these do."""
    exact = outputs["float32"]
    assert 0 < norm(outputs["int8"] - exact) < 0.03 * norm(exact)
    assert norm(outputs["bfloat16_dots"] - exact) < norm(outputs["int8"] - exact)


def test_gradients_of_a_plugin_are_near_float32(setting, batch):
    def slope(precision):
        program, frozen = in_precision(setting, precision)
        train = {path: leaf for path, leaf in setting.params.items() if path.startswith("plugin/")}

        def loss(train):
            losses, weights = program.task.loss(program.outputs({**frozen, **train}, batch, None), batch)
            return (losses * weights).sum()

        return jax.jit(jax.grad(loss))(train)

    exact, found = slope("float32"), slope("int8")
    for path, wanted in exact.items():
        assert np.isfinite(found[path]).all() and norm(wanted) > 0
        assert norm(found[path] - wanted) < 0.1 * norm(wanted), path


def test_a_mesh_computes_as_one_device(setting, batch, outputs):
    place = Placement.over(2, MeshConfig(model=2))
    program = replace(setting.program, precision="int8")
    params = place_params({}, setting.params, "int8", place)[1]
    up, down = params[f"{LAYER}/feed_forward/up/kernel"], params[f"{LAYER}/feed_forward/down/kernel"]
    assert [tuple(part.sharding.spec) for part in (up.qvalue, up.scale)] == [(None, "model")] * 2
    assert [tuple(part.sharding.spec) for part in (down.qvalue, down.scale)] == [("model", None), (None, None)]
    found = jax.jit(program.outputs)(params, place.batch(batch), None)
    assert norm(found - outputs["int8"]) < 0.01 * norm(outputs["int8"])


def test_a_prefix_is_the_layers_it_stands_for(setting):
    program, params = in_precision(setting, "int8")
    program = replace(program, plugin=None)
    params = {path: leaf for path, leaf in params.items() if path.startswith("host/")}
    feed = setting.feed("test")
    plan = PrefixPlan(2, False, np.dtype(np.float32), 0, "memory", ("prefix",), 16)
    kept = attach_prefix(program, params, feed, plan, 10, Placement.single())
    whole, _ = evaluate(program, params, feed, 10)
    found, _ = evaluate(replace(program, start=2), params, kept, 10)
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-3)


def test_compiling_ahead_counts_its_bytes(setting):
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in setting.params.items()}
    _, frozen = in_precision(setting, "int8")
    batch = setting.task.batch_shapes(Extent(8, 16, entities=1, places=1, knowledge_dim=8, outputs=4))
    cost = compile_step(setting.program, shapes, setting.rules, setting.config, batch, Placement.single())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    beside = sum(int(np.prod(one.shape)) * one.dtype.itemsize for one in batch.values())
    assert size < cost.arguments < size + beside + 8192  # and the state of 144 trained numbers


# ---- runs -------------------------------------------------------------------------------------------------------


def test_a_plugin_is_trained_and_the_host_stays(world, tmp_path):
    setting = Setting(world, tmp_path / "whole", compute_dtype="int8", steps=60)
    fit = setting.fit()
    before, given = leaves(fit.frozen), fingerprint(setting.params)
    result = fit.run()
    after = leaves(fit.frozen)
    assert any(leaf.dtype == np.int8 for leaf in after.values())
    assert before.keys() == after.keys() and all(before[path].tobytes() == after[path].tobytes() for path in before)
    assert fingerprint(setting.params) == given
    for precision in ("float32", "int8"):
        program, params = in_precision(setting, precision, {**setting.params, **result.train})
        found, _ = evaluate(program, params, setting.feed("test"), 10)
        assert found["accuracy"] >= 0.8, precision


def test_cut_and_resumed_is_the_same_run(world, tmp_path):
    whole = Setting(world, tmp_path / "whole", compute_dtype="int8", steps=8).fit().run()
    fit = Setting(world, tmp_path / "cut", compute_dtype="int8", steps=8).fit()
    fit.begin()
    while fit.step < 4:
        fit.advance(*fit.train_step(fit.state, fit.frozen, fit.next_batch()))
        fit.save_if_due(False)
    fit.end_early()
    fit = Setting(world, tmp_path / "cut", compute_dtype="int8", steps=8).fit()
    resumed = fit.run()
    assert same_bits(whole.train, resumed.train)


def test_trained_leaves_of_the_host_are_not_held_in_8_bits(world, tmp_path):
    rules = [("host/encoder/layers/2/.*", "train"), (".*", "freeze")]
    fit = Setting(world, tmp_path, rules=rules, compute_dtype="int8", steps=2).fit()
    moving = {path for path, leaf in fit.state.train.items() if leaf.dtype == jnp.float32}
    assert moving == {path for path in fit.labels if path.startswith("host/encoder/layers/2/")}
    small = {path for path, leaf in fit.frozen.items() if precisions.is_quantised(leaf)}
    assert small == {path for path in split(fit.labels, fit.labels)[1] if path.startswith("host/") and shared(path)}
    before = leaves(fit.state.train)
    fit.run()
    assert not same_bits(before, fit.state.train)


def test_stages_keep_the_word_in_what_they_write(world, tmp_path):
    stages = {
        "plugin": plugin_stage(world, fit={"compute_dtype": "int8", "steps": 8}),
        "table": evaluate_stage(world, {"plugin": "@plugin"}, compute_dtype="int8"),
    }
    found = run_experiment({"seed": 0, "stages": stages}, tmp_path)["table"]["cities"]
    assert {"host", "plugin", "shuffled"} <= found.keys()
    manifest = read_plugin_manifest(tmp_path / "plugin")
    assert manifest["config"]["fit"]["compute_dtype"] == "int8"
    assert manifest["host"]["fingerprint"] == Setting(world, tmp_path).host.identity.fingerprint  # of what is stored


def test_served_unplugged_is_the_host_bit_for_bit(tmp_path):
    served = Served(tmp_path)
    some = [{key: value for key, value in question(i).items() if key != "label"} for i in range(4)]
    host = kinject.Host.load(served.host(), batch_size=4, precision="int8")
    alone = [one.labels for one in host.predict(some)]
    host.plug(served.plugin(), knowledge=served.knowledge)
    plugged = list(host.predict(some, compare=True, explain=True))
    assert [one.labels for one in plugged] != alone == [one.before for one in plugged]
    with host.unplugged():
        assert [one.labels for one in host.predict(some)] == alone
    exact = kinject.Host.load(served.host(), batch_size=4)
    for one, other in zip(alone, exact.predict(some), strict=True):
        assert one[0].score == pytest.approx(other.labels[0].score, rel=0.1)


# ---- without the library ----------------------------------------------------------------------------------------


def test_a_missing_library_names_its_extra(world, tmp_path, monkeypatch):
    monkeypatch.setattr(precisions, "find_spec", lambda name: None)
    precisions._quantiser.cache_clear()
    message = r": int8 needs qwix; pip install 'kinject\[int8\]'$"
    training = {"stages": {"plugin": plugin_stage(world, fit={"compute_dtype": "int8"})}}
    table = {"stages": {"table": evaluate_stage(world, {}, compute_dtype="int8")}}
    for config, where in (
        (training, r"^stages\.plugin\.fit\.compute_dtype"),
        (table, r"^stages\.table\.compute_dtype"),
    ):
        with pytest.raises(InputError, match=where + message):
            Experiment.open(config, tmp_path / "run", quiet=True)
    with pytest.raises(InputError, match="^precision" + message):
        Host.load(world / "host", precision="int8")
    with pytest.raises(InputError, match="^precision" + message):
        held("int8", f"{LAYER}/feed_forward/up/kernel", jnp.ones((2, 2)))
    assert held("bfloat16_dots", f"{LAYER}/feed_forward/up/kernel", jnp.ones((2, 2))).dtype == jnp.bfloat16
