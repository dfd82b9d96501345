"""Stage `propagation`: the host is fine-tuned on one definition, asked about that entity, and reset; then the next one.

Onoe et al., ACL 2023, their arm "FT". A definition is learned by its own blank, `definition_blank` and
`definition_answer` of the probes, whose pieces are asked for as `kinject.tasks.pseudo_likelihood` asks for answers.
Specificity: after each definition the same questions about other entities are asked, and a mean is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from kinject.data.pipeline import Examples, Feed
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import HostBundle, open_host, record_of
from kinject.inference.program import make_evaluation_step, split_program
from kinject.models.precision import activations
from kinject.stages.base import Rules, Stage, StageConfig
from kinject.tasks.base import make_task
from kinject.tasks.pseudo_likelihood import PseudoLikelihood
from kinject.training.config import OptimizerConfig
from kinject.training.partition import label_parameters, split
from kinject.training.step import initial_state, make_optimizer, make_train_step
from kinject.tree import Flat

BLANK, ANSWER = "definition_blank", "definition_answer"
OPTIMIZER = {"name": "adamw", "learning_rate": 5e-4}
Predictions = dict[str, np.ndarray]


class PropagationConfig(StageConfig):
    """Which host learns, and how long: `steps` on each definition, a batch is all pieces of its answer.

    `task` is `entity_inferences` or `ecbd`; `specificity` are probes of entities that nothing is told about. The
    release's: 20 epochs at 5e-4 of the last block for Entity Inferences, 10 at 1e-5 of all for ECBD (T5-large).
    """

    kind: Literal["propagation"] = "propagation"
    host: str
    task: str = "entity_inferences"
    task_options: dict[str, Any] = {}
    data: tuple[str, ...] = Field(min_length=1)
    specificity: tuple[str, ...] = ()
    steps: int = Field(20, ge=1)
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig.model_validate(OPTIMIZER))
    train: Rules = (("host/.*", "train"),)
    batch_size: int = Field(64, ge=1)


class PropagationStage(Stage[PropagationConfig]):
    """Tells a host one thing at a time."""

    def execute(self) -> dict[str, Any]:
        config = self.config
        task = make_task(config.task, f"{self.where}.task", **config.task_options)
        if not isinstance(task, PseudoLikelihood):
            problem = f"{config.task} does not ask for the pieces of an answer"
            raise InputError(f"{self.where}.task", problem, "choose entity_inferences or ecbd")
        host = open_host(
            self.run.model(config.host, f"{self.where}.host"), head=task.head, dtype=activations("float32")
        )
        records = self.run.records(config.data, (*task.required, BLANK, ANSWER), f"{self.where}.data")
        elsewhere: list[Record] = []
        if config.specificity:
            elsewhere = self.run.records(config.specificity, task.required, f"{self.where}.specificity")
        told = dict.fromkeys((record.fields[BLANK], record.fields[ANSWER]) for record in records)
        learn = Learning(host, task, config, list(told), f"{self.where}.train")
        probes = Questioned(learn.evaluate, task, host, records, config.batch_size)
        others = Questioned(learn.evaluate, task, host, elsewhere, config.batch_size) if elsewhere else None
        found: dict[str, Any] = {"n": len(records), "metric": task.metric, "definitions": len(told)}
        found["host"] = task.score(probes(learn.start))
        parts: list[Predictions] = []
        apart: list[dict[str, float]] = []
        for number, (definition, params) in enumerate(learn()):
            its = [i for i, one in enumerate(records) if (one.fields[BLANK], one.fields[ANSWER]) == definition]
            parts.append(probes(params, its))
            if others is not None:
                apart.append(task.score(others(params)))
            if number == 0 or (number + 1) % 20 == 0:
                self.run.reporter.say(f"{self.name}: {number + 1} of {len(told)} definitions")
        found["fine_tuned"] = task.score({name: np.concatenate([one[name] for one in parts]) for name in parts[0]})
        if others is not None:
            mean = {name: float(np.mean([one[name] for one in apart])) for name in apart[0]}
            found["specificity"] = {"n": len(elsewhere), "host": task.score(others(learn.start)), "fine_tuned": mean}
        return found


class Learning:
    """Definitions, learned one after the other from the same start.

    Attributes:
      start: the host's parameters, flat.
      evaluate: the compiled (params, batch) -> the task's predictions.
    """

    def __init__(
        self,
        host: HostBundle,
        task: PseudoLikelihood,
        config: PropagationConfig,
        told: Sequence[tuple[str, str]],
        where: str,
    ):
        program, self.start = split_program(host.loaded.host, None, task)
        self.evaluate = make_evaluation_step(program)
        self._labels = label_parameters(self.start, config.train, where)
        self._optimizer = make_optimizer(config.optimizer, self._labels, config.steps)
        self._step = make_train_step(program, self._optimizer, self._labels, seed=0, dropout=False)
        self._steps, self._told = config.steps, told
        blanks = [Record(text, (), {"label": answer}, f"definition {text!r}") for text, answer in told]
        self._examples = PseudoLikelihood(task.masking).examples(blanks, host.encoder(None), None, buckets=1)
        _, rows = np.unique(record_of(self._examples, blanks), return_counts=True)
        self._rows = int(np.max(rows))  # every definition's batch has as many: one program

    def __call__(self) -> Iterator[tuple[tuple[str, str], Flat]]:
        """Yields each definition, and the parameters after it was learned."""
        train, frozen = split(self.start, self._labels)
        of = np.asarray(self._examples.record_index)
        for number, definition in enumerate(self._told):
            (batch,) = batches(self._examples, np.flatnonzero(of == number), self._rows)
            state = initial_state(
                jax.tree.map(jnp.array, train), self._optimizer, self._labels
            )  # a copy: it is donated
            for _ in range(self._steps):
                state, _ = self._step(state, frozen, batch)
            yield definition, {**frozen, **state.train}


class Questioned:
    """Probes, made into batches once and asked of any parameters."""

    def __init__(
        self,
        evaluate: Callable[[Flat, Mapping[str, jax.Array]], dict[str, jax.Array]],
        task: PseudoLikelihood,
        host: HostBundle,
        records: Sequence[Record],
        batch_size: int,
    ):
        self._evaluate, self._size = evaluate, batch_size
        self._examples = task.examples(records, host.encoder(None), None, buckets=1)
        self._of = record_of(self._examples, records)

    def __call__(self, params: Flat, which: Sequence[int] | None = None) -> Predictions:
        """The predictions for all records, or for those of these numbers."""
        chosen = np.arange(len(self._of)) if which is None else np.flatnonzero(np.isin(self._of, which))
        parts: list[Predictions] = []
        for batch in batches(self._examples, chosen, self._size):
            real = np.asarray(batch["weights"]) > 0
            found = self._evaluate(params, batch)
            kept = {name: values for name, values in found.items() if not name.startswith("loss")}
            parts.append({name: np.asarray(values)[real] for name, values in kept.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def batches(examples: Examples, chosen: np.ndarray, size: int) -> Iterator[dict[str, jax.Array]]:
    """The chosen examples (int [n]) of a single bucket in batches of `size`; the last is filled up with weight 0."""
    feed = Feed(examples)
    index = examples.buckets[0]["index"]
    places = np.flatnonzero(np.isin(index, chosen))
    for start in range(0, len(places), size):
        rows = places[start : start + size]
        batch = feed.batch(0, np.pad(rows, (0, size - len(rows)), mode="edge"))
        batch["weights"] = batch["weights"] * (np.arange(size) < len(rows))
        yield {name: jnp.asarray(values) for name, values in batch.items()}
