"""Bad inputs over every verb: one line that says what is wrong, exit code 2, and nothing written."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fault_world import plugin_params
from tiny_world import plugin_stage

from kinject.cli.main import main
from kinject.errors import EXIT_BAD_INPUT

BIG, NEGATIVE = str(10**12), "-1"


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    """The world, and beside it files that are wrong in one way each."""
    world = Path(shutil.copytree(small_world, tmp_path_factory.mktemp("bad") / "w"))
    bad = world / "bad"
    bad.mkdir()
    texts = {
        "empty": "",
        "blank": "\n \n",
        "brace.json": "{",
        "list.json": "[1, 2]",
        "nan.jsonl": '{"text": "a [MASK]", "label": NaN}\n',
        "twice.jsonl": '{"text": "a", "text": "b"}\n',
        "both.jsonl": '{"text": "a", "tokens": ["a"]}\n',
        "outside.jsonl": '{"text": "a", "mentions": [{"start": 0, "end": 9}], "label": "land1"}\n',
        "nolabel.jsonl": '{"text": "city1 is in [MASK] .", "mentions": []}\n',
        "overlap.jsonl": '{"text": "abc", "mentions": [{"start": 0, "end": 2}, {"start": 1, "end": 3}]}\n',
        "noheader.csv": "a,b\n1,2\n",
        "twocolumns.tsv": "Q1\tr\n",
        "unknown.tsv": "Q1\tr\tnobody\n",
        "doubled.csv": "id,label\nQ1,a\nQ1,b\n",
        "ragged.csv": "id,label\nQ1\n",
        "openquote.csv": 'id,label\nQ1,"a\n',
        "badvector.csv": "id,vector\nQ1,1 x\n",
        "infinite.csv": "id,vector\nQ1,1e999\n",
        "noid.jsonl": '{"label": "a"}\n',
        "syntax.py": "def get_config(:\n",
        "noconfig.py": "x = 1\n",
        "raises.py": "def get_config(arg=''):\n    raise RuntimeError('no')\n",
        "nostages.py": "def get_config(arg=''):\n    return {'seed': 0}\n",
        "labels.txt": "a\na\n",
    }
    for name, text in texts.items():
        (bad / name).write_text(text)
    (bad / "latin.jsonl").write_bytes('{"text": "é"}\n'.encode("latin-1"))
    (bad / "utf16.csv").write_bytes("id,label\n".encode("utf-16"))
    (bad / "zip.jsonl").write_bytes(b"PK\x03\x04")
    (bad / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03K")
    np.save(bad / "three.npy", np.zeros((3, 2), np.float32))
    np.save(bad / "whole.npy", np.zeros((3, 2), np.int32))
    np.save(bad / "nan.npy", np.full((2, 2), np.nan, np.float32))
    np.save(bad / "object.npy", np.array([{}], object), allow_pickle=True)
    (bad / "ids.txt").write_text("a\nb\n")
    (bad / "folder").mkdir()
    stage = plugin_stage(world, fit={"steps": 2, "checkpoint_every": 2})
    (bad / "good.py").write_text(
        f"def get_config(arg=''):\n    return {{'seed': 0, 'stages': {{'plugin': {stage!r}}}}}\n"
    )
    return world


ENTITIES = ["knowledge", "build", "--out", "OUT", "--entities"]
TRIPLES = ["knowledge", "build", "--out", "OUT", "--triples"]
VECTORS = ["knowledge", "build", "--out", "OUT", "--vectors"]
PREDICT = ["predict", "--host", "host", "--no-compilation-cache"]
EVALUATE = ["evaluate", "--host", "host", "--plugin", "plugin", "--knowledge", "knowledge", "--data"]
TRAIN = ["train", "--workdir", "OUT", "--no-compilation-cache", "--quiet", "--config"]
GOOD = [*TRAIN, "bad/good.py"]
FIT = "--config.stages.plugin.fit"
STAGE = "--config.stages.plugin"

CASES = [
    # nothing, or nothing there, for every verb
    *(
        [verb, "--nonsense"]
        for verb in ("train", "evaluate", "predict", "demo", "sweep", "report", "link", "verify", "seal")
    ),
    *(
        [verb]
        for verb in ("train", "evaluate", "predict", "demo", "plugins", "sweep", "report", "leaderboard", "knowledge")
    ),
    *([verb] for verb in ("link", "verify", "seal", "data")),
    *([verb, "none"] for verb in ("verify", "seal", "report")),
    *([verb, "bad"] for verb in ("verify", "seal", "report")),
    ["verify", "train.jsonl"],
    ["plugins", "list", "none"],
    ["plugins", "show", "host"],
    ["plugins", "verify", "plugin", "--host", "knowledge"],
    ["plugins", "verify", "plugin", "--knowledge", "host"],
    ["plugins", "export", "none", "--safetensors", "OUT"],
    ["plugins", "push", "plugin", "no-slash"],
    ["plugins", "pull", "a/b/c", "OUT"],
    ["data", "prepare", "nothing", "--manual-dir", "bad", "--data-dir", "OUT"],
    ["data", "prepare", "ner", "--manual-dir", "none", "--data-dir", "OUT"],
    ["data", "prepare", "squad_json", "--manual-dir", "bad/folder", "--data-dir", "OUT"],
    ["data", "list", "nothing"],
    ["leaderboard", "--host", "host", "--questions", "none", "--out", "OUT"],
    ["sweep", "--config", "bad/good.py", "--workdir", "OUT", "--seeds", "a"],
    ["sweep", "--config", "bad/good.py", "--workdir", "OUT", "--seeds", "-1"],
    ["sweep", "--config", "none.py", "--workdir", "OUT"],
    ["demo", "--host", "none", "--plugin", "plugin"],
    ["demo", "--host", "host", "--plugin", "plugin", "--port", "99999"],
    # tables of entities
    *([*ENTITIES, f"bad/{name}"] for name in ("empty", "noheader.csv", "doubled.csv", "ragged.csv", "openquote.csv")),
    *(
        [*ENTITIES, f"bad/{name}"]
        for name in ("badvector.csv", "infinite.csv", "noid.jsonl", "utf16.csv", "brace.json")
    ),
    [*ENTITIES, "none.csv"],
    [*ENTITIES, "bad/folder"],
    [*ENTITIES, "bad/doubled.csv", "--separator", ""],
    [*ENTITIES, "bad/doubled.csv", "--columns", "x"],
    [*ENTITIES, "bad/doubled.csv", "--columns", "id=none"],
    # triples
    *([*TRIPLES, f"bad/{name}"] for name in ("empty", "blank", "twocolumns.tsv", "latin.jsonl", "zip.jsonl", "folder")),
    [*TRIPLES, "bad/unknown.tsv", "--dim", BIG],
    [*TRIPLES, "bad/unknown.tsv", "--dim", "0"],
    [*TRIPLES, "bad/unknown.tsv", "--dim", "3", "--method", "rotate"],
    [*TRIPLES, "bad/unknown.tsv", "--seed", NEGATIVE],
    [*TRIPLES, "bad/unknown.tsv", "--epochs", "0"],
    [*TRIPLES, "bad/unknown.tsv", "--held-out", NEGATIVE],
    [*TRIPLES, "bad/unknown.tsv", "--held-out", "x"],
    [*TRIPLES, "bad/unknown.tsv", "--vectors-from", "descriptions"],
    [*TRIPLES, "bad/unknown.tsv", "--out", "knowledge"],
    # vectors
    [*VECTORS, "vectors=bad/three.npy", "ids=bad/ids.txt", "--vectors-format", "npy"],
    [*VECTORS, "vectors=bad/three.npy", "--vectors", "ids=bad/ids.txt", "--vectors-format", "npy"],
    [*VECTORS, "vectors=bad/whole.npy", "--vectors", "ids=bad/ids.txt", "--vectors-format", "npy"],
    [*VECTORS, "vectors=bad/nan.npy", "--vectors", "ids=bad/ids.txt", "--vectors-format", "npy"],
    [*VECTORS, "vectors=bad/object.npy", "--vectors", "ids=bad/ids.txt", "--vectors-format", "npy"],
    [*VECTORS, "bad/three.npy"],
    [*VECTORS, "bad/empty", "--vectors-format", "word2vec"],
    [*VECTORS, "bad/ids.txt", "--vectors-format", "glove"],
    [*VECTORS, "none", "--vectors-format", "glove"],
    ["knowledge", "build", "--out", "OUT"],
    ["knowledge", "inspect", "none"],
    ["knowledge", "inspect", "host"],
    ["knowledge", "inspect", "knowledge", "--entity", "nobody"],
    ["knowledge", "inspect", "knowledge", "--entity", "\udcff"],
    ["knowledge", "inspect", "knowledge", "--near", ""],
    ["knowledge", "inspect", "knowledge", "--count", NEGATIVE],
    # linking
    ["link", "--knowledge", "none", "train.jsonl"],
    ["link", "--knowledge", "knowledge", "none.jsonl"],
    ["link", "--knowledge", "knowledge", "--strength", "nan", "train.jsonl"],
    ["link", "--knowledge", "knowledge", "--shortest", "0", "train.jsonl"],
    ["link", "--knowledge", "knowledge", "--format", "conll", "--columns", "a,b", "train.jsonl"],
    ["link", "--knowledge", "knowledge", "--format", "brat"],
    ["link", "--knowledge", "knowledge", "bad/zip.jsonl"],
    # hosts and what is asked of them
    ["predict", "--host", "none"],
    ["predict", "--host", "knowledge"],
    [*PREDICT, "--plugin", "none"],
    [*PREDICT, "--plugin", "plugin"],
    [*PREDICT, "--plugin", "plugin", "--knowledge", "none"],
    [*PREDICT, "--knowledge", "knowledge"],
    [*PREDICT, "--memory", "memory"],
    [*PREDICT, "--task", "clozee"],
    [*PREDICT, "--task", "sequence_classification"],
    [*PREDICT, "--labels", "bad/labels.txt", "--task", "sequence_classification"],
    [*PREDICT, "--link"],
    [*PREDICT, "--head", "plugin"],
    *(
        [*PREDICT, option, value]
        for option in ("--top", "--batch-size", "--window", "--max-length")
        for value in ("0", "x")
    ),
    [*PREDICT, "--batch-size", BIG],
    [*PREDICT, "--devices", "99999"],
    [*PREDICT, "--precision", "float8"],
    # records
    *(
        [*EVALUATE, f"bad/{name}"]
        for name in ("empty", "blank", "nan.jsonl", "twice.jsonl", "both.jsonl", "outside.jsonl")
    ),
    *(
        [*EVALUATE, f"bad/{name}"]
        for name in ("nolabel.jsonl", "overlap.jsonl", "latin.jsonl", "zip.jsonl", "cut.jsonl.gz")
    ),
    [*EVALUATE, "none.jsonl"],
    [*EVALUATE, "tfds:nothing@bad?split=train"],
    [*EVALUATE, "test.jsonl", "--seed", NEGATIVE],
    # configs
    *([*TRAIN, f"bad/{name}"] for name in ("syntax.py", "noconfig.py", "raises.py", "nostages.py", "empty", "folder")),
    [*TRAIN, "none.py"],
    [*GOOD, "--devices", "99999"],
    [*GOOD, "--devices", "0"],
    [*GOOD, "--stage", "none"],
    [*GOOD, "--config.seed=-1"],
    [*GOOD, "--config.nothing=1"],
    [*GOOD, f"{FIT}.batch_size=1000000000"],
    [*GOOD, f"{FIT}.batch_size=0"],
    [*GOOD, f"{FIT}.steps=0"],
    [*GOOD, f"{FIT}.optimizer.learning_rate=nan"],
    [*GOOD, f"{FIT}.optimizer.learning_rate=-1"],
    [*GOOD, f"{FIT}.dropout='some'"],
    [*GOOD, f"{STAGE}.kind='plugon'"],
    [*GOOD, f"{STAGE}.task='clozee'"],
    [*GOOD, f"{STAGE}.host='none'"],
    [*GOOD, f"{STAGE}.method.name='map_tunning'"],
    [*GOOD, f"{STAGE}.data=('none.jsonl',)"],
    [*GOOD, f"{STAGE}.train=(('nothing/.*','train'),)"],
    ["traim"],
]


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))


def test_there_are_at_least_120():
    assert len(CASES) >= 120 and len({tuple(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("argv", CASES, ids=" ".join)
def test_bad_input_is_one_line(world, monkeypatch, capfd, argv):
    monkeypatch.chdir(world)
    before = {str(path): path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}
    before = {name: time for name, time in before.items() if not name.endswith(".pyc")}
    code = main(argv)
    told = capfd.readouterr()
    assert code == EXIT_BAD_INPUT, told
    assert told.err.startswith("kinject: ") and told.err.count("\n") == 1 and "Traceback" not in told.err, told.err
    after = {str(path): path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}
    after = {name: time for name, time in after.items() if not name.endswith(".pyc")}  # of a config, by Python itself
    # what can only be told of a host that was loaded is told in a workdir that has its config
    assert {Path(name).name for name in after.keys() - before.keys()} <= {".lock", "config.json"}
    shutil.rmtree(world / "OUT", ignore_errors=True)
    assert {name: after.get(name) for name in before} == before


def test_lines_that_cannot_be_answered_spoil_no_stream(world, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(world)
    good = (world / "questions.jsonl").read_text().splitlines()[0]
    lines = [
        good,
        '{"text": "city50 is in [MASK] .", "id": "\\ud800"}',
        '{"text": "\\ud800"}',
        "{",
        '{"text": 1}',
        good,
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with path.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["predict", "--host", "host", "--no-compilation-cache", "--window", "1"]) == 0
    answers = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert ["error" in one for one in answers] == [False, False, True, True, True, False]
    assert answers[1]["id"] == "\ud800"


def test_scores_that_are_not_finite_are_an_error_and_no_answer(world):
    from kinject.knowledge import KnowledgeBase
    from kinject.serving import Host, Plugin, Refused

    host = Host.load(world / "host")
    base = KnowledgeBase.open(world / "knowledge")
    plugged = Plugin.load(world / "plugin")
    for leaf in plugin_params(plugged.stored.plugin):
        leaf[...] = leaf[...] * 3e38
    host.plug(plugged, knowledge=base)
    question = {"text": "city1 is in [MASK] .", "mentions": [{"start": 0, "end": 5, "entity": "Q1"}]}
    (one,) = host.stream([question], errors="yield")
    assert isinstance(one, Refused) and "the scores are not finite" in one.error
