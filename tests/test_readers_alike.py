"""Readers that came later than text_files.py read as all do: packed or not, each key once, places that are right."""

import ast
import gzip
import json
import re
from pathlib import Path

import pytest

import kinject
from kinject.cli.main import main
from kinject.cli.split import main as split
from kinject.data.tables import read_table
from kinject.datasets.prepare import prepare
from kinject.errors import InputError, Misplaced
from kinject.linking.readers import read_brat
from kinject.stages.memory import read_passages
from kinject.tasks.labels import read_labels

KINJECT = Path(kinject.__file__).parent
# what a machine wrote for a machine: workdirs, manifests and indexes of ours, sources that a release pins by its hash
OWN = {
    *("config.py", "integrity.py", "json_file.py", "text_files.py", "tasks/labels.py", "cli/predict.py"),
    *("cli/sweep.py", "cli/train.py", "cli/split.py", "cli/seal.py", "reports/results.py", "stages/experiment.py"),
    *("training/checkpoint.py", "training/metrics.py", "inference/processes.py", "inference/xla.py"),
    *("knowledge/derived.py", "knowledge/manifest.py", "knowledge/revisions.py", "knowledge/stored.py"),
    *("linking/aliases.py", "memory/store.py", "models/hf_tensors.py", "plugins/manifest.py"),
    *("datasets/records.py", "datasets/storage.py", "data/sources/geonames.py", "data/sources/wordnet.py"),
    "knowledge/importers/arrays.py",  # csv.reader over read_lines, as PyKEEN writes it
}


def test_no_other_module_opens_a_text_past_the_one_reader():
    """A new reader goes through text_files.py or json_file.py, or says here why not."""
    found = set()
    for path in KINJECT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                texts = name.endswith((".read_text", ".read_bytes")) and "files(" not in name
                reads = not node.args or not str(getattr(node.args[0], "value", "")).startswith(("w", "a", "x"))
                texts = texts or (name.endswith(".open") and reads and any(k.arg == "encoding" for k in node.keywords))
                if texts or name in ("json.load", "json.loads", "csv.reader"):
                    found.add(str(path.relative_to(KINJECT)))
    assert found == OWN, "read people's files by text_files.py or json_file.py"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_packed_or_not_tables_passages_labels_and_annotations_are_read(tmp_path, pack, capsys):
    def write(name, text):
        (tmp_path / name).write_bytes(pack(text.encode()))
        return tmp_path / name

    assert [row for _, row in read_table(write("a.csv", "\ufeffa;b\n1;2\n\n"))] == [{"a": "1", "b": "2"}]
    assert [row for _, row in read_table(write("a.tsv", 'a\tb\n"x\ty\n'))] == [{"a": '"x', "b": "y"}]
    assert [row for _, row in read_table(write("a.jsonl", '{"a": 1}\n\n'))] == [{"a": "1"}]
    assert [one.text for one in read_passages(write("p.jsonl", '{"text": "one"}\n'))] == ["one"]
    assert read_labels(write("l.json", '["a", "b"]')) == ("a", "b")
    write("b.txt", "Paris is big")
    (document,) = read_brat(write("b.ann", "T1\tCity 0 5\tParis\n"))
    assert [(one.start, one.end) for one in document.given] == [(0, 5)]
    lines = [{"text": f"{i}", "mentions": []} for i in range(4)]
    records = write("r.jsonl", "".join(json.dumps(one) + "\n" for one in lines))
    assert split([str(records), "--by", "record", "--into", "x=.5,y=.5", "--out", str(tmp_path / "o")]) == 0
    assert split([str(records), "--by", "record", "--into", "x=.5,y=.5", "--out", str(tmp_path / "o")]) == 0  # again
    (tmp_path / "o/x.jsonl").write_text("mine")
    assert split([str(records), "--by", "record", "--into", "x=.5,y=.5", "--out", str(tmp_path / "o")]) == 2
    assert "it exists" in capsys.readouterr().err and (tmp_path / "o/x.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"a": 1, "a": 2}\n', "key 'a' stands twice"),
        ("a.jsonl", b'{"a": NaN}\n', "NaN is no JSON number"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "it is UTF-16"),
        ("a.csv", b"a,b\n1,\xff\n", "line 2: is not UTF-8"),
        ("a.csv", b"PK\x03\x04", "zip archive"),
        ("a.csv", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], "is damaged"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)):
        list(read_table(tmp_path / name))


def typed(start):
    about = {"start": start, "end": start + 5, "labels": ["city"], "ents": [["Q90", start, start + 5, 1.0]]}
    return {"sent": "Paris is big.", **about}


def asked(start):
    answer = {"text": "Paris", "answer_start": start}
    asked = {"id": f"q{start}", "question": "Which?", "answers": [answer]}
    return {"data": [{"paragraphs": [{"context": "Paris is big.", "qas": [asked, {**asked, "id": f"x{start}"}]}]}]}


def classified(start):
    return {"text": "Paris is big.", "label": "a", "mentions": [{"start": start, "end": start + 5, "entity": "Q90"}]}


FILES = {
    "squad_json": lambda bad: json.dumps({"data": [*asked(0)["data"], *(asked(9)["data"] if bad else ())]}),
    "text_classification": lambda bad: "".join(json.dumps(classified(i)) + "\n" for i in (0, *([90] if bad else ()))),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_misplaced_is_refused_or_left_out_and_counted_in_every_data_set(tmp_path, name):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / ("train.json" if name == "squad_json" else "train.jsonl")).write_text(FILES[name](True))
    reference = name if name == "squad_json" else f"{name}/mine"
    with pytest.raises(Misplaced, match="--no-check leaves such records out"):
        prepare(reference, manual, tmp_path / "data")
    (made,) = prepare(reference, manual, tmp_path / "data", check=False)
    assert set(made.left_out) == {"a mention or an answer not where its place says"} and made.splits["train"] >= 1


def test_rules_of_a_later_stage_are_told_before_the_first_one_runs(small_world, tmp_path, capsys):
    from tiny_world import plugin_stage

    first = plugin_stage(small_world, fit={"steps": 2, "checkpoint_every": 2})
    second = {**first, "train": (("plugin/nothing/.*", "train"), (".*", "freeze"))}
    third = {**first, "train": (("plugin/.*", "trian"), (".*", "freeze"))}
    reader = {**second, "method": {"name": "kformer", "layers": (0,)}}  # which reads what only its data tells
    wrong = (("matches no parameter", second), ("matches no parameter", reader))
    for name, later in (*wrong, ("labels are 'train' and 'freeze'", third)):
        config = tmp_path / "c.py"
        config.write_text(f"def get_config(arg=''):\n    return {{'stages': {{'one': {first!r}, 'two': {later!r}}}}}\n")
        argv = ["train", "--config", str(config), "--workdir", str(tmp_path / "w"), "--no-compilation-cache"]
        assert main(argv) == 2
        assert "stages.two.train" in (told := capsys.readouterr().err) and name in told and told.count("\n") == 1
        assert not (tmp_path / "w").exists()


def test_a_lock_that_is_a_pipe_is_not_waited_for_and_a_header_of_zeros_is_no_array(small_world, tmp_path):
    import os
    import shutil

    from kinject.json_file import open_lock
    from kinject.memory import PassageMemory

    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="it is no plain file"):
        open_lock(tmp_path / ".lock")
    memory = Path(shutil.copytree(small_world / "memory", tmp_path / "m"))
    content = (memory / "about.npy").read_bytes()
    for at in range(8, 120, 7):
        (memory / "about.npy").write_bytes(content[:at] + bytes(len(content) - at))
        with pytest.raises(InputError, match=r"about\.npy: it"):
            PassageMemory.open(memory)


def test_a_revision_that_is_no_plain_file_or_a_lost_pointer_is_one_line(small_world, tmp_path):
    import os
    import shutil

    from kinject.knowledge import KnowledgeBase

    base = KnowledgeBase.open(shutil.copytree(small_world / "knowledge", tmp_path / "kb"))
    base.add([{"id": "N1", "label": "new", "vector": [1.0] * base.dim}])
    folder, head = tmp_path / "kb", tmp_path / "kb/HEAD.json"
    head.rename(tmp_path / "aside")
    for make in (lambda: None, lambda: head.symlink_to("nowhere"), lambda: os.mkfifo(head)):
        make()
        with pytest.raises(InputError, match=r"HEAD.json: it (is missing|cannot be read|is no plain file)"):
            KnowledgeBase.open(folder)
        head.unlink(missing_ok=True)
    (tmp_path / "aside").rename(head)
    (folder / "revisions/000001.json").unlink()
    os.mkfifo(folder / "revisions/000001.json")
    with pytest.raises(InputError, match=r"000001\.json: it is no plain file"):
        KnowledgeBase.open(folder)
