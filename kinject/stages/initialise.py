"""Starts of a mapping network: drawn, or in closed form from the training examples (plugins/map_tuning.py says why)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kinject.data.pipeline import Batch, Feed
from kinject.errors import InputError, did_you_mean
from kinject.models.heads import HostModel
from kinject.models.seams import Plugin
from kinject.plugins.map_tuning import MapTuning, fit_ridge

DRAWN, FITTED = ("zero", "normal"), ("ridge_label", "ridge_mention")
DEVIATION = 0.02  # of "normal": what BERT's own weights are drawn with


def is_start(name: str) -> bool:
    """Whether it is, or is meant as, a start that `initialise` knows; anything else names a plugin's folder."""
    return name in DRAWN or name.startswith("ridge_")


def initialise(
    plugin: Plugin, start: str, feed: Feed, host: HostModel, penalty: float, where: str, seed: int = 0
) -> None:
    """Sets the affine part of a map-tuning plugin.

    Args:
      plugin: a map-tuning plugin; its affine map is replaced.
      start: "zero": every entity is the zero vector. "normal": weights from N(0, 0.02^2), as BERT's own, bias 0.
        "ridge_label" aims by ridge regression at the word embedding of the piece that the example asks for (it uses the
        labels of the training examples), "ridge_mention" at the mean word embedding of the entity's own name.
      feed: the training examples.
      host: whose word embeddings are aimed at.
      penalty: of the regression.
      where: config key for messages.
      seed: of "normal".

    Raises:
      InputError: an unknown start, another method, or examples without what a regression aims at.
    """
    if start not in (*DRAWN, *FITTED):
        raise InputError(where, f"unknown start {start!r}", did_you_mean(start, ("random", *DRAWN, *FITTED)))
    if not isinstance(plugin, MapTuning):
        raise InputError(where, f"{start} is a start of map_tuning, not of {plugin.name}", "use random")
    mapper = plugin.mapper
    if start in FITTED:
        kernel, bias = _fitted(start, feed, host, penalty, where)
    else:
        scale = DEVIATION if start == "normal" else 0.0
        kernel = scale * jax.random.normal(jax.random.key(seed), mapper.kernel.shape)
        bias = jnp.zeros(mapper.bias.shape)
    mapper.kernel[...], mapper.bias[...] = kernel, bias


def _fitted(target: str, feed: Feed, host: HostModel, penalty: float, where: str) -> tuple[jax.Array, jax.Array]:
    """Kernel float32 [k, D] and bias float32 [D] of the regression."""
    table = np.asarray(host.encoder.embeddings.word.embedding[...], np.float32)
    aim = _label_vectors if target == "ridge_label" else _mention_vectors
    with_slots = [bucket for bucket in feed.examples.buckets if bucket["entity_ids"].shape[1]]
    if not with_slots:
        raise InputError(where, f"{target} needs entities that have a vector, and the data set has none")
    if feed.gather is None:
        raise InputError(where, f"{target} needs a knowledge base with vectors")
    rows, targets = zip(*(aim(bucket, table, where) for bucket in with_slots), strict=True)
    vectors, found = feed.gather(np.concatenate(rows))
    return fit_ridge(vectors[found], np.concatenate(targets)[found], penalty)


def _label_vectors(bucket: Batch, table: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """First entity of each row -> word vector of its first label: int32 [n], float32 [n, D]."""
    if "labels" not in bucket or bucket["labels"].ndim != 2:
        raise InputError(where, "ridge_label needs a task whose labels are words", "use ridge_mention or random")
    return bucket["entity_ids"][:, 0], table[bucket["labels"][:, 0]]


def _mention_vectors(bucket: Batch, table: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """First entity of each row -> mean word vector of the pieces of its mention."""
    if "mention_spans" not in bucket:
        raise InputError(where, "ridge_mention needs a task that tells where mentions stand", "use random")
    position = np.arange(bucket["token_ids"].shape[1])
    start, end = bucket["mention_spans"].T
    inside = (position >= start[:, None]) & (position < end[:, None])
    words = table[_unmasked(bucket)] * inside[:, :, None]
    return bucket["entity_ids"][:, 0], words.sum(1) / np.maximum(inside.sum(1), 1)[:, None]


def _unmasked(bucket: Batch) -> np.ndarray:
    """Token ids int32 [B, L] with the pieces that a task asks for where they stood."""
    ids = bucket["token_ids"].copy()
    positions, labels = bucket.get("positions"), bucket.get("labels")
    if positions is not None and labels is not None and positions.shape == labels.shape:
        row, place = np.nonzero(bucket.get("weights", np.ones(positions.shape)))
        ids[row, positions[row, place]] = labels[row, place]
    return ids
