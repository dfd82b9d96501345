"""Hosts with a tuning, as the tests of what they compute and of how they are stored both need them."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny import random_host, tiny_batch, tiny_config

from kinject.models.lora import Lora
from kinject.models.tuning_base import attach
from kinject.tree import flatten

SITES = ("query", "key", "value", "attention_output", "up", "down")
ALL = Lora(rank=3, alpha=2.0, sites=SITES)
SOME = Lora(rank=2, sites=("query", "value", "down"))  # a gap in the fused kernel


def tuned_host(tuning, *, config=None, head="classification", fill=True, **options):
    """A random host with a tuning, whose every added parameter is random too."""
    config = config or tiny_config()
    host = random_host(config, head, None if head == "masked_lm" else 3, **options)
    attach(host, tuning, nnx.Rngs(5))
    if fill:
        draw = np.random.default_rng(7)
        for path, leaf in nnx.to_flat_state(nnx.state(host)):
            if "lora" in path or "adapter" in path:
                leaf[...] = jnp.asarray(0.3 * draw.standard_normal(leaf.shape), leaf.dtype)
    return host


def params_of(host):
    return flatten(nnx.to_pure_dict(nnx.state(host)), "host")


def batch_of(config, positions=True):
    batch = tiny_batch(config, [9, 5, 12], 12)
    return batch | ({"positions": jnp.array([[0, 3], [4, 1], [11, 2]], jnp.int32)} if positions else {})
