"""Tables as people have them: columns become facts; and records cut so that parts share no entity."""

import csv
import json
import sqlite3

import numpy as np
import pytest

from kinject.cli.knowledge import main as knowledge
from kinject.cli.split import main as split
from kinject.data.split import split_records
from kinject.data.tables import read_table
from kinject.errors import InputError
from kinject.knowledge.base import KnowledgeBase
from kinject.knowledge.facts_of_columns import FactColumns, write_entities

ROWS = [
    {
        "product_code": "P1",
        "name": "Zolam",
        "manufacturer": "Acme",
        "form": "tablet",
        "contains": "P3|water",
        "price": "1",
    },
    {"product_code": "P2", "name": "Nurex", "manufacturer": "Acme", "form": "syrup", "contains": "", "price": "2"},
    {"product_code": "P3", "name": "Base; pure", "manufacturer": "Böhm", "form": "", "contains": "", "price": "3"},
]
COLUMNS = FactColumns("product_code", label="name", facts=("manufacturer", "form", "contains"))


def delimited(path, delimiter):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def workbook(path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["not", "this"])
    sheet = book.create_sheet("Products")
    sheet.append(list(ROWS[0]))
    for row in ROWS:
        sheet.append([float(value) if key == "price" else value or None for key, value in row.items()])
    book.save(path)
    return f"{path}#Products"


def parquet(path):
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist([{**row, "price": int(row["price"])} for row in ROWS]), path)
    return path


def database(path):
    base = sqlite3.connect(path)
    base.execute(f"CREATE TABLE products ({', '.join(ROWS[0])})")
    base.executemany("INSERT INTO products VALUES (?, ?, ?, ?, ?, ?)", [tuple(row.values()) for row in ROWS])
    base.commit()
    base.close()
    return path


MADE = {
    "a.csv": lambda path: delimited(path, ","),
    "b.csv": lambda path: delimited(path, ";"),
    "c.tsv": lambda path: delimited(path, "\t"),
    "d.xlsx": workbook,
    "e.parquet": parquet,
    "f.db": database,
    "g.db": lambda path: f"{database(path)}#SELECT * FROM products ORDER BY price",
}


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_table_reads_alike(name, tmp_path):
    assert [row for _, row in read_table(MADE[name](tmp_path / name))] == ROWS


def test_columns_become_facts_and_what_is_not_read_is_told(tmp_path):
    told = write_entities(read_table(delimited(tmp_path / "p.csv", ";")), COLUMNS, tmp_path / "p.jsonl")
    made = {one["id"]: one for one in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    assert made["P1"]["label"] == "Zolam" and made["P1"]["triples"] == [
        ["manufacturer", "manufacturer: Acme"],
        ["form", "form: tablet"],
        ["contains", "P3"],  # an entity of the table
        ["contains", "contains: water"],
    ]
    assert set(made) - {"P1", "P2", "P3"} == {
        *("manufacturer: Acme", "manufacturer: Böhm"),
        *("form: tablet", "form: syrup", "contains: water"),
    }
    assert told.lines() == [
        "3 entities",
        "  manufacturer: 3 facts, 2 values",
        "  form: 2 facts, 2 values, 1 entities without",
        "  contains: 2 facts, 1 values, 2 entities without",
        "  not read: price",
    ]


def test_the_command_makes_a_base_of_them(tmp_path, capsys):
    source = delimited(tmp_path / "products.csv", ";")
    words = ["--id", "product_code", "--label", "name", "--facts", "manufacturer,form", "--dim", "4", "--epochs", "1"]
    assert knowledge(["build", "--entities", str(source), *words, "--out", str(tmp_path / "kb")]) == 0
    base = KnowledgeBase.open(tmp_path / "kb")
    assert base.size == 7 and base.entity(base.rows(["P1"])[0]).label == "Zolam"
    assert {one["id"] for one in base.relations} == {"manufacturer", "form"} and len(base.triples) == 5
    assert "not read: contains, price" in capsys.readouterr().out
    assert not list(tmp_path.glob(".kb*")), "nothing is left beside it"


def test_a_base_of_an_odd_table_grows_by_such_tables(tmp_path, capsys):
    """The whole catalogue again, with a product and a value that are new."""
    words = ["--id", "product_code", "--label", "name", "--facts", "manufacturer,form", "--dim", "4", "--epochs", "1"]
    source, kb = delimited(tmp_path / "products.csv", ";"), str(tmp_path / "kb")
    assert knowledge(["build", "--entities", str(source), *words, "--out", kb, "--quiet"]) == 0
    more = {"product_code": "P4", "name": "Velor", "manufacturer": "Acme", "form": "spray", "contains": "", "price": ""}
    with (tmp_path / "all.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows([*ROWS, more])
    assert knowledge(["add", kb, "--entities", str(tmp_path / "all.csv")]) == 2
    assert "entity 'P1': it is there already" in capsys.readouterr().err
    assert knowledge(["add", kb, "--entities", str(tmp_path / "all.csv"), "--known", "skip"]) == 0
    said = capsys.readouterr().out
    assert "3 entities are there already and stay as they are" in said and "P4: placed by triples of 1" in said
    base = KnowledgeBase.open(kb)
    assert base.rows(["P4", "form: spray", "manufacturer: Acme"]).min() >= 0 and base.entity(base.size - 2).id == "P4"
    more["form"] = "tablet"
    with (tmp_path / "changed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerow(more)
    assert knowledge(["edit", kb, "--entities", str(tmp_path / "changed.csv")]) == 0
    base = KnowledgeBase.open(kb)
    (row,) = base.rows(["P4"])
    facts = {base.ids([tail])[0] for head, _, tail in base.triples if head == row}
    assert facts == {"manufacturer: Acme", "form: tablet"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--id", "code"], "there is no column 'code'"),
        (["--id", "manufacturer"], "manufacturer 'Acme' stands in"),
        (["--id", "product_code", "--facts", "fom"], "there is no column 'fom'; did you mean form?"),
        (["--label", "name"], "name its ids too: --id COLUMN"),
        (["--id", "product_code", "--columns", "id=x"], "say what the columns are in one of the two ways"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(words, said, tmp_path, capsys):
    source = delimited(tmp_path / "p.csv", ",")
    assert knowledge(["build", "--entities", str(source), *words, "--out", str(tmp_path / "kb")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_what_is_no_table_is_told(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b\n\xff,1\n")
    (tmp_path / "y.parquet").write_bytes(b"no")
    (tmp_path / "z.csv").write_text("a,b\n1\n")
    database(tmp_path / "f.db")
    for source, said in (
        ("x.csv", "is not UTF-8"),
        ("y.parquet", "is no Parquet file"),
        ("z.csv", "has 1 cells, the first line names 2"),
        ("f.db#product", "it has no table 'product'; did you mean products"),
        ("f.db#SELECT * FRM products", "the database refuses it"),
        ("q.csv", "there is no such file"),
    ):
        with pytest.raises(InputError, match=said):
            list(read_table(f"{tmp_path}/{source}"))


def records(count=200, entities=40):
    draw = np.random.default_rng(0)
    names = [[f"Q{one}" for one in draw.choice(entities, size=1 + number % 10 // 9)] for number in range(count)]
    return [
        {"text": "x", "mentions": [{"entity": one} for one in some], "label": "ab"[len(some) - 1]} for some in names
    ]


def test_parts_share_no_entity_and_have_their_shares():
    made = records()
    parts = split_records(made, {"host": 0.4, "plugin": 0.4, "test": 0.2}, by="entity", seed=1)
    of = {part: {one["entity"] for i in parts.numbers(part) for one in made[i]["mentions"]} for part in set(parts.of)}
    assert not of["host"] & of["plugin"] and not of["host"] & of["test"] and not of["plugin"] & of["test"]
    assert sum(len(parts.numbers(part)) for part in of) == 200 and parts.largest > 5
    assert parts.of == split_records(made, {"host": 2, "plugin": 2, "test": 1}, by="entity", seed=1).of
    alone = split_records(made, {"a": 0.5, "b": 0.5}, by="record")
    assert len(alone.numbers("a")) == 100
    with pytest.raises(InputError, match="part b stays empty"):
        split_records([{"mentions": [{"entity": "Q1"}]}] * 9, {"a": 0.5, "b": 0.5}, by="entity")


def test_the_split_command(tmp_path, capsys):
    spans = [
        {"text": f"city{i} .", "mentions": [{"start": 0, "end": 4, "entity": f"Q{i}"}], "label": "a"} for i in range(9)
    ]
    lines = [json.dumps(one) for one in [*spans, {"text": "none", "mentions": [], "label": "b"}]]
    (tmp_path / "linked.jsonl").write_text("\n".join(lines))
    command = [str(tmp_path / "linked.jsonl"), "--into", "host=.5,test=.5", "--out", str(tmp_path / "parts")]
    assert split(command) == 0
    found = [(tmp_path / "parts" / f"{name}.jsonl").read_text().splitlines() for name in ("host", "test")]
    assert sorted(found[0] + found[1]) == sorted(lines) and len(found[0]) == 5
    said = capsys.readouterr()
    assert "10 groups, the largest of 1; 1 records name no entity" in said.out
    assert ("test has labels that host has not: b" in said.err) == (lines[-1] in found[1])
    assert split(command) == 0, "the same parts again, as after a kill, are no fault"
    capsys.readouterr()
    assert split([*command, "--seed", "1"]) == 2 and "it exists" in capsys.readouterr().err
