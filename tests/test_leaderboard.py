"""FewRel's leaderboard: question files read, answered by a host with or without a plugin, and written."""

import json

import jax
import pytest
from few_shot import pair_scorer, records_of
from flax import nnx

from kinject.cli.leaderboard import main as leaderboard
from kinject.data.pipeline import Feed
from kinject.datasets.leaderboard import write_predictions
from kinject.errors import InputError
from kinject.inference.host import knowledge_identity
from kinject.inference.program import evaluate, split_program
from kinject.plugins.base import make_plugin
from kinject.plugins.map_tuning import MapTuning
from kinject.plugins.store import save_plugin
from kinject.tasks.few_shot_relations import FewShotRelations


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return pair_scorer(tmp_path_factory.mktemp("leaderboard"))


def instance(record):
    def entity(mention):
        name = " ".join(record.source[mention.start : mention.end])
        return [name, mention.entity, [list(range(mention.start, mention.end)), [0]]]

    return {"tokens": list(record.source), "h": entity(record.mentions[0]), "t": entity(record.mentions[1])}


def questions(records, n=3, k=2, count=2):
    values = []
    for start in range(count):
        shown = [[instance(records[6 * c + start + i]) for i in range(k)] for c in range(n)]
        values.append({"meta_train": shown, "meta_test": instance(records[(6 * start + 5) % len(records)])})
    return values


def test_leaderboard_files(tiny, tmp_path):
    host, knowledge = tiny
    records = records_of()
    (tmp_path / "test-3-2.json").write_text(json.dumps(questions(records)))
    task = FewShotRelations()  # N and K are the file's
    examples = task.questions(tmp_path / "test-3-2.json", host.encoder(None), knowledge)
    plugin = MapTuning(hidden_size=host.loaded.config.hidden_size, knowledge_dim=knowledge.dim)
    program, params = split_program(host.loaded.host, plugin, task)
    _, predictions = evaluate(program, params, Feed(examples, knowledge.gather), 2)
    file = write_predictions(tmp_path / "pred" / "pred-3-2.json", predictions["chosen"])
    written = json.loads(file.read_text())
    (batch,) = Feed(task.questions(tmp_path / "test-3-2.json", host.encoder(None), knowledge, buckets=1)).evaluation(2)
    assert batch["token_ids"].shape[:3] == (2, 3, 2)
    first = host.tokenizer.decode(batch["token_ids"][0, 2, 1])
    query, support = first.split(" [SEP] ")[:2]
    assert f"[UNK] / {records[5].source[-2]} $" in query and f"[UNK] / {records[13].source[1]} #" in support
    assert len(written) == 2 and set(written) <= {0, 1, 2} and written == predictions["chosen"].tolist()
    with pytest.raises(InputError, match="nothing is overwritten"):
        write_predictions(file, [0])
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_leaderboard_command(tmp_path, tiny, capsys):
    (tmp_path / "asked.json").write_text(json.dumps(questions(records_of())))
    arguments = ["--questions", str(tmp_path / "asked.json"), "--out", str(tmp_path / "chosen.json")]
    assert leaderboard(["--host", str(tiny[0].loaded.folder), *arguments]) == 0
    chosen = json.loads((tmp_path / "chosen.json").read_text())
    assert len(chosen) == 2 and set(chosen) <= {0, 1, 2}
    assert leaderboard(["--host", str(tiny[0].loaded.folder), *arguments]) == 2
    assert "nothing was overwritten" in capsys.readouterr().err
    assert json.loads((tmp_path / "chosen.json").read_text()) == chosen
    (tmp_path / "asked.json").write_text("[]")
    assert leaderboard(["--host", str(tiny[0].loaded.folder), *arguments[:3], str(tmp_path / "other.json")]) == 2
    assert "no list of questions" in capsys.readouterr().err


METHODS = {  # the answers of each must be its own, and those of a program that is made by hand
    "map_tuning": {"name": "map_tuning"},
    "k_adapter": {"name": "k_adapter", "layers": (1, 2), "width": 8, "heads": 2, "depth": 1, "feed_forward": 8},
    "kformer": {"name": "kformer", "layers": (2,), "facts": 2},
}


def saved(method, tiny, folder):
    """A plugin with parameters that change what the host says, in a folder."""
    host, knowledge = tiny
    reads = None if method == "k_adapter" else knowledge
    plugin = make_plugin(METHODS[method], hidden_size=16, knowledge_dim=8 if reads else 0, seed=2)
    for path, leaf in nnx.to_flat_state(nnx.state(plugin, nnx.Param)):
        leaf[...] = jax.random.normal(jax.random.key(len(str(path))), leaf.shape)
    about = {"host": host.identity, "knowledge": knowledge_identity(reads), "config": {}, "metrics": {}}
    return plugin, save_plugin(folder / method, plugin, **about)


def answers(tmp_path, tiny, *more):
    (tmp_path / "asked.json").write_text(json.dumps(questions(records_of(), n=4, count=5)))
    out = tmp_path / f"chosen{len(list(tmp_path.iterdir()))}.json"
    arguments = ["--host", tiny[0].loaded.folder, "--questions", tmp_path / "asked.json", "--out", out, *more]
    code = leaderboard(list(map(str, arguments)))
    return code or json.loads(out.read_text())


@pytest.mark.parametrize("method", ["map_tuning", "k_adapter"])
def test_a_plugin_answers_with_the_slots_that_it_reads_or_none(method, tmp_path, tiny):
    host, knowledge = tiny
    plugin, folder = saved(method, tiny, tmp_path)
    slots = knowledge if method == "map_tuning" else None
    found = answers(tmp_path, tiny, "--plugin", folder, *(("--knowledge", knowledge.folder) if slots else ()))
    task = FewShotRelations()
    examples = task.questions(tmp_path / "asked.json", host.encoder(None), slots)
    program, params = split_program(host.loaded.host, plugin, task)
    _, predictions = evaluate(program, params, Feed(examples, slots and slots.gather), 5)
    assert found == predictions["chosen"].tolist() != answers(tmp_path, tiny)
    if not slots:  # naming what it does not read changes nothing
        assert answers(tmp_path, tiny, "--plugin", folder, "--knowledge", knowledge.folder) == found


@pytest.mark.parametrize(
    ("method", "named", "said"),
    [
        ("kformer", True, "kformer reads facts that belong to one record, and a pair is made of two; take a method"),
        ("kformer", False, "kformer reads facts that belong to one record"),
        ("map_tuning", False, "it reads the knowledge base 'cities', and none is named"),
        (None, True, "--knowledge: there is no plugin to read it; name one with --plugin"),
    ],
)
def test_what_could_not_read_its_knowledge_is_refused(method, named, said, tmp_path, tiny, capsys):
    more = ("--plugin", saved(method, tiny, tmp_path)[1]) if method else ()
    more += ("--knowledge", tiny[1].folder) if named else ()
    assert answers(tmp_path, tiny, *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.glob("chosen*"))


BROKEN = {
    "empty list": (lambda q: [], "no list of questions"),
    "no test": (lambda q: [q[0], {"meta_train": q[0]["meta_train"]}], "question 1: field 'meta_test' is missing"),
    "uneven": (lambda q: [{**q[0], "meta_train": [q[0]["meta_train"][0][:1], *q[0]["meta_train"][1:]]}], "sizes"),
    "other shape": (lambda q: [q[0], {**q[1], "meta_train": q[1]["meta_train"][:2]}], "question 1: .*3-way 2-shot"),
    "no tail": (
        lambda q: [{**q[0], "meta_test": {k: v for k, v in q[0]["meta_test"].items() if k != "t"}}],
        "question 0, meta_test: field 't' is missing",
    ),
    "outside": (
        lambda q: [{**q[0], "meta_test": {**q[0]["meta_test"], "h": ["a", "Q1", [[99]]]}}],
        r"meta_test: field 'h\[2\]\[0\]' spans 99",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_malformed_question_files(case, tiny, tmp_path):
    change, message = BROKEN[case]
    (tmp_path / "q.json").write_text(json.dumps(change(questions(records_of()))))
    with pytest.raises(InputError, match=message):
        FewShotRelations().questions(tmp_path / "q.json", tiny[0].encoder(None), None)


def test_question_file_that_is_no_json(tmp_path, tiny):
    (tmp_path / "q.json").write_bytes(b"[\xff")
    with pytest.raises(InputError, match=r"q\.json: it is not JSON"):
        FewShotRelations().questions(tmp_path / "q.json", tiny[0].encoder(None), None)
