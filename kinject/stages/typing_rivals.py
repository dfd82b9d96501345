"""Stage `typing_rivals`: what one would try on mentions with several types before any plugin, on the same records.

Look-ups and linear classifiers on a pretrained encoder's vectors and on entity vectors; and the type that such a
classifier names, put into the text where the mention stood, for a frozen host to read.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kinject.data.encode import Mention, Passage
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import HostBundle, open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import Precision
from kinject.stages.base import Stage
from kinject.stages.comparison import AskingConfig, comparison_of, first_entities
from kinject.stages.rivals import renamed
from kinject.tasks.base import make_task
from kinject.tasks.entity_typing import EntityTyping, read_mentions

DECAYS, ITERATIONS = (3.0, 10.0, 30.0), 100  # of a classifier; development data choose the decay
Readings = dict[str, np.ndarray]


class TypingRivalsConfig(AskingConfig):
    """Which records train, which choose, and which are scored.

    `task` and `task_options` are those of the typing task. `encoder` is the pretrained model whose vectors classifiers
    read; a mention's is the mean over its pieces after `layer` layers. `host` is the fine-tuned one that reads a named
    type in the mention's place. With `keep_dev`, what development data chose is then trained on them too, as a host may
    be; not where they are scored. The rows are told as those of `domain`.
    """

    kind: Literal["typing_rivals"] = "typing_rivals"
    encoder: str
    layer: int = Field(ge=0)
    compute_dtype: Precision = "float32"
    knowledge: str
    data: tuple[str, ...] = Field(min_length=1)
    dev_data: tuple[str, ...] = Field(min_length=1)
    test_data: tuple[str, ...] = Field(min_length=1)
    keep_dev: bool = False
    domain: str = "types"


class TypingRivalsStage(Stage[TypingRivalsConfig]):
    """Trains and scores them."""

    def check(self) -> None:
        super().check()
        task = make_task(self.config.task, f"{self.where}.task", **self.config.task_options)
        if not isinstance(task, EntityTyping):
            raise InputError(
                f"{self.where}.task", f"{self.config.task} has not several types a mention", "name a typing task"
            )

    def execute(self) -> dict[str, Any]:
        config, where = self.config, self.where
        comparison = comparison_of(self.run, config, config.host, where, f"{where}.host", config.compute_dtype)
        task = comparison.task
        assert isinstance(task, EntityTyping)  # `check` says so
        knowledge = self.run.knowledge(config.knowledge, f"{where}.knowledge")
        encoder = open_host(self.run.model(config.encoder, f"{where}.encoder"), head="none")
        files = {"data": config.data, "dev_data": config.dev_data, "test_data": config.test_data}
        train, dev, test = (self.run.records(given, task.required, f"{where}.{name}") for name, given in files.items())
        types = [task.type_rows(part) for part in (train, dev, test)]
        read = readings(encoder, knowledge, (train, dev, test), config.layer, config.max_length)
        rows: dict[str, Any] = {"n": len(test), "metric": task.metric}
        settings = {}
        seen = 2 if config.keep_dev else 1  # how many of the three parts the rows may learn from
        known = np.concatenate(types[:seen])
        rows["majority"] = f1(task, np.repeat(most_frequent(known)[None], len(test), 0), types[2])
        nearest = nearest_rows(np.concatenate([one["vector"] for one in read[:seen]]), read[2]["vector"])
        rows["nearest_neighbour"] = f1(task, known[nearest], types[2])
        for row, parts in CLASSIFIERS.items():
            features = [np.concatenate([one[part] for part in parts], 1) for one in read]
            found = choose(task, features, types, self.run.seed, config.keep_dev)
            rows[row] = f1(task, chosen(found.test), types[2])
            settings[row] = {"decay": found.decay, "parameters": found.parameters}
            if row == NAMED_BY:
                named = [retold(one, task.names[best]) for one, best in zip(test, found.test.argmax(1), strict=True)]
                rows["name_substituted"] = comparison.host_alone(named, knowledge)[0][task.metric]
        return {config.domain: {**rows, "settings": settings}}


CLASSIFIERS: dict[str, tuple[str, ...]] = {
    "classifier_vector": ("vector",),
    "classifier_mention": ("mention",),
    "classifier_mention_vector": ("mention", "vector"),
    "classifier_sentence_vector": ("sentence", "vector"),
}
NAMED_BY = "classifier_vector"


def readings(
    encoder: HostBundle, knowledge: KnowledgeBase, parts: Sequence[Sequence[Record]], layer: int, max_length: int | None
) -> list[Readings]:
    """What classifiers read of each part: `sentence` and `mention` float32 [n, D], `vector` float32 [n, k]."""
    records = [one for part in parts for one in part]
    read = read_mentions(
        encoder, [Passage(one.source, (plain(one),), where=one.where) for one in records], layer, max_length
    )
    vectors = first_entities(knowledge, records)[0].astype(np.float32)
    every = {**read._asdict(), "vector": vectors}
    ends = np.cumsum([len(part) for part in parts])[:-1]
    split = {name: np.split(values, ends) for name, values in every.items()}
    return [{name: split[name][number] for name in split} for number in range(len(parts))]


def plain(record: Record) -> Mention:
    """Where a record's mention stands, without entity and markers."""
    return Mention(record.mentions[0].start, record.mentions[0].end)


def most_frequent(types: np.ndarray) -> np.ndarray:
    """The set of types that most rows of float [n, types] have, float [types]."""
    return np.array(Counter(map(tuple, types.tolist())).most_common(1)[0][0])


def nearest_rows(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """For each of some vectors the nearest known one's row, int [n]."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(known).kneighbors(asked, return_distance=False)[:, 0]


@dataclass(frozen=True)
class Chosen:
    """The classifier that development data chose: its decay, its number of parameters, its probabilities [n, types]."""

    decay: float
    parameters: int
    test: np.ndarray


def choose(
    task: EntityTyping, features: Sequence[np.ndarray], types: Sequence[np.ndarray], seed: int, keep_dev: bool = False
) -> Chosen:
    """Trains a logistic regression a decay, keeps the best one on development data.

    Args:
      task: scores them.
      features: of training, development and test data, float [n, D].
      types: likewise, float [n, types].
      seed: where the regression starts.
      keep_dev: train with the decay that was chosen once more, on both.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def trained(decay: float, parts: int) -> Any:
        # without a hidden layer it is a logistic regression of all types at once
        linear = MLPClassifier((), alpha=decay, solver="lbfgs", max_iter=ITERATIONS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: development data choose
            model = make_pipeline(StandardScaler(), linear)
            return model.fit(np.concatenate(features[:parts]), np.concatenate(types[:parts]))

    tried = {decay: trained(decay, 1) for decay in DECAYS}
    scores = {decay: f1(task, chosen(one.predict_proba(features[1])), types[1]) for decay, one in tried.items()}
    best = max(DECAYS, key=lambda decay: scores[decay])
    model = trained(best, 2) if keep_dev else tried[best]
    linear = model[-1]
    size = sum(int(leaf.size) for leaf in (*linear.coefs_, *linear.intercepts_))
    return Chosen(best, size, model.predict_proba(features[2]))


def chosen(probabilities: np.ndarray) -> np.ndarray:
    """Which types are predicted of probabilities [n, types]: those above one half, and the likeliest."""
    return (probabilities > 0.5) | (probabilities == probabilities.max(1, keepdims=True))


def f1(task: EntityTyping, predicted: np.ndarray, right: np.ndarray) -> float:
    """The task's metric of predicted types, [n, types]."""
    return task.score({"chosen": predicted > 0.5, "right": right > 0.5})[task.metric]


def retold(record: Record, name: str) -> Record:
    """The record with another name where its mention stands, not linked to anything."""
    if isinstance(record.source, str):
        return renamed(record, name)
    mention, words = record.mentions[0], tuple(name.split())
    tokens = (*record.source[: mention.start], *words, *record.source[mention.end :])
    return replace(record, source=tokens, mentions=(Mention(mention.start, mention.start + len(words)),))
