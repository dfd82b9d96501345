"""What the masked-LM tasks share: pieces asked for at `positions` [B, P], each with a label and a weight."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from kinject.models.kernels.cross_entropy import cross_entropy
from kinject.tasks.base import Task


class MaskedPieces(Task):
    """A task whose batch asks for pieces: `positions`, `labels` int32 [B, P], `weights` float32 [B, P]."""

    head = "masked_lm"

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return cross_entropy(outputs, batch["labels"]), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        losses, weights = self.loss(outputs, batch)
        right = (outputs.argmax(-1) == batch["labels"]) * weights
        return {"lost": (losses * weights).sum(1), "right": right.sum(1), "pieces": weights.sum(1)}


def per_piece(predictions: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """(accuracy, loss) of an evaluation set, both means over its pieces."""
    pieces = max(float(predictions["pieces"].sum()), 1.0)
    return float(predictions["right"].sum()) / pieces, float(predictions["lost"].sum()) / pieces
