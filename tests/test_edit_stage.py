"""Stage `edit`: facts change in copies, answers follow and others stay, whatever a method reads."""

import numpy as np
import pytest
from tiny_world import CITIES, DIM, LANDS, plugin_stage, question, run_experiment, vectors, write_records

from kinject.data.records import parse_record
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.inference.passages import PassageEncoder
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.memory.store import Passage, PassageMemory, build_memory
from kinject.plugins.base import make_plugin
from kinject.plugins.store import NO_KNOWLEDGE, save_plugin
from kinject.stages.edit import AnsweringFromPassages, Edits, Worded
from kinject.stages.edit_cases import cases_of, linked, rounds_of, sharing, swapped

PLUGLM = {"name": "pluglm", "layers": (2,), "heads": 2, "key_size": 8, "top_k": 2}
SENTENCE = "[head] is in [tail] ."


def asked(edit, measure, one, label, *changes, number=0):
    text, name = question(one + number)["text"], f"city{one + number}"
    text = text.replace(name, f"city{one}")
    start = text.index(f"city{one}")
    mention = {"start": start, "end": start + len(f"city{one}"), "entity": f"Q{one}"}
    told = [{"head": head, "relation": "is_in", "tail": tail} for head, tail in changes]
    about = {"edit": edit, "measure": measure, "changes": told, "kind": "land"}
    return {"text": text, "mentions": [mention], "label": label, **about}


def edits(cities):
    """City i goes to the next land; a neighbour in the old land and one in the new one stay where they are."""
    for i in cities:
        change = (f"Q{i}", f"L{(i + 1) % LANDS}")
        about = [("efficacy", i, 1, 0), ("paraphrase", i, 1, 1)]
        about += [("neighbourhood", i - 10, 0, 0), ("neighbourhood", i - 9, 0, 0)]
        for measure, one, more, number in about:
            yield asked(f"e{i}", measure, one, f"land{(one + more) % LANDS}", change, number=number)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """A base in which a city lies where its land does, a plugin on it, a memory, edits; and what the stage says."""
    folder = tmp_path_factory.mktemp("edited")
    codes = np.stack([vectors()[np.arange(CITIES) % LANDS == land].mean(axis=0) for land in range(LANDS)])
    write_knowledge(
        folder / "base",
        name="facts",
        ids=[*(f"Q{i}" for i in range(CITIES)), *(f"L{i}" for i in range(LANDS))],
        vectors=np.concatenate([vectors(), codes]).astype(np.float32),
        labels=[*(f"city{i}" for i in range(CITIES)), *(f"land{i}" for i in range(LANDS))],
        triples=np.array([(i, 0, CITIES + i % LANDS) for i in range(CITIES)], np.int32),
        relations=["is_in"],
    )
    host = open_host(world / "host", head="masked_lm")
    reader = make_plugin(PLUGLM, hidden_size=16, knowledge_dim=DIM, seed=0)
    save_plugin(folder / "reader", reader, host=host.identity, knowledge=NO_KNOWLEDGE, config={}, metrics={})
    encoder = PassageEncoder(host, reader, 8)
    facts = [Passage(f"city{i} is in land{i % LANDS} .", f"Q{i}") for i in range(CITIES)]
    build_memory(folder / "memory", facts, encoder, name="facts", **encoder.about()).close()
    write_records(folder / "edits.jsonl", edits([*range(50, 58), 48]))
    tuned = plugin_stage(world, initialise="ridge_label", fit={"steps": 8}) | {"knowledge": str(folder / "base")}
    methods = {
        "map_tuning": {"plugin": "@tuned"},
        "pluglm": {"plugin": str(folder / "reader"), "memory": str(folder / "memory")},
        "text": {"plugin": {"name": "retrieved_text", "budget": 20}},
    }
    stage = {"kind": "edit", "host": str(world / "host"), "knowledge": str(folder / "base"), "methods": methods}
    stage |= {"data": (str(folder / "edits.jsonl"),), "templates": {"is_in": SENTENCE}, "batch_size": 8}
    found = run_experiment({"seed": 0, "stages": {"tuned": tuned, "edit": stage}}, folder / "run")
    return folder, stage, found["edit"]


def test_the_new_fact_is_told_and_nothing_else_changes(made):
    folder, _, found = made
    assert (found["edits"], found["rounds"], found["left_out"]) == (9, 2, {}), "48 is the neighbour of 57 and 58"
    assert found["questions"] == {"efficacy": 9, "paraphrase": 9, "portability": 0, "specificity": 0} | {
        "neighbourhood": 18
    }
    rows = found["methods"]
    tuned = rows["map_tuning"]
    assert tuned["efficacy"] >= 0.75 > 0.25 >= tuned["efficacy_before"], "city50's new land, not its own"
    assert tuned["paraphrase"] >= 0.75 and tuned["efficacy_of_another_edit"] <= 0.25
    assert tuned["kinds"] == {
        "land": {
            "n": 18,
            "before": tuned["kinds"]["land"]["before"],
            "after": (tuned["efficacy"] + tuned["paraphrase"]) / 2,
        }
    }
    assert tuned["neighbourhood"] == tuned["neighbourhood_sharing"] == 1.0
    assert tuned["neighbourhood_right"] == tuned["neighbourhood_right_before"] >= 0.75
    assert rows["pluglm"]["efficacy"] == rows["host"]["efficacy"], "its gate is closed: it is the host"
    assert set(rows) == {"host", "map_tuning", "pluglm", "text"} and 0 < tuned["seconds_an_edit"] < 5
    assert not (folder / "run" / "edit").exists(), "copies are gone"
    assert KnowledgeBase.open(folder / "base").revision == 0


def test_a_passage_takes_the_place_of_the_old_one(made, world):
    folder, *_ = made
    host = open_host(world / "host", head="masked_lm")
    base = KnowledgeBase.open(folder / "base")
    records = [parse_record(one, "edits") for one in edits([50, 51])]
    cases, _ = cases_of(records, base, {})
    edited = Edits(base, cases, records, folder)
    plugin = make_plugin(PLUGLM, hidden_size=16, knowledge_dim=DIM, seed=0)
    facts = [Passage("city50 is in land0 .", "Q50"), Passage("city50 is far .", "Q50"), Passage("a place", "")]
    encoder = PassageEncoder(host, plugin, 8)
    build_memory(folder / "few", facts, encoder, name="few", capacity=8, **encoder.about()).close()
    answering = AnsweringFromPassages(None, plugin, folder / "few", edited, Worded({"is_in": SENTENCE}, "templates"))
    with PassageMemory.open(folder / "few", write=True) as memory:
        answering._edit(memory, encoder, base, [one for case in cases for one in case.changes])
        now = sorted(one.text for _, one in memory.passages())
    assert now == ["a place", "city50 is far .", "city50 is in land1 .", "city51 is in land2 ."]
    with pytest.raises(InputError, match="there is none for 'near'"):
        answering.words("near", "a", "b")


def test_edits_are_read_linked_and_kept_apart(made):
    base = KnowledgeBase.open(made[0] / "base")
    one = asked("a", "efficacy", 3, "land0", ("Q3", "L0"))
    named = {**one, "mentions": [{**one["mentions"][0], "entity": None}], "edit": "b"}
    named["changes"] = [{"head": None, "head_label": "city3", "relation": "P1", "tail": None, "tail_label": "land1"}]
    found = {**named, "mentions": [], "entity": "Q3", "edit": "c"}
    anywhere = {**named, "mentions": [], "edit": "d", "changes": [{"head": "Q9", "relation": "r", "tail": "Z"}]}
    unknown = {**one, "edit": "e", "changes": [{"head": "Q999", "relation": "is_in", "tail": "L0"}]}
    records = [parse_record(each, "edits") for each in (one, named, found, anywhere, unknown)]
    records = linked(records, base)
    assert [each.mentions[0].entity for each in records] == ["Q3"] * 5
    cases, left_out = cases_of(records, base, {"P1": "is_in"})
    assert [(case.changes[0].head, case.changes[0].relation, case.changes[0].tail) for case in cases] == [
        ("Q3", "is_in", "L0"),
        ("Q3", "is_in", "L1"),
        ("Q3", "is_in", "L1"),
        ("Q9", "r", "Z"),
    ]
    assert sum(left_out.values()) == 1
    assert [[case.name for case in some] for some in rounds_of(cases, records)] == [["a"], ["b"], ["c"], ["d"]]
    (wrong, *_) = swapped(cases, 0)
    assert (wrong.name, wrong.changes[0].head, wrong.changes[0].tail) == ("a", "Q3", "L1")


def test_who_has_the_same_fact(made):
    base = KnowledgeBase.open(made[0] / "base")
    change = ("Q50", "L1")
    about = [("efficacy", 50), ("neighbourhood", 40), ("neighbourhood", 41), ("neighbourhood", 42)]
    records = [parse_record(asked("a", measure, one, "land0", change), "edits") for measure, one in about]
    cases, _ = cases_of(records, base, {})
    assert sharing(base, cases, records).tolist() == [False, True, True, False], "the old land, the new land, another"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edit": 3}, "field 'edit' is int 3"),
        ({"measure": "efficacy!"}, "did you mean efficacy"),
        ({"changes": []}, "field 'changes' is list"),
        ({"changes": [{"head": "Q1", "tail": "L1"}]}, "field 'changes.relation'"),
        ({"changes": [{"relation": "is_in", "tail": "L1"}]}, "field 'changes.head'"),
        ({"measure": "specificity"}, "has no question that it changes"),
    ],
)
def test_a_question_that_is_none_is_one_line(change, message, made):
    one = {**asked("a", "efficacy", 3, "land0", ("Q3", "L0")), **change}
    with pytest.raises(InputError, match=message):
        cases_of([parse_record(one, "edits.jsonl:1")], KnowledgeBase.open(made[0] / "base"), {})


def test_what_the_config_lacks_is_said_before_anything_runs(made, tmp_path):
    _, stage, _ = made
    only = {"pluglm": stage["methods"]["pluglm"]}
    with pytest.raises(InputError, match=r"stages\.edit\.templates: it is missing"):
        run_experiment({"seed": 0, "stages": {"edit": {**stage, "methods": only, "templates": {}}}}, tmp_path / "run")
    nobody = {**next(edits([50])), "changes": [{"head": "X", "relation": "r", "tail": "L0"}]}
    data = (str(write_records(tmp_path / "edits.jsonl", [nobody])),)
    text = {"text": stage["methods"]["text"]}
    with pytest.raises(InputError, match="none of its edits can be made"):
        run_experiment({"seed": 0, "stages": {"edit": {**stage, "methods": text, "data": data}}}, tmp_path / "none")
