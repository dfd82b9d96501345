"""Vectors of entities that come after the graph was trained."""

import numpy as np
import pytest
from tiny_world import CITIES, DIM, LANDS, evaluate_stage, plugin_stage, run_experiment, vectors

from kinject.errors import InputError
from kinject.knowledge.added import vectors_of_added
from kinject.knowledge.write import write_knowledge


def world_of_lands(noise=0.05):
    """20 lands and 200 cities around them; each city is in a land (0) and near the next of the same land (1)."""
    draw = np.random.default_rng(0)
    lands = draw.normal(size=(20, 6))
    of = np.arange(200) % 20
    table = np.concatenate([lands, lands[of] @ draw.normal(size=(6, 6)) + noise * draw.normal(size=(200, 6))])
    inside = [(20 + i, 0, of[i]) for i in range(200)]
    near = [(20 + i, 1, 20 + (i + 20) % 200) for i in range(200)]
    return table.astype(np.float32), np.array(inside + near, np.int32)


def test_new_entities_get_nearly_the_vectors_that_training_gave():
    table, triples = world_of_lands()
    new = np.arange(170, 220)
    made = vectors_of_added(table, triples, 2, new, penalty=0.1)
    assert made.dtype == np.float32
    error = np.linalg.norm(made - table[new], axis=1) / np.linalg.norm(table[new], axis=1)
    assert np.median(error) < 0.15
    others = np.linalg.norm(made - table[new[::-1]], axis=1) / np.linalg.norm(table[new], axis=1)
    assert np.median(others) > 0.5


def test_the_vectors_of_new_entities_are_not_looked_at():
    table, triples = world_of_lands()
    new = np.arange(170, 220)
    made = vectors_of_added(table, triples, 2, new)
    table[new] = 1e6
    np.testing.assert_array_equal(vectors_of_added(table, triples, 2, new), made)


def test_they_come_in_the_order_that_was_asked_for():
    table, triples = world_of_lands()
    made = vectors_of_added(table, triples, 2, np.array([60, 40]))
    np.testing.assert_array_equal(made[::-1], vectors_of_added(table, triples, 2, np.array([40, 60])))


def test_without_any_other_entity_it_says_so():
    with pytest.raises(InputError, match="no other entity has a triple"):
        vectors_of_added(np.ones((3, 2), np.float32), np.array([[0, 0, 1]]), 1, np.array([0, 1]))


def test_a_run_reports_entities_added_after_training(world, tmp_path):
    ids = [*(f"Q{i}" for i in range(CITIES)), *(f"land{i}" for i in range(LANDS))]
    codes = np.stack([vectors()[land::LANDS].mean(0) for land in range(LANDS)])
    write_knowledge(
        tmp_path / "knowledge",
        name="cities",
        ids=ids,
        vectors=np.concatenate([vectors(), codes]).astype(np.float32),
        labels=ids,
        triples=np.array([(i, 0, CITIES + i % LANDS) for i in range(CITIES)], np.int32),
        relations=["in"],
    )
    assert codes.shape == (LANDS, DIM)
    stage = evaluate_stage(world, {"plugin": "@plugin"})
    (domain,) = stage["domains"].values()
    domain |= {"knowledge": str(tmp_path / "knowledge"), "added": True}
    plugin = plugin_stage(world, knowledge=str(tmp_path / "knowledge"), initialise="ridge_label", fit={"steps": 60})
    results = run_experiment({"seed": 0, "stages": {"plugin": plugin, "evaluate": stage}}, tmp_path / "run")
    (rows,) = results["evaluate"].values()
    assert rows["added"] > max(rows["host"], rows["shuffled"])
    assert rows["added"] >= rows["plugin"] - 0.2


def test_entities_are_added_to_triples_only(world, tmp_path):
    stage = evaluate_stage(world, {"plugin": "@plugin"})
    (domain,) = stage["domains"].values()
    domain["added"] = True
    with pytest.raises(InputError, match="it has no triples"):
        run_experiment({"seed": 0, "stages": {"plugin": plugin_stage(world), "evaluate": stage}}, tmp_path)
