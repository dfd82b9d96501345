"""`kinject predict`: lines in, lines out, in order; bad lines told and passed over."""

import io
import json
import subprocess
import sys

import pytest
from fact_world import write_facts
from served import PLUGLM, Served
from tiny_world import question

from kinject.cli.predict import main, parse, run
from kinject.data.records import LONGEST_LINE
from kinject.serving.queries import read_lines


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("predict"))


def predict(served, lines, *arguments):
    """(exit code, lines written as JSON) of a run; InputErrors are raised."""
    source = io.BytesIO("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode())
    out = io.StringIO()
    given = parse(["--host", str(served.host()), "--batch-size", "4", "--no-compilation-cache", *map(str, arguments)])
    code = run(given, source, out)
    return code, [json.loads(line) for line in out.getvalue().splitlines()]


def asked(i, **fields):
    return {**{key: value for key, value in question(i).items() if key != "label"}, **fields}


def test_lines_out_in_order_with_bad_ones_told(served, capsys):
    lines = [asked(1, id="a"), "", "{not json", asked(2), {"id": 5, "text": 3}, {"text": "no blank"}, asked(3, id=0)]
    plugin = ("--plugin", served.plugin(), "--knowledge", served.knowledge)
    code, out = predict(served, lines, "--window", 3, "--compare", "--explain", "--top", 2, *plugin)
    assert code == 0 and len(out) == 6
    assert [one.get("id") for one in out] == ["a", None, None, 5, None, 0]
    assert [one.get("line") for one in out] == [None, 3, None, 5, 6, None]
    first = out[0]
    assert len(first["labels"]) == len(first["before"]) == 2 and first["labels"] != first["before"]
    assert first["entities"] == [{"start": 0, "end": 5, "entity": "Q1", "name": "city1", "plugin": "geo"}]
    (why,) = first["explain"]["entities"]
    assert why["entity"] == "Q1" and why["without"] and why["gradient"]
    assert out[1]["error"].startswith("stdin:3: not JSON") and "stdin:5: field 'text'" in out[3]["error"]
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == [f"kinject: {one['error']}" for one in out if "error" in one]
    assert told[3:] == ["kinject: 3 answered, 3 refused"]


def test_a_clean_run_is_silent_and_plain_lines_are_texts(served, capsys):
    code, out = predict(served, ["city1 is in [MASK] .", "\ufeffa [MASK]"], "--plain")
    assert code == 0 and len(out) == 2 and all(one["labels"] and not one["entities"] for one in out)
    _, same = predict(served, [{"text": "city1 is in [MASK] ."}, {"text": "\ufeffa [MASK]"}])
    assert same == out and capsys.readouterr().err == ""


def test_nothing_to_answer_and_what_does_not_belong_together(served, capsys, monkeypatch):
    def refused(says, lines, *arguments):
        stream = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
        monkeypatch.setattr(sys, "stdin", stream)
        assert main(["--host", str(served.host()), "--no-compilation-cache", *map(str, arguments)]) == 2
        shown = capsys.readouterr()
        assert says in shown.err.splitlines()[-1], shown.err
        return shown.out

    assert refused("stdin: there is no line in it", []) == ""
    assert json.loads(refused("none of its 1 lines could be answered", ["[]"]))["line"] == 1
    refused("unrecognized arguments: --frobnicate", [], "--frobnicate")
    refused("no plugin was trained on it", [], "--knowledge", served.knowledge)
    refused("there is no knowledge base whose names", [], "--link")
    other = served.other_base(dim=8)
    plugin = ("--plugin", served.plugin())
    refused("it was trained on the knowledge base 'cities'", [], *plugin, "--knowledge", other)
    more = ("--knowledge", other, "--knowledge", served.other_base())
    refused("which is none of those given", [], *plugin, *more)
    refused("there is no plugin here", [], "--plugin", served.folder)
    refused("cannot be served", [], "--task", "masked_lm")


def test_lines_are_never_held_whole(tmp_path):
    long = b'{"text": "' + b"x" * (2 * LONGEST_LINE) + b'"}\n'
    stream = io.BytesIO(b'{"text": "a"}\n' + long + b'\n{"text": "\xff"}\r\n{"text": "b"}')
    found = list(read_lines(stream, "in"))
    assert [number for number, _ in found] == [1, 2, 4, 5]
    assert found[0][1] == {"text": "a"} and found[3][1] == {"text": "b"}
    assert "more than 1048576 bytes" in str(found[1][1]) and "not UTF-8" in str(found[2][1])


def test_each_plugin_finds_its_knowledge_base(served):
    bio = served.plugin("bio", seed=2, knowledge=served.other_base().name)
    arguments = ["--plugin", bio, "--plugin", served.plugin(), "--knowledge", served.knowledge]
    _, out = predict(served, [asked(3), asked(55)], *arguments, "--knowledge", served.other_base())
    assert [one["entities"][0]["plugin"] for one in out] == ["geo", "bio"]


def test_names_are_linked(served):
    plugin = ("--plugin", served.plugin(), "--knowledge", served.knowledge)
    given = {"text": "a place of city7 is in [MASK] .", "mentions": [{"start": 11, "end": 16}]}
    _, out = predict(served, [{"text": "city7 is in [MASK] ."}, given, {**given, "mentions": []}], "--link", *plugin)
    assert [[one["entity"] for one in line["entities"]] for line in out] == [["Q7"], ["Q7"], []]
    _, same = predict(served, [asked(7)], *plugin)
    assert same[0]["entities"] == out[0]["entities"]  # a batch of another size rounds otherwise
    for one, other in zip(same[0]["labels"], out[0]["labels"], strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], rel=1e-4)
    _, alone = predict(served, ["city7 [MASK]"], "--plain", "--link", "--knowledge", served.knowledge)
    assert alone[0]["entities"] == [{"start": 0, "end": 5, "entity": "Q7", "plugin": None}]


def test_passages_are_shown(served):
    folder = served.plugin("memory_plugin", knowledge=None, method=PLUGLM)
    memory = served.memory(folder)
    with pytest.raises(Exception, match="it answers from a memory of passages"):
        predict(served, [asked(3)], "--plugin", folder)
    _, out = predict(served, [asked(3), asked(4)], "--plugin", folder, "--memory", memory, "--explain")
    passages = out[0]["explain"]["passages"]
    assert out[0]["explain"]["entities"] == [] and len(passages) == 2
    assert sum(one["weight"] for one in passages) == pytest.approx(1, abs=1e-4)
    assert all(one["text"].startswith("city") and one["entity"].startswith("Q") for one in passages)


def test_facts_are_left_out(served):
    pytest.importorskip("bm25s")
    write_facts(served.folder / "facts")
    method = {"name": "kformer", "layers": [0], "start": "paper", "retrieve": False}  # or BM25 finds it again
    folder = served.plugin("kformer", knowledge="facts", method=method)
    plugin = ("--plugin", folder, "--knowledge", served.folder / "facts")
    _, out = predict(served, [asked(i) for i in range(6)], *plugin, "--explain", "--compare")
    for i, one in enumerate(out):
        (why,) = one["explain"]["entities"]
        assert why["entity"] == f"Q{i}" and why["gradient"] is None and one["entities"][0]["plugin"] == "kformer"
    assert any(one["labels"] != one["before"] for one in out)
    assert any(abs(one["explain"]["entities"][0]["without"]) > 1e-6 for one in out)


def test_the_command(served):
    """As a process: a reader that stops early ends it quietly, and no line of it comes twice."""
    command = [sys.executable, "-m", "kinject", "predict", "--host", str(served.host()), "--window", "8"]
    lines = "".join(json.dumps(asked(i % 60, id=i)) + "\n" for i in range(4000))
    shell = f"{' '.join(command)} | head -n 20"
    done = subprocess.run(["bash", "-c", shell], input=lines, capture_output=True, text=True, timeout=1800)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(range(20))
    assert done.stderr == ""
