"""The one training loop: restore, step, log, evaluate, checkpoint, until the steps are done or nothing improves."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.evaluation import evaluate
from kinject.inference.mesh import Placement, fetch, place_params
from kinject.inference.processes import Preempted, alone, first, share
from kinject.inference.program import Program, make_evaluation_step
from kinject.inference.vectors import TABLE, VectorTable
from kinject.reports.console import Reporter
from kinject.training.checkpoint import Checkpoints
from kinject.training.config import FitConfig
from kinject.training.metrics import MetricsFile, Progress
from kinject.training.optimizer import make_optimizer
from kinject.training.partition import label_parameters, split
from kinject.training.preemption import watched
from kinject.training.prefix import attach_prefix, check_disk, plan_prefix
from kinject.training.profiling import Profiler, Timing
from kinject.training.step import TrainState, initial_state, make_refresh, make_train_step
from kinject.tree import Flat, digest


@dataclass
class FitResult:
    """The trained leaves (the best evaluation's where there was one) and how they came about."""

    train: dict[str, np.ndarray]
    metrics: dict[str, float]
    steps: int
    seconds: float
    labels: dict[str, str] = field(repr=False, default_factory=dict)


class Fit:
    """One training run of one program: `Fit(...).run()`. With a `table` batches bring no entity vectors: vectors.py."""

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
        self.name, self.config, self.seed = name, config, seed
        self.place = placement or Placement.single()
        computed = {"micro_batch": config.micro_batch, "row_parts": self.place.row_parts}
        self.program = replace(program, precision=config.compute_dtype, **computed)
        self.train_feed, self.dev_feed, self.reporter = train_feed, dev_feed, reporter
        if config.batch_size % self.place.row_parts:
            raise InputError(
                f"{name}.fit.batch_size", f"{config.batch_size} rows cannot be shared by {self.place.row_parts} devices"
            )
        self.labels = label_parameters(params, rules, f"{name}.train", program.tables)
        self.total = self._total_steps()
        train, frozen = split(params, self.labels)
        train, self.frozen = place_params(train, frozen, config.compute_dtype, self.place, program.tables)
        self._read_vectors(table)
        self._start_alike(train)
        self._skip_frozen_prefix(train, workdir)
        self._begin(train, make_optimizer(config.optimizer, self.labels, self.total))
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

    def _read_vectors(self, table: VectorTable | None) -> None:
        if table is not None:
            self.frozen[TABLE] = table.vectors  # an argument of the step as frozen parameters are, in no checkpoint
            self.program = replace(self.program, vectors=table.look_up)
            self.train_feed = replace(self.train_feed, gather=None)
            self.dev_feed = self.dev_feed and replace(self.dev_feed, gather=None)

    def _total_steps(self) -> int:
        return self.config.total_steps(self.train_feed.examples.size)

    def _begin(self, train: Flat, optimizer: optax.GradientTransformation) -> None:
        """Makes the first state, the step and the stream of batches."""
        self.state = self.place.state(initial_state(train, optimizer, self.labels))
        self.train_step = make_train_step(
            self.program,
            optimizer,
            self.labels,
            seed=self.seed,
            dropout=self.config.dropout != "none",
            shardings=self.place.shardings(self.state),
        )
        part = self.place.share(self.config.batch_size)
        self.iterator = iter(self.train_feed.training(self.config.batch_size, self.seed, share=part))

    def _refreshing(self, train: Flat) -> tuple[int, Any]:
        """How often the plugin's tables are made anew, and what makes them of all parameters.

        Raises:
          InputError: a checkpoint could stand between two refreshes; a rerun from it could not make the older tables.
        """
        every = getattr(self.program.outline({**self.frozen, **train})[1], "refresh_every", 0)
        if every and self.config.checkpoint_every % every:
            problem = f"{self.config.checkpoint_every} is no multiple of refresh_every {every}"
            raise InputError(f"{self.name}.fit.checkpoint_every", problem, "a rerun starts on a refresh")
        return every, make_refresh(self.program)

    def _start_alike(self, train: Flat) -> None:
        """Holds several processes to the same start: replicated leaves that differ would stay different, silently."""
        if alone():
            return
        mine = digest({path: np.asarray(leaf) for path, leaf in fetch(train).items()})
        if share(mine) != mine:
            problem = "this process starts from other trainable parameters than process 0"
            raise InputError(
                f"{self.name}, process {jax.process_index()}", problem, "give all the same files, versions"
            )

    def _skip_frozen_prefix(self, train: Flat, workdir: Path) -> None:
        """Computes hidden states below all that trains once, where nothing is dropped and there is room."""
        params = {**self.frozen, **train}
        feeds = [feed for feed in (self.train_feed, self.dev_feed) if feed is not None]
        plan = plan_prefix(self.name, self.config, self.program, params, self.labels, feeds)
        if plan is not None:
            self.reporter.say(f"{self.name}: {plan}")
        if plan is None or plan.cache is None:
            return
        if plan.cache == "disk":
            check_disk(workdir, plan.size)
        keep = partial(
            attach_prefix,
            self.program,
            params,
            start=plan.start,
            batch_size=self.config.evaluation_batch_size,
            place=self.place,
            seam=plan.seam,
            dtype=plan.dtype,
            folder=workdir if plan.cache == "disk" else None,
        )
        self.train_feed, self.dev_feed = keep(self.train_feed), self.dev_feed and keep(self.dev_feed)
        self.program = replace(self.program, start=plan.start)

    def run(self) -> FitResult:
        """Trains to the end, from the newest whole checkpoint if there is one.

        Raises:
          Preempted: a notice came (see preemption.py); the step that it came in is finished, and a checkpoint made.
        """
        self.begin()
        with self.reporter.bar(self.name, self.total, self.step) as update, watched(self.place) as watch:
            while not self.done:
                logged = self.take(*self.train_step(self.state, self.frozen, self.next_batch()))
                if logged:
                    update(self.step, **logged)
                stop = watch.stop(together=bool(logged))
                self.keep(stop)
                if stop:
                    break
            else:
                stop = watch.stop(together=True)
            if stop:
                self.end_early()
                raise Preempted(agreed=True)
        return self.end()

    def begin(self) -> None:
        """Takes up the newest whole checkpoint, or starts."""
        self.step = self._resume()
        self.losses: list[Any] = []
        self.timing.begin(self.name, self.step)
        self.clock = time.monotonic() - self.progress.seconds

    @property
    def done(self) -> bool:
        """Whether no step is left to take."""
        return self.step >= self.total or self.progress.finished

    def next_batch(self) -> dict[str, jax.Array]:
        """The next step's batch [B, …]; where it is time, tables that training makes stale are made anew first."""
        if self.refresh_every and self.step % self.refresh_every == 0:
            tables = self.refresh({**self.frozen, **self.state.train})
            for path, new in tables.items():
                place = self.place.parameter(path, new.shape, frozen=True)  # None stays None: it would compile again
                self.frozen[path] = new if place is None else jax.device_put(new, place)
        return self.place.batch(self.timing.next(self.iterator), self.config.batch_size)

    def take(self, state: TrainState, logged: Mapping[str, jax.Array]) -> dict[str, float]:
        """Takes what a step made (`logged`: scalars); returns what there is to show, {} between two logged steps.

        `keep` comes next.
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

    def keep(self, stop: bool) -> None:
        """Makes a checkpoint of the step that was taken, where one is due, or where it is the last for now (`stop`)."""
        stop = stop and (not self.refresh_every or self.step % self.refresh_every == 0)  # a rerun starts on a refresh
        if stop or self.done or self.step % self.config.checkpoint_every == 0:
            self.progress.log_later(self.losses)
            self.losses = []
            self._save(self.step)

    def end_early(self) -> None:
        """Closes what was kept and says so."""
        self.profiler.close()
        self.metrics.close()
        self.checkpoints.close()
        self.best.close()
        kept = self.checkpoints.manager.latest_step() or 0
        self.reporter.say(f"{self.name}: stopped at step {self.step} of {self.total}, kept up to step {kept}")

    def end(self) -> FitResult:
        """What was trained, once `done`."""
        self.profiler.close()
        result = self._result(self.step)
        self.metrics.close()
        self.checkpoints.close()
        self.best.close()
        return result

    def _resume(self) -> int:
        restored = self.checkpoints.restore(self.state, self.iterator)
        if restored is None:
            self.metrics.rewind(self.name, 0)
            self.best.drop_after(-1)
            return 0
        self.state, self.progress = restored.state, type(self.progress).from_json(restored.meta)
        self.metrics.rewind(self.name, restored.step)
        self.best.drop_after(restored.step)
        self.saved_best_step = self.progress.best_step
        if restored.step < self.total:
            self.reporter.say(f"{self.name}: resuming at step {restored.step} of {self.total}")
        return restored.step

    def _log(self, step: int, losses: list[Any]) -> dict[str, float]:
        self.progress.log_later(losses)
        means = self.progress.log()
        if not math.isfinite(means["loss"]):
            raise InputError(
                f"{self.name}, step {step}", f"the loss is {means['loss']}", "lower the learning rate, or set a clip"
            )
        self.progress.note(means)
        self.metrics.write(self.name, step, means)
        self.timing.log(self.name, step)
        return {"loss": means["loss"]}

    def _maybe_evaluate(self, step: int) -> None:
        every = self.config.evaluation_steps(self.train_feed.examples.size)
        if self.dev_feed is None or not (step == self.total or (every and step % every == 0)):
            return
        params = {**self.frozen, **self.state.train}
        found, _ = evaluate(
            self.program, params, self.dev_feed, self.config.evaluation_batch_size, self.place, self.evaluation_step
        )
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
        self.checkpoints.save(step, self.state, self.progress.to_json(), self.iterator)
        self.saved_best_step = self.progress.best_step

    def _result(self, step: int) -> FitResult:
        self.checkpoints.wait()
        self.best.wait()
        train, metrics = self.state.train, {"loss": self.progress.last_loss}
        if self.progress.best_step >= 0:
            best = self.best.restore(self.state.train)
            if best is None or best.step != self.progress.best_step:
                raise InputError(self.best.folder, f"the best checkpoint, step {self.progress.best_step}, is gone")
            train = best.state
            metrics |= {f"dev_{name}": value for name, value in best.meta["metrics"].items()}
            metrics["best_step"] = best.step
        fetched = {path: np.asarray(leaf) for path, leaf in fetch(train).items()}
        return FitResult(fetched, metrics, step, self.progress.seconds, self.labels)
