"""Numbers that are not finite stop a training before they reach a checkpoint, a file or a plugin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinject.data.pipeline import Feed
from kinject.errors import InputError

LARGEST = 1e18  # of a parameter: the square of a larger one is no number in float32
SHOWN = 8  # examples named
HINT = "lower the learning rate, or set a clip; the last checkpoint is whole"


def check_losses(
    name: str, step: int, losses: Sequence[Mapping[str, Any]], feed: Feed, batch_size: int, seed: int
) -> None:
    """Raises InputError, with the step and its examples, for the first loss that is not finite.

    Args:
      name: of the training.
      step: the last one of `losses`.
      losses: what the steps before it and it logged, `loss` among it: scalars, or one a domain.
      feed: the training data.
      batch_size: examples a step.
      seed: of their order.
    """
    for number, one in enumerate(losses, step - len(losses) + 1):
        if not np.isfinite(np.asarray(one["loss"])).all():
            shown = _examples(feed, number, batch_size, seed)
            problem = f"the loss is not finite ({float(np.asarray(one['loss']).ravel()[0])}), on {shown}"
            raise InputError(f"{name}, step {number}", problem, HINT)


def check_arrays(name: str, step: int, leaves: Mapping[str, Any], largest: float = math.inf) -> None:
    """Raises InputError for an array that is not finite, or not below `largest`."""
    for path, leaf in leaves.items():
        array = np.asarray(leaf)
        if array.size and not (array.dtype.kind in "iub" or float(np.abs(array.astype(np.float32)).max()) < largest):
            what = "finite" if math.isinf(largest) else f"finite and below {largest:g}"
            raise InputError(f"{name}, step {step}", f"{path} is not {what}", HINT)


def check_metrics(name: str, step: int, metrics: Mapping[str, float]) -> None:
    """Raises InputError for a loss of an evaluation that is not finite."""
    if not math.isfinite(metrics.get("loss", 0.0)):
        problem = f"the loss on the development data is not finite ({metrics['loss']})"
        raise InputError(f"{name}, step {step}", problem, HINT)


def _examples(feed: Feed, step: int, batch_size: int, seed: int) -> str:
    """The examples of a step, by their numbers in the training data, counted from 0."""
    index = np.asarray(feed.order(batch_size, seed)[step - 1]["index"]).ravel()
    if feed.examples.record_index is not None:
        index = feed.examples.record_index[index]
    rest = f" and {len(index) - SHOWN} more" if len(index) > SHOWN else ""
    return f"the training data's examples {', '.join(map(str, index[:SHOWN].tolist()))}{rest}"
