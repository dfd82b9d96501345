"""Made-up files in the published formats of the data sets that K-Adapter, Kformer and PlugLM are evaluated on."""

import gzip
import json


def write(path, content):
    """Writes text, or JSON lines of a list under a name in .jsonl or .txt, or one JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str):
        lines = isinstance(content, list) and path.suffix in (".jsonl", ".txt", ".gz")
        content = "".join(json.dumps(one) + "\n" for one in content) if lines else json.dumps(content)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def cosmos(number, **more):
    answers = {f"answer{i}": f"choice {i}" for i in range(4)}
    line = {"id": f"c{number}", "context": f"Story {number}.", "question": "Why?", **answers, "label": number % 4}
    return {**line, **more}


def social(number, **more):
    choices = [{"text": f"choice {i}"} for i in range(3)]
    line = {"context": f"Kai met Bo {number} times.", "question": "How?", "choices": choices}
    return {**line, "AnswerKey": str(number % 3 + 1), "knowledges": ["PersonX is glad", "PersonX meets"], **more}


def medical(number, **more):
    choices = [{"text": f"drug {i}", "knowledge": [f"fact {i}.{k}" for k in range(i)]} for i in range(4)]
    return {"question": f"A man of {number} years?", "choices": choices, "answer_idx": number % 4, **more}


def typed(number, **more):
    text = f"In {number} days Köln grew."
    start = text.index("Köln")
    line = {"sent": text, "start": start, "end": start + 4, "labels": ["location", "entity"][: number % 3]}
    return {**line, "ents": [["Q1", 0, 2, 0.1], ["Q365", start, start + 4, 0.9]] if number % 2 else [], **more}


def tacred(number, **more):
    tokens = ["The", "Wye", "Bridge", "crosses", "the", "River", "Wye", "."]
    span = {"subj_start": 1, "subj_end": 2, "obj_start": 5, "obj_end": 6, "subj_type": "ORGANIZATION"}
    relation = ["no_relation", "org:founded", "per:age"][number % 3]
    return {"id": f"e{number}", "docid": "d", "relation": relation, "token": tokens, **span, **more}


def squad(*questions):
    context = "Paris is in France. Paris is big."
    asked = [
        {"id": identity, "question": "Where is Paris?", "answers": [{"text": text, "answer_start": start}]}
        for identity, text, start in questions
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]}


def write_cosmosqa(folder):
    evidence = {f"answer{i}_searched_evidence": {"basic": [{"text": f"ev {i}"}] * i} for i in range(4)}
    write(folder / "train.jsonl", [cosmos(1), cosmos(2, **evidence)])
    write(folder / "valid.jsonl", [cosmos(3, label="3")])
    write(folder / "test.jsonl", [{name: value for name, value in cosmos(4).items() if name != "label"}])


def write_socialiqa(folder):
    write(folder / "train.jsonl", [social(0), social(4)])
    write(folder / "valid.jsonl", [social(2, choices=["a", "b", "c"], AnswerKey=3)])


def write_medqa(folder):
    write(folder / "train.jsonl", [medical(1), medical(6)])
    write(folder / "test.jsonl.gz", [medical(3)])


def write_typed(folder):
    write(folder / "train.json", [typed(i) for i in range(4)])
    write(folder / "dev.json", [typed(5)])
    write(folder / "test.json", [typed(6)])


def write_tacred(folder):
    write(folder / "train.json", [tacred(i) for i in range(5)])
    write(folder / "dev.json", [tacred(7)])


def write_squad(folder):
    write(folder / "train-v1.1.json", squad(("a", "France", 12), ("b", "Paris", 20)))
    unanswered = squad(("c", "big", 29), ("d", "", 0))
    unanswered["data"][0]["paragraphs"][0]["qas"][1]["answers"] = []
    write(folder / "dev-v1.1.json", unanswered)


def write_squad_v2(folder):
    for split in ("train", "dev"):
        asked = squad((f"{split} a", "France", 12), (f"{split} b", "", 0))
        asked["data"][0]["paragraphs"][0]["qas"][1] |= {"answers": [], "is_impossible": True}
        write(folder / f"{split}-v2.0.json", asked)


def write_open_qa(folder):
    for split in ("train", "dev"):
        asked = [
            {"question": ["Who", "is", "it", "?"], "answers": ["Bo", ["Mr", "Bo"]]},
            {"question": "Where?", "answers": ["Rome"]},
        ]
        found = [
            [
                {"question": ["Who", "is", "it", "?"], "document": text}
                for text in (["It", "is", "Bo", "."], [], "Mr Bo")
            ],
            [{"question": "Where?", "document": "In Rome ."}],
        ]
        write(folder / f"{split}.txt", asked)
        write(folder / f"{split}.json", "".join(json.dumps(one) + "\n" for one in found))


def write_ner(folder):
    iob = "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n"
    iob += "British JJ I-NP B-MISC\n\n\n"
    write(folder / "train.txt", iob + "Bo\tNNP\tI-NP\tI-PER")
    line = {"tokens": ["In", "Köln"], "tags": ["O", "B-LOC"], "mentions": [{"start": 1, "end": 2, "entity": "Q365"}]}
    write(folder / "dev.jsonl", [line])


def write_text_classification(folder):
    write(folder / "train.jsonl", [{"text": "a drug", "label": "INHIBITOR"}, {"text": "b", "label": 7, "pair": "c"}])
    write(
        folder / "test.jsonl", [{"text": "Köln", "label": "7", "mentions": [{"start": 0, "end": 4, "entity": "Q365"}]}]
    )


def write_lama(folder):
    templates = {"P36": "The capital of [X] is [Y] .", "P19": "[Y] is where [X] was born .", "P1": "[X] [Y]"}
    lines = [{"relation": name, "template": text, "type": "N-1"} for name, text in templates.items()]
    write(folder / "relations.jsonl", lines)
    write(folder / "TREx/P36.jsonl", [{"sub_label": "Peru", "obj_label": "Lima", "sub_uri": "Q419", "uuid": "u"}])
    born = [{"sub_label": "Zoë [Y]", "obj_label": "Rome", "sub_uri": ""}, {"sub_label": "Bo", "obj_label": "Oslo"}]
    write(folder / "TREx/P19.jsonl", born)
    for name in ("place_of_birth", "date_of_birth", "place_of_death"):
        fact = {"sub_label": "Bo Li", "obj_label": "1941", "sub": "/m/1", "sub_w": None}
        write(folder / f"Google_RE/{name}_test.jsonl", [fact, {**fact, "sub_w": "Q7"}])


WRITERS = {
    "cosmosqa": write_cosmosqa,
    "socialiqa": write_socialiqa,
    "medqa": write_medqa,
    "open_entity": write_typed,
    "figer": write_typed,
    "tacred": write_tacred,
    "squad_json": write_squad,
    "squad_v2": write_squad_v2,
    "open_qa": write_open_qa,
    "ner": write_ner,
    "text_classification": write_text_classification,
    "lama": write_lama,
}
