"""A program over a whole feed: metrics and predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from kinject.data.pipeline import Feed
from kinject.inference.mesh import Placement, fetch
from kinject.inference.program import Program, make_evaluation_step
from kinject.tree import Flat


def evaluate(
    program: Program, params: Flat, feed: Feed, batch_size: int, placement: Placement | None = None, step: Any = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics, and the task's predictions in the examples' given order, over a whole feed.

    Returns:
      ({"loss": …, and the task's metrics}, {name: array [examples, …]}).
    """
    place = placement or Placement.single()
    step = step or make_evaluation_step(program)
    read, rows = step_feed(feed, batch_size, place)
    loss, predictions = _computed(step, params, read, rows, place)
    if feed.examples.parts is not None:
        loss, predictions = feed.examples.parts.join(predictions, feed.examples)
    scored: dict[str, Any] = {**predictions, **feed.examples.references}
    return {"loss": loss, **program.task.score(scored)}, predictions


def step_feed(feed: Feed, batch_size: int, placement: Placement) -> tuple[Feed, int]:
    """(what the evaluation step reads, rows of a batch): the feed itself, or the parts of its examples."""
    rows, parts = placement.round_up(batch_size), feed.examples.parts
    if parts is None:
        return feed, rows
    rows *= parts.each
    return feed.with_examples(parts.make(feed.examples, rows)), rows


def _computed(
    step: Any, params: Flat, feed: Feed, batch_size: int, place: Placement
) -> tuple[float, dict[str, np.ndarray]]:
    """(mean loss, predictions) of a feed's examples, row by row."""
    parts: list[dict[str, np.ndarray]] = []
    loss = weight = 0.0
    for rows in feed.evaluation(batch_size, place.share(batch_size)):
        placed = place.batch(rows, batch_size)
        outputs, batch = fetch((step(params, placed), {key: placed[key] for key in ("index", "weights")}))
        losses, weights = outputs.pop("loss"), outputs.pop("loss_weights")
        loss, weight = loss + float((losses * weights).sum()), weight + float(weights.sum())
        real = batch["weights"].reshape(len(batch["index"]), -1).max(1) > 0
        parts.append({name: values[real] for name, values in {**outputs, "index": batch["index"]}.items()})
    index = np.concatenate([part["index"] for part in parts])
    order = np.argsort(index, kind="stable")
    predictions = {name: _joined([part[name] for part in parts])[order] for name in parts[0] if name != "index"}
    return loss / max(weight, 1e-6), predictions


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenates arrays [n, …]; where the second axis differs between buckets, rows are filled up with -1."""
    widest = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    fill = [[(0, 0), (0, widest - part.shape[1]), *[(0, 0)] * (part.ndim - 2)] for part in parts if part.ndim > 1]
    return np.concatenate(
        [np.pad(p, w, constant_values=-1) for p, w in zip(parts, fill, strict=True)] if fill else parts
    )
