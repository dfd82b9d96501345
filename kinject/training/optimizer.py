"""The optimizer, masked by the label tree: frozen parameters have no moments, no decay and no say in clipping."""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import optax

from kinject.errors import InputError
from kinject.training.config import OptimizerConfig
from kinject.training.partition import FREEZE, TRAIN


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
    rules = {
        "adam": lambda: optax.adam(schedule, **moments),
        "adamw": lambda: optax.adamw(schedule, weight_decay=config.weight_decay, mask=decay_mask, **moments),
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
