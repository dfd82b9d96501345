"""A host's layers run by ONNX Runtime: the answers of XLA, swapped and revised as ever, and refusals in one line."""

import io
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from served import Served
from tiny_families import family_folder

import kinject
from kinject.cli.predict import parse, run
from kinject.data.records import Record
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.integrity import write_seal
from kinject.knowledge.base import KnowledgeBase
from kinject.serving import choose, programs, runtime
from kinject.serving.layer_graph import eighth
from kinject.serving.programs import rank
from kinject.tasks.sequence_classification import SequenceClassification

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
TEXTS = [
    {"text": "city1 is in [MASK] .", "mentions": [{"start": 0, "end": 5, "entity": "Q1"}]},
    {"text": "city2 is near city3 and in [MASK] .", "mentions": [{"start": 14, "end": 19, "entity": "Q3"}]},
    "the [MASK] .",
    {"text": "city7 is near city8 near city9 is in [MASK] .", "mentions": []},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def hosts(served):
    """The same host in both engines."""
    return [kinject.Host.load(served.host(), batch_size=4, engine=engine) for engine in ("jax", "onnxruntime")]


def close(ours, theirs, atol=1e-5):
    for one, other in zip(ours, theirs, strict=True):
        assert [label.label for label in one.labels] == [label.label for label in other.labels]
        scores = [[label.score for label in each.labels] for each in (one, other)]
        np.testing.assert_allclose(*scores, atol=atol)


def test_answers_are_those_of_xla_with_plugins_swapped_and_without(served, hosts):
    ours, theirs = hosts
    bare = [host.predict(TEXTS) for host in hosts]
    close(*bare)
    for plugin in (served.plugin("geo"), served.plugin("geo2", seed=2)):
        for host in hosts:
            host.plug(plugin, knowledge=served.knowledge, name="it")
        plugged = [host.predict(TEXTS, compare=True) for host in hosts]
        close(*plugged)
        close([ours.predict(TEXTS[0])], [theirs.predict(TEXTS[0])])  # a batch of one row
        assert max(abs(a.score - b.score) for a, b in zip(plugged[1], bare[1], strict=True)) > 1e-3
        close(bare[1], [type(one)(one.line, one.before) for one in plugged[1]])
    before = theirs.engine.programs.compiled
    theirs.plug(served.plugin("geo"), knowledge=served.knowledge, name="it").predict(TEXTS)
    assert theirs.engine.programs.compiled == before  # a swap compiles nothing
    with theirs.unplugged():
        assert [one.labels for one in theirs.predict(TEXTS)] == [one.labels for one in bare[1]]
    ours.plug(served.plugin("geo"), knowledge=served.knowledge, name="it")
    explained = [host.predict(TEXTS[0], explain=True).explanation.contributions[0] for host in hosts]
    np.testing.assert_allclose(explained[0].without, explained[1].without, atol=1e-5)
    for host in hosts:
        host.unplug()


def test_a_revision_is_read_as_ever(served, hosts, tmp_path):
    folder = shutil.copytree(served.knowledge, tmp_path / "kb")
    base = KnowledgeBase.open(folder)
    for host in hosts:
        host.plug(served.plugin(), knowledge=base, name="it")
    text = {"text": "city1 is in [MASK] .", "mentions": [{"start": 0, "end": 5, "entity": "new"}]}
    old = [host.predict(text) for host in hosts]
    KnowledgeBase.open(folder).add([{"id": "new", "label": "new"}], vectors={"new": np.ones(base.dim)})
    assert all(host.refresh() for host in hosts)
    new = [host.predict(text) for host in hosts]
    close(new[:1], new[1:])
    assert abs(new[1].score - old[1].score) > 1e-6
    for host in hosts:
        host.unplug()


@pytest.mark.parametrize(
    ("task", "head", "labels", "text"),
    [
        ("sequence_classification", "classification", ["no", "yes", "so"], {"text": "city1 is in land1 ."}),
        ("entity_typing", "multi_label", ["a", "b"], None),
        ("token_classification", "token_classification", ["O", "B-x"], {"text": "city1 is in land1 ."}),
    ],
)
def test_other_heads(served, task, head, labels, text):
    folder = served.host(task, head, labels)
    text = text or {"text": "city1 is in land1 .", "mentions": [{"start": 0, "end": 5, "entity": "Q1"}]}
    ours, theirs = (kinject.Host.load(folder, engine=one).predict([text, text]) for one in ("jax", "onnxruntime"))
    assert [one.label for one in ours] == [one.label for one in theirs]
    scores = [[label.score for one in made for label in one.labels] for made in (ours, theirs)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_one_bare_text_calls_jax_nowhere(tmp_path, family):
    folder = family_folder(tmp_path / "host", family, "classification", 5)
    options = {"task": "sequence_classification", "task_options": {"labels": list("abcde")}}
    ours, theirs = (kinject.Host.load(folder, engine=one, **options) for one in ("jax", "onnxruntime"))
    texts = ["a longer text than the next", "", {"text": "one text", "pair": "and another", "id": 3}]
    for given in texts:
        close([ours.predict(given, top=3)], [theirs.predict(given, top=3)])
        assert theirs.predict(given).id == ours.predict(given).id
    step = theirs.engine.programs.answer(theirs.engine.model(None).program, 3)
    narrow = family == "electra"  # its words are narrower than the layers here, and widened by a product
    assert theirs.engine.layers.scores and (step._halves is None) != narrow
    assert theirs.engine.programs.compiled == 0
    others = [{"text": "one text", "mentions": [{"start": 0, "end": 3}]}, "long " * ours.ready.tokenizer.max_length]
    for given in (*others, texts):
        made = [host.predict(given, top=3) for host in (ours, theirs)]
        close(*[one if isinstance(one, list) else [one] for one in made])
    assert theirs.predict(others[1]).truncated
    for pair in (3, "\ud800"):
        refused = [host.predict({"text": "one", "pair": pair}, errors="yield").error for host in (ours, theirs)]
        assert refused[0] == refused[1]
    small = kinject.Host.load(folder, engine="onnxruntime", precision="int8", **options)
    np.testing.assert_allclose(small.predict(texts[0]).score, ours.predict(texts[0]).score, atol=0.05)


def test_a_task_with_examples_of_its_own_reads_no_bare_text(served):
    class Shouted(SequenceClassification):
        def examples(self, records, *rest, **options):
            return super().examples([replace(one, source=one.source.upper()) for one in records], *rest, **options)

    record = Record("a text", (), {}, "input:1")
    assert SequenceClassification(["a", "b"]).passage_texts(record) == ["a text"]
    assert Shouted(["a", "b"]).passage_texts(record) is None


def test_ids_beyond_the_table_of_words_are_left_to_xla(tmp_path):
    host = open_host(family_folder(tmp_path / "host", "bert", "classification", 5), head="classification").loaded.host
    words = host.encoder.config.vocab_size
    for vocabulary, embeds in ((words, True), (words + 1, False)):
        assert runtime.Layers(host, int8=False, where="host", vocabulary=vocabulary).embeds == embeds


def test_numpy_ranks_as_top_k_does():
    scores = np.array([[0.1, 0.4, 0.4, 0.2], [0.1, np.nan, 0.3, np.inf]], np.float32)
    found, numbers = jax.lax.top_k(scores, 3)
    made = rank(scores, scores, 3)
    np.testing.assert_array_equal(made["numbers"], numbers)
    np.testing.assert_array_equal(made["scores"], found)


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_scores_of_hosts_of_other_problems(tmp_path, kind):
    folder = family_folder(tmp_path / "host", "bert", "classification", 3)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problem_type": kind}))
    write_seal(folder)
    options = {"task": "sequence_classification", "task_options": {"labels": list("abc")}}
    made = [kinject.Host.load(folder, engine=one, **options).predict(["a text"]) for one in ("jax", "onnxruntime")]
    close(*made)


def test_int8_products_are_near(served, hosts):
    small = kinject.Host.load(served.host(), precision="int8", engine="onnxruntime")
    ours, theirs = hosts[0].predict(TEXTS), small.predict(TEXTS)
    assert "int8" in repr(small)
    moved = [abs(a.score - b.score) for a, b in zip(ours, theirs, strict=True)]
    assert 0 < max(moved) < 0.05
    kernel = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    values, scale = eighth(kernel)
    assert np.abs(values * scale - kernel).max() <= scale.max() / 2 + 1e-6 and np.abs(values).max() == 127


def test_auto_times_both_and_says_which(served, monkeypatch):
    monkeypatch.setattr(choose, "cores", lambda: 2)
    for faster, expected in (([2.0, 1.0, 4.0], "onnxruntime"), ([1.0, 2.0, 2.0], "jax")):
        monkeypatch.setattr(
            choose, "_seconds", lambda arms, faster=faster: [arm() for arm in arms] and faster[: len(arms)]
        )
        host = kinject.Host.load(served.host(), engine="auto")
        assert f"engine: {expected} (2.00x as fast) for one text" in repr(host)
        assert host.engine.layers.takes(1) == host.engine.layers.takes(9) == (expected == "onnxruntime")
        assert host.engine.layers.windows == (expected == "onnxruntime")
        assert host.predict(TEXTS[0]).label


def test_many_texts_are_ours_where_the_cores_are_faster_at_them(served, monkeypatch):
    monkeypatch.setattr(choose, "cores", lambda: 2)
    monkeypatch.setattr(programs, "cores", lambda: 2)
    monkeypatch.setattr(programs, "MOST_POSITIONS", 64)
    monkeypatch.setattr(choose, "_seconds", lambda arms: [2.0, 1.0, 1.5][: len(arms)])
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]), engine="auto")
    assert repr(host).count("onnxruntime (2.00x") == 2 and "jax (1.33x as fast) for many texts" in repr(host)
    shared, run, ran = [], runtime.Layers.bare, []
    monkeypatch.setattr(
        programs.Cores, "_submit", lambda *given, own=programs.Cores._submit: shared.append(1) or own(*given)
    )
    monkeypatch.setattr(runtime.Layers, "bare", lambda *given: ran.append(1) or run(*given))
    few = host.predict(["city1 is in land1 ."] * 9)
    assert ran and not shared, "a batch is ONNX Runtime's"
    ran.clear()
    many = host.predict(["city1 is in land1 ."] * 100)
    assert shared and not ran
    np.testing.assert_allclose([one.score for one in many], few[0].score, atol=1e-5)


def test_the_command_says_who_runs_the_layers(served, monkeypatch, capsys):
    monkeypatch.setattr(choose, "cores", lambda: 2)
    monkeypatch.setattr(choose, "_seconds", lambda arms: [2.0, 1.0, 4.0][: len(arms)])
    given = ["--host", str(served.host()), "--engine", "auto", "--plain", "--no-compilation-cache"]
    out = io.StringIO()
    assert run(parse(given), io.BytesIO(b"the [MASK] .\n"), out) == 0
    assert '"labels"' in out.getvalue()
    line = "kinject: engine: {0} for one text, {0} for batches, {0} for many texts".format(
        "onnxruntime (2.00x as fast)"
    )
    assert capsys.readouterr().err.splitlines()[0] == line


def test_what_it_cannot_run_is_refused_in_one_line_and_left_to_xla_by_auto(served, hosts, monkeypatch):
    adapter = served.plugin("adapter", knowledge=None, method={"name": "k_adapter", "layers": [0], "heads": 2})
    with pytest.raises(InputError, match="speaks inside the layers"):
        hosts[1].plug(adapter)
    assert hosts[1].plugged == ()
    with pytest.raises(InputError, match="no engine 'gpu'"):
        kinject.Host.load(served.host(), engine="gpu")
    with pytest.raises(InputError, match="float32 or int8"):
        kinject.Host.load(served.host(), engine="onnxruntime", precision="bfloat16")
    monkeypatch.setattr(choose, "_seconds", lambda arms: [2.0, 1.0, 9.0][: len(arms)])
    auto = kinject.Host.load(served.host(), engine="auto").plug(adapter)
    assert auto.predict(TEXTS[2]).labels == hosts[0].plug(adapter).predict(TEXTS[2]).labels  # XLA's, to the bit
    hosts[0].unplug()
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"kinject\[onnx\]"):
        kinject.Host.load(served.host(), engine="onnxruntime")
    assert "jax, as engine: onnxruntime needs onnx" in repr(kinject.Host.load(served.host(), engine="auto"))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_layers_of_families_with_several_texts_a_row(tmp_path, family):
    host = open_host(family_folder(tmp_path / "host", family, "masked_lm"), head="masked_lm").loaded.host
    encoder, layers = host.encoder, runtime.Layers(host, int8=False, where=family)
    hidden = np.random.default_rng(0).normal(size=(3, 9, encoder.config.hidden_size)).astype(np.float32)
    segments = np.array([[1] * 8 + [0], [1] * 5 + [0] * 4, [1] * 4 + [2] * 3 + [0] * 2], np.int32)
    positions = np.array([[0, 3], [4, 1], [5, 6]], np.int32)
    read, batch = runtime.LayerInput(hidden, segments, positions), {"segment_ids": jnp.asarray(segments)}
    ours = np.asarray(encoder.run(jnp.asarray(hidden), batch)[-1])
    np.testing.assert_allclose(layers.run(read), np.take_along_axis(ours, positions[..., None], 1), atol=1e-5)
    everywhere = layers.run(read._replace(positions=None), share=2 / 3)
    assert everywhere.shape == hidden.shape and not everywhere[2].any() and not everywhere[:, 8].any()
    here = segments[:2] > 0
    np.testing.assert_allclose(everywhere[:2][here], ours[:2][here], atol=1e-5)


def test_a_family_with_layers_of_its_own_is_refused(tmp_path):
    folder = family_folder(tmp_path / "host", "mpnet", "masked_lm")
    with pytest.raises(InputError, match="not mpnet's"):
        kinject.Host.load(folder, task="cloze", engine="onnxruntime")
