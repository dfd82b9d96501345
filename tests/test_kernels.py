"""The switch that leaves out whatever outwits XLA: a host computes the same without, and nothing escapes the switch."""

import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_own_gradients import equations
from tiny import random_host, tiny_batch, tiny_config

from kinject.models import heads, kernels
from kinject.models.kernels import is_plain, plain
from kinject.models.kernels.elementwise import cross_entropy, kept
from kinject.models.precision import activations, held, multiplied
from kinject.tree import flatten, unflatten

ROOT = Path(__file__).resolve().parents[1]
OURS = ("custom_vjp_call", "optimization_barrier", "platform_index")  # primitives that only kernels use
# Largest difference of scores and loss, and of gradients as a share of the largest of their leaf. In bfloat16 both ways
# round every activation, to 2^-8 of it, at other places of the gradient; with products in bfloat16 the plain way has an
# exact GELU (2e-4) and gradients that are rounded after a product and not before.
BOUNDS = {"float32": (1e-5, 1e-5), "bfloat16": (5e-2, 5e-2), "bfloat16_dots": (2e-2, 3e-2)}


def step(precision, rows=3, dropped=False):
    """A forward pass with loss and gradients as a function of flat parameters, and those parameters."""
    host = random_host(tiny_config(), "masked_lm", dtype=activations(precision))
    batch = tiny_batch(host.encoder.config, [12, 9, 5][:rows], 12)
    batch["positions"] = jnp.asarray([[1], [4], [2]][:rows], jnp.int32)
    labels = jnp.asarray([[7], [11], [3]][:rows], jnp.int32)
    graph, state = nnx.split(host)
    flat = flatten(nnx.to_pure_dict(state), "host")
    params = {path: held(precision, path, leaf) for path, leaf in flat.items()}
    key = jax.random.key(5) if dropped else None

    def loss(params):
        ready = unflatten({path: multiplied(precision, path, leaf) for path, leaf in params.items()})
        scores = heads.logits(nnx.merge(graph, ready["host"]), batch, key=key)
        return jnp.mean(cross_entropy(scores, labels)), scores

    return jax.value_and_grad(loss, has_aux=True), params


def counted(function, *inputs):
    found = Counter(equation.primitive.name for equation in equations(jax.make_jaxpr(function)(*inputs).jaxpr))
    return {name: count for name, count in found.items() if name.startswith(OURS)}


@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "dropped"])
@pytest.mark.parametrize("precision", BOUNDS)
def test_a_host_computes_the_same_without_kernels(precision, dropped):
    function, params = step(precision, dropped=dropped)
    compiled = jax.jit(function)
    (loss, scores), gradients = compiled(params)
    with plain():
        (plain_loss, plain_scores), plain_gradients = compiled(params)
    near, share = BOUNDS[precision]
    np.testing.assert_allclose(loss, plain_loss, rtol=near, atol=near)
    np.testing.assert_allclose(scores, plain_scores, rtol=near, atol=near)
    for path in gradients:
        ours, theirs = (np.asarray(each[path], np.float32) for each in (gradients, plain_gradients))
        if path.endswith("qkv/bias"):  # that of keys is 0 but for rounding: a softmax does not see it
            ours, theirs = ours[[0, 2]], theirs[[0, 2]]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.abs(theirs).max(), err_msg=path)
    again = compiled(params)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(((loss, scores), gradients))))


@pytest.mark.parametrize("precision", BOUNDS)
def test_the_switch_reaches_every_kernel(precision):
    function, params = step(precision, dropped=True)
    forwards = lambda params: function.__wrapped__(params)  # noqa: E731 (before differentiation)
    assert counted(forwards, params)["custom_vjp_call"] and counted(function, params)["optimization_barrier"]
    with plain():
        assert not counted(forwards, params) and not counted(function, params)


def test_no_row_is_doubled_without_kernels():
    function, params = step("bfloat16_dots", rows=1)

    def doubled():
        products = equations(jax.make_jaxpr(function.__wrapped__)(params).jaxpr)
        return any(one.primitive.name == "dot_general" and one.outvars[0].aval.shape[0] == 2 for one in products)

    assert doubled()
    with plain():
        assert not doubled()


def test_the_mask_of_a_seed_is_no_kernel_to_leave_out():
    drawn = kept(jax.random.key(3), 0.3, (5, 7))
    with plain():
        np.testing.assert_array_equal(drawn, kept(jax.random.key(3), 0.3, (5, 7)))


def test_nothing_outside_of_the_folder_outwits_xla():
    marks = re.compile(r"custom_vjp|custom_jvp|custom_gradient|optimization_barrier|platform_dependent|pallas")
    files = {path for path in (ROOT / "kinject").rglob("*.py") if marks.search(path.read_text(encoding="utf-8"))}
    assert {path.parent.relative_to(ROOT).as_posix() for path in files} == {"kinject/models/kernels"}


def test_the_list_of_kernels_is_complete_and_names_what_exists():
    listed = re.findall(r"(?ms)^- (.+?)(?=^-|\n\n)", kernels.__doc__)
    names = {name for entry in listed for name in re.findall(r"`(\w+\.\w+)`", entry.split(":")[0])}
    for name in names:
        module, function = name.split(".")
        assert callable(getattr(importlib.import_module(f"kinject.models.kernels.{module}"), function))
    for entry in listed:
        tests = re.findall(r"tests/\w+\.py", entry)
        assert tests and all((ROOT / test).is_file() for test in tests), entry
    files = {path.stem for path in Path(kernels.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_an_environment_variable_turns_kernels_off_for_a_process(value, on):
    code = "from kinject.models.kernels import is_plain; print(is_plain())"
    env = os.environ | {"KINJECT_PLAIN": value}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(on) and not is_plain()
