"""The training step and the optimizer in it: pure functions over flat parameter dicts.

NNX objects are split once; inside `jax.jit` they are merged from pure dicts. Frozen parameters are arguments (closed
over, they would become constants of the program) and only the trainable dict is differentiated, so XLA computes no
weight gradient for the host. The optimizer is masked by the label tree (partition.py): frozen parameters have no
moments, no decay and no say in clipping.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import SingleDeviceSharding

from kinject.errors import InputError
from kinject.inference.program import Program, accumulate_microbatches
from kinject.inference.xla import options
from kinject.training.config import OptimizerConfig
from kinject.training.partition import FREEZE, TRAIN
from kinject.tree import Flat


class TrainState(NamedTuple):
    """What a step changes, and all that a checkpoint must hold of it. The dropout key is a function of the step."""

    train: Flat
    optimizer: Any
    step: jax.Array


Logged = dict[str, jax.Array]


def make_train_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    labels: Mapping[str, str],
    *,
    seed: int,
    dropout: bool,
    shardings: TrainState | None = None,
) -> jax.stages.Wrapped:
    """The jitted step (state, frozen, batch [B, …]) -> (state, {"loss", "gradient_norm"} scalars).

    The state's buffers are donated. `shardings` are the state's on a mesh (`Placement.shardings`): pinned, or XLA might
    choose others for the new state.
    """
    step = partial(step_function(program, optimizer, labels, dropout=dropout), seed)
    out = None if shardings is None else (shardings, shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=options(program.row_parts))


def step_function(
    program: Program, optimizer: optax.GradientTransformation, labels: Mapping[str, str], *, dropout: bool
) -> Callable[[int | jax.Array, TrainState, Flat, Mapping[str, jax.Array]], tuple[TrainState, Logged]]:
    """The step of one program as a pure function (seed, state, frozen, batch) -> (state, {"loss", "gradient_norm"}).

    The logged norm is that of the trainable gradients: asking for the norm of all would compute all.
    """

    def step(
        seed: int | jax.Array, state: TrainState, frozen: Flat, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, Logged]:
        key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None
        batch = program.with_vectors(frozen, batch)

        def sums(train: Flat, rows: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            losses, weights = program.losses({**frozen, **train}, rows, key)
            return jnp.sum(losses * weights), jnp.sum(weights)

        slope = partial(jax.value_and_grad(sums, has_aux=True), state.train)
        (loss, weight), gradients = accumulate_microbatches(
            slope, batch, key, program.micro_batch, program.row_parts, program.batch_rows
        )
        weight = jnp.maximum(weight, 1e-6)  # all of them may be 0
        loss, norm, share = loss / weight, global_norm(gradients) / weight, 1 / weight
        gradients = jax.tree.map(lambda leaf: leaf * share, gradients)  # XLA would write quotients down, and read them
        updates, optimizer_state = optimizer.update(
            mask_frozen(gradients, labels), state.optimizer, mask_frozen(state.train, labels)
        )
        train = {path: leaf + updates[path].astype(leaf.dtype) for path, leaf in state.train.items()}
        logged = {"loss": loss, "gradient_norm": norm}
        return TrainState(train, optimizer_state, state.step + 1), logged

    return step


def global_norm(leaves: Flat) -> jax.Array:
    """The norm of all numbers of some leaves; of products, as squares that are summed would be written down first."""

    def square(leaf: jax.Array) -> jax.Array:
        axes = tuple(range(leaf.ndim))
        return jax.lax.dot_general(leaf, leaf, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)

    return jnp.sqrt(jnp.stack([square(leaf) for leaf in leaves.values()]).sum())


def make_refresh(program: Program) -> Callable[[Flat], Flat]:
    """The jitted (params) -> the plugin's tables, by path, as `Plugin.refresh` makes them of all parameters."""

    def refresh(params: Flat) -> Flat:
        host, plugin = program.merge(params)
        if plugin is None:
            return {}
        return {f"plugin/{path}": table for path, table in plugin.refresh(host.encoder).items()}

    return jax.jit(refresh)


def initial_state(train: Flat, optimizer: optax.GradientTransformation, labels: Mapping[str, str]) -> TrainState:
    """The state before the first step."""

    def begin(train: Flat) -> Any:
        return optimizer.init(mask_frozen(train, labels))

    # one program and not one a shape; on a mesh it would forget where the leaves are, which moments must lie beside
    alone = all(isinstance(getattr(leaf, "sharding", None), SingleDeviceSharding) for leaf in train.values())
    return TrainState(train, (jax.jit(begin) if alone else begin)(train), jnp.zeros((), jnp.int32))


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by optimizer step: linear warmup to `learning_rate`, then constant or a decay to 0 at the end."""
    updates = max(1, steps // config.accumulate)
    warmup = round(config.warmup * updates if config.warmup < 1 else config.warmup)
    rest = max(1, updates - warmup)
    decay = {
        "constant": lambda: optax.constant_schedule(config.learning_rate),
        "linear": lambda: optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(config.learning_rate, rest),
        "polynomial": lambda: optax.polynomial_schedule(config.learning_rate, 0.0, config.power, rest),
    }[config.schedule]()
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), decay], [warmup])


def make_optimizer(config: OptimizerConfig, labels: Mapping[str, str], steps: int) -> optax.GradientTransformation:
    """An optax transformation over the whole label tree, in which only the leaves labelled `train` have any state.

    `optax.masked` would pass frozen gradients through unchanged and so move the base; `optax.partition` with
    `set_to_zero` does not. The train step hands it `optax.MaskedNode()` in the place of frozen leaves (see
    `mask_frozen`), so no zeros of the host's size are ever made. Clipping stands inside the train branch: frozen
    gradients would shrink the step.

    Raises:
      InputError: `no_decay` is no regular expression.
    """
    schedule = make_schedule(config, steps)
    try:
        no_decay = re.compile(config.no_decay)
    except re.error as error:
        raise InputError("optimizer.no_decay", f"not a regular expression: {error}") from None

    def decay_mask(params: Mapping[str, object]) -> dict[str, bool]:
        return {path: no_decay.fullmatch(path) is None for path in params}

    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    adamw = _adamw_towards_start if config.decay_towards == "start" else optax.adamw
    rules = {
        "adam": lambda: optax.adam(schedule, **moments),
        "adamw": lambda: adamw(schedule, weight_decay=config.weight_decay, mask=decay_mask, **moments),
        "lamb": lambda: optax.lamb(schedule, weight_decay=config.weight_decay, mask=decay_mask, **moments),
        "sgd": lambda: optax.sgd(schedule),
    }
    train = rules[config.name]()
    if config.clip is not None:
        train = optax.chain(optax.clip_by_global_norm(config.clip), train)
    if config.accumulate > 1:
        train = optax.MultiSteps(train, config.accumulate).gradient_transformation()
    return optax.partition({TRAIN: train, FREEZE: optax.set_to_zero()}, dict(labels))


def mask_frozen(train: Mapping[str, jax.Array], labels: Mapping[str, str]) -> dict[str, object]:
    """The tree that the optimizer sees: the trainable leaves, and an empty node for each frozen one."""
    return {path: train[path] if label == TRAIN else optax.MaskedNode() for path, label in labels.items()}


class StartState(NamedTuple):
    """The parameters that training started from, as the optimizer keeps them (and a checkpoint with it)."""

    start: Any


def decay_towards_start(rate: float) -> optax.GradientTransformation:
    """Adds to an update `rate` times the distance from the start; `optax.add_decayed_weights` does it from zero."""

    def init(params: Any) -> StartState:
        return StartState(jax.tree.map(jnp.array, params))  # copies: the parameters themselves are donated to the step

    def update(updates: Any, state: StartState, params: Any = None) -> tuple[Any, StartState]:
        pulled = jax.tree.map(lambda one, now, then: one + rate * (now - then), updates, params, state.start)
        return pulled, state

    return optax.GradientTransformation(init, update)


def _adamw_towards_start(
    schedule: optax.Schedule, *, weight_decay: float, mask: Any, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """AdamW whose decay is towards the start."""
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.masked(decay_towards_start(weight_decay), mask),
        optax.scale_by_learning_rate(schedule),
    )
