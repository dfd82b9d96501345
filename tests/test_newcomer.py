"""A newcomer's way: a folder that transformers and torch wrote, a table of entities, labelled texts; one command."""

import csv
import random

from own_files import customers, requests
from pipeline_folders import folder_of
from transformers import BertForSequenceClassification

import kinject
from kinject.cli.tune import main as tune

DESKS = ["benelux", "central", "iberia", "nordics"]


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_a_folder_and_two_tables_become_a_plugin_in_one_command(tmp_path, capsys):
    names = {"id2label": dict(enumerate(DESKS)), "label2id": {name: i for i, name in enumerate(DESKS)}}
    folder = folder_of(tmp_path, BertForSequenceClassification, **names)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    draw = random.Random(0)
    people = customers(draw, 40)
    texts = requests(draw, people, 60)
    things = table(tmp_path / "customers.csv", [{k: v for k, v in one.items() if k != "country"} for one in people])
    words = ["--host", str(folder), "--entities", things, "--data", table(tmp_path / "requests.csv", texts)]
    words += ["--out", str(tmp_path / "plugin"), "--steps=4", "--batch_size=8", "--quiet"]
    assert tune(words) == 2 and "has no place; add --knowledge DIR" in capsys.readouterr().err
    words += ["--knowledge", str(tmp_path / "knowledge")]
    assert tune(words) == 0
    assert f"written: {tmp_path / 'plugin'}" in capsys.readouterr().out

    host = kinject.Host.load(folder)
    alone = host.predict(texts[0]["text"])
    host.plug(kinject.Plugin.load(tmp_path / "plugin"), knowledge=tmp_path / "knowledge")
    answer = host.predict(texts[0]["text"])
    assert {one.label for one in answer.labels} == set(DESKS)
    assert [one.entity for one in answer.entities] == [people[0]["id"]]
    assert [one.score for one in answer.labels] != [one.score for one in alone.labels]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before  # the host is never written

    words[words.index("--out") + 1] = str(tmp_path / "again")
    assert tune(words) == 2 and "it exists already, and --entities would build it" in capsys.readouterr().err
