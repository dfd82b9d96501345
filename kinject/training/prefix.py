"""The frozen prefix: layers below everything that trains are computed once an example, not once a step.

Where the lowest trainable parameter (and the lowest seam of a trainable plugin) sits above layer s and nothing is
dropped below, hidden state s of an example is the same in every epoch. It is computed before training, kept with the
examples (prefix_room.py), and the step starts from it. Same numbers, a fraction of the work. Where a plugin speaks
first after layer s's feed-forward, that layer is frozen up to there: what its two halves yield is kept in the place of
what it reads. A plugin that reads lower hidden states at its `outputs` has those of its own kept too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from kinject.data.pipeline import Batch, Feed
from kinject.inference.compiled import options
from kinject.inference.mesh import Placement, fetch
from kinject.inference.program import Program, map_microbatches
from kinject.models.forward import encode_prefix
from kinject.models.seams import Plugin
from kinject.training.partition import TRAIN
from kinject.training.prefix_room import make_room
from kinject.tree import Flat

FLOAT32 = np.dtype(np.float32)


def first_trainable_state(labels: Mapping[str, str], plugin: Plugin | None, layers: int) -> int:
    """The highest hidden state (0 = embeddings, `layers` = last) that no training can change."""
    start = layers
    for path, label in labels.items():
        if label != TRAIN:
            continue
        if path.startswith("host/encoder/layers/"):
            start = min(start, int(re.match(r"host/encoder/layers/(\d+)/", path).group(1)))
        elif path.startswith("host/encoder/"):
            return 0
        elif path.startswith("plugin/"):
            start = min(start, max(0, plugin.first_seam() - 1)) if plugin is not None else 0
    return start


def stops_at_seam(labels: Mapping[str, str], plugin: Plugin | None, start: int, layers: int) -> bool:
    """Whether even of layer `start` all but what comes after a plugin's seam is frozen, and no one reads its input."""
    if plugin is None or start >= layers or plugin.first_seam() != start + 1:
        return False
    if start in plugin.reads_states(layers):
        return False
    trained = (path for path, label in labels.items() if label == TRAIN)
    return not any(path.startswith(f"host/encoder/layers/{start}/") for path in trained)


def prefix_bytes(feed: Feed, hidden_size: int, dtype: np.dtype) -> int:
    """What one hidden state of all examples takes."""
    return sum(bucket["token_ids"].size for bucket in feed.examples.buckets) * hidden_size * dtype.itemsize


def attach_prefix(
    program: Program,
    params: Flat,
    feed: Feed,
    start: int,
    batch_size: int,
    place: Placement,
    *,
    seam: bool = False,
    dtype: np.dtype = FLOAT32,
    folder: Path | None = None,
) -> Feed:
    """The feed with what `encode_prefix` computes for `start` and `seam` in every batch.

    `dtype` [B, L, D] each, or [B, …, L, D] of examples of several texts; kept in memory, or in files in `folder`.

    Raises:
      InputError: the folder's disk has no room.
    """

    def compute(params: Flat, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        host, plugin = program.merge(params)

        def of(rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            found = encode_prefix(host, program.task.rows(rows), plugin, stop=start, seam=seam)
            shape = (*rows["token_ids"].shape, -1)
            return {name: states.reshape(shape).astype(dtype) for name, states in found.items()}

        return map_microbatches(of, program.with_vectors(params, batch), program.micro_batch, program.row_parts)

    compute = jax.jit(compute, compiler_options=options(program.row_parts))
    batch_size = place.round_up(batch_size)

    def rows_of(number: int, bucket: Batch) -> dict[str, np.ndarray]:
        size, share = len(bucket["index"]), place.share(batch_size)
        kept: dict[str, np.ndarray] = {}
        for low in range(0, size, batch_size):
            rows = np.minimum(np.arange(low, low + batch_size), size - 1)
            batch = place.batch(feed.batch(number, rows if share is None else rows[share]), batch_size)
            for name, states in fetch(compute(params, batch)).items():
                if name not in kept:
                    kept[name] = make_room((size, *states.shape[1:]), dtype, folder)
                kept[name][low : low + batch_size] = states[: size - low]
        return kept

    buckets = tuple({**bucket, **rows_of(number, bucket)} for number, bucket in enumerate(feed.examples.buckets))
    return feed.with_examples(replace(feed.examples, buckets=buckets))
