"""Stage `living`: who was withheld comes by triples, descriptions and sentences, answers, and goes again."""

import json

import numpy as np
import pytest
from tiny_world import CITIES, LANDS, plugin_stage, question, run_experiment, vectors, write_records

from kinject.data.sources.domain import ClozeQuestion, Domain
from kinject.data.sources.edits import WORDINGS
from kinject.data.sources.withheld import as_in_training, sentences, withhold
from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge

NEW = range(50, 60)  # tiny_world's test cities


def write(folder, cities):
    """Cities that lie where their land does; each has a description that tells the land."""
    codes = np.stack([vectors()[np.arange(CITIES) % LANDS == land].mean(axis=0) for land in range(LANDS)])
    ids = [*(f"Q{i}" for i in cities), *(f"L{i}" for i in range(LANDS))]
    return write_knowledge(
        folder,
        name="lands",
        ids=ids,
        vectors=np.concatenate([vectors()[list(cities)], codes]).astype(np.float32),
        labels=[*(f"city{i}" for i in cities), *(f"land{i}" for i in range(LANDS))],
        descriptions=[f"a place of land{i % LANDS}" for i in cities] + [""] * LANDS,
        triples=np.array([(at, 0, len(cities) + i % LANDS) for at, i in enumerate(cities)], np.int32),
        relations=["country"],
    )


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lived")
    write(folder / "all", range(CITIES))
    write(folder / "without", range(50))
    told = [
        {
            "id": f"Q{i}",
            "label": f"city{i}",
            "aliases": [],
            "description": f"a place of land{i % LANDS}",
            "triples": [[f"Q{i}", "country", f"L{i % LANDS}"]],
        }
        for i in NEW
    ]
    asked = [{**question(i), "kind": "country"} for i in NEW]
    withheld = str(write_records(folder / "withheld.jsonl", told))
    data = (str(write_records(folder / "asked.jsonl", asked)),)
    tuned = plugin_stage(world, initialise="ridge_label", fit={"steps": 8})
    stage = {
        "kind": "living",
        "host": str(world / "host"),
        "knowledge": str(folder / "without"),
        "plugin": "@tuned",
        "withheld": withheld,
        "data": data,
        "trained": {"knowledge": str(folder / "all"), "plugin": "@whole"},
        "answers": {"country": ("country",)},
        "batch_size": 8,
    }
    stages = {
        "tuned": tuned | {"knowledge": str(folder / "without")},
        "whole": tuned | {"knowledge": str(folder / "all")},
        "living": stage,
    }
    stages["as_in_training"] = stage | {"wordings": "training", "graph": {"learning_rate": 0.05}}
    results = run_experiment({"seed": 0, "stages": stages}, folder / "run")
    assert results["as_in_training"]["n"] == 6 * results["living"]["n"], "each in the six wordings of training"
    row = results["as_in_training"]["kinds"]["country"]
    assert row["removed_same_as_host"] == 1.0
    assert row["trained_alone"] > row["host"] + 0.3, "its triples say where each lies"
    told = results["as_in_training"]["rows"]["triples"]["least_share_of_trained_alone"]
    assert told == pytest.approx(row["triples"] / row["trained_alone"])
    return folder, stage, results["living"]


def test_who_comes_is_answered_and_who_goes_is_not(found):
    folder, _, told = found
    row = told["kinds"]["country"]
    assert (told["entities"], told["n"], row["n"]) == (10, 10, 10)
    assert row["triples"] >= 0.8 and row["description"] >= 0.8 and row["trained"] >= 0.8 > row["host"] + 0.3
    assert row["triples_of_another"] <= 0.2 and row["triples_of_another_followed"] >= 0.8
    assert row["description_of_another"] <= 0.2
    assert row["before"] == row["removed"] == row["triples_without_answer"] == row["host"], "nobody knows them"
    assert row["removed_same_as_host"] == 1.0
    assert told["rows"]["triples"]["mean"] == row["triples"]
    assert told["rows"]["triples"]["least_share_of_trained"] == pytest.approx(row["triples"] / row["trained"])
    ways = told["ways"]
    assert set(ways) == {"triples", "description"} and ways["triples"]["placed"] == 10
    assert all(0 < one["seconds_an_entity"] < 5 and 0 < one["trust"] <= 1 for one in ways.values())
    assert set(told["host_and_plugin"]) == {"host", "plugin"}
    assert KnowledgeBase.open(folder / "without").revision == 0 and not (folder / "run" / "living").exists()


def test_what_is_no_withheld_entity_is_one_line(found, tmp_path):
    _, stage, _ = found
    bad = {**stage, "plugin": str(found[0] / "run" / "tuned"), "trained": None}
    other = str(write_records(tmp_path / "withheld.jsonl", [{"id": "Q1"}]))
    with pytest.raises(InputError, match=r"withheld\.jsonl:1: it is no withheld entity"):
        run_experiment({"seed": 0, "stages": {"living": {**bad, "withheld": other}}}, tmp_path / "a")
    nobody = {"id": "Q1", "label": "", "aliases": [], "description": "", "triples": []}
    other = str(write_records(tmp_path / "withheld.jsonl", [nobody]))
    with pytest.raises(InputError, match="none of them asks about an entity that is withheld"):
        run_experiment({"seed": 0, "stages": {"living": {**bad, "withheld": other}}}, tmp_path / "b")


def test_withheld_entities_leave_the_graph_with_all_that_names_them():
    ids = ["a", "b", "c", "x", "y"]
    triples = np.array([(0, 0, 3), (1, 0, 4), (2, 0, 3), (0, 1, 1), (3, 1, 1), (2, 1, 4)], np.int32)
    asked = {"test": tuple(ClozeQuestion(row, ids[row], "x") for row in (0, 1, 1, 0, 2))}
    texts = [f"about {one}" for one in ids]
    domain = Domain("d", ids, ids, [()] * 5, texts, triples, ("in", "near"), "", (), asked, "", "")
    left, told = withhold(domain, "test", 2, seed=0)
    assert left.ids == ["c", "x", "y"] and left.triples.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert {one["id"]: one["triples"] for one in told} == {
        "a": [["a", "in", "x"]],
        "b": [["b", "in", "y"], ["x", "near", "b"]],
    }
    with pytest.raises(InputError, match="asks about 3 entities, 4 were asked for"):
        withhold(domain, "test", 4, seed=0)


def test_sentences_tell_facts_in_wordings_of_training():
    triples = [("a", "country", "P"), ("a", "size", "S"), ("a", "near", "Z"), ("b", "country", "P")]
    made = list(sentences("geography", {"a": "ayton"}, iter(triples), {"P": "Peru", "S": "small"}, 3, seed=0))
    assert sorted(word in one["text"] for one in made for word in ("peru",)) == [False, True] and len(made) == 2
    for one in made:
        (mention,) = one["mentions"]
        assert one["text"][mention["start"] : mention["end"]] == "ayton" and "[" not in one["text"]
    assert json.dumps(made) == json.dumps(
        list(sentences("geography", {"a": "ayton"}, iter(triples), {"P": "Peru", "S": "small"}, 3, seed=0))
    )


def test_questions_in_the_wordings_of_training_keep_their_answers():
    made = list(as_in_training("geography", [("Q7", "kassel", "part", "middle")]))
    assert [one["wording"] for one in made] == list(WORDINGS["geography"]["part"].train)
    for one in made:
        (mention,) = one["mentions"]
        assert one["text"][mention["start"] : mention["end"]] == "kassel" and mention["entity"] == "Q7"
        assert (one["label"], one["kind"]) == ("middle", "part") and "[MASK]" in one["text"]
    with pytest.raises(InputError, match="geography has no wordings of it"):
        list(as_in_training("geography", [("Q7", "kassel", "mayor", "x")]))


def test_what_a_graph_of_its_own_cannot_train_is_one_line(found, tmp_path):
    folder, stage, _ = found
    tuned = {**stage, "plugin": str(folder / "run" / "tuned"), "trained": None}
    with pytest.raises(InputError, match="it is not made by distmult alone"):
        run_experiment({"seed": 0, "stages": {"living": {**tuned, "graph": {"method": "distmult"}}}}, tmp_path / "a")
    with pytest.raises(InputError, match=r"graph\.gama: unknown key gama; did you mean gamma"):
        run_experiment({"seed": 0, "stages": {"living": {**tuned, "graph": {"gama": 3}}}}, tmp_path / "b")
    with pytest.raises(InputError, match="there are no wordings of it"):
        bad = {**tuned, "wordings": "training", "domain": "nowhere"}
        run_experiment({"seed": 0, "stages": {"living": bad}}, tmp_path / "c")
