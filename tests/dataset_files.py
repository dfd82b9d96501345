"""Small made-up files in the published formats of every data set, for `test_datasets.py`."""

import gzip
import json

TOKENS = ["The", "Wye", "Bridge", "crosses", "the", "River", "Wye", "."]


def fewrel_item(head="Q1", tail="Q2", tokens=TOKENS):
    return {"tokens": tokens, "h": ["wye bridge", head, [[1, 2], [6]]], "t": ["river wye", tail, [[5, 6]]]}


def line(relation="P177", head="Q1", tail="Q2", **more):
    head_and_tail = {"h": {"id": head, "pos": [1, 3], "name": "x"}, "t": {"id": tail, "pos": [5, 7], "name": "y"}}
    return {"token": TOKENS, **head_and_tail, "relation": relation, **more}


def write_lines(path, values):
    content = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_fewrel(folder):
    wiki = {"P9": [fewrel_item(), fewrel_item("Q3")], "P177": [fewrel_item("Q4"), fewrel_item("Q5"), fewrel_item()]}
    write_json(folder / "train_wiki.json", wiki)
    write_json(folder / "val_wiki.json", {"P26": [fewrel_item(), fewrel_item("Q7")]})
    write_json(folder / "val_pubmed.json", {"occurs in": [fewrel_item("C0012", "C1")]})
    write_json(folder / "val_semeval.json", {"Cause-Effect(e1,e2)": [fewrel_item("wye bridge", "river wye")]})
    write_json(folder / "pubmed_unsupervised.json", [fewrel_item("C1", "C2"), fewrel_item("C3", "C4")])


def write_wiki80(folder):
    write_json(folder / "rel2id.json", {"P26": 1, "P177": 0})
    write_lines(folder / "train.txt", [line(), line("P26", "Q8")])
    write_lines(folder / "dev.txt", [line("P26")])
    write_lines(folder / "test.txt", [line()])


def write_wiki_et(folder):
    write_json(folder / "label2id.json", {"person": 2, "city": 0, "river": 1})
    sentence = {"sent": "Die Straße führt nach Köln 😀.", "start": 22, "end": 26, "labels": ["city"], "id": "3"}
    write_lines(folder / "train.json", [sentence, {**sentence, "labels": ["city", "river"], "id": "0"}])
    write_lines(folder / "dev.json", [sentence])
    write_lines(folder / "test.json", [{**sentence, "labels": [], "id": 2}])
    (folder / "entity2id.txt").write_text("4\nQ365\t3\nQ64 0\nQ0\t2\n", encoding="utf-8")


def write_entity_questions(folder):
    templates = {"P36": "What is the capital of [X]?", "P19": "Where was [X] born?", "P30": "On which continent is [X]"}
    write_json(folder / "relation_query_templates.json", templates)
    for split in ("train", "dev", "test"):
        capitals = [
            {"question": "What is the capital of Peru?", "answers": ["Lima"]},
            {"question": "What is the capital of peru?", "answers": ["Lima", "Callao"]},
        ]
        write_json(folder / split / f"P36.{split}.json", capitals)
        born = [{"question": "Where was Zoë Ångström born?", "answers": ["Köln"]}]
        write_json(folder / split / f"P19.{split}.json", born)
    write_json(folder / "train/P30.train.json", [{"question": "On which continent is Peru", "answers": []}])
    (folder / "entity_map.txt").write_text("Peru\tx\tQ1\nZoë Ångström\tQ5\nLima\tQ2868\nPeru\tQ419\n", encoding="utf-8")


def write_wiki20m(folder):
    nested = line()
    nested["t"] = {"id": "Q9", "pos": [2, 4]}
    as_text = {"text": "Wye flows", "h": {"id": "Q1", "pos": [0, 3]}, "t": {"id": "", "pos": [4, 9]}}
    write_lines(folder / "wiki20m_train.txt", [line(), nested, line("NA", "Q3"), as_text])
    write_lines(folder / "wiki20m_test.txt.gz", [line()])


def write_jsonl(folder):
    mention = {"start": 0, "end": 5, "entity": "Q90"}
    write_lines(
        folder / "train.jsonl",
        [
            {"text": "Paris 😀", "mentions": [mention], "id": "a", "label": "city", "extra": {"deep": [1, None, "é"]}},
            {"tokens": ["Paris", ""], "mentions": [{"start": 0, "end": 1}], "labels": ["x", "y"], "answers": []},
            {"tokens": [], "id": "b", "label": 3},
            {"text": ""},
        ],
    )
    write_lines(folder / "held_out.jsonl.gz", [{"text": "Paris", "mentions": [mention], "id": "c"}])


def trex_item(relation="P17", subject=(1, 2), target=(5, 6), **more):
    spans = {"subj_start": subject[0], "subj_end": subject[1], "obj_start": target[0], "obj_end": target[1]}
    return {"docid": "Q1", "token": TOKENS, "relation": relation, **spans, "subj_label": "Q1", "obj_label": "x", **more}


def write_trex_rc(folder):
    write_json(folder / "train.json", [trex_item("P31"), trex_item(subj_label="http://…/entity/Q42"), trex_item("P9")])
    write_json(folder / "dev.json", [trex_item(), trex_item(subject=(1, 5))])


def conllu_line(number, form, head, relation="dep"):
    return "\t".join([str(number), form, *"____", str(head), relation, "_", "_"]) + "\n"


def write_treebank(folder):
    tree = [("1", "Er", 2, "nsubj"), ("2", "geht", 0, "root"), ("3-4", "zum", "_", "_"), ("3", "zu", 5, "case")]
    tree += [("4", "dem", 5, "det"), ("4.1", "ganz", "_", "_"), ("5", "Köln-Tor", 2, "obl"), ("6", "!", 2, "punct")]
    sentence = "# sent_id = a\n" + "".join(conllu_line(*one) for one in tree)
    second = conllu_line(1, "Ja", 0, "root")
    (folder / "de_x-ud-train.conllu").write_text(f"\n{sentence}\n\n{second}", encoding="utf-8")
    (folder / "de_x-ud-dev.conllu").write_text(f"{second}\n", encoding="utf-8")


WRITERS = {
    "fewrel": write_fewrel,
    "wiki80": write_wiki80,
    "wiki_et": write_wiki_et,
    "entity_questions": write_entity_questions,
    "wiki20m": write_wiki20m,
    "trex_rc": write_trex_rc,
    "treebank": write_treebank,
    "jsonl": write_jsonl,
}


def write_files(folder, name):
    folder.mkdir(parents=True)
    WRITERS[name](folder)
    return folder
