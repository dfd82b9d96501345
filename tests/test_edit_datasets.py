"""CounterFact, zsRE, MQuAKE and RippleEdits: what their files say, and one line for what is wrong in them."""

import json

import pytest

from kinject.datasets.prepare import prepare
from kinject.datasets.records import read_dataset
from kinject.errors import InputError

COUNTERFACT = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Ada Moreau",
    },
    "paraphrase_prompts": ["It rained. Ada Moreau grew up with", "Whom Ada Moreau speaks to, she speaks to in"],
    "neighborhood_prompts": ["The mother tongue of Luc Petit is"],
    "attribute_prompts": ["The mother tongue of Bill Small is"],
    "generation_prompts": ["Ada Moreau was born"],
}
ZSRE = {
    "subject": "Vera Holm",
    "src": "What university did Vera Holm attend?",
    "pred": "Oslo",
    "rephrase": "At which university was Vera Holm?",
    "alt": "Lund",
    "answers": ["Bergen"],
    "loc": "nq question: who sings in the opera",
    "loc_ans": "a soprano",
    "cond": "Bergen >> Lund || What university did Vera Holm attend?",
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} plays the sport of",
            "relation_id": "P641",
            "target_new": {"str": "chess", "id": "Q718"},
            "target_true": {"str": "hockey", "id": "Q41466"},
            "subject": "Team Blue",
            "question": "Which sport does Team Blue play?",
        }
    ],
    "questions": ["Where was the sport of Team Blue invented?", "In which country did Team Blue's sport arise?"],
    "answer": "Canada",
    "answer_alias": [],
    "new_answer": "India",
    "new_answer_alias": ["Bharat"],
    "single_hops": [],
    "new_single_hops": [],
    "orig": {
        "triples": [["Q9", "P641", "Q41466"], ["Q41466", "P495", "Q16"]],
        "triples_labeled": [["Team Blue", "sport", "hockey"], ["hockey", "country of origin", "Canada"]],
        "new_triples": [["Q9", "P641", "Q718"], ["Q718", "P495", "Q668"]],
        "new_triples_labeled": [["Team Blue", "sport", "chess"], ["chess", "country of origin", "India"]],
        "edit_triples": [["Q9", "P641", "Q718"]],
    },
}


def query(prompt, answers, relation="CITY", **more):
    told = [{"value": one, "aliases": [f"{one}!"]} for one in answers]
    found = {"prompt": prompt, "answers": told, "query_type": "regular", "subject_id": "Q5", "relation": relation}
    return {**found, "target_ids": ["Q1"], "phrase": None, **more}


def asked_in_tests(*queries):
    return [{"test_queries": list(queries), "test_condition": "OR", "condition_queries": []}]


RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the city of Mia Lind is Bergen.",
        "subject_id": "Q5",
        "relation": "CITY",
        "target_id": "Q26793",
        "original_fact": {
            "prompt": "The name of the city of Mia Lind is Oslo.",
            "subject_id": "Q5",
            "relation": "CITY",
            "target_id": "Q585",
        },
    },
    "Relation_Specificity": asked_in_tests(query("The name of the mother of Mia Lind is", ["Eva"], "MOTHER")),
    "Logical_Generalization": asked_in_tests(query("The name of the city of Mia Lind's cat is", ["Bergen"])),
    "Subject_Aliasing": asked_in_tests(query("The name of the city of M. Lind is", ["Bergen"])),
    "Compositionality_I": asked_in_tests(
        query("The mayor of the city of Mia Lind is", ["Kari"], query_type="two_hop", second_relation="MAYOR")
    ),
    "Compositionality_II": [],
    "Forgetfulness": asked_in_tests(query("The name of the city of Mia Lind is", ["Hamar"])),
}
MORE = {
    **RIPPLE,
    "Relation_Specificity": asked_in_tests(query("The name of the mother of Mia Lind is", ["Ida"], "MOTHER")),
}
FILES = {
    "counterfact": ("counterfact.json", [COUNTERFACT]),
    "zsre": ("zsre_mend_eval.json", [ZSRE]),
    "mquake": ("MQuAKE-CF-3k-v2.json", [MQUAKE]),
    "ripple_edits": ("popular.json", [RIPPLE, MORE]),
}


def read(name, root, cases=None, config=""):
    file, given = FILES[name]
    folder = root / "files"
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(given if cases is None else cases))
    (one, *_) = prepare("/".join(filter(None, (name, config))), folder, root / "data", check=False)
    found = list(read_dataset(f"{one.reference}?split=test"))
    assert len({record.fields["id"] for record in found}) == len(found)
    return [(one.fields["measure"], one.text, one.fields["label"], one.fields["choices"]) for one in found], found


def mentioned(record):
    return [(record.text[one.start : one.end], one.entity) for one in record.mentions]


def test_counterfact(tmp_path):
    asked, records = read("counterfact", tmp_path)
    both = ["English", "French"]
    assert asked == [
        ("efficacy", "The mother tongue of Ada Moreau is [MASK]", "English", both),
        ("paraphrase", "It rained. Ada Moreau grew up with [MASK]", "English", both),
        ("paraphrase", "Whom Ada Moreau speaks to, she speaks to in [MASK]", "English", both),
        ("neighbourhood", "The mother tongue of Luc Petit is [MASK]", "French", both),
        ("neighbourhood", "The mother tongue of Bill Small is [MASK]", "English", both),
    ]
    (change,) = records[0].fields["changes"]
    told = {"head": None, "head_label": "Ada Moreau", "relation": "P103", "tail": "Q1860", "tail_label": "English"}
    assert change == told and [one.fields["edit"] for one in records] == ["0"] * 5
    assert mentioned(records[1]) == [("Ada Moreau", None)] and records[3].mentions == ()


def test_zsre(tmp_path):
    asked, records = read("zsre", tmp_path, config="mend")
    assert asked == [
        ("efficacy", "What university did Vera Holm attend? [MASK]", "Lund", ["Bergen", "Lund"]),
        ("paraphrase", "At which university was Vera Holm? [MASK]", "Lund", ["Bergen", "Lund"]),
        ("neighbourhood", "who sings in the opera? [MASK]", "a soprano", ["Lund", "a soprano"]),
    ]
    assert records[0].fields["changes"][0]["relation"] == "What university did {} attend?"
    assert read("zsre", tmp_path, config="rome")[0][0][2] == "Bergen"


def test_mquake(tmp_path):
    asked, records = read("mquake", tmp_path)
    assert [(one, label) for one, _, label, _ in asked] == [
        ("efficacy", "chess"),
        ("paraphrase", "chess"),
        ("portability", "India"),
        ("portability", "India"),
    ]
    assert [mentioned(one) for one in records] == [[("Team Blue", "Q9")]] * 4
    assert records[2].fields["changes"][0]["head"] == "Q9" and asked[3][3] == ["Canada", "India"]


def test_ripple_edits(tmp_path):
    asked, records = read("ripple_edits", tmp_path)
    of_first = [one[:3] for one, record in zip(asked, records, strict=True) if record.fields["edit"] == "0"]
    assert of_first == [
        ("efficacy", "The name of the city of Mia Lind is [MASK]", "Bergen"),
        ("portability", "The name of the city of Mia Lind's cat is [MASK]", "Bergen"),
        ("paraphrase", "The name of the city of M. Lind is [MASK]", "Bergen"),
        ("specificity", "The name of the mother of Mia Lind is [MASK]", "Eva"),
        ("specificity", "The name of the city of Mia Lind is [MASK]", "Hamar"),
    ], "nobody else's mayor is known to choose from"
    assert asked[0][3] == ["Bergen", "Hamar", "Oslo"] and asked[3][3] == ["Eva", "Ida"]
    assert records[0].fields["entity"] == "Q5" and records[0].fields["changes"][0]["tail"] == "Q26793"
    spelled = {**RIPPLE, "Relation_Specifity": RIPPLE["Relation_Specificity"], "edit": {**RIPPLE["edit"]}}
    spelled["edit"]["previous_fact"] = spelled["edit"].pop("original_fact")
    del spelled["Relation_Specificity"]
    (tmp_path / "again").mkdir()
    again, _ = read("ripple_edits", tmp_path / "again", [spelled, MORE])
    assert [one for one in again if one[1] == asked[3][1]] == [one for one in asked if one[1] == asked[3][1]]


def changed(case, *path, value=None, drop=False):
    copy = json.loads(json.dumps(case))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("counterfact", ("requested_rewrite",), None, "'requested_rewrite' is NoneType"),
        ("counterfact", ("requested_rewrite", "prompt"), "no slot", "it must have one {}"),
        ("counterfact", ("requested_rewrite", "subject"), " ", "that is empty"),
        ("counterfact", ("requested_rewrite", "target_new"), {"str": "x"}, "target_new.id' is missing"),
        ("counterfact", ("paraphrase_prompts",), [1], r"paraphrase_prompts\[0\]"),
        ("zsre", ("answers",), [], "'answers' is empty"),
        ("zsre", ("loc",), 3, "'loc' is int"),
        ("mquake", ("requested_rewrite",), [], "'requested_rewrite' is empty"),
        ("mquake", ("orig", "edit_triples"), [["Q9", "P641"]], "has 2 parts"),
        ("mquake", ("orig", "edit_triples"), [], "has no triple of P641 and Q718"),
        ("mquake", ("questions",), "x", "'questions' is str"),
        ("ripple_edits", ("edit", "prompt"), "Bergen", "must end with the new fact's object"),
        ("ripple_edits", ("edit", "subject_id"), 5, "'edit.subject_id' is int"),
        ("ripple_edits", ("Forgetfulness",), [{"test_queries": [{}]}], "'answers' is missing"),
    ],
)
def test_what_is_wrong_is_one_line(name, path, value, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        read(name, tmp_path, [changed(FILES[name][1][0], *path, value=value)])
    assert FILES[name][0] in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_the_published_one(tmp_path):
    (tmp_path / "counterfact.json").write_text(json.dumps([COUNTERFACT]))
    with pytest.raises(InputError, match="it has 1 edits, the published one has 21,919"):
        prepare("counterfact", tmp_path, tmp_path / "data")
