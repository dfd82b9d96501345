"""Examples of several texts: a batch whose arrays are [B, N, L] or [B, N, K, L] as the encoder reads it, [rows, L].

What a method's `prepare` adds to such examples has these axes too: knowledge of a choice stands with the choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax

PER_EXAMPLE = ("labels", "weights", "index")  # all else in the batch of such a task has the axes of its token ids


def flat_rows(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch with all axes of the token ids but the last made one; what an example has once is left out."""
    several = batch["token_ids"].ndim - 1
    count = math.prod(batch["token_ids"].shape[:-1])
    rows = {name: values for name, values in batch.items() if name not in PER_EXAMPLE}
    return {name: values.reshape(count, *values.shape[several:]) for name, values in rows.items()}
