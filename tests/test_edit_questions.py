"""Edits of a domain: what is changed is drawn, and every question asks what it is said to measure."""

import json

import numpy as np
import pytest
from tiny_world import run_experiment, write_records

from kinject.data.records import parse_record
from kinject.data.sources.edits import Editor
from kinject.data.sources.wordings import GEOGRAPHY
from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge

COUNTRIES, CITIES = ("peru", "chile", "norway"), 12


def asked(name, entity, kind, label):
    wording = GEOGRAPHY[kind].test[0]
    start = wording.index("[X]")
    mention = {"start": start, "end": start + len(name), "entity": entity}
    return {"text": wording.replace("[X]", name), "mentions": [mention], "label": label, "kind": kind}


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domain")
    ids = [*(f"C{i}" for i in range(CITIES)), *COUNTRIES, "small", "large"]
    triples = [(i, 0, CITIES + i % 3) for i in range(CITIES)] + [(i, 1, CITIES + 3 + i % 2) for i in range(CITIES)]
    write_knowledge(
        folder / "kb",
        name="towns",
        ids=ids,
        vectors=np.ones((len(ids), 2), np.float32),
        triples=np.array(triples, np.int32),
        relations=["country", "size"],
    )
    subjects = [asked(f"town{i}", f"C{i}", "country", COUNTRIES[i % 3]) for i in range(CITIES)]
    subjects += [asked(f"town{i}", f"C{i}", "size", ("small", "large")[i % 2]) for i in range(CITIES)]
    known = [asked(one, one, "language", f"{one}ish") for one in COUNTRIES]
    known += [asked("peru", "peru", "continent", "america")]
    return folder, write_records(folder / "test.jsonl", subjects), write_records(folder / "known.jsonl", known)


def test_questions_measure_what_they_say(domain, tmp_path):
    folder, data, known = domain
    stage = {"kind": "edit_questions", "domain": "geography", "knowledge": str(folder / "kb"), "data": (str(data),)}
    stage |= {"known_data": (str(known),), "edits": {"country": 4, "size": 2}}
    found = run_experiment({"seed": 0, "stages": {"edits": stage}}, tmp_path)["edits"]
    records = [parse_record(one, "edits") for one in map(json.loads, (tmp_path / "edits/records/edits.jsonl").open())]
    assert found == {"edits": 6, "questions": len(records)}
    base = KnowledgeBase.open(folder / "kb")
    tails = {(int(a), int(b)): int(c) for a, b, c in base.triples}
    for record in records:
        (change,) = record.fields["changes"]
        head, relation = int(base.rows([change["head"]])[0]), ["country", "size"].index(change["relation"])
        new, old = int(base.rows([change["tail"]])[0]), tails[head, relation]
        assert new != old
        one, measure, kind = record.mentions[0].entity, record.fields["measure"], record.fields["kind"]
        row = int(base.rows([one])[0])
        assert record.text[record.mentions[0].start : record.mentions[0].end] == f"town{row}"
        if measure in ("efficacy", "paraphrase"):
            assert one == change["head"] and record.fields["label"] == change["tail"] and kind == change["relation"]
            stage = "train" if measure == "efficacy" else "test"
            assert record.text.replace(f"town{row}", "[X]") in getattr(GEOGRAPHY[kind], stage)
        elif measure == "portability":
            wanted = {"language": f"{change['tail']}ish", "continent": "america"}
            assert one == change["head"] and record.fields["label"] == wanted[kind]
        elif measure == "specificity":
            assert one == change["head"] and kind in {"country", "size"} - {change["relation"]}
        else:
            assert one != change["head"] and record.fields["label"] in (*COUNTRIES, "small", "large")
    heads = {one.fields["changes"][0]["head"] for one in records if one.fields["edit"].startswith("country")}
    neighbours = {
        one.mentions[0].entity
        for one in records
        if one.fields["edit"].startswith("country") and one.fields["measure"] == "neighbourhood"
    }
    assert len(heads) == 4 and not heads & neighbours, "who is edited is nobody's neighbour"


def test_what_cannot_be_edited_is_one_line(domain):
    folder, *_ = domain
    base = KnowledgeBase.open(folder / "kb")
    with pytest.raises(InputError, match="no domain 'sports'"):
        Editor(base, "sports", [], [], 0)
    with pytest.raises(InputError, match="'mayor' is no fact that is edited"):
        list(Editor(base, "geography", [], [], 0).questions({"mayor": 1}))
    with pytest.raises(InputError, match="no question of a kind about one entity"):
        Editor(base, "geography", [parse_record({"text": "x"}, "test")], [], 0)
