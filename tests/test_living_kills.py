"""kill -9 at any moment of an edit or a compaction: no edit that was reported is lost, none is half done."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge

WORKER = """
import sys
from kinject.knowledge import KnowledgeBase

base, number = KnowledgeBase.open(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    kind = ("add", "add", "edit", "remove", "compact")[number % 5]
    print(number, kind, "begun", flush=True)
    if kind == "add":
        base.add([{"id": f"N{number}", "label": f"new {number}", "triples": [("in", "K1")]}])
    elif kind == "edit":
        base.edit([{"id": f"N{number - 1}", "label": f"changed {number - 1}", "description": "changed"}])
    elif kind == "remove":
        base.remove([f"N{number - 3}"])
    else:
        base.compact(keep=2)
    print(number, kind, "done", flush=True)
    number += 1
"""


def small(folder):
    return write_knowledge(
        folder,
        name="small",
        ids=["K0", "K1", "C0", "C1"],
        vectors=np.array([[0, 1], [1, 0], [0, 2], [1, 1]], np.float32),
        labels=["k0", "k1", "c0", "c1"],
        triples=np.array([[2, 0, 0], [3, 0, 1]]),
        relations=["in"],
    )


def whole(base):
    """{id: label} of what came, after checking that each is there in all its parts."""
    found = {}
    for row in range(base.size):
        (one,) = base.ids([row])
        if one.startswith("N") and base.rows([one])[0] == row:
            words = base.entity(row)
            assert words.label in (f"new {one[1:]}", f"changed {one[1:]}"), words
            assert (words.description == "changed") == words.label.startswith("changed"), "half of an edit"
            assert base.present(np.array([row])).all() and (base.triples[:, 0] == row).any(), "half of an entity"
            found[one] = words.label
    return found


def after(expected, number, kind):
    """What is there after an operation: {id: label}."""
    changed = dict(expected)
    if kind == "add":
        changed[f"N{number}"] = f"new {number}"
    elif kind == "edit":
        changed[f"N{number - 1}"] = f"changed {number - 1}"
    elif kind == "remove":
        del changed[f"N{number - 3}"]
    return changed


def kill_again_and_again(folder, kills, seed=0):
    """Counts (operation that was under way, "done" or "not") over the kills; raises where something is lost or half."""
    draw, expected, counted = random.Random(seed), {}, Counter()
    for round_ in range(kills):
        reader = KnowledgeBase.open(folder)
        was = whole(reader)
        command = [sys.executable, "-c", WORKER, str(folder), str(round_ * 1000)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [worker.stdout.readline() for _ in range(1 + draw.randrange(24))]  # up to a dozen operations
        deadline = time.monotonic() + draw.uniform(0, 0.05)
        while time.monotonic() < deadline:
            whole(KnowledgeBase.open(folder))
        worker.send_signal(signal.SIGKILL)
        lines += worker.communicate()[0].splitlines(keepends=True)
        begun = None
        for line in lines[1:]:
            if line.endswith("begun\n"):
                begun = int(line.split()[0]), line.split()[1]
            elif line.endswith("done\n"):
                expected, begun = after(expected, *begun), None
        now = KnowledgeBase.open(folder)
        now.verify()
        found = whole(now)
        if begun is not None:
            done = found == after(expected, *begun) and begun[1] != "compact"
            counted[begun[1], "done" if done else "not"] += 1
            expected = after(expected, *begun) if done else expected
        assert found == expected, "an edit that was reported is lost, or one is half done"
        assert whole(reader) == was, "a reader keeps its revision"
        reader.refresh()
        assert whole(reader) == expected and reader.fingerprint == now.fingerprint
    return counted


def test_a_few_kills(tmp_path):
    kill_again_and_again(small(tmp_path / "kb"), kills=5)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path, capsys):
    counted = kill_again_and_again(small(tmp_path / "kb"), kills=200, seed=1)
    with capsys.disabled():
        print("\n| killed during | kills | the revision before | the new one |\n|---|---:|---:|---:|")
        for kind in ("add", "edit", "remove", "compact"):
            before, after = counted[kind, "not"], counted[kind, "done"]
            print(f"| {kind} | {before + after} | {before} | {after} |")
        print(f"between two: {200 - sum(counted.values())}")
    assert sum(counted.values()) > 100


def test_writers_queue(tmp_path):
    """Three processes add at once: all entities are there, each in a revision of its own."""
    folder = small(tmp_path / "kb")
    code = """
import sys
from kinject.knowledge import KnowledgeBase
base = KnowledgeBase.open(sys.argv[1])
for number in range(5):
    base.add([{"id": f"N{sys.argv[2]}{number}", "label": "x", "triples": [("in", "K1")]}])
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(folder), str(i)]) for i in range(1, 4)]
    assert [one.wait() for one in workers] == [0, 0, 0]
    base = KnowledgeBase.open(folder)
    ids = [f"N{i}{number}" for i in range(1, 4) for number in range(5)]
    assert base.revision == 15 and (base.rows(ids) >= 0).all() and [one["entities"] for one in base.log()] == [1] * 15


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    folder = small(tmp_path / "kb")
    (folder / "revisions").write_text("a file in its place")
    with pytest.raises(InputError, match="it cannot be written"):
        KnowledgeBase.open(folder).add(["N1"])
