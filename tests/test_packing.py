"""Batches whose padding is not computed: the numbers of those that are padded, and which batches they are."""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fault_world import plugin_params
from served import Served
from tiny_families import FAMILIES, family_folder

import kinject
from kinject.inference.host import open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.models.layers import Attention
from kinject.models.packing import CELLS
from kinject.serving import Plugin
from kinject.serving.programs import Cores, filled
from kinject.serving.queries import Refused
from kinject.tasks.sequence_classification import SequenceClassification

COUNT = 70


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return Served(tmp_path_factory.mktemp("served"))


def cells_of(segments, positions):
    found = np.flatnonzero(segments)
    return np.concatenate([found, np.full(positions - len(found), segments.size)]).astype(np.int32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_batch_gives_what_a_padded_one_gives(tmp_path, family):
    host = open_host(family_folder(tmp_path / "host", family, "masked_lm"), head="masked_lm").loaded.host
    draw = np.random.default_rng(0)
    segments = np.array([[1] * 9, [1] * 5 + [0] * 4, [1] * 4 + [2] * 3 + [0] * 2, [0] * 9], np.int32)
    batch = {
        "token_ids": draw.integers(5, 80, segments.shape).astype(np.int32),
        "segment_ids": segments,
        "position_ids": np.tile(np.arange(9, dtype=np.int32), (4, 1)),
        "type_ids": np.zeros_like(segments),
    }
    batch = {name: jnp.asarray(one) for name, one in batch.items()}
    positions = jnp.array([[0, 8], [4, 1], [5, 6], [0, 0]])
    padded = host.encoder(batch), host.encoder(batch, positions=positions)
    assert host.encoder.packs
    for room in (0, 3):  # with nothing left over, and with positions that stand for nothing
        packed = {**batch, CELLS: jnp.asarray(cells_of(segments, int((segments > 0).sum()) + room))}
        everywhere, read = host.encoder(packed), host.encoder(packed, positions=positions)
        real = np.asarray(segments > 0)[..., None]
        for ours, theirs in zip(everywhere.hidden_states, padded[0].hidden_states, strict=True):
            np.testing.assert_allclose(np.where(real, ours, 0), np.where(real, theirs, 0), atol=2e-5)
        np.testing.assert_allclose(read.last[:3], padded[1].last[:3], atol=2e-5)
        assert np.isfinite(everywhere.last).all()


def test_a_familys_own_attention_need_not_know_of_it(tmp_path):
    class Own(Attention):
        def __call__(self, hidden, segment_ids, key, positions=None, relative=None):
            return super().__call__(hidden, segment_ids, key, positions, relative)

    host = open_host(family_folder(tmp_path / "host", "bert", "masked_lm"), head="masked_lm").loaded.host
    names = ("token_ids", "segment_ids", "position_ids", "type_ids")
    batch = {name: jnp.ones((2, 3), jnp.int32) for name in names}
    before = host.encoder(batch).last
    host.encoder.layers[0].attention.__class__ = Own
    assert not host.encoder.packs
    np.testing.assert_array_equal(host.encoder(batch).last, before)


@pytest.mark.parametrize(
    ("sizes", "rung", "positions", "expected"),
    [
        ([10] * 100, (0, 16), 1024, (100, 128, 1024)),  # all of them fit
        ([16] * 100, (0, 16), 1024, (64, 128, 1024)),  # the positions are full
        ([5] * 400, (0, 16), 1024, (128, 128, 1024)),  # the rows are
        ([5] * 20, (0, 16), 1024, (20, 32, 256)),  # the last ones take a quarter
        ([33] * 100, (32, 40), 1024, (31, 31, 1024)),  # no rows that texts of this rung cannot need
        ([9] * 3 + [100], (112, 128), 64, (1, 1, 128)),  # one that is longer than the positions has as many as it needs
    ],
)
def test_how_texts_fill_a_batch(sizes, rung, positions, expected):
    assert filled(np.array(sizes), rung, positions) == expected


def texts(count):
    draw = np.random.default_rng(0)
    made = [" ".join(["city1", *(f"land{i}" for i in draw.integers(1, 4, draw.integers(1, 40)))]) for _ in range(count)]
    return [{"text": f"{one} .", "mentions": [{"start": 0, "end": 5, "entity": "Q1"}]} for one in made]


def predicted(host, given, **options):
    packed = [[one.score for one in answer.labels] for answer in host.predict(given, **options)]
    shapes = host.engine.programs.compiled
    host.engine._packs = lambda plugin: False
    padded = [[one.score for one in answer.labels] for answer in host.predict(given, **options)]
    assert host.engine.programs.compiled > shapes  # other programs: the first pass was a packed one
    del host.engine._packs
    return packed, padded


def test_many_texts_are_answered_without_their_padding(served):
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    assert type(host.task) is SequenceClassification
    np.testing.assert_allclose(*predicted(host, texts(COUNT)), atol=1e-5)
    alone = host.predict(texts(COUNT))
    host.plug(served.plugin("map", method={"name": "map_tuning"}), knowledge=served.knowledge)
    packed, padded = predicted(host, texts(COUNT), compare=True)
    np.testing.assert_allclose(packed, padded, atol=1e-5)
    assert max(abs(one.score - other[0]) for one, other in zip(alone, packed, strict=True)) > 1e-3
    many, few = host.predict(texts(COUNT), explain=True), host.predict(texts(COUNT)[:3], explain=True)
    told = [[one.explanation.contributions[0] for one in some] for some in (many, few)]
    for name in ("without", "gradient"):
        ours, theirs = ([getattr(one, name) for one in some] for some in told)
        np.testing.assert_allclose(ours[:3], theirs, atol=1e-5)


def test_a_text_without_numbers_is_the_only_one_that_is_refused(tmp_path):
    served = Served(tmp_path, layers=2)
    base = KnowledgeBase.open(served.knowledge)
    base.add([{"id": "huge", "label": "huge"}], vectors={"huge": np.full(base.dim, 3e38)})
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    plugin = Plugin.load(served.plugin("map", method={"name": "map_tuning"}, task="sequence_classification"))
    for leaf in plugin_params(plugin.stored.plugin):
        leaf[...] = leaf[...] * 1e3  # the vector overflows, whatever XLA makes of a variance that does
    host.plug(plugin, knowledge=served.knowledge)
    bad = {"text": "city1", "mentions": [{"start": 0, "end": 5, "entity": "huge"}]}  # the shortest of its batch
    answers = host.predict([*texts(COUNT), bad], errors="yield")
    assert [one.line for one in answers if isinstance(one, Refused)] == [COUNT + 1]


def test_what_is_padded_as_ever(served):
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    assert host.engine._packs(None)
    adapter = served.plugin("adapter", knowledge=None, method={"name": "k_adapter", "layers": [0], "heads": 2})
    assert not host.engine._packs(host.plug(adapter)._arrangement.plugin)
    shapes = host.unplug().engine._dealer(host._arrangement)
    seen = []
    deal = shapes.batches
    shapes.batches = lambda *given: (seen.append(batch) or (index, batch) for index, batch in deal(*given))
    host.predict(texts(8))
    host.predict(texts(COUNT))
    assert CELLS not in seen[0] and all(CELLS in batch for batch in seen[1:]) and len(seen) > 1


def test_cores_that_share_a_window_answer_as_one_program_does(served, monkeypatch):
    monkeypatch.setattr("kinject.serving.programs.cores", lambda: 3)
    monkeypatch.setattr("kinject.serving.programs.MOST_POSITIONS", 64)
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    submitted, submit = [], Cores._submit

    def seen(*given):
        submitted.append(given[-1]["cells"].shape)
        return submit(*given)

    monkeypatch.setattr(Cores, "_submit", seen)
    shared = host.predict(texts(200), explain=True)
    assert len(submitted) > 6
    compiled = host.engine.programs.compiled
    assert host.predict(texts(200), explain=True) == shared and host.engine.programs.compiled == compiled
    monkeypatch.setattr("kinject.serving.programs.cores", lambda: 1)
    plain = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"])).predict(texts(200))
    assert [one.label for one in plain] == [one.label for one in shared]
    np.testing.assert_allclose([one.score for one in plain], [one.score for one in shared], atol=1e-5)


def test_few_texts_are_not_shared_and_a_fault_in_a_core_is_told(served, monkeypatch):
    monkeypatch.setattr("kinject.serving.programs.cores", lambda: 2)
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    monkeypatch.setattr(Cores, "_submit", lambda *_: pytest.fail("shared"))
    assert len(host.predict(texts(COUNT))) == COUNT
    monkeypatch.undo()
    monkeypatch.setattr("kinject.serving.programs.MOST_POSITIONS", 64)
    monkeypatch.setattr("kinject.serving.programs.cores", lambda: 2)
    host.predict(texts(200))

    def broken(*_):
        raise RuntimeError("no such core")

    monkeypatch.setattr("kinject.serving.programs.jax.block_until_ready", broken)
    with pytest.raises(RuntimeError, match="no such core"):
        host.predict(texts(200))


def test_a_stream_that_is_given_up_is_not_computed_to_its_end(served, monkeypatch):
    monkeypatch.setattr("kinject.serving.programs.cores", lambda: 2)
    monkeypatch.setattr("kinject.serving.programs.MOST_POSITIONS", 64)
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    futures, submit = [], Cores._submit
    monkeypatch.setattr(Cores, "_submit", lambda *given: futures.append(submit(*given)) or futures[-1])
    block = jax.block_until_ready
    monkeypatch.setattr(
        "kinject.serving.programs.jax.block_until_ready", lambda made: (time.sleep(0.05), block(made))[1]
    )
    host.engine.window = 200
    stream = host.stream(texts(400))
    next(stream)
    stream.close()
    assert any(one.cancelled() for one in futures)
    assert len(host.predict(texts(200))) == 200


def test_a_core_computes_under_the_callers_settings_and_without_threads_when_the_interpreter_ends(served, monkeypatch):
    monkeypatch.setattr("kinject.serving.programs.cores", lambda: 2)
    monkeypatch.setattr("kinject.serving.programs.MOST_POSITIONS", 64)
    host = kinject.Host.load(served.host("sequence_classification", "classification", ["a", "b"]))
    with jax.default_matmul_precision("highest"):
        ours = host.predict(texts(200))
        compiled = host.engine.programs.compiled
        assert host.predict(texts(200)) == ours and host.engine.programs.compiled == compiled
    host.engine._cores._threads.shutdown()  # as Python does before it waits for a thread that still answers
    assert host.predict(texts(200)) == ours


def test_a_core_compiles_anew_for_other_shapes_and_other_settings():
    cores, step = Cores(), jax.jit(lambda params, batch: params["table"].sum() + batch["a"] @ batch["a"].T)
    batch, found = {"a": np.ones((2, 3), np.float32)}, {}
    with ThreadPoolExecutor(1) as threads:
        for rows in (4, 9):  # a plugin's table grows with its entities, which no structure tells
            found[rows] = cores._submit(threads, step, {"table": jnp.ones(rows)}, batch).result()
        assert float(found[9][0, 0] - found[4][0, 0]) == 5 and len(cores._compiled) == 2
        with jax.default_matmul_precision("highest"):
            cores._submit(threads, step, {"table": jnp.ones(4)}, batch).result()
        cores._submit(threads, step, {"table": jnp.ones(4)}, batch).result()
    assert len(cores._compiled) == 3
