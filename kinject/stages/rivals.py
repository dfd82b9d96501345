"""What a practitioner would try in the place of a plugin, on the same entity vectors and labels.

A classifier on [sentence vector; entity vector]; and a classifier that names the entity by a word that the host knows
(its country's name), which is then put into the text where the entity's name stood.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kinject.data.encode import Passage
from kinject.data.records import Mention, Record
from kinject.inference.host import HostBundle
from kinject.knowledge.base import KnowledgeBase
from kinject.stages.comparison import first_entities, kinds_of
from kinject.tasks.description_matching import mean_pooled

HostRight = Callable[[Sequence[Record]], np.ndarray]
"""Records -> how right the host alone answers each, float [n]."""

WIDTHS, DECAYS, EPOCHS = (512,), (1e-4, 1.0), 60  # of the classifier's hidden layer; the development questions choose
CHOOSE_ON = 400  # development questions, evenly drawn from all, that the host is asked for each facet


@dataclass(frozen=True)
class TextAndVector:
    """Classifiers that read a sentence vector, the mean over the words of a pretrained encoder, and an entity vector.

    Attributes:
      encoder: the model that makes sentence vectors; it is not trained.
      knowledge: where entity vectors come from.
    """

    encoder: HostBundle
    knowledge: KnowledgeBase
    _read: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # sentence vectors so far, by text

    def features(self, records: Sequence[Record]) -> np.ndarray:
        """[sentence vector; entity vector] of each record, float32 [n, D + k]; each text is read once."""
        unread = list(dict.fromkeys(record.text for record in records if record.text not in self._read))
        if unread:
            made = mean_pooled(self.encoder, [Passage(text) for text in unread], None)
            self._read.update(zip(unread, made, strict=True))
        texts = np.stack([self._read[record.text] for record in records])
        return np.concatenate([texts, first_entities(self.knowledge, records)[0]], 1)

    def right(
        self, train: Sequence[Record], dev: Sequence[Record], test: Sequence[Record], seed: int
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Trains a perceptron for each setting, keeps the one that is best on development data, and asks it the test.

        Returns:
          (how right each answer is, float [n]; the setting that was kept, its number of parameters, the `seconds` of
          its training and the `milliseconds` of an answer, both from ready sentence vectors on).
        """
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        features = self.features(train)
        labels, asked = _labels(train), self.features(dev)
        best: tuple[float, Any, dict[str, Any]] | None = None
        for width in WIDTHS:
            for decay in DECAYS:
                perceptron = MLPClassifier((width,), alpha=decay, max_iter=EPOCHS, random_state=seed)
                model = make_pipeline(StandardScaler(), perceptron)
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that it has not converged: development data says when to stop
                    model.fit(features, labels)
                seconds = time.perf_counter() - started
                score = float((model.predict(asked) == _labels(dev)).mean())
                if best is None or score > best[0]:
                    chosen = {"width": width, "decay": decay, "parameters": _parameters(perceptron)}
                    best = score, model, chosen | {"seconds": round(seconds, 2)}
        assert best is not None  # there are settings
        said, milliseconds = _timed(best[1], self.features(test))
        return (said == _labels(test)).astype(float), best[2] | {"milliseconds": milliseconds}


def _timed(model: Any, features: np.ndarray) -> tuple[np.ndarray, float]:
    """What a classifier says of each row, and the milliseconds a row that it took."""
    started = time.perf_counter()
    said = model.predict(features)
    return said, 1e3 * (time.perf_counter() - started) / max(len(features), 1)


def _labels(records: Sequence[Record]) -> np.ndarray:
    return np.array([record.fields["label"] for record in records])


def _parameters(perceptron: Any) -> int:
    return sum(int(leaf.size) for leaf in (*perceptron.coefs_, *perceptron.intercepts_))


@dataclass(frozen=True)
class NameSubstituted:
    """A logistic regression on entity vectors names a facet of the entity, and that name replaces the entity's own.

    Attributes:
      knowledge: where entity vectors come from.
      host_right: the frozen host without a plugin.
    """

    knowledge: KnowledgeBase
    host_right: HostRight

    def right(
        self, train: Sequence[Record], dev: Sequence[Record], test: Sequence[Record]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Tries the answer to each kind of question as the name, and keeps the one that is best on development data.

        Args:
          train: records with their kinds, from which entities and their facets are learned.
          dev: what chooses the facet.
          test: what is asked.

        Returns:
          (how right each answer is, float [n]; the facet that was kept, the parameters of its classifier, the `seconds`
          of its training and the `milliseconds` that it adds to an answer of the host).
        """
        kinds, dev = kinds_of(train), dev[:: max(1, len(dev) // CHOOSE_ON)]
        best: tuple[float, str, Any, float] | None = None
        for facet in dict.fromkeys(kinds.tolist()):
            started = time.perf_counter()
            named = self._namer([record for record, kind in zip(train, kinds, strict=True) if kind == facet])
            if named is None:
                continue
            seconds = time.perf_counter() - started
            score = float(self.host_right(self._renamed(dev, named)).mean())
            if best is None or score > best[0]:
                best = score, facet, named, seconds
        if best is None:
            return np.zeros(len(test)), {"facet": None}
        parameters = int(best[2][-1].coef_.size + best[2][-1].intercept_.size)
        _, milliseconds = _timed(best[2], first_entities(self.knowledge, test)[0])
        chosen = {"facet": best[1], "parameters": parameters, "seconds": round(best[3], 2)}
        return self.host_right(self._renamed(test, best[2])), chosen | {"milliseconds": milliseconds}

    def _namer(self, records: Sequence[Record]) -> Any:
        """The classifier of a facet; None where there is nothing to tell apart."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        vectors, found = first_entities(self.knowledge, records)
        labels = _labels(records)[found]
        if len(set(labels.tolist())) < 2:
            return None
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(vectors[found], labels)

    def _renamed(self, records: Sequence[Record], namer: Any) -> list[Record]:
        names = namer.predict(first_entities(self.knowledge, records)[0])
        return [renamed(record, name) for record, name in zip(records, names.tolist(), strict=True)]


def renamed(record: Record, name: str) -> Record:
    """The record with another name where its first mention stands; later mentions are dropped, and text moves along."""
    if not record.mentions or not isinstance(record.source, str):
        return record
    mention = record.mentions[0]
    text = record.source[: mention.start] + name + record.source[mention.end :]
    return replace(record, source=text, mentions=(Mention(mention.start, mention.start + len(name)),))
