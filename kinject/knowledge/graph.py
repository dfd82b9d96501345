"""Entity vectors from triples: TransE and its kin, trained in JAX.

One compiled `lax.scan` runs an epoch (a long one in equal blocks). A step touches only the rows it samples (their Adam
moments included), so its cost does not grow with the number of entities.

The scoring functions (`METHODS`) all have one form: a query made of two parts of a triple is scored against entities.
Higher scores are more plausible; distances are negated and moved by the margin gamma, so that zero is the boundary of
the logistic loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.errors import InputError, did_you_mean
from kinject.knowledge.triples import check_triples

_BLOCK_STEPS = 512  # steps of one scan: long enough to hide the dispatch, short enough to report progress


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


@dataclass(frozen=True)
class GraphConfig:
    """How to train; the defaults are a TransE that does well on graphs of tens of thousands of entities.

    Attributes:
      method: "transe", "rotate" or "distmult".
      dim: numbers in an entity vector; even for rotate.
      gamma: margin of the distances.
      negatives: entities drawn for each batch, shared by all its triples, on both sides.
      adversarial: temperature of the self-adversarial weights of the negatives (Sun et al. 2019, section 3.2); 0
        weighs all alike.
      learning_rate: of Adam, decayed linearly to 0.
      batch: triples a step.
      epochs: passes over the triples.
    """

    method: str = "transe"
    dim: int = 64
    gamma: float = 6.0
    negatives: int = 64
    adversarial: float = 1.0
    learning_rate: float = 0.02
    batch: int = 1024
    epochs: int = 50

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            problem = f"method is {self.method!r}"
            raise InputError("GraphConfig", problem, did_you_mean(str(self.method), METHODS))
        for field in ("dim", "gamma", "negatives", "learning_rate", "batch", "epochs"):
            if getattr(self, field) <= 0:
                raise InputError("GraphConfig", f"{field} is {getattr(self, field)}", "it must be above 0")
        if self.method == "rotate" and self.dim % 2:
            raise InputError("GraphConfig", f"dim is {self.dim}", "rotate needs an even one: it holds complex numbers")


class GraphResult(NamedTuple):
    """Trained vectors.

    Attributes:
      vectors: float32 [N, d].
      relations: float32 [R, w]; w = d, or d/2 angles for rotate.
      losses: float32 [epochs], mean loss of each.
      seen: bool [N]; an entity in no triple has a vector that means nothing: pass this on as `has_vector`.
      config: what it was trained with.
    """

    vectors: np.ndarray
    relations: np.ndarray
    losses: np.ndarray
    seen: np.ndarray
    config: GraphConfig

    def standardised(self) -> np.ndarray:
        """Vectors [N, d] centred and divided by their global standard deviation, as a mapping network likes them.

        Centre and deviation are those of the entities that occur in a triple.
        """
        mean, deviation = self.centre()
        return (self.vectors - mean) / np.float32(deviation)

    def centre(self) -> tuple[np.ndarray, float]:
        """Mean float32 [d] of the vectors of entities that occur in a triple, and the deviation of their numbers."""
        seen = self.vectors[self.seen]
        mean = seen.mean(axis=0)
        return mean, float((seen - mean).std())


class _Table(NamedTuple):
    """Rows that are trained: values and Adam moments [N, w], and how often each row was updated [N]."""

    values: jax.Array
    first: jax.Array
    second: jax.Array
    updates: jax.Array


def train_graph(
    triples: np.ndarray,
    num_entities: int,
    num_relations: int,
    config: GraphConfig,
    seed: int,
    progress: Callable[[int, float], None] | None = None,
) -> GraphResult:
    """Trains entity and relation vectors with the logistic loss of Sun et al. 2019 (section 3.2).

    The same seed gives the same bits on the same kind of CPU; on a GPU only with XLA's deterministic reductions on.

    Args:
      triples: integer [T, 3] of (head, relation, tail).
      num_entities: N; head and tail are below it.
      num_relations: R; relation is below it.
      config: how.
      seed: decides initial vectors, order of the triples and negatives.
      progress: called with the epoch (from 1) and its mean loss.

    Raises:
      InputError: triples of another shape or pointing outside, or none; a loss that is not finite.
    """
    triples = check_triples("train_graph", triples, num_entities, num_relations)
    order_seed, init_key, sample_key = seed, *jax.random.split(jax.random.key(seed))
    tables = _start(init_key, num_entities, num_relations, config)
    batch = min(config.batch, len(triples))
    steps = math.ceil(len(triples) / batch)
    blocks = math.ceil(steps / _BLOCK_STEPS)
    steps = blocks * math.ceil(steps / blocks)  # equal blocks: one shape, one compilation
    losses = np.zeros(config.epochs, np.float32)
    rng = np.random.default_rng(order_seed)
    for epoch in range(config.epochs):
        total = 0.0
        for block, chunk in enumerate(_shuffled(rng, triples, steps, batch, blocks)):
            done = epoch * steps + block * (steps // blocks)
            tables, block_loss = _run(tables, chunk, sample_key, done, config.epochs * steps, config)
            total += float(block_loss)
        losses[epoch] = total / blocks
        if not np.isfinite(losses[epoch]):
            raise InputError("train_graph", f"the loss of epoch {epoch + 1} is {losses[epoch]}", "lower learning_rate")
        if progress is not None:
            progress(epoch + 1, float(losses[epoch]))
    seen = np.zeros(num_entities, bool)
    seen[triples[:, 0]] = seen[triples[:, 2]] = True
    entities, relations = (np.asarray(table.values) for table in tables)
    return GraphResult(entities, relations, losses, seen, config)


def train_rows(
    known: np.ndarray,
    relations: np.ndarray,
    triples: np.ndarray,
    count: int,
    config: GraphConfig,
    seed: int,
    steps: int = 300,
) -> np.ndarray:
    """Trains the vectors of entities that come to a trained graph, with its loss; all others stay as they are.

    Args:
      known: float32 [N, d], as they were trained.
      relations: float32 [R, w], likewise.
      triples: integer [T, 3], in which rows from N on are the new entities.
      count: n, how many come.
      config: what the graph was trained with; `batch` and `epochs` do not count.
      seed: decides initial vectors and negatives.
      steps: of Adam, on all triples at once.

    Returns:
      float32 [n, d].

    Raises:
      InputError: triples of another shape or pointing outside, or none; vectors that are not finite.
    """
    triples = check_triples("train_rows", triples, len(known) + count, len(relations))
    init_key, sample_key = jax.random.split(jax.random.key(seed))
    optimizer = optax.adam(optax.linear_schedule(config.learning_rate, 0.0, steps))
    rows = uniform(init_key, (count, known.shape[1]), (config.gamma + 2) / config.dim)

    @jax.jit
    def run(rows: jax.Array, known: jax.Array, relations: jax.Array, triples: jax.Array) -> jax.Array:
        def loss_of(rows: jax.Array, others: jax.Array) -> jax.Array:
            def at(ids: jax.Array) -> jax.Array:
                new = ids >= len(known)
                return jnp.where(new[:, None], rows[jnp.where(new, ids - len(known), 0)], known[jnp.where(new, 0, ids)])

            heads, which, tails = triples.T
            return triple_loss(at(heads), relations[which], at(tails), others, config)

        def step(carry: tuple[jax.Array, Any], number: jax.Array) -> tuple[Any, None]:
            (rows, state), key = carry, jax.random.fold_in(sample_key, number)
            others = known[jax.random.randint(key, (config.negatives,), 0, len(known))]
            updates, state = optimizer.update(jax.grad(loss_of)(rows, others), state)
            return (optax.apply_updates(rows, updates), state), None

        return jax.lax.scan(step, (rows, optimizer.init(rows)), jnp.arange(steps))[0][0]

    made = np.asarray(run(rows, jnp.asarray(known), jnp.asarray(relations), jnp.asarray(triples)))
    if not np.isfinite(made).all():
        raise InputError("train_rows", "the vectors are not finite", "lower learning_rate")
    return made


def _start(key: jax.Array, num_entities: int, num_relations: int, config: GraphConfig) -> tuple[_Table, _Table]:
    method = METHODS[config.method]
    limit = (config.gamma + 2) / config.dim  # RotatE's code: distances start well inside the margin's reach
    entity_key, relation_key = jax.random.split(key)
    relation_shape = (num_relations, method.relation_width(config.dim))
    entities = uniform(entity_key, (num_entities, config.dim), limit)
    return _table(entities), _table(method.init(relation_key, relation_shape, limit))


def _table(values: jax.Array) -> _Table:
    return _Table(values, jnp.zeros_like(values), jnp.zeros_like(values), jnp.zeros(len(values), jnp.int32))


def _shuffled(rng: np.random.Generator, triples: np.ndarray, steps: int, batch: int, blocks: int) -> Iterator[Any]:
    """Yields the triples of an epoch in a new order, int32 [steps / blocks, batch, 3], topped up from its start."""
    order = np.resize(rng.permutation(len(triples)), steps * batch)
    for chunk in np.split(order, blocks):
        yield triples[chunk].reshape(-1, batch, 3)


@partial(jax.jit, static_argnames=("config",), donate_argnames=("tables",))
def _run(
    tables: tuple[_Table, _Table],
    batches: jax.Array,
    key: jax.Array,
    done: int,
    total: int,
    config: GraphConfig,
) -> tuple[tuple[_Table, _Table], jax.Array]:
    """Runs one step a batch of int32 [S, B, 3]; returns the tables and the mean loss."""

    def step(carry: tuple[_Table, _Table], item: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        (entities, relations), (number, batch) = carry, item
        negatives = jax.random.randint(
            jax.random.fold_in(key, number), (config.negatives,), 0, len(entities.values), jnp.int32
        )
        size = len(batch)
        touched = jnp.concatenate([batch[:, 0], batch[:, 2], negatives])
        rows, relation_rows = entities.values[touched], relations.values[batch[:, 1]]

        def loss_of(rows: jax.Array, relation_rows: jax.Array) -> jax.Array:
            heads, tails, others = jnp.split(rows, [size, 2 * size])
            return triple_loss(heads, relation_rows, tails, others, config)

        loss, (row_gradients, relation_gradients) = jax.value_and_grad(loss_of, argnums=(0, 1))(rows, relation_rows)
        rate = config.learning_rate * (1 - number / total)
        entities = _update_rows(entities, touched, row_gradients, rate)
        relations = _update_rows(relations, batch[:, 1], relation_gradients, rate)
        return (entities, relations), loss

    numbers = done + jnp.arange(len(batches))
    tables, losses = jax.lax.scan(step, tables, (numbers, batches))
    return tables, losses.mean()


def triple_loss(
    heads: jax.Array, relations: jax.Array, tails: jax.Array, negatives: jax.Array, config: GraphConfig
) -> jax.Array:
    """Mean self-adversarial logistic loss of B triples against K shared negatives on both sides.

    Args:
      heads: float32 [B, d].
      relations: float32 [B, w].
      tails: float32 [B, d].
      negatives: float32 [K, d].
      config: method, margin and temperature.
    """
    method = METHODS[config.method]
    queries = jnp.concatenate([method.ask_tail(heads, relations), method.ask_head(tails, relations)])
    answers = jnp.concatenate([tails, heads])
    right = jax.vmap(lambda query, answer: method.score(query[None], answer[None], config.gamma)[0, 0])(
        queries, answers
    )
    wrong = method.score(queries, negatives, config.gamma)
    weights = jax.nn.softmax(jax.lax.stop_gradient(config.adversarial * wrong), axis=-1)
    losses = -jax.nn.log_sigmoid(right) - (weights * jax.nn.log_sigmoid(-wrong)).sum(-1)
    return losses.mean() / 2


def _update_rows(table: _Table, touched: jax.Array, gradients: jax.Array, rate: jax.Array) -> _Table:
    """Adam (0.9, 0.999) on the touched rows only, each with its own count of updates; a row may be touched twice.

    Optax's Adam moves every row at every step, which for millions of entities is thousands of times the work.
    """
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    count = len(table.values)
    rows, where = jnp.unique(touched, return_inverse=True, size=min(len(touched), count), fill_value=count)
    gradient = jax.ops.segment_sum(gradients, where, len(rows))
    updates = table.updates[rows] + 1
    first = beta1 * table.first[rows] + (1 - beta1) * gradient
    second = beta2 * table.second[rows] + (1 - beta2) * gradient * gradient
    age = updates[:, None].astype(jnp.float32)
    step = rate * (first / (1 - beta1**age)) / (jnp.sqrt(second / (1 - beta2**age)) + epsilon)
    fresh = _Table(table.values[rows] - step, first, second, updates)
    # rows that only fill the fixed size point beyond the table and are dropped
    return _Table(*(old.at[rows].set(new, mode="drop") for old, new in zip(table, fresh, strict=True)))
