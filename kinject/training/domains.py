"""Plugins of several domains, trained at once on one frozen host.

The step of one domain is mapped (`jax.vmap`) over domains, with the host's parameters shared: the batching rules then
make the host's products with its weights one matrix product over all rows of all domains, and only what reads the
plugin's own parameters is done domain by domain. Optimizer state, clipping, dropout and metrics are each domain's own.
Nothing is summed over domains, so no domain knows of another. Plugins of different shapes are trained jointly as
joint.py does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kinject.data.pipeline import NOWHERE, PER_POSITION, Batch, Feed, choose_buckets, deal
from kinject.errors import InputError
from kinject.inference.mesh import DATA, MODEL, Placement
from kinject.inference.program import Program, evaluate
from kinject.reports.console import Reporter
from kinject.training.config import FitConfig
from kinject.training.loop import Fit, FitResult
from kinject.training.metrics import Progress
from kinject.training.prefix import PrefixPlan, first_trainable_state
from kinject.training.step import Logged, TrainState, initial_state, step_function
from kinject.tree import Flat

DOMAIN = "domain"  # the axis of a mesh
PLUGIN = "plugin/"
LAST_BATCH = np.iinfo(np.int32).max  # a stream has an end that nothing reaches


def stack_plugins(params: Sequence[Flat]) -> Flat:
    """The parameters of one host and of D plugins of one shape: `host/…` as they are, `plugin/…` [D, …]."""
    first = params[0]
    import chex  # see `check_batch` of models/seams.py

    chex.assert_trees_all_equal_shapes_and_dtypes(*params, custom_message="domains share a host and a method")
    return {
        path: jnp.stack([each[path] for each in params]) if path.startswith(PLUGIN) else leaf
        for path, leaf in first.items()
    }


def one_domain(params: Mapping[str, jax.Array], number: int) -> Flat:
    """The parameters of one domain out of stacked ones."""
    return {path: leaf[number] if path.startswith(PLUGIN) else leaf for path, leaf in params.items()}


def domain_axes(frozen: Mapping[str, object]) -> dict[str, int | None]:
    """Which frozen leaves have an axis of domains: the plugins' own, and none of the host."""
    return {path: 0 if path.startswith(PLUGIN) else None for path in frozen}


def initial_states(train: Flat, optimizer: optax.GradientTransformation, labels: Mapping[str, str]) -> TrainState:
    """The state of D domains before the first step, from stacked parameters: every leaf [D, …]."""
    return jax.vmap(lambda leaves: initial_state(leaves, optimizer, labels))(train)


def make_domains_step(
    program: Program,
    optimizer: optax.GradientTransformation,
    labels: Mapping[str, str],
    *,
    seeds: Sequence[int],
    dropout: bool,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, Flat, Mapping[str, jax.Array]], tuple[TrainState, Logged]]:
    """The jitted step of D domains: (state [D, …], frozen, batch [D, B, …]) -> (state, logged [D]).

    Args:
      program: of one domain.
      optimizer: of one domain.
      labels: of one domain's parameters.
      seeds: one a domain; domain i draws the dropout that it would draw alone with seeds[i].
      dropout: whether anything is dropped.
      shardings: of the state on a mesh; see `make_train_step`.
    """
    step = step_function(program, optimizer, labels, dropout=dropout)
    own_seeds: Any = np.asarray(seeds, np.uint32)

    def steps(state: TrainState, frozen: Flat, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Logged]:
        return jax.vmap(step, in_axes=(0, 0, domain_axes(frozen), 0))(own_seeds, state, frozen, batch)

    return jax.jit(steps, donate_argnums=0, out_shardings=None if shardings is None else (shardings, shardings.step))


@dataclass(frozen=True)
class DomainFeeds:
    """The training data of D domains, dealt together: batch i holds what each domain alone would get as its batch i.

    Attributes:
      feeds: one a domain.
      buckets: padded lengths at most; as the domains' rows lie side by side, all have the longest one's.
    """

    feeds: tuple[Feed, ...]
    buckets: int = 1

    def training(
        self, batch_size: int, seeds: Sequence[int], rows: int | None = None, threads: int = 2
    ) -> grain.IterDataset:
        """Endless batches, every array [D, rows, …], each domain's examples in an order of its own seed.

        Rows beyond `batch_size` have weight 0; without `rows` there are none.
        """
        orders = [feed.order(batch_size, seed, rows=rows) for feed, seed in zip(self.feeds, seeds, strict=True)]
        numbers = grain.MapDataset.range(LAST_BATCH)
        return deal(numbers.map(lambda number: self.join([order[int(number)] for order in orders])), threads)

    @cached_property
    def lengths(self) -> list[int]:
        """The padded lengths that occur."""
        held = [
            np.repeat(length, len(bucket["index"]))
            for feed in self.feeds
            for bucket, length in zip(feed.examples.buckets, feed.examples.lengths, strict=True)
        ]
        return choose_buckets(np.concatenate(held).tolist(), self.buckets)

    @cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The largest shape of each array over all buckets of all domains, without the axis of examples."""
        widest: dict[str, tuple[int, ...]] = {}
        for feed in self.feeds:
            for bucket in feed.examples.buckets:
                for name, values in bucket.items():
                    shape = values.shape[1:]
                    widest[name] = tuple(map(max, widest.get(name, shape), shape))
        return widest

    def join(self, batches: Sequence[Batch]) -> Batch:
        """Batches of one row count, side by side, widened to common shapes by what means nothing."""
        longest = max(batch["token_ids"].shape[-1] for batch in batches)
        length = next(each for each in self.lengths if each >= longest)
        entities = self.widths["entity_ids"][-1] if "entity_ids" in self.widths else 0
        joined = {}
        for name in {name: None for batch in batches for name in batch}:
            present = [batch[name] for batch in batches if name in batch]
            shape = tuple(np.max([values.shape for values in present], axis=0))
            if name in PER_POSITION:
                shape = (*shape[:-1], length)
            elif name == "entity_vectors":
                shape = (*shape[:-2], entities, shape[-1])
            elif name in self.widths:
                shape = (shape[0], *self.widths[name])
            joined[name] = np.full((len(batches), *shape), NOWHERE.get(name, 0), present[0].dtype)
            for own, batch in zip(joined[name], batches, strict=True):
                if name in batch:
                    own[tuple(map(slice, batch[name].shape))] = batch[name]
        return joined


@dataclass(frozen=True)
class DomainPlacement(Placement):
    """A mesh with an axis of domains before those of a run; as many domains apart as divide both."""

    @classmethod
    def of(cls, place: Placement, domains: int) -> DomainPlacement:
        """The devices of a run, arranged for so many domains."""
        if place.mesh is None:
            return cls(None, place.config)
        data, model = place.mesh.shape[DATA], place.mesh.shape[MODEL]
        apart = math.gcd(domains, data)
        devices = place.mesh.devices.reshape(apart, data // apart, model)
        return cls(Mesh(devices, (DOMAIN, DATA, MODEL), axis_types=(AxisType.Auto,) * 3), place.config)

    @cached_property
    def rows(self) -> NamedSharding | None:
        """Where arrays [D, B, …] live."""
        return self._sharding(DOMAIN, DATA)

    @cached_property
    def by_domain(self) -> NamedSharding | None:
        """Where arrays [D, …] live."""
        return self._sharding(DOMAIN)

    def parameter(self, path: str, shape: tuple[int, ...], frozen: bool) -> NamedSharding | None:
        return self.by_domain if path.startswith(PLUGIN) else super().parameter(path, shape, frozen)

    def state(self, tree: Any) -> Any:
        return tree if self.mesh is None else jax.device_put(tree, self.by_domain)

    @cached_property
    def one(self) -> Placement:
        """For one domain on all devices, as it is evaluated."""
        return OneDomain(self.mesh, self.config)


class OneDomain(Placement):
    """The devices of a `DomainPlacement`, all for one domain."""

    @property
    def row_parts(self) -> int:
        return 1 if self.mesh is None else self.mesh.shape[DOMAIN] * self.mesh.shape[DATA]

    @cached_property
    def rows(self) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec((DOMAIN, DATA)))


@dataclass
class DomainsProgress(Progress):
    """As `Progress`, of all domains together; `domains` holds for each what it would hold alone."""

    domains: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, names: tuple[str, ...]) -> DomainsProgress:
        """The beginning, for domains of these names."""
        fresh = {"best_step": -1, "metrics": {}, "stale": 0, "steps": None, "loss": math.nan}
        return cls(domains={name: dict(fresh) for name in names})

    def note(self, means: Mapping[str, float]) -> None:
        super().note(means)
        for name, own in self.domains.items():
            own["loss"] = means[f"{name}/loss"]


class DomainFit(Fit):
    """Trains the plugins of several domains on one host: `DomainFit(...).run_all()`.

    Each is trained as `Fit` would train it alone, on its own batches, with its own seed. One checkpoint holds the state
    of all. A domain whose patience is spent keeps its best and is computed along until the last one ends.
    """

    progress: DomainsProgress
    place: DomainPlacement

    def __init__(
        self,
        name: str,
        program: Program,
        params: Mapping[str, Flat],
        rules: list[tuple[str, str]],
        config: FitConfig,
        feeds: Mapping[str, tuple[Feed, Feed | None]],
        *,
        seeds: Mapping[str, int],
        workdir: Path,
        reporter: Reporter,
        placement: Placement | None = None,
    ):
        self.names, self.feeds, self.seeds = tuple(params), feeds, [seeds[each] for each in params]
        self.stacked_feed = DomainFeeds(tuple(feeds[each][0] for each in self.names), config.buckets)
        super().__init__(
            name,
            program,
            stack_plugins(list(params.values())),
            rules,
            config,
            self.stacked_feed.feeds[0],  # as `Fit` wants one; batches come from all
            None,
            seed=0,
            workdir=workdir,
            reporter=reporter,
            placement=DomainPlacement.of(placement or Placement.single(), len(self.names)),
        )
        self.progress = DomainsProgress.of(self.names)
        self.best_train: Flat = jax.tree.map(jnp.copy, self.state.train)

    def run_all(self) -> dict[str, FitResult]:
        """Trains to the end, as `run` does, and returns what was trained by domain."""
        self.train()
        return self.end_all()

    def _total_steps(self) -> int:
        totals = {each: self.config.total_steps(self.feeds[each][0].examples.size) for each in self.names}
        if len(set(totals.values())) > 1:
            counts = ", ".join(f"{each} {count}" for each, count in totals.items())
            problem = f"domains trained at once take steps together: {counts}"
            raise InputError(f"{self.name}.fit.epochs", problem, "give steps")
        return next(iter(totals.values()))

    def _plan_prefix(self, train: Flat, workdir: Path) -> PrefixPlan | None:
        """Nothing is kept: what it would save is little where a plugin is read at the embeddings."""
        host, plugin = self.program.abstract(one_domain({**self.frozen, **train}, 0))
        if self.config.dropout == "trained" and first_trainable_state(self.labels, plugin, len(host.encoder.layers)):
            problem = "dropout='trained' keeps frozen layers' states, which domains trained at once do not"
            raise InputError(f"{self.name}.fit.dropout", problem, "use 'none' or 'all'")
        return None

    def _compile(self, train: Flat, optimizer: optax.GradientTransformation) -> None:
        self.state = self.place.state(initial_states(train, optimizer, self.labels))
        steps = make_domains_step(
            self.program,
            optimizer,
            self.labels,
            seeds=self.seeds,
            dropout=self.config.dropout != "none",
            shardings=self.place.shardings(self.state),
        )

        @jax.jit
        def by_name(logged: Logged) -> Logged:
            own = {f"{one}/{key}": values[i] for key, values in logged.items() for i, one in enumerate(self.names)}
            return {"loss": logged["loss"].mean(), **own}

        def step(state: TrainState, frozen: Flat, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Logged]:
            state, logged = steps(state, frozen, batch)
            return state, by_name(logged)

        self.train_step = step

    def _stream(self) -> grain.DatasetIterator:
        return iter(self.stacked_feed.training(self.config.batch_size, self.seeds, self.rows))

    def _refreshing(self, train: Flat) -> tuple[int, Any]:
        _, plugin = self.program.abstract(one_domain({**self.frozen, **train}, 0))
        if plugin is not None and plugin.refresh_every:
            raise InputError(f"{self.name}.method", f"{plugin.name} refreshes tables as it trains", "use kind plugin")
        return 0, None

    def _resume(self) -> int:
        step = super()._resume()
        if self.progress.best_step >= 0:
            self.best_train = self._restore_best(self.best_train).state
        return step

    def _maybe_evaluate(self, step: int) -> None:
        improved = False
        for number, name in enumerate(self.names):
            (feed, dev), own = self.feeds[name], self.progress.domains[name]
            every = self.config.evaluation_steps(feed.examples.size)
            due = step == self.total or (every and step % every == 0)
            if dev is None or own["steps"] is not None or not due:
                continue
            found = self._evaluate(number, dev)
            self.metrics.write(self.name, step, {f"{name}/dev_{key}": value for key, value in found.items()})
            metric = self.program.task.metric
            if own["best_step"] < 0 or found[metric] > own["metrics"][metric]:
                improved, own["stale"] = True, 0
                own["best_step"], own["metrics"] = step, found
                train = self.state.train
                self.best_train = {
                    path: leaf.at[number].set(train[path][number]) for path, leaf in self.best_train.items()
                }
            else:
                own["stale"] += 1
            if self.config.patience is not None and own["stale"] >= self.config.patience:
                own["steps"] = step
        domains = self.progress.domains.values()
        if improved:
            self.progress.best_step = step
            self.progress.best_metric = max(
                own["metrics"][self.program.task.metric] for own in domains if own["metrics"]
            )
            self.best.save(step, self.best_train, {})
        self.progress.finished = all(own["steps"] is not None for own in domains)

    def _evaluate(self, number: int, dev: Feed) -> dict[str, float]:
        params = one_domain({**self.frozen, **self.state.train}, number)
        rows = self.config.evaluation_batch_size
        return evaluate(self.program, params, dev, rows, self.place.one, self.evaluation_step)[0]

    def end_all(self) -> dict[str, FitResult]:
        """What was trained, by domain, once `done`; closes files."""
        self.profiler.close()
        self.checkpoints.wait()
        self.best.wait()
        last, best, results = jax.device_get(self.state.train), jax.device_get(self.best_train), {}
        for number, (name, own) in enumerate(self.progress.domains.items()):
            train, metrics = last, {"loss": own["loss"]}
            if own["best_step"] >= 0:
                train = best
                metrics |= {f"dev_{key}": value for key, value in own["metrics"].items()}
                metrics["best_step"] = own["best_step"]
            leaves = {path: np.asarray(leaf) for path, leaf in one_domain(train, number).items()}
            results[name] = FitResult(leaves, metrics, own["steps"] or self.step, self.progress.seconds, self.labels)
        self._close()
        return results
