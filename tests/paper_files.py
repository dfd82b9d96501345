"""The authors' files, made up and tiny: data sets in their published formats, vectors, prepared as a user would."""

import json
from pathlib import Path

import numpy as np
from tiny_tokenizers import sentences

from kinject.datasets.prepare import prepare

ENTITIES = 12
RELATIONS, INSTANCES = 10, 10  # ten ways, five shots, five queries
PUBMED_INSTANCES = 100  # the public split is cut by number
WORDS = [sentence.split()[:6] for sentence in sentences(40)]
FILES = {
    "train_wiki": ("Q", INSTANCES),
    "val_wiki": ("Q", INSTANCES),
    "test_wiki": ("Q", INSTANCES),
    "val_pubmed": ("C", PUBMED_INSTANCES),
    "train_fewPubmed": ("C", INSTANCES),
    "val_fewPubmed": ("C", INSTANCES),
    "test_fewPubmed": ("C", INSTANCES),
}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def fewrel_item(number, letter):
    tokens = WORDS[number % len(WORDS)]
    head, tail = (f"{letter}{(number + shift) % (ENTITIES + 2)}" for shift in (0, 5))  # two have no vector
    return {"tokens": tokens, "h": [tokens[0], head, [[0]]], "t": [tokens[3], tail, [[3, 4]]]}


def opennre_line(number, relation):
    head, tail = ({"id": f"Q{(number + shift) % ENTITIES}", "pos": pos} for shift, pos in ((0, [0, 1]), (5, [3, 5])))
    return {"token": WORDS[number % len(WORDS)], "h": head, "t": tail, "relation": relation}


def write_fewrel(folder):
    for name, (letter, count) in FILES.items():
        relations = {f"P{r}": [fewrel_item(r * count + i, letter) for i in range(count)] for r in range(RELATIONS)}
        write_json(folder / f"{name}.json", relations)


def write_wiki80(folder):
    write_json(folder / "rel2id.json", {f"P{r}": r for r in range(80)})
    for name in ("train", "dev", "test"):
        write_lines(folder / f"{name}.txt", [opennre_line(i, f"P{i % 80}") for i in range(12)])


def write_wiki_et(folder):
    write_json(folder / "label2id.json", {f"type{r}": r for r in range(68)})
    for name in ("train", "dev", "test"):
        lines = [(" ".join(WORDS[i]), len(WORDS[i][0])) for i in range(12)]
        records = [
            {"sent": text, "start": 0, "end": end, "labels": [f"type{i}", "type3"], "id": str(i % ENTITIES)}
            for i, (text, end) in enumerate(lines)
        ]
        write_lines(folder / f"{name}.json", records)
    write_ids(folder / "entity2id.txt")


def write_entity_questions(folder):
    write_json(folder / "relation_query_templates.json", {"P36": "ka ri [X] te mo?"})
    for name in ("train", "dev", "test"):
        asked = [{"question": f"ka ri {WORDS[i][0]} te mo?", "answers": ["no such", "ka"]} for i in range(12)]
        write_json(folder / name / f"P36.{name}.json", asked)
    lines = [f"{WORDS[i][0]}\tsomething\tQ{i % ENTITIES}\n" for i in range(12)]
    (folder / "entity_map.txt").write_text("".join(lines), encoding="utf-8")


def write_wiki20m(folder):
    for name in ("train", "val", "test"):
        write_lines(folder / f"wiki20m_{name}.txt", [opennre_line(i, "P1") for i in range(8)])


def write_ids(path):
    lines = [f"{ENTITIES}\n", *(f"Q{i}\t{i}\n" for i in range(ENTITIES))]
    path.write_text("".join(lines), encoding="utf-8")


def write_embeddings(folder):
    draw = np.random.default_rng(0)
    for name, dim in (("wikipedia/transe", 128), ("wikipedia/transr", 228), ("wikimedia/transe", 128)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.npy", draw.normal(size=(ENTITIES, dim)).astype(np.float32))
    write_ids(folder / "wikipedia/entity2id.txt")
    lines = ["row\tcui\n", *(f"{i}\tC{i}\n" for i in range(ENTITIES))]
    (folder / "wikimedia/entities.tsv").write_text("".join(lines), encoding="utf-8")


WRITERS = {
    "fewrel": write_fewrel,
    "wiki80": write_wiki80,
    "wiki_et": write_wiki_et,
    "entity_questions": write_entity_questions,
    "wiki20m": write_wiki20m,
}


def write_paper_files(folder: Path) -> Path:
    """`folder/data` (prepared data sets) and `folder/knowledge_embedding`."""
    for name, write in WRITERS.items():
        manual = folder / "files" / name
        manual.mkdir(parents=True)
        write(manual)
        prepare(name, manual, folder / "data", check=False)
    write_embeddings(folder / "knowledge_embedding")
    return folder
