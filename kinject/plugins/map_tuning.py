"""Map-tuning: one map from entity vectors to the host's input space.

Zhang et al., "Plug-and-Play Knowledge Injection for Pre-trained Language Models", ACL 2023, section 3. An entity vector
e [k] becomes W e + b [d] and occupies one token slot of its own, before the mention: `[ENTITY] / mention`. It stands
in for the word embedding only; position, type and LayerNorm follow as for any token. The map may start in closed form:
Poerner et al., "E-BERT", section 3.1, align vectors with word embeddings by least squares (`initialise`).

Seam: input embeddings. Trained: the map, k * d + d parameters for the affine one. Needs of the knowledge base: one
vector an entity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.data.pipeline import Batch, Feed
from kinject.errors import InputError, did_you_mean
from kinject.models.heads import HostModel
from kinject.models.kernels.elementwise import ACTIVATIONS, Dropout
from kinject.models.seams import Plugin, PluginSizes
from kinject.plugins.base import register


class Affine(nnx.Module):
    """W e + b, initialised as torch's Linear is (the authors' default): uniform in +-1/sqrt(k)."""

    def __init__(self, knowledge_dim: int, hidden_size: int, rngs: nnx.Rngs):
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        bound = knowledge_dim**-0.5
        self.kernel = nnx.Param(uniform(rngs.params(), (knowledge_dim, hidden_size), jnp.float32))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (hidden_size,), jnp.float32, -bound, bound))

    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[..., k] -> [..., D] in float32."""
        return vectors.astype(jnp.float32) @ self.kernel[...] + self.bias[...]


@register("map_tuning")
class MapTuning(Plugin):
    """Map-tuning: the map from entity vectors to the host's input space, and the slots that it fills."""

    maps_entities = True

    @dataclass(frozen=True)
    class Config:
        """Which map.

        Attributes:
          mapper: "affine" is the paper's. "residual_mlp" adds a perceptron to it whose last layer starts at zero, so
            that it starts as the affine map. "identity" is affine and starts as the identity matrix (cut or
            padded with zeros when k != D) with bias 0: for vectors that live in the host's input space already, as
            PELT's do.
          width: hidden units of each hidden layer of the residual perceptron.
          depth: its hidden layers.
          dropout: on the mapped vector, in training.
        """

        mapper: Literal["affine", "residual_mlp", "identity"] = "affine"
        width: int = 256
        depth: int = 1
        dropout: float = 0.0

        def __post_init__(self) -> None:
            if self.width < 1 or self.depth < 1:
                raise ValueError(f"width is {self.width}, depth {self.depth}: both are 1 or more")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout is {self.dropout}: a rate is in [0, 1)")

    def __init__(self, config: Any = None, *, rngs: nnx.Rngs | None = None, **sizes: Unpack[PluginSizes]):
        super().__init__(config, **sizes)
        rngs, size, knowledge_dim = rngs or nnx.Rngs(0), self.embedding_size, self.knowledge_dim
        self.mapper = Affine(knowledge_dim, size, rngs)
        if self.config.mapper == "identity":
            self.mapper.kernel[...] = jnp.eye(knowledge_dim, size, dtype=jnp.float32)
            self.mapper.bias[...] = jnp.zeros((size,), jnp.float32)
        if self.config.mapper == "residual_mlp":
            width = self.config.width
            self.up = nnx.Linear(knowledge_dim, width, rngs=rngs)
            if self.config.depth > 1:  # a folder of one hidden layer has no such parameters
                self.between = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(self.config.depth - 1)])
            self.down = nnx.Linear(width, size, kernel_init=nnx.initializers.zeros, use_bias=False, rngs=rngs)
        self.dropout = Dropout(self.config.dropout)

    def map(self, vectors: jax.Array) -> jax.Array:
        """Entity vectors [..., k] -> the host's input space, float32 [..., D]."""
        mapped = self.mapper(vectors)
        if self.config.mapper == "residual_mlp":
            hidden = ACTIVATIONS["gelu"](self.up(vectors.astype(jnp.float32)))
            for layer in self.between if self.config.depth > 1 else ():
                hidden = ACTIVATIONS["gelu"](layer(hidden))
            mapped = mapped + self.down(hidden)
        return mapped

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Puts the mapped entities in their slots.

        Args:
          embeddings: word embeddings [B, L, E].
          batch: reads `entity_slot` int32 [B, L] and `entity_vectors` float32 [B, M, k]. A batch without entities
            (no `entity_vectors`) passes unchanged.
          key: dropout key or None.
        """
        if "entity_vectors" not in batch:
            return embeddings
        mapped = self.dropout(self.map(batch["entity_vectors"]), key)
        slot = batch["entity_slot"]
        here = jnp.take_along_axis(mapped, jnp.maximum(slot, 0)[:, :, None], axis=1)
        return jnp.where((slot >= 0)[:, :, None], here.astype(embeddings.dtype), embeddings)


def fit_ridge(vectors: np.ndarray, targets: np.ndarray, penalty: float = 0.1) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Solves min ||X W + b - Y||^2 + penalty * n * ||W||^2 over centred data, in float64.

    The penalty matters where there are fewer pairs than would determine the map.

    Args:
      vectors: X [n, k].
      targets: Y [n, D].
      penalty: multiplies the number of pairs n.

    Returns:
      (kernel float32 [k, D], bias float32 [D]).

    Raises:
      InputError: fewer than two pairs.
    """
    if len(vectors) < 2:
        raise InputError("initialise", f"ridge regression needs at least 2 pairs, there are {len(vectors)}")
    x, y = np.asarray(vectors, np.float64), np.asarray(targets, np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = x - x_mean
    gram = centred.T @ centred + penalty * len(x) * np.eye(x.shape[1])
    kernel = np.linalg.solve(gram, centred.T @ (y - y_mean))
    return jnp.asarray(kernel, jnp.float32), jnp.asarray(y_mean - x_mean @ kernel, jnp.float32)


DRAWN, FITTED = ("zero", "normal"), ("ridge_label", "ridge_label_sum", "ridge_mention")
DEVIATION = 0.02  # of "normal": what BERT's own weights are drawn with


def suited_start(plugin: Plugin, preferred: str, feed: Feed) -> str:
    """What "auto" stands for: the closed form that a task prefers, or that of the mentions, or "zero".

    Anything but an affine map of `map_tuning` starts as its method draws it ("random"), the identity map as itself.
    """
    if plugin.name != MapTuning.name or not isinstance(plugin, MapTuning) or plugin.config.mapper == "identity":
        return "random"
    buckets = [bucket for bucket in feed.examples.buckets if bucket["entity_ids"].shape[1]]
    if feed.gather is None or not buckets or sum((bucket["entity_ids"][:, 0] >= 0).sum() for bucket in buckets) < 2:
        return "zero"
    needs = {"ridge_label": "labels", "ridge_mention": "mention_spans"}
    allowed = (start for start in (preferred, "ridge_mention") if all(needs[start] in bucket for bucket in buckets))
    return next(allowed, "zero")


def is_start(name: str) -> bool:
    """Whether it is, or is meant as, a start that `initialise` knows; anything else names a plugin's folder."""
    return name in DRAWN or name.startswith("ridge_")


def check_start(start: str, method: type[Plugin], where: str) -> None:
    """Raises InputError for a start that there is not, or that is none of that method's."""
    if start not in (*DRAWN, *FITTED):
        raise InputError(where, f"unknown start {start!r}", did_you_mean(start, ("auto", "random", *DRAWN, *FITTED)))
    if not issubclass(method, MapTuning):
        raise InputError(where, f"{start} is a start of map_tuning, not of {method.name}", "use random")


def initialise(
    plugin: Plugin, start: str, feed: Feed, host: HostModel, penalty: float, where: str, seed: int = 0
) -> None:
    """Sets the affine part of a map-tuning plugin.

    Args:
      plugin: a map-tuning plugin; its affine map is replaced.
      start: "zero": every entity is the zero vector. "normal": weights from N(0, 0.02^2), as BERT's own, bias 0.
        "ridge_label" aims by ridge regression at the word embedding of the piece that the example asks for (it uses
        the labels of the training examples), "ridge_label_sum" at the mean of all these words plus, for each example
        whose first entity it is, how its word differs from that mean; "ridge_mention" at the mean word embedding of
        the entity's own name.
      feed: the training examples.
      host: whose word embeddings are aimed at.
      penalty: of the regression.
      where: config key for messages.
      seed: of "normal".

    Raises:
      InputError: an unknown start, another method, or examples without what a regression aims at.
    """
    check_start(start, type(plugin), where)
    mapper = cast(MapTuning, plugin).mapper
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
    aim = _mention_vectors if target == "ridge_mention" else _label_vectors
    with_slots = [bucket for bucket in feed.examples.buckets if bucket["entity_ids"].shape[1]]
    if not with_slots:
        raise InputError(where, f"{target} needs entities that have a vector, and the data set has none")
    if feed.gather is None:
        raise InputError(where, f"{target} needs a knowledge base with vectors")
    rows, targets = zip(*(aim(bucket, table, where) for bucket in with_slots), strict=True)
    entities, words = np.concatenate(rows), np.concatenate(targets)
    if target == "ridge_label_sum":
        entities, words = _summed(entities, words)
    vectors, found = feed.gather(entities)
    return fit_ridge(vectors[found], words[found], penalty)


def _summed(entities: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each entity once, int32 [m], and the mean of all words plus how its own differ from it, float32 [m, D]."""
    entities, words = entities[entities >= 0], words[entities >= 0]
    once, at = np.unique(entities, return_inverse=True)
    mean = words.mean(0)
    total = np.zeros((len(once), words.shape[1]), np.float32)
    np.add.at(total, at, words - mean)
    return once, mean + total


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
