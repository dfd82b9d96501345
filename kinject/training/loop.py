"""The one training loop: restore, step, log, evaluate, checkpoint, until the steps are done or nothing improves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import optax

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.mesh import Placement, fetch, place_params
from kinject.inference.processes import Preempted, alone, first, watched
from kinject.inference.program import Program, evaluate, make_evaluation_step
from kinject.inference.vectors import TABLE, VectorTable
from kinject.reports.console import Reporter
from kinject.training.agreement import check_same_start
from kinject.training.checkpoint import Checkpoints, Restored
from kinject.training.config import FitConfig
from kinject.training.early import compiled_beside, read_while, with_states
from kinject.training.metrics import (
    LARGEST,
    MetricsFile,
    Profiler,
    Progress,
    Timing,
    check_arrays,
    check_losses,
    check_metrics,
    compilations,
)
from kinject.training.partition import label_parameters, split
from kinject.training.prefix import PrefixPlan, plan_prefix
from kinject.training.states import attach_prefix, check_disk
from kinject.training.step import Logged, TrainState, initial_state, make_optimizer, make_refresh, make_train_step
from kinject.tree import Flat


@dataclass
class FitResult:
    """The trained leaves (the best evaluation's where there was one) and how they came about."""

    train: dict[str, np.ndarray]
    metrics: dict[str, float]
    steps: int
    seconds: float
    labels: dict[str, str] = field(repr=False, default_factory=dict)


class Fit:
    """One training run of one program: `Fit(...).run()`.

    Args:
      name: of the stage; checkpoints and lines of metrics go by it.
      program: from `split_program`.
      params: all parameters, flat: `host/…` and `plugin/…`.
      rules: (regex, "train" | "freeze") over parameter paths.
      config: the loop's settings.
      train_feed, dev_feed: the data; without development data nothing is evaluated and the last step's leaves are kept.
      seed: of the order of batches and of dropout.
      workdir: gets checkpoints, metrics and, where it is asked for, timings and profiles.
      placement: where arrays live; None = one device.
      table: of entity vectors on the devices; batches then bring none (inference/vectors.py).

    Raises:
      InputError: settings, rules and parameters that do not fit each other.
    """

    train_step: Callable[[TrainState, Flat, Mapping[str, jax.Array]], tuple[TrainState, Logged]]
    state: TrainState
    iterator: grain.DatasetIterator

    def __init__(
        self,
        name: str,
        program: Program,
        params: Flat,
        rules: list[tuple[str, str]],
        config: FitConfig,
        train_feed: Feed,
        dev_feed: Feed | None,
        *,
        seed: int,
        workdir: Path,
        reporter: Reporter,
        placement: Placement | None = None,
        table: VectorTable | None = None,
    ):
        self.name, self.config, self.seed, self.reporter = name, config, seed, reporter
        self.train_feed, self.dev_feed = replace(train_feed, shuffle=config.shuffle), dev_feed
        self.place = placement or Placement.single()
        self.rows = self.place.round_up(config.batch_size)  # those beyond its examples have weight 0
        self.program = replace(
            program,
            precision=config.compute_dtype,
            micro_batch=config.micro_batch,
            row_parts=self.place.row_parts,
            batch_rows=None if self.rows == config.batch_size else config.batch_size,
        )

        self.labels = label_parameters(params, rules, f"{name}.train", program.tables)
        self.total = self._total_steps()
        train, frozen = split(params, self.labels)
        train, self.frozen = place_params(train, frozen, config.compute_dtype, self.place, program.tables)
        self._use_table(table)
        if not alone():
            check_same_start(name, train)
        plan = self._plan_prefix(train, workdir)
        self._compile(train, make_optimizer(config.optimizer, self.labels, self.total))
        if plan is not None:
            self._keep_prefix(plan, workdir)
        self.iterator = self._stream()
        self.profiler = Profiler(config.profile, workdir / "profile" / name)
        self.train_step = self.profiler.watch(self.train_step)
        self.evaluation_step = make_evaluation_step(self.program)
        self.refresh_every, self.refresh = self._refreshing(train)

        self.checkpoints = Checkpoints(workdir / "checkpoints" / name / "last")
        self.best = Checkpoints(workdir / "checkpoints" / name / "best", keep=None)
        self.metrics = MetricsFile(workdir / "metrics.jsonl", kept=first(), trackers=config.trackers)
        self.timing = Timing(workdir / "timings.jsonl" if config.timings else None)
        self.progress = Progress()
        self.saved_best_step = -1

    def run(self) -> FitResult:
        """Trains to the end, from the newest whole checkpoint if there is one.

        Raises:
          Preempted: after SIGTERM; the step it came in is finished, and a checkpoint made.
        """
        self.train()
        return self.end()

    def train(self) -> None:
        """Steps until `done`; `end` comes next."""
        train_to_end([self], lambda _: [self.train_step(self.state, self.frozen, self.next_batch())])

    def begin(self) -> None:
        """Resumes from the newest whole checkpoint, or starts."""
        self.step = self.begun_at = self._resume()
        self.losses: list[Any] = []
        self.timing.begin(self.name, self.step)
        self.clock = time.monotonic() - self.progress.seconds

    @property
    def done(self) -> bool:
        """Whether no step is left to take."""
        return self.step >= self.total or self.progress.finished

    def next_batch(self) -> Mapping[str, Any]:
        """The next step's batch [B, …]; the plugin's tables that training makes stale are refreshed first when due."""
        if self.refresh_every and self.step % self.refresh_every == 0:
            tables = self.refresh({**self.frozen, **self.state.train})
            for path, new in tables.items():
                place = self.place.parameter(path, new.shape, frozen=True)  # None stays None: it would compile again
                self.frozen[path] = new if place is None else jax.device_put(new, place)
        return self.place.given(self.timing.next(self.iterator), self.rows)

    def advance(self, state: TrainState, logged: Mapping[str, jax.Array]) -> dict[str, float]:
        """Takes over what a step computed, logs and evaluates when due; `save_if_due` comes next.

        Args:
          state: after the step.
          logged: of the step, scalars.

        Returns:
          What there is to show: {} between two logged steps.
        """
        self.state, shown = state, {}
        self.losses.append(logged)
        self.step += 1
        if self.step % self.config.log_every == 0 or self.step == self.total:
            shown = self._log(self.step, self.losses)
            self.losses = []
            self.progress.seconds = time.monotonic() - self.clock
        self._maybe_evaluate(self.step)
        return shown

    def save_if_due(self, stop: bool) -> None:
        """Makes a checkpoint of the step that was taken, where one is due, or where it is the last for now (`stop`)."""
        stop = stop and (not self.refresh_every or self.step % self.refresh_every == 0)  # a rerun starts on a refresh
        if stop or self.done or self.step % self.config.checkpoint_every == 0:
            self._log_later(self.step, self.losses)
            self.losses = []
            self._save(self.step)

    def end_early(self) -> None:
        """Closes files and says up to where the run was saved."""
        self._close()
        kept = self.checkpoints.manager.latest_step() or 0
        self.reporter.say(f"{self.name}: stopped at step {self.step} of {self.total}, kept up to step {kept}")

    def end(self) -> FitResult:
        """What was trained, once `done`; closes files."""
        self.profiler.close()
        self.checkpoints.wait()
        self.best.wait()
        train, metrics = self.state.train, {"loss": self.progress.last_loss}
        if self.progress.best_step >= 0:
            best = self._restore_best(self.state.train)
            train = best.state
            metrics |= {f"dev_{name}": value for name, value in best.meta["metrics"].items()}
            metrics["best_step"] = best.step
        fetched = {path: np.asarray(leaf) for path, leaf in fetch(train).items()}
        check_arrays(self.name, self.step, fetched, LARGEST)
        self._close()
        return FitResult(fetched, metrics, self.step, self.progress.seconds, self.labels)

    def _close(self) -> None:
        self.iterator.close()  # what it would deal next is not made any more
        self.profiler.close()
        self.metrics.close()
        self.checkpoints.close()
        self.best.close()

    # the parts of the constructor

    def _total_steps(self) -> int:
        return self.config.total_steps(self.train_feed.examples.size)

    def _use_table(self, table: VectorTable | None) -> None:
        if table is not None:
            self.frozen[TABLE] = table.vectors  # an argument of the step as frozen parameters are, in no checkpoint
            self.program = replace(self.program, vectors=table.look_up)
            self.train_feed = replace(self.train_feed, gather=None)
            self.dev_feed = self.dev_feed and replace(self.dev_feed, gather=None)

    def _compile(self, train: Flat, optimizer: optax.GradientTransformation) -> None:
        """Makes the first state and the step."""
        self.state = self.place.state(initial_state(train, optimizer, self.labels))
        self.train_step = make_train_step(
            self.program,
            optimizer,
            self.labels,
            seed=self.seed,
            dropout=self.config.dropout != "none",
            shardings=self.place.shardings(self.state),
        )

    def _stream(self) -> grain.DatasetIterator:
        share = self.place.share(self.rows)
        return iter(self.train_feed.training(self.config.batch_size, self.seed, share=share, rows=self.rows))

    def _refreshing(self, train: Flat) -> tuple[int, Any]:
        """How often the plugin's tables are made anew, and what makes them of all parameters.

        Raises:
          InputError: a checkpoint could stand between two refreshes; a rerun from it could not make the older tables.
        """
        _, plugin = self.program.abstract({**self.frozen, **train})
        every = 0 if plugin is None else plugin.refresh_every
        if every and self.config.checkpoint_every % every:
            problem = f"{self.config.checkpoint_every} is no multiple of refresh_every {every}"
            raise InputError(f"{self.name}.fit.checkpoint_every", problem, "a rerun starts on a refresh")
        return every, make_refresh(self.program)

    def _plan_prefix(self, train: Flat, workdir: Path) -> PrefixPlan | None:
        """What is kept of the hidden states below all that trains, where nothing is dropped and there is room."""
        feeds = [feed for feed in (self.train_feed, self.dev_feed) if feed is not None]
        plan = plan_prefix(self.name, self.config, self.program, {**self.frozen, **train}, self.labels, feeds)
        if plan is None:
            return None
        self.reporter.say(f"{self.name}: {plan}")
        if plan.cache is None:
            return None
        if plan.cache == "disk":
            check_disk(workdir, plan.size)
        self.program = replace(self.program, start=plan.start)
        return plan

    def _keep_prefix(self, plan: PrefixPlan, workdir: Path) -> None:
        """Has these states computed once, those of the first batch now, and its step compiled beside."""
        size, seed = self.config.batch_size, self.seed
        ours: dict[str, Any] = {"plan": plan, "workdir": workdir, "trained": self.state.train, "place": self.place}
        ours["batch_size"] = self.config.evaluation_batch_size
        attach: Callable[..., Feed] = partial(attach_prefix, self.program, self.frozen, **ours)
        first_batch = with_states(self.train_feed.order(size, seed, rows=self.rows)[0], plan, self.place)
        with compiled_beside(self.train_step, self.state, self.frozen, first_batch) as compiled:
            self.dev_feed = self.dev_feed and attach(feed=self.dev_feed)
            self.train_feed = attach(feed=self.train_feed, early=self.train_feed.first_dealt(size, seed))
            read_while(self.train_feed.order(size, seed, rows=self.rows), lambda: not compiled())

    # the parts of a step

    def _resume(self) -> int:
        restored = self.checkpoints.restore(self.state, self.iterator, self._best_is_there)
        if restored is None:
            self.metrics.rewind(self.name, 0)
            self.best.drop_after(-1)
            return 0
        self.state, self.progress = restored.state, type(self.progress).from_json(restored.meta)
        self.metrics.rewind(self.name, restored.step, restored.meta.get("logged"))
        self.best.drop_after(restored.step)
        self.saved_best_step = self.progress.best_step
        if restored.step < self.total:
            self.reporter.say(f"{self.name}: resuming at step {restored.step} of {self.total}")
        return restored.step

    def _best_is_there(self, meta: Mapping[str, Any]) -> str:
        """Why the best checkpoint that another one's JSON speaks of will not do; "" where it is whole, or none is."""
        best = type(self.progress).from_json(meta).best_step
        if best < 0 or self.best.is_whole(best, self.state.train):
            return ""
        return f"the best checkpoint, step {best}, is damaged; what made it is trained again"

    def _log(self, step: int, losses: list[Any]) -> dict[str, float]:
        self._log_later(step, losses)
        means = self.progress.log()
        self.progress.note(means)
        self.metrics.write(self.name, step, means)
        self.timing.log(self.name, step)
        return {"loss": means["loss"]}

    def _log_later(self, step: int, losses: list[Any]) -> None:
        check_losses(self.name, step, jax.device_get(losses), self.train_feed, self.config.batch_size, self.seed)
        self.progress.log_later(losses)

    def _maybe_evaluate(self, step: int) -> None:
        every = self.config.evaluation_steps(self.train_feed.examples.size)
        if self.dev_feed is None or not (step == self.total or (every and step % every == 0)):
            return
        params = {**self.frozen, **self.state.train}
        found, _ = evaluate(
            self.program, params, self.dev_feed, self.config.evaluation_batch_size, self.place, self.evaluation_step
        )
        check_metrics(self.name, step, found)
        self.metrics.write(self.name, step, {f"dev_{name}": value for name, value in found.items()})
        if found[self.program.task.metric] > self.progress.best_metric:
            self.progress.best_step, self.progress.best_metric = step, found[self.program.task.metric]
            self.progress.stale = 0
            self.best.save(step, self.state.train, {"metrics": found})
        else:
            self.progress.stale += 1
        self.progress.finished = self.config.patience is not None and self.progress.stale >= self.config.patience

    def _save(self, step: int) -> None:
        self.best.wait()  # the best must be whole before a checkpoint speaks of it
        self.checkpoints.wait()
        self.best.drop_before(self.saved_best_step)  # no checkpoint on disk speaks of those any more
        told = {**self.progress.to_json(), "logged": self.metrics.logged}
        self.checkpoints.save(step, self.state, told, self.iterator)
        self.saved_best_step = self.progress.best_step

    def _restore_best(self, template: Flat) -> Restored:
        """The best evaluation's leaves, of which the progress speaks."""
        best = self.best.restore(template)
        if best is None or best.step != self.progress.best_step:
            problem = f"the best checkpoint, step {self.progress.best_step}, is gone or damaged"
            raise InputError(self.best.folder, problem, "run the command again: what made it is trained again")
        return best


Step = Callable[[Sequence[Fit]], Sequence[tuple[TrainState, Logged]]]
"""(trainings that are not done) -> for each its state after one more step on its next batch, and what to log of it."""


def train_to_end(fits: Sequence[Fit], step: Step) -> None:
    """Runs trainings side by side to their ends, each from its newest whole checkpoint; one that is done drops out.

    Raises:
      Preempted: after SIGTERM; each has finished its step, and a checkpoint is made.
    """
    for fit in fits:
        fit.begin()
    names, place, reporter = " + ".join(fit.name for fit in fits), fits[0].place, fits[0].reporter
    total, taken = sum(fit.total for fit in fits), sum(fit.step for fit in fits)
    with reporter.bar(names, total, taken) as update, watched(place) as watch:
        stop = False
        while not stop and (active := [fit for fit in fits if not fit.done]):
            logged = False
            for fit, made in zip(active, _stepped(step, active, names), strict=True):
                if shown := fit.advance(*made):
                    update(sum(each.step for each in fits), **shown)
                    logged = True
            stop = watch.stop(agree=logged)
            for fit in active:
                fit.save_if_due(stop)
        if stop or watch.stop(agree=True):
            for fit in fits:
                fit.end_early()
            raise Preempted(agreed=True)


def _stepped(step: Step, fits: Sequence[Fit], names: str) -> Sequence[tuple[TrainState, Logged]]:
    """One more step of each; says how long that took where a program had to be compiled for it."""
    before, started = compilations(), time.monotonic()
    if fits[0].step == fits[0].begun_at:
        fits[0].reporter.say(f"{names}: compiling")
    made = step(fits)
    if compilations() > before:
        fits[0].reporter.say(f"{names}: compiled in {time.monotonic() - started:.1f} s")
    return made
