"""The loop over several domains at once: `Fit` with a stacked state, and for each domain its own best and end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.evaluation import evaluate
from kinject.inference.mesh import Placement
from kinject.inference.program import Program
from kinject.reports.console import Reporter
from kinject.training.config import FitConfig
from kinject.training.domains import (
    DomainFeeds,
    DomainPlacement,
    initial_states,
    make_domains_step,
    one_domain,
    stack_plugins,
)
from kinject.training.loop import Fit, FitResult
from kinject.training.metrics import Progress
from kinject.training.prefix import first_trainable_state
from kinject.training.step import Logged, TrainState
from kinject.tree import Flat


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
    """Trains the plugins of several domains on one host: `DomainFit(...).run()` returns a `FitResult` a domain.

    Each is trained as `Fit` would train it alone, on its own batches, with its own seed. One checkpoint holds the state
    of all. A domain whose patience is spent keeps its best and is computed along until the last one ends.
    """

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
        if jax.process_count() > 1:
            raise InputError(
                name, "domains are trained at once by one process", "start one process, or use kind plugin"
            )
        super().__init__(
            name,
            program,
            stack_plugins(list(params.values())),
            rules,
            config,
            DomainFeeds(tuple(feeds[each][0] for each in self.names), config.buckets),
            None,
            seed=0,
            workdir=workdir,
            reporter=reporter,
            placement=DomainPlacement.of(placement or Placement.single(), len(self.names)),
        )
        self.progress = DomainsProgress.of(self.names)
        self.best_train = jax.tree.map(jnp.copy, self.state.train)

    def _total_steps(self) -> int:
        totals = {each: self.config.total_steps(self.feeds[each][0].examples.size) for each in self.names}
        if len(set(totals.values())) > 1:
            told = ", ".join(f"{each} {count}" for each, count in totals.items())
            raise InputError(
                f"{self.name}.fit.epochs", f"domains trained at once take steps together: {told}", "give steps"
            )
        return next(iter(totals.values()))

    def _skip_frozen_prefix(self, train: Flat, workdir: Path) -> None:
        """Nothing is kept: what it would save is little where a plugin is read at the embeddings."""
        host, plugin = self.program.outline(one_domain({**self.frozen, **train}, 0))
        if self.config.dropout == "trained" and first_trainable_state(self.labels, plugin, len(host.encoder.layers)):
            problem = "dropout='trained' keeps frozen layers' states, which domains trained at once do not"
            raise InputError(f"{self.name}.fit.dropout", problem, "use 'none' or 'all'")

    def _begin(self, train: Flat, optimizer: optax.GradientTransformation) -> None:
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
        self.iterator = iter(self.train_feed.training(self.config.batch_size, self.seeds))

    def _refreshing(self, train: Flat) -> tuple[int, Any]:
        _, plugin = self.program.outline(one_domain({**self.frozen, **train}, 0))
        if getattr(plugin, "refresh_every", 0):
            raise InputError(f"{self.name}.method", f"{plugin.name} refreshes tables as it trains", "use kind plugin")
        return 0, None

    def _resume(self) -> int:
        step = super()._resume()
        if self.progress.best_step >= 0:
            best = self.best.restore(self.best_train)
            if best is None or best.step != self.progress.best_step:
                raise InputError(self.best.folder, f"the best checkpoint, step {self.progress.best_step}, is gone")
            self.best_train = best.state
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

    def _result(self, step: int) -> dict[str, FitResult]:
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
            results[name] = FitResult(leaves, metrics, own["steps"] or step, self.progress.seconds, self.labels)
        return results
