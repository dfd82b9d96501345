"""Scoring functions of graph embedding methods, all of one shape: a query made of two parts of a triple meets entities.

A method says how wide a relation is, what is asked for the tail and for the head, and how well entities answer. Higher
scores are more plausible; distances are turned round and moved by the margin gamma, so that zero is the boundary of the
logistic loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Method(NamedTuple):
    """What training and ranking need to know of a method; d is the size of an entity vector.

    Attributes:
      relation_width: d -> numbers in a relation's vector.
      init: (key, shape, range) -> initial relation vectors.
      ask_tail: (head [B, d], relation [B, w]) -> query [B, d].
      ask_head: (tail [B, d], relation [B, w]) -> query [B, d].
      score: (queries [B, d], entities [K, d], gamma) -> [B, K].
    """

    relation_width: Callable[[int], int]
    init: Callable[[jax.Array, tuple[int, int], float], jax.Array]
    ask_tail: Callable[[jax.Array, jax.Array], jax.Array]
    ask_head: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array, jax.Array, float], jax.Array]


def uniform(key: jax.Array, shape: tuple[int, int], limit: float) -> jax.Array:
    """Draws float32 between -limit and limit, as RotatE's code does for every method (Sun et al. 2019)."""
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def _l1(queries: jax.Array, entities: jax.Array, gamma: float) -> jax.Array:
    return gamma - jnp.abs(queries[:, None] - entities[None]).sum(-1)


def _rotate(vectors: jax.Array, phases: jax.Array) -> jax.Array:
    """Turns d/2 complex numbers (real parts first) by as many angles in radians."""
    real, imaginary = jnp.split(vectors, 2, axis=-1)
    cosine, sine = jnp.cos(phases), jnp.sin(phases)
    return jnp.concatenate([real * cosine - imaginary * sine, real * sine + imaginary * cosine], axis=-1)


def _moduli(queries: jax.Array, entities: jax.Array, gamma: float) -> jax.Array:
    real, imaginary = jnp.split(queries[:, None] - entities[None], 2, axis=-1)
    # the tiny term keeps the gradient of the root finite where a query meets its answer exactly
    return gamma - jnp.sqrt(real * real + imaginary * imaginary + 1e-12).sum(-1)


METHODS: dict[str, Method] = {
    # Bordes et al. 2013, with the L1 norm
    "transe": Method(
        relation_width=lambda d: d,
        init=uniform,
        ask_tail=lambda head, relation: head + relation,
        ask_head=lambda tail, relation: tail - relation,
        score=_l1,
    ),
    # Sun et al. 2019: a relation turns complex numbers
    "rotate": Method(
        relation_width=lambda d: d // 2,
        init=lambda key, shape, _: uniform(key, shape, jnp.pi),
        ask_tail=_rotate,
        ask_head=lambda tail, relation: _rotate(tail, -relation),
        score=_moduli,
    ),
    # Yang et al. 2015: symmetric in head and tail; it has no margin
    "distmult": Method(
        relation_width=lambda d: d,
        init=uniform,
        ask_tail=lambda head, relation: head * relation,
        ask_head=lambda tail, relation: tail * relation,
        score=lambda queries, entities, _: queries @ entities.T,
    ),
}
