"""Few-shot relation classification: which of N relations, each shown by K sentences, does a sentence state.

FewRel in the paper (section 4.1), scored by pairs (Gao et al. 2019): `[CLS] query [SEP] support [SEP]` with markers and
slots around heads and tails, a linear score on the pooler's output, the mean over a class's K shots as its logit,
softmax cross-entropy over the N classes, accuracy. An example is one query with its N * K pairs, so a batch of B
examples is one program over B * N * K rows, of however many episodes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kinject.data.encode import EntityEncoder, Passage
from kinject.data.pipeline import Batch, Examples, Parts, even, make_examples
from kinject.datasets.leaderboard import read_questions
from kinject.errors import InputError
from kinject.tasks.base import Extent, Shapes, Task, flat_rows, register_task
from kinject.tasks.episodes import Episode, PairTable, Setting, check_pool, draw_episode
from kinject.tasks.fields import HEAD_MARKER, TAIL_MARKER, marked, unique_ids
from kinject.tasks.marked_texts import pooled_scores
from kinject.tasks.protocol import Thunlp, protocol_named

if TYPE_CHECKING:
    from pathlib import Path

    from kinject.data.records import Record
    from kinject.knowledge.base import KnowledgeBase
    from kinject.models.heads import HostModel
    from kinject.models.seams import Plugin

EVALUATION_CLASSES = 1000  # the authors measure 200 episodes of 5 ways, 100 of 10: N * episodes is 1000


@register_task("few_shot_relations")
class FewShotRelations(Task):
    """Records need two mentions, head and tail, and `label`, the relation; their order in the file counts.

    Both protocols draw the same episodes (see `kinject.tasks.episodes`). With "thunlp", training goes through them in
    order: `batch_size` = episodes a step * n_way * queries, and `fit.buckets` must be 1; by ours the queries of all
    episodes are shuffled, each with the support of its own. The authors add up the losses of a step where we take the
    mean; under Adam that only multiplies its epsilon. For the rest see `kinject.tasks.protocol`.

    Args:
      n_way, k_shot, queries: N classes, K shots, Q queries a class.
      episodes: how many are drawn for training, with the seeds `first_seed`, `first_seed + 1`, ….
      first_seed: see above; the authors start at 10000 in task-specific map-tuning.
      evaluation_episodes: how many development and test data give, from seed 0 on; None = 1000 // n_way, the paper's.
      protocol: "thunlp" or "kinject".
    """

    head = "pair_score"
    required = ("label",)

    def __init__(
        self,
        n_way: int = 5,
        k_shot: int = 1,
        queries: int = 5,
        episodes: int = 3000,
        first_seed: int = 0,
        evaluation_episodes: int | None = None,
        protocol: str = "kinject",
    ):
        self.setting = Setting(n_way, k_shot, queries)
        evaluated = max(EVALUATION_CLASSES // n_way, 1) if evaluation_episodes is None else evaluation_episodes
        for name, value, least in (
            ("episodes", episodes, 1),
            ("first_seed", first_seed, 0),
            ("evaluation_episodes", evaluated, 1),
        ):
            if type(value) is not int or value < least:
                raise InputError(f"task_options.{name}", f"it must be a whole number from {least}, got {value!r}")
        self.seeds = range(first_seed, first_seed + episodes)
        self.evaluation_seeds = range(evaluated)
        self.protocol = protocol_named(protocol)

    def for_evaluation(self) -> Task:
        task = copy.copy(self)
        task.seeds = self.evaluation_seeds
        return task

    def episodes(self, records: Sequence[Record]) -> list[Episode]:
        """Returns the episodes over some records.

        Raises:
          InputError: a label that is no string, relations or sentences too few.
        """
        sizes = {relation: len(members) for relation, members in _by_relation(records).items()}
        check_pool(sizes, self.setting, records[0].where if records else "data set")
        return [draw_episode(sizes, self.setting, seed) for seed in self.seeds]

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        records = list(records)
        unique_ids(records)
        relations = _by_relation(records)
        queries, supports, labels = [], [], []
        for episode in self.episodes(records):
            members = [relations[relation] for relation in episode.classes]
            shown = [[own[i] for i in kept] for own, kept in zip(members, episode.supports, strict=True)]
            for number, (own, asked) in enumerate(zip(members, episode.queries, strict=True)):
                queries += [own[i] for i in asked]
                supports += [shown] * len(asked)
                labels += [number] * len(asked)
        used, numbers = np.unique(np.concatenate([np.ravel(queries), np.ravel(supports)]), return_inverse=True)
        chosen, shots = [records[i] for i in used], numbers[len(queries) :].reshape(np.shape(supports))
        return self._pairs(
            chosen, numbers[: len(queries)], shots, np.array(labels, np.int32), encoder, knowledge, buckets
        )

    def questions(
        self, file: str | Path, encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """Examples of a leaderboard's file: `[{"meta_train": N lists of K instances, "meta_test": instance}, …]`.

        Nobody knows their labels: `labels` is 0 everywhere, and only the prediction `chosen` means something; see
        `kinject.datasets.leaderboard.write_predictions`.

        Raises:
          InputError: a malformed file, naming the question and the field.
        """
        records, queries, supports = read_questions(file)
        labels = np.zeros(len(queries), np.int32)
        return self._pairs(records, queries, supports, labels, encoder, knowledge, buckets)

    def _pairs(
        self,
        records: Sequence[Record],
        queries: np.ndarray,
        supports: np.ndarray,
        labels: np.ndarray,
        encoder: EntityEncoder,
        knowledge: KnowledgeBase | None,
        buckets: int,
    ) -> Examples:
        """Examples of queries int [n] and supports int [n, N, K], numbers of records, and labels int32 [n]."""
        markers = (HEAD_MARKER, TAIL_MARKER)
        passages = [Passage(self.protocol.text(one.source), marked(one, markers), where=one.where) for one in records]
        table = PairTable(passages, encoder, knowledge, self.protocol)
        asked = np.broadcast_to(queries[:, None, None], supports.shape)
        table.shorten(asked, supports)

        def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
            del length
            return {
                "queries": asked[index],
                "supports": supports[index],
                "entity_ids": table.entity_ids(asked[index], supports[index]),
                "labels": labels[index],
            }

        def complete(batch: Batch, length: int) -> Batch:
            kept = {name: values for name, values in batch.items() if name not in ("queries", "supports")}
            return {**kept, **table.compose(batch["queries"], batch["supports"], length)}

        lengths = table.lengths_of(asked, supports).max((1, 2))
        made = make_examples(lengths, arrays, buckets=buckets)
        pairs = partial(_pairs_of, lengths_of=table.lengths_of, buckets=buckets)
        parts = Parts(supports[0].size, make=pairs, join=self._joined)
        return replace(made, complete=complete, parts=parts, ordered=isinstance(self.protocol, Thunlp))

    def part(self) -> Task:
        return PairScores()

    def _joined(self, predictions: Mapping[str, np.ndarray], examples: Examples) -> tuple[float, dict[str, np.ndarray]]:
        """Mean loss and predictions of queries, from the scores of their pairs."""
        shape = examples.buckets[0]["supports"].shape[1:]
        outputs = jnp.asarray(predictions["pair_score"]).reshape(-1, *shape).mean(-1)
        weights = np.ones(len(outputs), np.float32)
        batch = {"labels": jnp.asarray(examples.in_order("labels")), "weights": jnp.asarray(weights)}
        found = {name: np.asarray(values) for name, values in self.predict(outputs, batch).items()}
        return float(self.loss(outputs, batch)[0].mean()), found

    def rows(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return flat_rows(batch)

    def batch_shapes(self, extent: Extent) -> Shapes:
        return {**extent.tokens(self.setting.n_way, self.setting.k_shot), "labels": extent.whole()}

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """Class logits float32 [B, N] of a batch whose arrays are [B, N, K, …]."""
        scores = pooled_scores(host, plugin, self.rows(batch), key, start)
        return scores.reshape(batch["token_ids"].shape[:-1]).mean(-1)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch["labels"]), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"chosen": outputs.argmax(-1), "right": batch["labels"], "logits": outputs}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy over all queries, which is the micro-F1 that the authors report."""
        return {"accuracy": float((predictions["chosen"] == predictions["right"]).mean())}


class PairScores(Task):
    """What an evaluation step computes of few-shot examples: the score of each pair of texts by itself.

    A query's N * K pairs differ in length. Side by side they are padded to the longest; on their own, pairs of like
    lengths share a batch, whichever query they are of.
    """

    head = FewShotRelations.head

    def examples(
        self, records: Sequence[Record], encoder: EntityEncoder, knowledge: KnowledgeBase | None, *, buckets: int = 3
    ) -> Examples:
        """Not supported: pairs come from `FewShotRelations`.

        Raises:
          InputError: always.
        """
        raise self.not_served()

    def outputs(
        self,
        host: HostModel,
        plugin: Plugin | None,
        batch: Mapping[str, jax.Array],
        key: jax.Array | None = None,
        start: int = 0,
    ) -> jax.Array:
        """Scores float32 [B]."""
        return pooled_scores(host, plugin, batch, key, start)[:, 0]

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Nothing: only the pairs of a query together have a loss."""
        return jnp.zeros_like(outputs), batch["weights"]

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        del batch
        return {"pair_score": outputs}

    def score(self, predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Nothing, as `loss`."""
        del predictions
        return {}


def _pairs_of(
    examples: Examples, rows: int, *, lengths_of: Callable[[np.ndarray, np.ndarray], np.ndarray], buckets: int
) -> Examples:
    """The pairs of queries as examples of their own, in batches of `rows` of like lengths."""
    names = ("queries", "supports", "entity_ids")
    pairs = {name: examples.in_order(name) for name in names}
    axes, count = pairs["supports"].ndim, pairs["supports"].size
    pairs = {name: values.reshape(count, *values.shape[axes:]) for name, values in pairs.items()}
    lengths = even(lengths_of(pairs["queries"], pairs["supports"]), rows)

    def arrays(index: Sequence[int], length: int) -> Mapping[str, np.ndarray]:
        del length
        return {name: values[index] for name, values in pairs.items()}

    return replace(make_examples(lengths, arrays, buckets=buckets), complete=examples.complete)


def _by_relation(records: Sequence[Record]) -> dict[str, list[int]]:
    """Numbers of the records of each relation, in the order of the file."""
    found: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        label = record.fields["label"]
        if not isinstance(label, str) or not label:
            raise InputError(record.where, f"field label is {label!r}", "it must be the name of the relation")
        found.setdefault(label, []).append(number)
    return found
