"""What a grown base says in words equals what one says that was built so; the commands; folders of earlier versions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kinject.cli.knowledge import main
from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.knowledge.facts import Facts, TextIndex
from kinject.linking import AliasLinker
from kinject.serving import Host

STORED = Path(__file__).parent / "stored" / "f5eefac"
NAMES = ["Rhine", "Po", "Danube", "Elbe", "Oder", "Main"]


def write(folder, rows, triples):
    row = {one: at for at, one in enumerate(rows)}
    return write_knowledge(
        folder,
        name="rivers",
        ids=rows,
        vectors=np.arange(4 * len(rows), dtype=np.float32).reshape(-1, 4),
        labels=[NAMES[int(one[1:])] for one in rows],
        aliases=[[f"{NAMES[int(one[1:])]} river", "river"] for one in rows],
        descriptions=[f"a river called {NAMES[int(one[1:])]}" for one in rows],
        triples=np.array([[row[a], 0, row[b]] for a, b in triples]),
        relations=["meets"],
    )


@pytest.fixture
def grown(tmp_path):
    """Four rivers, of which one goes, one is renamed and two come; and a base that was built as it is then."""
    base = KnowledgeBase.open(write(tmp_path / "grown", ["R0", "R1", "R2", "R3"], [("R0", "R1"), ("R2", "R0")]))
    AliasLinker(base), Facts(base), TextIndex(base)
    words = [{"label": NAMES[i], "aliases": [f"{NAMES[i]} river", "river"], "description": f"a river called {NAMES[i]}"}
             for i in (4, 5)]  # fmt: skip
    came = [{"id": f"R{i}", **one, "vector": np.ones(4)} for i, one in zip((4, 5), words, strict=True)]
    base.add(came, triples=[("R4", "meets", "R0"), ("R5", "meets", "R0"), ("R5", "meets", "R2")])
    base.remove(["R1"])
    base.edit([{"id": "R3", "aliases": ["Labe"]}], drop=[("R2", "meets", "R0")], triples=[("R3", "meets", "R4")])
    ids = ["R0", "R2", "R3", "R4", "R5"]
    built = write(tmp_path / "built", ids, [("R4", "R0"), ("R5", "R0"), ("R5", "R2"), ("R3", "R4")])
    return base, KnowledgeBase.open(built)


def test_names_and_facts_are_those_of_a_base_that_was_built_so(grown):
    base, built = grown
    text = "The Po, the river, the Labe, the Oder river and MAIN meet the Rhine."
    linker = AliasLinker(base)
    found = [(one.start, one.end, one.entity) for one in linker(text)]
    assert found == [(12, 17, "R0"), (23, 27, "R3"), (33, 43, "R4"), (48, 52, "R5"), (62, 67, "R0")]
    same = [(one.start, one.end, one.entity) for one in AliasLinker(built)(text)]
    assert [one for one in found if one[2] != "R3"] == same, "whom `river` means is decided by the triples of now"
    order = base.rows(built.ids(range(5)))
    assert Facts(base).of(order) == Facts(built).of(range(5))
    assert Facts(base).of(base.rows(["R5"])) == [["Main: a river called Main", "Main meets Rhine", "Main meets Danube"]]
    (found,) = TextIndex(base).search(["the river called Oder"], 2)
    assert base.ids(found[:1]) == ["R4"]
    assert base.rows(["R1"])[0] == -1 and 1 not in TextIndex(base).search(["a river called Po"], 6)
    before = AliasLinker(base)(text)
    base.compact()
    assert [one.entity for one in AliasLinker(base)(text)] == [one.entity for one in before]
    assert Facts(base).of(base.rows(built.ids(range(5)))) == Facts(built).of(range(5))


def test_a_changed_fact_is_told_where_the_old_one_was(tmp_path):
    """Whoever reads the first facts alone reads it too."""
    base = KnowledgeBase.open(
        write(tmp_path / "kb", ["R0", "R1", "R2", "R3"], [("R0", "R1"), ("R0", "R2"), ("R1", "R0")])
    )
    base.add(triples=[("R0", "feeds", "R3")])
    assert Facts(base, "triples").of([0]) == [["Rhine meets Po", "Rhine meets Danube", "Rhine feeds Elbe"]]
    base.edit(drop=[("R0", "meets", "R1")], triples=[("R0", "meets", "R3"), ("R0", "meets", "R2")])
    assert Facts(base, "triples").of([0, 1]) == [
        ["Rhine meets Elbe", "Rhine meets Danube", "Rhine feeds Elbe"],
        ["Po meets Rhine"],
    ]


def test_the_commands(tmp_path, capsys):
    folder = write(tmp_path / "kb", ["R0", "R1", "R2"], [("R0", "R1"), ("R2", "R1")])
    table = tmp_path / "new.csv"
    table.write_text("id,label,aliases,triples\nR4,Oder,Odra|Viadrus,meets=R1\nR5,Main,,meets=R9\n")
    assert main(["add", str(folder), "--entities", str(table), "--note", "two more"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("R4: placed by triples of 1, trust ") and out[1].startswith("R5: it has no vector yet; 1")
    assert out[2].startswith("revision 1: add 2 entities, 2 triples, 1 waiting (")
    assert main(["edit", str(folder), "--id", "R4", "--label", "Odra", "--fact", "meets=R0"]) == 0
    drop = tmp_path / "drop.tsv"
    drop.write_text("R0\tmeets\tR1\n")
    assert main(["edit", str(folder), "--drop", str(drop)]) == main(["remove", str(folder), "R2"]) == 0
    capsys.readouterr()
    base = KnowledgeBase.open(folder)
    row = base.rows(["R4"])[0]
    assert base.entity(row).label == "Odra" and base.entity(row).aliases == ("Odra", "Viadrus")
    assert base.triples.tolist() == [[row, 0, 0]]
    assert main(["log", str(folder), "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["kind"] for one in said] == ["add", "edit", "edit", "remove"] and said[0]["note"] == "two more"
    assert main(["inspect", str(folder), "--entity", "R4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"][0]["placed"]["by"] == "changed triples"
    assert main(["compact", str(folder), "--keep", "1"]) == 0 and main(["log", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("3 revisions folded; rivers is at revision 4") and out[-1].endswith("4: remove 1 removed")
    assert main(["inspect", str(folder), "--verify"]) == 0
    assert "rivers: 4 entities, 4 numbers a vector (float32), revision 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "KB", "--id", "R0"], "entity 'R0': it is there already"),
        (["add", "KB", "--label", "x"], "they are of one entity; name it: --id"),
        (["add", "KB", "--id", "X", "--fact", "meets"], "it is not RELATION=ID"),
        (["edit", "KB"], "there is nothing to change"),
        (["remove", "KB", "X"], "it is not in rivers"),
        (["compact", "KB", "--keep", "-1"], "it must be 0 or more"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, tmp_path, capsys):
    folder = write(tmp_path / "kb", ["R0", "R1"], [("R0", "R1")])
    assert main([str(folder) if one == "KB" else one for one in arguments]) == 2
    assert message in capsys.readouterr().err and KnowledgeBase.open(folder).revision == 0


def test_what_an_earlier_version_wrote_opens_grows_and_serves(tmp_path, caplog):
    """f5eefac knew no spaces: its relations are estimated, and its plugins go on fitting, also after a compaction."""
    for name in ("knowledge", "facts", "plugin", "kformer", "host", "facts.names", "facts.facts", "facts.bm25_all"):
        shutil.copytree(STORED / name, tmp_path / name)
    facts = KnowledgeBase.open(tmp_path / "facts")
    first = facts.fingerprint
    change = facts.add(new_city(facts))
    assert change.placed[0].by == "triples" and facts.present(facts.rows(["N1"])).all()
    (span,) = AliasLinker(facts)("newtown")
    assert span.entity == "N1" and Facts(facts).of(facts.rows(["N1"]))[0][0].startswith("newtown ")
    plain = KnowledgeBase.open(tmp_path / "knowledge")
    plain.add([{"id": "N1", "label": "newtown"}], vectors={"N1": np.ones(plain.dim)})
    host = Host.load(tmp_path / "host", batch_size=4).plug(tmp_path / "plugin", knowledge=plain)
    answer = host.predict("newtown is in [MASK] .")
    assert [(one.entity, one.plugin) for one in answer.entities] == [("N1", "plugin")]
    assert facts.compact() == plain.compact() == 1
    assert facts.space["id"] == first and first in facts.space["origins"]
    assert host.refresh() and host.predict("newtown is in [MASK] .").labels == answer.labels
    other = Host.load(tmp_path / "host", batch_size=4).plug(tmp_path / "kformer", knowledge=facts)
    assert other.plugged == ("kformer",)
    with pytest.raises(InputError, match="another embedding space"):
        other.plug(tmp_path / "plugin", knowledge=facts)
    assert "reads revision 1, in the same space" in caplog.text


def new_city(base):
    """An entity with the facts of another one."""
    _, relation, tail = base.triples[0].tolist()
    return [{"id": "N1", "label": "newtown", "triples": [(base.relations[relation]["id"], base.ids([tail])[0])]}]
