"""What a task serves is what it scores: for every task, the best of `choices` (or `found`) is what `predict` says."""

import jax.numpy as jnp
import numpy as np
import pytest

from kinject.tasks import base
from kinject.tasks.base import Task, make_task

B, C, P, V = 6, 5, 7, 11  # examples, classes, places of an example, words
LABELS = ("O", "a", "b", "c", "d")
PIECES = np.array([[[1, 2], [3, -1], [4, 5], [-1, -1]]] * B, np.int32)  # a last choice that an example lacks
BY_LABEL = {"labels": LABELS}

# of every task that serves labels: its options, the shape of its outputs, and what its batch holds beside them
CASES = {
    "cloze": ({}, (B, 1, V), {"labels": np.zeros((B, 1), np.int32)}),
    "cloze_choices": ({}, (B, 1, V), {"choices": PIECES, "labels": np.zeros((B, 1), np.int32)}),
    "embedding_classification": (BY_LABEL, (B, 1, C), {"labels": np.zeros(B, np.int32)}),
    "entity_questions": ({}, (B, 1, V), {"labels": np.zeros((B, V), np.float32)}),
    "lama": ({}, (B, 1, V), {"labels": np.zeros((B, 1), np.int32), "relation": np.zeros(B, np.int32)}),
    "multiple_choice": ({}, (B, C), {"labels": np.zeros(B, np.int32)}),
    "sequence_classification": (BY_LABEL, (B, 1, C), {"labels": np.zeros(B, np.int32)}),
    "relation_classification": (BY_LABEL, (B, 1, C), {"labels": np.zeros(B, np.int32)}),
    "marker_relations": (BY_LABEL, (B, 1, C), {"labels": np.zeros(B, np.int32)}),
    "entity_typing": (BY_LABEL, (B, C), {"labels": np.zeros((B, C), np.float32)}),
    "marker_entity_typing": (BY_LABEL, (B, C), {"labels": np.zeros((B, C), np.float32)}),
}


def served():
    base._import_ours()
    return sorted(
        name
        for name, made in base._TASKS.items()
        if made.__module__.startswith("kinject.") and made.answer == "labels" and made.choices is not Task.choices
    )


def test_every_task_that_serves_labels_is_here():
    assert served() == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_choice_is_what_is_predicted(name, seed):
    options, shape, batch = CASES[name]
    task = make_task(name, **options)
    outputs = jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    scores, found = np.asarray(task.choices(outputs, batch)), task.predict(outputs, batch)
    chosen = np.asarray(found.get("chosen", found.get("predicted")))
    if task.multi_label:
        assert chosen.shape == scores.shape and not (chosen[scores < 0] & (scores[scores < 0] < -1e8)).any()
        lowest, highest = np.where(chosen, scores, np.inf).min(-1), np.where(chosen, -np.inf, scores).max(-1)
        assert (lowest >= highest).all(), "nothing is left out that is likelier than what is answered"
    else:
        assert (scores.argmax(-1) == chosen).all() and (scores.max(-1) > -1e8).all()


def test_a_choice_that_is_not_there_is_never_an_answer():
    task = make_task("cloze_choices")
    outputs = jnp.full((B, 1, V), -1e6)
    scores = task.choices(outputs, {"choices": jnp.asarray(PIECES), "labels": jnp.zeros((B, 1), jnp.int32)})
    assert (np.asarray(scores)[:, 3] <= -1e9).all() and (np.asarray(scores).argmax(-1) != 3).all()


def test_words_that_were_cut_off_are_tagged_alike_where_they_are_scored_and_served():
    """Such a word has no place: it reads position 0, whose tag is that of [CLS] and of no word."""
    task = make_task("token_classification", **BY_LABEL)
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(B, P, C)).astype(np.float32) + np.arange(C) * 2)
    weights = np.ones((B, P), np.float32)
    weights[:, -3:] = 0
    batch = {"weights": jnp.asarray(weights), "labels": jnp.zeros((B, P), jnp.int32)}
    scores = np.asarray(task.found(outputs, batch, 5)["scores"])
    chosen = np.asarray(task.predict(outputs, batch)["chosen"])
    assert (scores.argmax(-1) == chosen).all()
    assert (chosen[:, -3:] == LABELS.index("O")).all() and (scores[:, -3:].max(-1) == 0).all()
    assert (chosen[:, :-3] != LABELS.index("O")).any()
