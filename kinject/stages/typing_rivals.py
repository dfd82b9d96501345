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
from kinject.stages.base import Stage, StageConfig
from kinject.stages.comparison import comparison_of, first_entities
from kinject.stages.rivals import renamed
from kinject.tasks.base import make_task
from kinject.tasks.description_matching import mean_pooled
from kinject.tasks.entity_typing import EntityTyping, mention_vectors

DECAYS, ITERATIONS = (3.0, 10.0, 30.0), 100  # of a classifier; development data choose the decay
Readings = dict[str, np.ndarray]


class TypingRivalsConfig(StageConfig):
    """Which records train, which choose, and which are scored.

    `task` and `task_options` are those of the typing task. `encoder` is the pretrained model whose vectors classifiers
    read; a mention's is the mean over its pieces after `layer` layers. `host` is the fine-tuned one that reads a named
    type in the mention's place.
    """

    kind: Literal["typing_rivals"] = "typing_rivals"
    host: str
    encoder: str
    layer: int = Field(ge=0)
    task: str
    task_options: dict[str, Any] = {}
    max_length: int | None = None
    batch_size: int = Field(100, ge=1)
    compute_dtype: Precision = "float32"
    knowledge: str
    data: tuple[str, ...] = Field(min_length=1)
    dev_data: tuple[str, ...] = Field(min_length=1)
    test_data: tuple[str, ...] = Field(min_length=1)


class TypingRivalsStage(Stage):
    """Trains and scores them."""

    Config = TypingRivalsConfig
    config: TypingRivalsConfig

    def check(self) -> None:
        super().check()
        for reference in self.config.test_data:
            self.run.check(reference, f"{self.where}.test_data")
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
        read = [readings(encoder, knowledge, part, config.layer, config.max_length) for part in (train, dev, test)]
        rows: dict[str, Any] = {"n": len(test), "metric": task.metric}
        settings = {}
        rows["majority"] = f1(task, np.repeat(most_frequent(types[0])[None], len(test), 0), types[2])
        nearest = nearest_rows(read[0]["vector"], read[2]["vector"])
        rows["nearest_neighbour"] = f1(task, types[0][nearest], types[2])
        for row, parts in CLASSIFIERS.items():
            features = [np.concatenate([one[part] for part in parts], 1) for one in read]
            found = choose(task, features, types, self.run.seed)
            rows[row] = f1(task, chosen(found.test), types[2])
            settings[row] = {"decay": found.decay, "parameters": found.parameters}
            if row == NAMED_BY:
                named = [retold(one, task.names[best]) for one, best in zip(test, found.test.argmax(1), strict=True)]
                rows["name_substituted"] = comparison.host_alone(named, knowledge)[0][task.metric]
        return {"types": {**rows, "settings": settings}}


CLASSIFIERS: dict[str, tuple[str, ...]] = {
    "classifier_vector": ("vector",),
    "classifier_mention": ("mention",),
    "classifier_mention_vector": ("mention", "vector"),
    "classifier_sentence_vector": ("sentence", "vector"),
}
NAMED_BY = "classifier_vector"


def readings(
    encoder: HostBundle, knowledge: KnowledgeBase, records: Sequence[Record], layer: int, max_length: int | None
) -> Readings:
    """What classifiers read of each record: `sentence` and `mention` float32 [n, D], `vector` float32 [n, k]."""
    texts = [Passage(one.source, where=one.where) for one in records]
    marked = [Passage(one.source, (plain(one),), where=one.where) for one in records]
    return {
        "sentence": mean_pooled(encoder, texts, max_length),
        "mention": mention_vectors(encoder, marked, layer, max_length),
        "vector": first_entities(knowledge, records)[0].astype(np.float32),
    }


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


def choose(task: EntityTyping, features: Sequence[np.ndarray], types: Sequence[np.ndarray], seed: int) -> Chosen:
    """Trains a logistic regression a decay, keeps the best one on development data.

    Args:
      task: scores them.
      features: of training, development and test data, float [n, D].
      types: likewise, float [n, types].
      seed: where the regression starts.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    best: tuple[float, Chosen] | None = None
    for decay in DECAYS:
        # without a hidden layer it is a logistic regression of all types at once
        linear = MLPClassifier((), alpha=decay, solver="lbfgs", max_iter=ITERATIONS, random_state=seed)
        model = make_pipeline(StandardScaler(), linear)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: development data choose
            model.fit(features[0], types[0])
        score = f1(task, chosen(model.predict_proba(features[1])), types[1])
        if best is None or score > best[0]:
            size = sum(int(leaf.size) for leaf in (*linear.coefs_, *linear.intercepts_))
            best = score, Chosen(decay, size, model.predict_proba(features[2]))
    assert best is not None  # there are decays
    return best[1]


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
