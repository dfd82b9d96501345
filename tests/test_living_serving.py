"""Served while it changes: linked without being asked, new revisions without recompilation, other spaces refused."""

import io
import json
import logging
import shutil

import numpy as np
import pytest
from served import Served

from kinject.cli.knowledge import main as change_knowledge
from kinject.cli.predict import parse, run
from kinject.data.records import parse_record
from kinject.demo.demo import NOTHING_READ, Demo
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.inference.mentions import read_mentions
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.serving import Host

TEXT = "new town is in [MASK] ."


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("living_serving"))


@pytest.fixture
def knowledge(served, tmp_path):
    return shutil.copytree(served.knowledge, tmp_path / "knowledge")


def named(base, one="N1", label="new town"):
    base.add([{"id": one, "label": label}], vectors={one: np.linspace(-1, 1, base.dim)})


def test_a_host_takes_new_revisions_when_it_is_told_to_and_compiles_nothing(served, knowledge, caplog):
    host = Host.load(served.host(), batch_size=4).plug(served.plugin(), knowledge=knowledge)
    before = host.predict(TEXT)
    assert before.entities == () and [one.message for one in caplog.records] == [
        "input 1 names no entity that a plugin knows: its answer is the host's own"
    ]
    assert before.host_alone and before.to_json()["host_alone"] and "no plugin read anything" in repr(before)
    assert not Host.load(served.host(), batch_size=4).predict(TEXT).host_alone, "nothing was to read anything"
    base = KnowledgeBase.open(knowledge)
    named(base)
    assert host.predict(TEXT).labels == before.labels and len(caplog.records) == 1, "it goes on reading what it read"
    compiled = host.engine.programs.compiled
    assert host.predict("city1 is in [MASK] .").entities[0].entity == "Q1", "linked without being asked"
    assert host.refresh() and not host.refresh()
    after = host.predict(TEXT)
    assert [(one.entity, one.name, one.plugin) for one in after.entities] == [("N1", "new town", "geo")]
    assert not after.host_alone and "host_alone" not in after.to_json()
    assert after.labels != before.labels and host.engine.programs.compiled == compiled
    base.remove(["N1"])
    host.refresh()
    assert host.predict(TEXT).labels == before.labels
    base.compact()
    assert host.refresh() and host.predict(TEXT).labels == before.labels
    off = Host.load(served.host(), batch_size=4).plug(served.plugin(), knowledge=knowledge, linker=None)
    assert off.predict("city1 is in [MASK] .").entities == ()


def test_a_plugin_reads_a_revision_of_its_space_and_says_so(served, knowledge, tmp_path, caplog):
    base = KnowledgeBase.open(knowledge)
    for number in range(3):
        named(base, f"N{number}", f"town {number}")
    caplog.set_level(logging.WARNING)
    Host.load(served.host()).plug(served.plugin(), knowledge=base)
    assert caplog.messages == [f"geo was trained on revision 0 of {base.name} and reads revision 3, in the same space"]
    plugin = served.plugin("late", knowledge=knowledge, folder=tmp_path / "late")
    base.remove(["N0"])
    base.compact(keep=1)
    Host.load(served.host()).plug(plugin, knowledge=base)
    assert caplog.messages[-1].endswith("reads revision 4, in the same space")
    other = write_knowledge(tmp_path / "b", name="b", ids=["Q1"], vectors=np.ones((1, base.dim), np.float32))
    with pytest.raises(InputError, match="vectors of another embedding space"):
        Host.load(served.host()).plug(plugin, knowledge=other)


class Waiting(io.RawIOBase):
    """Lines that come one at a time; between two of them somebody edits the knowledge base."""

    def __init__(self, lines, between):
        self.lines, self.between = list(lines), between

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.lines:
            return 0
        self.between(len(self.lines))
        line = (self.lines.pop(0) + "\n").encode()
        buffer[: len(line)] = line
        return len(line)


@pytest.mark.parametrize("follow", [True, False])
def test_the_command_follows(served, knowledge, follow, capsys):
    came = Waiting([TEXT, TEXT], lambda left: left == 1 and named(KnowledgeBase.open(knowledge)))
    lines = io.BufferedReader(came)
    arguments = ["--host", str(served.host()), "--plain", "--no-compilation-cache", *["--follow"][: int(follow)]]
    out = io.StringIO()
    assert run(parse([*arguments, "--plugin", str(served.plugin()), "--knowledge", str(knowledge)]), lines, out) == 0
    found = [[one["entity"] for one in json.loads(line)["entities"]] for line in out.getvalue().splitlines()]
    assert found == [[], ["N1"] if follow else []]


def test_the_demo_answers_from_the_newest_revision(served, knowledge):
    """A page that is open all the time: what somebody adds is found by the next question, what goes is not."""
    demo = Demo.load(str(served.host()), [str(served.plugin())], [str(knowledge)])
    before = demo.answer(TEXT, ["geo"])
    assert before["entities"] == [] and before["notice"] == NOTHING_READ
    base = KnowledgeBase.open(knowledge)
    named(base)
    after = demo.answer(TEXT, ["geo"])
    assert [(one["entity"], one["plugin"]) for one in after["entities"]] == [("N1", "geo")] and after["notice"] is None
    assert after["labels"] != before["labels"] and after["before"] == before["before"]
    assert demo.answer(TEXT, [])["entities"] == [], "no plugin is chosen"
    base.edit([{"id": "N1", "label": "old town"}])
    assert demo.answer(TEXT, ["geo"])["labels"] == before["labels"], "nobody is called so any more"
    base.remove(["N1"])
    base.compact()
    assert demo.answer(TEXT.replace("new", "old"), ["geo"])["entities"] == []


def test_names_that_cannot_be_indexed_are_said_once(served, knowledge, caplog):
    base = KnowledgeBase.open(knowledge)
    (knowledge.parent / "knowledge.names").write_text("a file in the index's place")
    host = Host.load(served.host()).plug(served.plugin(), knowledge=base)
    assert host.predict(["city1 is in [MASK] ."] * 2)[1].entities == ()
    assert sum("texts are not linked by names" in one for one in caplog.messages) == 1


def test_sentences_are_read_by_the_host_itself(served, knowledge):
    """A name as every other city's, in sentences of its own: what the host puts out places it, and says how well."""
    host = open_host(served.host())
    told = [{"text": f"city{i} is in land{i % 5} .", "mentions": [{"start": 0, "end": 5 + (i > 9), "entity": f"Q{i}"}]}
            for i in range(30)]  # fmt: skip
    told.append({"text": "near city1 . land2", "mentions": [{"start": 5, "end": 10, "entity": "N1"}]})
    records = [parse_record(one, "test") for one in told]
    read = read_mentions(host, records, batch_size=8)
    assert read["N1"].shape == (1, 16) and len(read) == 31
    (alone,) = read_mentions(host, records[3:4], batch_size=1)["Q3"]
    np.testing.assert_allclose(read["Q3"][0], alone, atol=1e-5)
    (placed,) = KnowledgeBase.open(knowledge).add([{"id": "N1", "label": "new town"}], read=read).placed
    assert (placed.by, placed.evidence) == ("sentences", 1) and 0 <= placed.trust <= 1
    linked = knowledge.parent / "linked.jsonl"
    linked.write_text("".join(json.dumps(one).replace("N1", "N2") + "\n" for one in told))
    said = ["add", str(knowledge), "--id", "N2", "--sentences", str(linked), "--host", str(served.host())]
    assert change_knowledge(said) == 0 and change_knowledge([*said[:3], "N3", *said[4:6]]) == 2
    both = KnowledgeBase.open(knowledge)
    vectors = both.gather(both.rows(["N1", "N2"]))[0]
    np.testing.assert_allclose(*vectors, atol=1e-4)
    with pytest.raises(InputError, match="none of them mentions an entity"):
        read_mentions(host, [parse_record({"text": "city1"}, "test")])
