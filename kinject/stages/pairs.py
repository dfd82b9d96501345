"""Stage `pairs`: questions about two entities, scored by two that differ in one of them: both right or not.

Records have two mentions, `kind` and `block`: in a block, questions that share an entity in the same place have
different answers (see kinject/data/sources/geonames_pairs.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from pydantic import Field

from kinject.data.encode import Passage
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.models.precision import Precision
from kinject.stages.base import Stage, check_plugin, open_plugin
from kinject.stages.comparison import AskingConfig, comparison_of, kinds_of
from kinject.tasks.description_matching import mean_pooled

BLOCK = "block"
HIDDEN, DECAY, EPOCHS = 512, 1.0, 60  # of the classifier's perceptron


class PairsConfig(AskingConfig):
    """What is asked, through which plugins.

    `plugins` maps a row's name to a plugin's folder; the first is also run with a wrong vector in the first place, in
    the second or in both, and with one of both entities alone.
    `told_data` are the same questions with known words before the names, for the host alone. With `reference_data` and
    `encoder` there are a nearest neighbour on both vectors and a classifier on [sentence vector; both vectors].
    """

    kind: Literal["pairs"] = "pairs"
    compute_dtype: Precision = "float32"
    knowledge: str
    data: tuple[str, ...] = Field(min_length=1)
    told_data: tuple[str, ...] = ()
    reference_data: tuple[str, ...] = ()
    encoder: str | None = None
    plugins: dict[str, str] = Field(min_length=1)


class PairsStage(Stage[PairsConfig]):
    """Compares."""

    everywhere = True

    def check(self) -> None:
        super().check()
        for row, reference in self.config.plugins.items():
            check_plugin(self.run, reference, f"{self.where}.plugins.{row}")

    def execute(self) -> dict[str, Any]:
        config, where = self.config, self.where
        comparison = comparison_of(self.run, config, config.host, where, f"{where}.host", config.compute_dtype)
        knowledge = self.run.knowledge(config.knowledge, f"{where}.knowledge")
        required = comparison.task.required
        records = self.run.records(config.data, required, f"{where}.data")
        pairs = pairs_of(records)
        right = {"host": _right(comparison.host_alone(records, knowledge)[1])}
        for row, reference in config.plugins.items():
            plugin = open_plugin(self.run, reference, comparison.host, knowledge, f"{where}.plugins.{row}")
            right[row] = _right(comparison.with_plugin(plugin, knowledge, records)[1])
            if len(right) == 2:
                for name, asked in controls(records, self.run.seed_of(self.name)).items():
                    right[name] = _right(comparison.with_plugin(plugin, knowledge, asked)[1])
        if config.told_data:
            told = self.run.records(config.told_data, required, f"{where}.told_data")
            right["told"] = _right(comparison.host_alone(told, knowledge)[1])
        if config.reference_data and config.encoder is not None:
            train = self.run.records(config.reference_data, required, f"{where}.reference_data")
            encoder = open_host(self.run.model(config.encoder, f"{where}.encoder"), head="none")
            texts = [
                mean_pooled(encoder, [Passage(one.text) for one in part], config.max_length)
                for part in (train, records)
            ]
            right |= self._rivals(knowledge, train, records, texts)
        found = {
            row: {"accuracy": float(values.mean()), "both_right": both_right(values, pairs)}
            for row, values in right.items()
        }
        rows = ", ".join(f"{row} {100 * told['both_right']:.1f}" for row, told in found.items())
        self.run.reporter.say(f"{self.name}: {len(pairs)} pairs of questions, both right, %: {rows}")
        return {"n": len(records), "pairs": len(pairs), "rows": found, "kinds": by_kind(records, pairs, right)}

    def _rivals(
        self, knowledge: KnowledgeBase, train: Sequence[Record], test: Sequence[Record], texts: Sequence[np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A nearest neighbour of the same kind of question, and a perceptron that reads everything."""
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        vectors, asked = both_vectors(knowledge, train), both_vectors(knowledge, test)
        labels, answers = _labels(train), _labels(test)
        of_train, of_test = kinds_of(train), kinds_of(test)
        nearest = np.zeros(len(test))
        for kind in np.unique(of_test):
            known, here = of_train == kind, of_test == kind
            if known.any():
                said = KNeighborsClassifier(1).fit(vectors[known], labels[known]).predict(asked[here])
                nearest[here] = said == answers[here]
        perceptron = MLPClassifier((HIDDEN,), alpha=DECAY, max_iter=EPOCHS, random_state=self.run.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged after so many epochs
            model = make_pipeline(StandardScaler(), perceptron).fit(np.concatenate([texts[0], vectors], 1), labels)
        said = model.predict(np.concatenate([texts[1], asked], 1))
        return {"nearest_neighbour": nearest, "classifier": (said == answers).astype(float)}


def pairs_of(records: Sequence[Record]) -> list[tuple[int, int]]:
    """The questions of a block that differ in exactly one entity, two and two.

    Raises:
      InputError: a record without a block or two linked mentions, or two such questions with the same answer.
    """
    blocks: dict[tuple[Any, str], list[int]] = {}
    for at, record in enumerate(records):
        if len(entities(record)) != 2 or None in entities(record):
            raise InputError(record.where, "field mentions has not two linked entities", "a pair is asked about two")
        if BLOCK not in record.fields:
            raise InputError(record.where, f"field {BLOCK!r} is missing", "number the blocks of questions")
        blocks.setdefault((record.fields[BLOCK], record.where.rpartition(":")[0]), []).append(at)
    found = []
    for block in blocks.values():
        for one, other in combinations(block, 2):
            if sum(a == b for a, b in zip(entities(records[one]), entities(records[other]), strict=True)) == 1:
                if records[one].fields["label"] == records[other].fields["label"]:
                    problem = f"field label is that of {records[one].where}, which differs in one entity"
                    raise InputError(records[other].where, problem, "such questions have different answers")
                found.append((one, other))
    if not found:
        raise InputError(records[0].where, "no two questions of a block differ in one entity", "see docs/pairs.md")
    return found


def entities(record: Record) -> tuple[str | None, ...]:
    """The ids of a record's mentions, in their order."""
    return tuple(mention.entity for mention in record.mentions)


def controls(records: Sequence[Record], seed: int) -> dict[str, list[Record]]:
    """The questions with what a plugin that compares two vectors must fall with.

    Returns:
      `wrong_x`, `wrong_y`, `wrong_both`: another entity in the first place, in the second, in both. `x_alone`,
      `y_alone`: the other place is not linked, and so has no vector.
    """
    wrong = {"wrong_x": (0,), "wrong_y": (1,), "wrong_both": (0, 1)}
    alone = {"x_alone": 1, "y_alone": 0}
    return {name: wrong_vectors(records, places, seed) for name, places in wrong.items()} | {
        name: [_unlinked(record, place) for record in records] for name, place in alone.items()
    }


def wrong_vectors(records: Sequence[Record], places: Sequence[int], seed: int) -> list[Record]:
    """The questions with another entity in these places, for an entity in a place of a block always the same."""
    draw = np.random.default_rng([seed, *places])
    pool = sorted({one for record in records for one in entities(record) if one is not None})
    stand_in: dict[tuple[Any, int, str | None], str] = {}
    found = []
    for record in records:
        mentions = list(record.mentions)
        for place in places:
            key = (record.fields[BLOCK], place, mentions[place].entity)
            if key not in stand_in:
                others = [one for one in pool if one not in entities(record)]
                stand_in[key] = others[draw.integers(len(others))]
            mentions[place] = replace(mentions[place], entity=stand_in[key])
        found.append(replace(record, mentions=tuple(mentions)))
    return found


def _unlinked(record: Record, place: int) -> Record:
    mentions = list(record.mentions)
    mentions[place] = replace(mentions[place], entity=None)
    return replace(record, mentions=tuple(mentions))


def both_vectors(knowledge: KnowledgeBase, records: Sequence[Record]) -> np.ndarray:
    """The vectors of both entities of each record: float32 [n, 2 k], zeros where there is none."""
    ids = [one or "" for record in records for one in entities(record)]
    vectors, _ = knowledge.gather(knowledge.rows(ids))
    return np.asarray(vectors, np.float32).reshape(len(records), -1)


def both_right(right: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """In what share of the pairs both answers are right."""
    return float(np.mean([right[one] * right[other] for one, other in pairs]))


def by_kind(
    records: Sequence[Record], pairs: Sequence[tuple[int, int]], right: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """{kind: {"pairs": how many, row: both right, …}}."""
    kinds = kinds_of(records)
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds.tolist()):
        here = [pair for pair in pairs if kinds[pair[0]] == kind]
        found[kind] = {"pairs": len(here)} | {row: both_right(values, here) for row, values in right.items() if here}
    return found


def _labels(records: Sequence[Record]) -> np.ndarray:
    return np.array([record.fields["label"] for record in records])


def _right(predictions: dict[str, np.ndarray]) -> np.ndarray:
    return (predictions["predicted"] == predictions["label"]).astype(float)
