"""Graph embeddings: the arithmetic against plain numpy, the training against a graph one can see."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinject.errors import InputError
from kinject.knowledge import KnowledgeBase, write_knowledge
from kinject.knowledge.graph import (
    METHODS,
    GraphConfig,
    GraphResult,
    _table,
    _update_rows,
    train_graph,
    train_rows,
    triple_loss,
)
from kinject.knowledge.ranking import filtered_ranking, filtered_ranks

METHOD_NAMES = sorted(METHODS)
EPOCHS = 60


def numpy_score(method, head, relation, tail, gamma):
    """The published formulas, triple by triple, in float64 or complex128."""
    if method == "transe":
        return gamma - np.abs(head + relation - tail).sum()
    if method == "distmult":
        return (head * relation * tail).sum()
    half = len(head) // 2
    head, tail = (vector[:half] + 1j * vector[half:] for vector in (head, tail))
    return gamma - np.abs(head * np.exp(1j * relation) - tail).sum()


def random_parts(method, count, dim, seed=0):
    rng = np.random.default_rng(seed)
    width = METHODS[method].relation_width(dim)
    return rng.normal(size=(count, dim)), rng.normal(size=(count, width)), rng.normal(size=(count, dim))


def ring(size=60):
    """A graph with a shape: everyone's next, and next but one, in two relations."""
    nodes = np.arange(size)
    one = np.stack([nodes, np.zeros_like(nodes), (nodes + 1) % size], 1)
    two = np.stack([nodes, np.ones_like(nodes), (nodes + 2) % size], 1)
    return np.concatenate([one, two])


def pairs(size=60):
    """Couples in two relations, one for even nodes: symmetric, which is all that DistMult can say."""
    nodes = np.arange(size)
    return np.stack([nodes, nodes // 2 % 2, nodes ^ 1], 1)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_both_questions_score_as_the_formula_says(method):
    heads, relations, tails = random_parts(method, 5, 6)
    wanted = np.array([numpy_score(method, h, r, t, 3.0) for h, r, t in zip(heads, relations, tails, strict=True)])
    heads, relations, tails = (jnp.asarray(part, jnp.float32) for part in (heads, relations, tails))
    chosen = METHODS[method]
    by_tail = chosen.score(chosen.ask_tail(heads, relations), tails, 3.0).diagonal()
    by_head = chosen.score(chosen.ask_head(tails, relations), heads, 3.0).diagonal()
    np.testing.assert_allclose(by_tail, wanted, atol=2e-5)
    np.testing.assert_allclose(by_head, wanted, atol=2e-5)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_loss_is_the_one_of_the_paper(method):
    config = GraphConfig(method=method, dim=6, gamma=2.0, adversarial=0.7)
    heads, relations, tails = random_parts(method, 4, 6)
    negatives = np.random.default_rng(9).normal(size=(3, 6))

    def log_sigmoid(x):
        return -np.log1p(np.exp(-x))

    losses = []
    for h, r, t in zip(heads, relations, tails, strict=True):
        right = numpy_score(method, h, r, t, 2.0)
        for wrong in (
            np.array([numpy_score(method, h, r, n, 2.0) for n in negatives]),
            np.array([numpy_score(method, n, r, t, 2.0) for n in negatives]),
        ):
            weights = np.exp(0.7 * wrong) / np.exp(0.7 * wrong).sum()
            losses.append(-log_sigmoid(right) - (weights * log_sigmoid(-wrong)).sum())
    parts = [jnp.asarray(part, jnp.float32) for part in (heads, relations, tails, negatives)]
    np.testing.assert_allclose(triple_loss(*parts, config), np.mean(losses) / 2, rtol=1e-5)


def test_rows_are_updated_as_adam_would_and_others_stay():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 3)).astype(np.float32)
    table = _table(jnp.asarray(start))
    value, first, second = start[2].astype(np.float64), np.zeros(3), np.zeros(3)
    for count in (1, 2, 3):
        gradients = rng.normal(size=(3, 3)).astype(np.float32)
        table = _update_rows(table, jnp.array([2, 4, 2]), jnp.asarray(gradients), 0.1)
        total = gradients[0].astype(np.float64) + gradients[2]  # row 2 is touched twice in a step
        first, second = 0.9 * first + 0.1 * total, 0.999 * second + 0.001 * total**2
        value = value - 0.1 * (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
    np.testing.assert_allclose(table.values[2], value, rtol=1e-4)
    assert np.array_equal(np.asarray(table.values)[[0, 1, 3, 5]], start[[0, 1, 3, 5]])
    assert table.updates.tolist() == [0, 0, 3, 0, 3, 0]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_training_learns_a_graph_it_saw(method):
    size, triples = 60, pairs() if method == "distmult" else ring()
    config = GraphConfig(method=method, dim=16, epochs=EPOCHS, batch=64, negatives=32, learning_rate=0.05)
    told = []
    result = train_graph(triples, size, 2, config, seed=0, progress=lambda epoch, loss: told.append((epoch, loss)))
    assert result.vectors.shape == (size, 16) and result.vectors.dtype == np.float32
    assert [epoch for epoch, _ in told] == list(range(1, EPOCHS + 1))
    assert told[-1][1] == result.losses[-1] < 0.7 * result.losses[0]
    figures = filtered_ranking(result, triples, triples)
    assert figures["hits@10"] > 0.9
    shuffled = result._replace(vectors=np.random.default_rng(0).permutation(result.vectors))
    assert filtered_ranking(shuffled, triples, triples)["hits@10"] < 0.4


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_rows_that_come_are_trained_into_a_graph_that_stays(method):
    size, triples = 60, pairs() if method == "distmult" else ring()
    config = GraphConfig(method=method, dim=16, epochs=EPOCHS, batch=64, negatives=32, learning_rate=0.05)
    result = train_graph(triples, size, 2, config, seed=0)
    new = np.array([7, 22, 41])
    row = np.concatenate([np.arange(size), [size, size + 1, size + 2]])
    row[new] = [size, size + 1, size + 2]
    told = triples[np.isin(triples[:, [0, 2]], new).any(axis=1)]
    named = np.stack([row[told[:, 0]], told[:, 1], row[told[:, 2]]], axis=1)
    made = train_rows(result.vectors, result.relations, named, len(new), config, seed=1)
    assert made.shape == (3, 16) and made.dtype == np.float32
    again = train_rows(result.vectors, result.relations, named, len(new), config, seed=1)
    assert np.array_equal(made, again)
    vectors = np.array(result.vectors)
    vectors[new] = made
    assert filtered_ranking(result._replace(vectors=vectors), told, triples)["hits@10"] > 0.8
    vectors[new] = np.random.default_rng(0).permuted(made, axis=1)
    assert filtered_ranking(result._replace(vectors=vectors), told, triples)["hits@10"] < 0.6


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    config = GraphConfig(dim=8, epochs=3, batch=50, negatives=8)
    first, again, other = (train_graph(ring(), 60, 2, config, seed=seed) for seed in (4, 4, 5))
    for one, same in zip(first[:4], again[:4], strict=True):
        assert np.array_equal(one, same)
    assert not np.array_equal(first.vectors, other.vectors)


def test_entities_in_no_triple_are_told_apart_and_do_not_move_the_centre():
    config = GraphConfig(dim=8, epochs=2, batch=50, negatives=8)
    result = train_graph(ring(60), 75, 2, config, seed=0)
    assert result.seen.tolist() == [True] * 60 + [False] * 15
    vectors = result.standardised()
    np.testing.assert_allclose(vectors[:60].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(vectors[:60].std(), 1, rtol=1e-5)
    distances = [np.linalg.norm(table[:, None] - table[None], axis=-1) for table in (result.vectors, vectors)]
    np.testing.assert_allclose(np.corrcoef(distances[0].ravel(), distances[1].ravel())[0, 1], 1, rtol=1e-5)


def test_a_long_epoch_in_blocks_and_a_short_one_in_part_of_a_batch(monkeypatch):
    from kinject.knowledge import graph

    monkeypatch.setattr(graph, "_BLOCK_STEPS", 3)
    told = []
    config = GraphConfig(dim=4, epochs=2, batch=16, negatives=4)
    train_graph(
        ring(), 60, 2, config, seed=0, progress=lambda epoch, loss: told.append(epoch)
    )  # 8 steps, 3 blocks of 3
    small = train_graph(ring()[:5], 60, 2, config, seed=0)
    assert told == [1, 2] and np.isfinite(small.losses).all()


@pytest.mark.parametrize(
    ("triples", "message"),
    [
        (np.zeros((0, 3), int), "are none"),
        (np.zeros((4, 2), int), "not integer"),
        (np.zeros((4, 3)), "not integer"),
        (np.array([[0, 0, 1], [0, 0, 5]]), r"triple 1 is \[0, 0, 5\]"),
        (np.array([[0, 2, 1]]), "2 relations"),
        (np.array([[-1, 0, 1]]), "count from 0"),
    ],
)
def test_triples_that_point_nowhere_are_named(triples, message):
    with pytest.raises(InputError, match=message):
        train_graph(triples, 5, 2, GraphConfig(dim=4, epochs=1), seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "trans"}, "did you mean transe"),
        ({"dim": 0}, "dim is 0"),
        ({"method": "rotate", "dim": 7}, "even"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
    ],
)
def test_configs_that_cannot_be_are_named(fields, message):
    with pytest.raises(InputError, match=message):
        GraphConfig(**fields)


def slow_ranks(result, test, known):
    """Plain loops: score everything, drop what is known, share the rank among ties."""
    known = {tuple(triple) for triple in np.concatenate([known, test]).tolist()}
    vectors, relations = result.vectors.astype(np.float64), result.relations.astype(np.float64)
    ranks = []
    for head, relation, tail in test.tolist():
        pair = []
        for target, triple_of in (
            (tail, lambda e, h=head, r=relation: (h, r, e)),
            (head, lambda e, t=tail, r=relation: (e, r, t)),
        ):
            scores = {}
            for entity in range(len(vectors)):
                triple = triple_of(entity)
                if entity == target or triple not in known:
                    h, r, t = triple
                    scores[entity] = numpy_score(result.config.method, vectors[h], relations[r], vectors[t], 6.0)
            own = scores.pop(target)
            better = sum(score > own + 1e-9 for score in scores.values())
            ties = sum(abs(score - own) <= 1e-9 for score in scores.values())
            pair.append(1 + better + ties / 2)
        ranks.append(pair)
    return np.array(ranks)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_ranks_agree_with_plain_loops_ties_included(method, batch):
    rng = np.random.default_rng(3)
    size, kinds, dim = 25, 3, 4
    # small whole numbers score exactly in any precision and tie often; rotate's roots do not, so it gets twins instead
    vectors = rng.integers(-2, 3, (size, dim)).astype(np.float32)
    relations = rng.integers(-1, 2, (kinds, METHODS[method].relation_width(dim))).astype(np.float32)
    if method == "rotate":
        vectors = rng.normal(size=(size, dim)).astype(np.float32)
        vectors[12:20] = vectors[4:12]
        relations = rng.normal(size=relations.shape).astype(np.float32)
    config = GraphConfig(method=method, dim=dim)
    result = GraphResult(vectors, relations, np.zeros(1, np.float32), np.ones(size, bool), config)
    known = np.stack([rng.integers(0, size, 200), rng.integers(0, kinds, 200), rng.integers(0, size, 200)], 1)
    test, known = known[:20], known[20:]
    wanted = slow_ranks(result, test, known)
    assert (wanted % 1 == 0.5).any(), "no tie to check"
    np.testing.assert_array_equal(filtered_ranks(result, test, known, batch), wanted)
    figures = filtered_ranking(result, test, known, batch)
    np.testing.assert_allclose(figures["mrr"], (1 / wanted).mean())
    np.testing.assert_allclose([figures[f"hits@{n}"] for n in (1, 3, 10)], [(wanted <= n).mean() for n in (1, 3, 10)])


def test_a_model_that_says_the_same_of_all_ranks_in_the_middle():
    config = GraphConfig(dim=4)
    result = GraphResult(
        np.ones((11, 4), np.float32), np.zeros((1, 4), np.float32), np.zeros(1), np.ones(11, bool), config
    )
    test = np.array([[0, 0, 1]])
    assert filtered_ranks(result, test, test).tolist() == [[6.0, 6.0]]
    result.vectors[3] = np.nan
    with pytest.raises(InputError, match="not all finite"):
        filtered_ranking(result, test, test)


def test_a_step_does_not_grow_with_the_number_of_entities():
    """What XLA counts as work of a step, at 64 times the entities: the same but for the tables that pass through."""
    from kinject.knowledge.graph import _run, _start

    def flops(entities):
        config = GraphConfig(dim=16, negatives=16, batch=32)
        tables = jax.eval_shape(lambda key: _start(key, entities, 4, config), jax.random.key(0))
        batches = jax.ShapeDtypeStruct((1, 32, 3), jnp.int32)
        lowered = _run.lower(tables, batches, jax.random.key(0), 0, 10, config)
        return lowered.compile().cost_analysis()["flops"]

    assert flops(128_000) < 1.1 * flops(2_000)


CODEX = Path(__file__).resolve().parents[2] / "shared" / "data" / "codex_m_triples.tsv"


@pytest.mark.shared_data
@pytest.mark.skipif(not CODEX.is_file(), reason="needs the development data beside the checkout")
def test_a_few_epochs_on_codex_predict_held_out_facts(tmp_path):
    words = [line.split("\t") for line in CODEX.read_text().splitlines()]
    ids, relations = sorted({one for h, _, t in words for one in (h, t)}), sorted({r for _, r, _ in words})
    row_of, relation_of = ({one: row for row, one in enumerate(some)} for some in (ids, relations))
    triples = np.array([[row_of[h], relation_of[r], row_of[t]] for h, r, t in words])
    order = np.random.default_rng(0).permutation(len(triples))
    test, train = triples[order[:300]], triples[order[5000:]]
    result = train_graph(train, len(ids), len(relations), GraphConfig(dim=32, negatives=16, epochs=4), seed=0)
    figures = filtered_ranking(result, test, triples, batch=32)
    assert figures["hits@10"] > 0.1  # by chance: 10 in 17,050
    about = {"source": "CoDEx-M", "license": "MIT", "metrics": figures, "has_vector": result.seen}
    vectors = result.standardised()
    write_knowledge(
        tmp_path / "kb", name="codex", ids=ids, vectors=vectors, triples=triples, relations=relations, **about
    )
    kb = KnowledgeBase.open(tmp_path / "kb")
    head, relation, tail = kb.triples[order[0]]
    assert [*kb.ids([head, tail]), kb.relations[relation]["id"]] == [words[order[0]][i] for i in (0, 2, 1)]
    assert kb.manifest["metrics"] == figures
    gathered, found = kb.gather(kb.rows(["Q30", "Q0"]))
    np.testing.assert_array_equal(gathered[0], vectors[row_of["Q30"]])
    assert found.tolist() == [True, False]
