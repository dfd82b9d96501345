"""Every registered plugin, task and family as a loss of arrays, in float64: what finite differences are taken of."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import random_host
from tiny_families import family_config

from kinject.errors import InputError
from kinject.inference.program import split_program
from kinject.models.family import family_names
from kinject.plugins.base import make_plugin, plugin_names
from kinject.tasks import base as tasks
from kinject.tasks.base import Extent, make_task

ROWS, LENGTH, DIM, LABELS = 4, 14, 6, 3
ADAPTER = {"layers": (0, 2), "width": 8, "heads": 2, "depth": 1, "feed_forward": 16}
CONFIGS = {
    "kformer": {"layers": (1,), "start": "paper"},
    "pluglm": {"layers": (1,), "heads": 2, "key_size": 8, "top_k": 2},
    "k_adapter": ADAPTER,
    "dkplm": {"variant": "easynlp"},
}
IN_WORD_SPACE = ("e_bert", "pelt")  # whose vectors stand among word embeddings as they are
OPTIONS = {"labels": [f"label{i}" for i in range(LABELS)]}
STEP = (
    1e-6  # along a direction of length 1: errors of (f(x + h) - f(x - h)) / 2h go as h * h, those of rounding as 1 / h
)


@contextmanager
def in_float64():
    """Inside, what the code computes in float32 it computes in float64."""
    patch = pytest.MonkeyPatch()
    wide = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with wide(True), patch.context() as changed:
        changed.setattr(jnp, "float32", jnp.float64)
        yield


def widened(module):
    """A module whose parameters and computations are in float64."""
    for _, one in nnx.iter_graph(module):
        for name in ("dtype", "param_dtype"):
            if isinstance(one, nnx.Module) and getattr(one, name, None) is not None:
                setattr(one, name, jnp.float64)
    graph, state = nnx.split(module)
    wide = {True: lambda leaf: jnp.asarray(leaf, jnp.float64), False: lambda leaf: leaf}
    return nnx.merge(graph, jax.tree.map(lambda leaf: wide[jnp.issubdtype(leaf.dtype, jnp.floating)](leaf), state))


def filled(shapes, config, seed=1):
    """A batch of these shapes: texts of several lengths, an entity in each, labels that every head has."""
    draw, batch = np.random.default_rng(seed), {}
    for name, one in shapes.items():
        if name == "token_ids":
            values = draw.integers(5, 80, one.shape)
        elif name == "segment_ids":
            lengths = LENGTH - draw.integers(0, 4, (*one.shape[:-1], 1))
            values = (np.arange(one.shape[-1]) < lengths).astype(int)
        elif name == "position_ids":
            values = np.broadcast_to(np.arange(one.shape[-1]), one.shape)
        elif name == "entity_slot":
            values = np.where(np.arange(one.shape[-1]) == 2, 0, -1) + np.zeros(one.shape, int)
        elif np.issubdtype(one.dtype, np.floating):
            values = np.ones(one.shape) if "weight" in name else draw.normal(size=one.shape)
        elif one.dtype == bool:
            values = np.ones(one.shape, bool)
        else:
            values = np.zeros(one.shape, int) if name == "type_ids" else draw.integers(0, 2, one.shape)
        dtype = jnp.float64 if np.issubdtype(one.dtype, np.floating) else one.dtype
        batch[name] = jnp.asarray(values, dtype)
    return batch


def made(method=None, task="cloze", family="bert"):
    """(program, parameters, batch) of a method on a host of a family for a task; None: the host alone."""
    config = family_config(family)
    named = make_task(task, **(OPTIONS if needs_labels(task) else {}))
    host = random_host(config, named.head, named.num_labels)
    plugin = dim = None
    if method is not None:
        dim = config.plugin_sizes.get("embedding_size", config.hidden_size) if method in IN_WORD_SPACE else DIM
        sizes = {**config.plugin_sizes, "knowledge_dim": dim}
        plugin = make_plugin({"name": method, **CONFIGS.get(method, {})}, **sizes, seed=1)
        plugin = moved(plugin)
    program, params = split_program(widened(host), None if plugin is None else widened(plugin), named)
    extent = Extent(ROWS, LENGTH, 1, 2, knowledge_dim=dim, hidden_size=config.hidden_size, outputs=LABELS)
    batch = filled(named.batch_shapes(extent), config)
    if method == "kformer":
        batch["fact_ids"] = jnp.asarray(np.random.default_rng(2).integers(5, 80, (ROWS, 3, 4)), jnp.int32)
    return program, params, batch


def needs_labels(task):
    try:
        make_task(task, **OPTIONS)
    except InputError:
        return False
    return True


def moved(plugin):
    """The plugin with nothing at zero, as after some training: a zero would hide what stands behind it."""
    draw = np.random.default_rng(3)
    graph, params, rest = nnx.split(plugin, nnx.Param, ...)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * draw.standard_normal(leaf.shape).astype(leaf.dtype), params)
    return nnx.merge(graph, params, rest)


def slopes(program, params, batch):
    """(the gradient of the loss along a direction, what finite differences say of it)."""

    def loss(params):
        outputs = program.outputs(params, batch, None)
        losses, weights = program.task.loss(outputs, batch)
        return (losses * weights).sum() / weights.sum()

    draw = np.random.default_rng(4)
    moving = {path: leaf for path, leaf in params.items() if leaf.dtype == jnp.float64 and path not in program.tables}
    way = {path: draw.standard_normal(leaf.shape) for path, leaf in moving.items()}
    length = np.sqrt(sum((one**2).sum() for one in way.values()))
    way = {path: jnp.asarray(one / length) for path, one in way.items()}
    loss = jax.jit(loss)
    gradient = jax.grad(lambda some: loss({**params, **some}))(moving)
    slope = sum(jnp.vdot(way[path], one) for path, one in gradient.items())
    high, low = (loss({**params, **{path: moving[path] + sign * STEP * way[path] for path in way}}) for sign in (1, -1))
    return float(slope), float(high - low) / (2 * STEP)


PLUGINS, EVERY_FAMILY = plugin_names(), family_names()
tasks._import_ours()
TASKS = tuple(sorted(tasks._TASKS))
