"""Map-tuning by its formula: what the map computes, where it is put, and how it starts."""

import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import Ridge
from tiny import fast_jit
from tiny_world import CITIES, DIM, VOCABULARY, batch_of, question, records, sentence, vectors

from kinject.data.encode import Mention, Passage
from kinject.data.pipeline import Feed
from kinject.errors import InputError
from kinject.inference.comparison import Comparison
from kinject.inference.mesh import Placement
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.models.heads import logits
from kinject.plugins.base import make_plugin
from kinject.plugins.map_files import load_released_affine, read_released_affine
from kinject.plugins.map_tuning import fit_ridge, initialise
from kinject.tasks.base import make_task, slot_rows

HIDDEN = 16


def map_tuning(seed=1, **settings):
    return make_plugin({"name": "map_tuning", **settings}, hidden_size=HIDDEN, knowledge_dim=DIM, seed=seed)


def test_affine_is_the_formula():
    plugin = map_tuning()
    kernel, bias = np.asarray(plugin.mapper.kernel[...]), np.asarray(plugin.mapper.bias[...])
    drawn = np.random.default_rng(0).normal(size=(3, 2, DIM)).astype(np.float32)
    np.testing.assert_allclose(plugin.map(drawn), np.einsum("abk,kd->abd", drawn, kernel) + bias, rtol=1e-5, atol=1e-6)
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(plugin))]
    assert sum(sizes) == DIM * HIDDEN + HIDDEN  # k * d + d, as the paper counts


def test_affine_starts_as_torch_starts_a_linear_layer():
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=300, knowledge_dim=64, seed=0)
    bound = 64**-0.5
    for leaf in (plugin.mapper.kernel[...], plugin.mapper.bias[...]):
        assert float(abs(leaf).max()) <= bound
        assert abs(float(leaf.std()) - bound / 3**0.5) < 0.1 * bound


@pytest.mark.parametrize("dim", [4, HIDDEN, 20])
def test_identity_starts_as_the_identity(dim):
    plugin = make_plugin({"name": "map_tuning", "mapper": "identity"}, hidden_size=HIDDEN, knowledge_dim=dim)
    drawn = np.random.default_rng(0).normal(size=(5, dim)).astype(np.float32)
    expected = np.zeros((5, HIDDEN), np.float32)
    expected[:, : min(dim, HIDDEN)] = drawn[:, :HIDDEN]
    np.testing.assert_array_equal(plugin.map(drawn), expected)


def test_residual_mlp_starts_as_the_affine_map_and_learns_more():
    affine, residual = map_tuning(seed=5), map_tuning(seed=5, mapper="residual_mlp", width=4)
    drawn = np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)
    np.testing.assert_array_equal(residual.map(drawn), affine.map(drawn))
    residual.down.kernel[...] = jnp.ones_like(residual.down.kernel[...])
    gained = np.asarray(residual.map(drawn) - affine.map(drawn))
    up = drawn @ np.asarray(residual.up.kernel[...]) + np.asarray(residual.up.bias[...])
    exact = np.asarray(jax.scipy.stats.norm.cdf(up) * up)  # GELU, not its tanh approximation
    np.testing.assert_allclose(gained, exact.sum(1, keepdims=True).repeat(HIDDEN, 1), rtol=1e-4, atol=1e-5)


def test_each_hidden_layer_more_is_one_more_in_the_formula():
    plugin = map_tuning(mapper="residual_mlp", width=4, depth=3)
    plugin.down.kernel[...] = jnp.ones_like(plugin.down.kernel[...])
    drawn = np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)
    hidden = drawn
    for layer in (plugin.up, *plugin.between):
        hidden = hidden @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        hidden = np.asarray(jax.scipy.stats.norm.cdf(hidden) * hidden)
    gained = np.asarray(plugin.map(drawn) - plugin.mapper(drawn))
    np.testing.assert_allclose(gained, hidden.sum(1, keepdims=True).repeat(HIDDEN, 1), rtol=1e-4, atol=1e-5)
    sizes = {"/".join(map(str, path)): leaf[...].size for path, leaf in nnx.to_flat_state(nnx.state(plugin, nnx.Param))}
    affine, up, between = DIM * HIDDEN + HIDDEN, DIM * 4 + 4, 2 * (4 * 4 + 4)
    assert sum(sizes.values()) == affine + up + between + 4 * HIDDEN and "between/1/kernel" in sizes
    one = nnx.state(map_tuning(mapper="residual_mlp", width=4), nnx.Param)
    assert {path[0] for path, _ in nnx.to_flat_state(one)} == {"mapper", "up", "down"}, "as folders of before have it"
    with pytest.raises(InputError, match="depth 0: both are 1 or more"):
        map_tuning(mapper="residual_mlp", depth=0)


def test_the_slot_gets_the_mapped_vector_as_its_word_embedding_and_nothing_else(host, knowledge):
    """Hidden state 0 by hand: words, of which the slot's is replaced, plus position and type, then LayerNorm."""
    batch = batch_of(host, knowledge, [sentence(1, 2), sentence(3, 3)], "mention_masked_lm")
    batch["type_ids"] = np.broadcast_to(np.arange(batch["type_ids"].shape[1]) % 2, batch["type_ids"].shape)
    plugin, embeddings = map_tuning(), host.loaded.host.encoder.embeddings
    word, position, kind = (
        np.asarray(table.embedding[...], np.float64)
        for table in (embeddings.word, embeddings.position, embeddings.type)
    )
    table = vectors().astype(np.float64)
    kernel, bias = np.asarray(plugin.mapper.kernel[...]), np.asarray(plugin.mapper.bias[...])
    words = word[batch["token_ids"]]
    slots = np.argwhere(batch["entity_slot"] >= 0)
    assert len(slots) == 12  # two sentences, three maskings each, two slots; in the second both are of one entity
    for row, place in slots:
        entity = batch["entity_ids"][row, batch["entity_slot"][row, place]]
        words[row, place] = table[entity] @ kernel + bias
    total = words + position[batch["position_ids"]] + kind[batch["type_ids"]]
    centred = total - total.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    expected = normed * np.asarray(embeddings.norm.scale[...]) + np.asarray(embeddings.norm.bias[...])
    found = fast_jit(lambda batch: host.loaded.host.encoder.embed(batch, plugin))(batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_the_mapped_vector_only_under_a_key():
    plugin = map_tuning(dropout=0.5)
    batch = {
        "entity_vectors": np.random.default_rng(0).normal(size=(1, 1, DIM)).astype(np.float32),
        "entity_slot": np.array([[-1, 0]], np.int32),
    }
    words = jnp.ones((1, 2, HIDDEN))
    kept = plugin.embed(words, batch)
    dropped = plugin.embed(words, batch, jax.random.key(0))
    np.testing.assert_array_equal(kept[0, 0], words[0, 0])
    np.testing.assert_array_equal(dropped[0, 0], words[0, 0])
    zero = np.asarray(dropped[0, 1]) == 0
    assert 0 < zero.sum() < HIDDEN
    np.testing.assert_allclose(np.asarray(dropped[0, 1])[~zero], 2 * np.asarray(kept[0, 1])[~zero], rtol=1e-6)


def test_without_slots_the_plugin_on_is_the_plugin_off_bit_for_bit(host, knowledge):
    strangers = [{**question(i), "mentions": [{**question(i)["mentions"][0], "entity": "Q999"}]} for i in range(6)]
    on = batch_of(host, knowledge, strangers)
    assert (on["entity_slot"] == -1).all() and "entity_vectors" not in on
    on["entity_vectors"] = np.ones((6, 1, DIM), np.float32)  # as where other rows of the batch do have entities
    off = batch_of(host, knowledge, [{**value, "mentions": []} for value in strangers])
    np.testing.assert_array_equal(on["token_ids"], off["token_ids"])
    graph, state = nnx.split(host.loaded.host)

    def run(batch, plugin):
        return np.asarray(fast_jit(lambda state, batch: logits(nnx.merge(graph, state), batch, plugin))(state, batch))

    alone = run(off, None)
    assert alone.std() > 0.1
    assert run(on, map_tuning()).tobytes() == alone.tobytes()
    del on["entity_vectors"]
    assert run(on, map_tuning()).tobytes() == alone.tobytes()


def test_an_unknown_or_vectorless_entity_gets_neither_slot_nor_slash(host, tmp_path):
    has_vector = np.arange(CITIES) != 3
    folder = write_knowledge(
        tmp_path / "knowledge",
        name="gaps",
        ids=[f"Q{i}" for i in range(CITIES)],
        vectors=vectors(),
        has_vector=has_vector,
        source="made up",
        license="none",
    )
    rows, encoder = slot_rows(KnowledgeBase.open(folder)), host.encoder(None)
    passages = [Passage("city1 is in [MASK] .", [Mention(0, 5, entity)]) for entity in ("Q2", "Q3", "Q999", None)]
    known, *others = encoder.encode_batch(passages, rows)
    tokens = [VOCABULARY[i] for i in known.token_ids]
    assert tokens == ["[CLS]", "[UNK]", "/", "city1", "is", "in", "[MASK]", ".", "[SEP]"]
    assert known.entity_slot.tolist() == [-1, 0] + [-1] * 7 and known.entity_rows.tolist() == [2]
    for other in others:
        assert [VOCABULARY[i] for i in other.token_ids] == ["[CLS]", *tokens[3:]]
        assert (other.entity_slot == -1).all() and not other.entities


@pytest.mark.parametrize("penalty", [0.01, 0.1, 3.0])
def test_ridge_is_sklearns(penalty):
    draw = np.random.default_rng(0)
    x, y = draw.normal(2, 3, size=(50, 7)), draw.normal(size=(50, 5))
    kernel, bias = fit_ridge(x, y, penalty)
    theirs = Ridge(alpha=penalty * len(x)).fit(x, y)
    np.testing.assert_allclose(kernel, theirs.coef_.T, atol=1e-4)
    np.testing.assert_allclose(bias, theirs.intercept_, atol=1e-4)


def test_ridge_needs_pairs():
    with pytest.raises(InputError, match="at least 2 pairs, there are 1"):
        fit_ridge(np.ones((1, 3)), np.ones((1, 2)))


def test_drawn_starts_are_what_they_say():
    feed = host = None  # they read neither examples nor host
    plugin = make_plugin({"name": "map_tuning"}, hidden_size=300, knowledge_dim=64, seed=0)
    initialise(plugin, "normal", feed, host, 0.1, "initialise", seed=1)
    kernel = np.array(plugin.mapper.kernel[...])
    assert abs(kernel.std() - 0.02) < 1e-3 and abs(kernel.mean()) < 1e-3 and not plugin.mapper.bias[...].any()
    initialise(plugin, "normal", feed, host, 0.1, "initialise", seed=2)
    assert not np.array_equal(plugin.mapper.kernel[...], kernel)
    initialise(plugin, "zero", feed, host, 0.1, "initialise")
    assert not plugin.map(np.ones((2, 64), np.float32)).any()
    with pytest.raises(InputError, match="unknown start 'ridge_lable'; did you mean ridge_label"):
        initialise(plugin, "ridge_lable", feed, host, 0.1, "initialise")


@pytest.mark.parametrize("target", ["ridge_label", "ridge_mention"])
def test_ridge_starts_aim_where_they_say(host, knowledge, target):
    asked = [question(i) for i in range(30)] + [{**question(31), "mentions": []}]
    examples = make_task("cloze").examples(records(*asked), host.encoder(None), knowledge)
    plugin = map_tuning()
    initialise(plugin, target, Feed(examples, knowledge.gather), host.loaded.host, 0.1, "initialise")
    word = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...])
    aims = [one["label"] if target == "ridge_label" else f"city{i}" for i, one in enumerate(asked[:30])]
    theirs = Ridge(alpha=3.0).fit(vectors()[:30], word[[VOCABULARY.index(aim) for aim in aims]])
    np.testing.assert_allclose(plugin.mapper.kernel[...], theirs.coef_.T, atol=1e-4)
    np.testing.assert_allclose(plugin.mapper.bias[...], theirs.intercept_, atol=1e-4)


def test_ridge_label_sum_aims_at_what_all_answers_differ_by(host, knowledge):
    asked = [{**question(i), "label": f"land{answer}"} for i in range(30) for answer in (i % 3, i % 2)]
    examples = make_task("cloze").examples(records(*asked), host.encoder(None), knowledge)
    plugin = map_tuning()
    initialise(plugin, "ridge_label_sum", Feed(examples, knowledge.gather), host.loaded.host, 0.1, "initialise")
    word = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...])
    said = np.stack([word[[VOCABULARY.index(f"land{i % 3}"), VOCABULARY.index(f"land{i % 2}")]] for i in range(30)])
    mean = said.reshape(60, -1).mean(0)
    theirs = Ridge(alpha=3.0).fit(vectors()[:30], mean + (said - mean).sum(1))
    np.testing.assert_allclose(plugin.mapper.kernel[...], theirs.coef_.T, atol=1e-4)
    np.testing.assert_allclose(plugin.mapper.bias[...], theirs.intercept_, atol=1e-4)


def test_ridge_mention_aims_at_the_mean_of_several_pieces(host, knowledge):
    text = "faraway is in [MASK] ."
    asked = [
        {"text": text, "mentions": [{"start": 0, "end": 7, "entity": f"Q{i}"}], "label": "land0"} for i in range(9)
    ]
    plugin = map_tuning()
    examples = make_task("cloze").examples(records(*asked), host.encoder(None), knowledge)
    initialise(plugin, "ridge_mention", Feed(examples, knowledge.gather), host.loaded.host, 0.1, "initialise")
    word = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...])
    mean = word[[VOCABULARY.index("far"), VOCABULARY.index("##away")]].mean(0)
    np.testing.assert_allclose(plugin.map(vectors()[:9]), np.tile(mean, (9, 1)), atol=1e-5)


def test_ridge_starts_say_what_they_lack(host, knowledge):
    strangers = [{**question(i), "mentions": [{**question(i)["mentions"][0], "entity": "Q999"}]} for i in range(6)]
    examples = make_task("cloze").examples(records(*strangers), host.encoder(None), knowledge)
    feed, plugin = Feed(examples, knowledge.gather), map_tuning()
    with pytest.raises(InputError, match="entities that have a vector, and the data set has none"):
        initialise(plugin, "ridge_label", feed, host.loaded.host, 0.1, "initialise")
    with pytest.raises(InputError, match="initialise: unknown start 'ridge_lable'; did you mean ridge_label"):
        initialise(plugin, "ridge_lable", feed, host.loaded.host, 0.1, "initialise")


def released(path: Path, state) -> Path:
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    torch.save(tensors, path)
    return path


def test_a_released_mapping_network_gives_w_e_plus_b(tmp_path):
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(HIDDEN, DIM)).astype(np.float32), draw.normal(size=HIDDEN).astype(np.float32)
    path = released(tmp_path / "Affine_5.bin", {"model.weight": weight, "model.bias": bias})
    plugin = map_tuning(mapper="identity")
    load_released_affine(path, plugin)
    np.testing.assert_allclose(plugin.map(vectors()), vectors() @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": np.ones((HIDDEN, DIM)), "bias": np.ones(HIDDEN)}, r"holds \['bias', 'weight'\]"),
        ({"model.weight": np.ones((HIDDEN, DIM))}, "a released mapping network holds"),
        ({"model.weight": np.ones((HIDDEN, DIM)), "model.bias": np.ones(3)}, "do not fit each other"),
        ({"model.weight": np.ones((HIDDEN, DIM)), "model.bias": 0.5}, "model.bias is a float, not a tensor"),
        ({"model.weight": np.ones((HIDDEN, 9)), "model.bias": np.ones(HIDDEN)}, "maps 9 numbers to 16"),
        ({"model.weight": np.ones((12, DIM)), "model.bias": np.ones(12)}, "maps 8 numbers to 12"),
    ],
)
def test_a_mapping_network_of_another_form_is_refused(tmp_path, state, message):
    plugin = map_tuning()
    before = np.asarray(plugin.mapper.kernel[...])
    with pytest.raises(InputError, match=message) as refusal:
        load_released_affine(released(tmp_path / "Affine_1.bin", state), plugin)
    assert "Affine_1.bin" in str(refusal.value) and "\n" not in str(refusal.value)
    np.testing.assert_array_equal(before, plugin.mapper.kernel[...])


def test_a_mapping_network_is_for_an_affine_map_only(tmp_path):
    path = released(tmp_path / "Affine_1.bin", {"model.weight": np.ones((HIDDEN, DIM)), "model.bias": np.ones(HIDDEN)})
    with pytest.raises(InputError, match=r"stages.x.initialise: .* use the method map_tuning with mapper affine"):
        load_released_affine(path, map_tuning(mapper="residual_mlp"), "stages.x.initialise")


class Malice:
    """Its unpickling creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("saved_by", ["pickle", "torch"])
def test_no_pickled_code_is_executed(tmp_path, saved_by):
    torch = pytest.importorskip("torch")
    sentinel, path = tmp_path / "executed", tmp_path / "Affine_1.bin"
    state = {"model.weight": Malice(sentinel), "model.bias": Malice(sentinel)}
    if saved_by == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(InputError, match="never pickled code") as refusal:
        read_released_affine(path)
    assert not sentinel.exists() and "\n" not in str(refusal.value)
    pickle.loads(pickle.dumps(state))
    assert sentinel.exists(), "the trap itself does not work"


def test_a_cut_or_empty_file_is_refused(tmp_path):
    path = released(tmp_path / "Affine_1.bin", {"model.weight": np.ones((HIDDEN, DIM)), "model.bias": np.ones(HIDDEN)})
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a plain torch state dict"):
            read_released_affine(path)


def test_comparison_sees_the_plugin_at_the_slot(host, knowledge, world):
    """A map onto the answer's word embedding makes the copying host say the answer."""
    comparison = Comparison(host, make_task("cloze"), None, Placement.single())
    asked = records(*(question(i) for i in range(20)))
    plugin = map_tuning()
    word = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...])
    lands = word[[VOCABULARY.index(question(i)["label"]) for i in range(CITIES)]]
    plugin.mapper.kernel[...], plugin.mapper.bias[...] = fit_ridge(vectors(), lands, 1e-4)
    metrics, found = comparison.with_plugin(plugin, knowledge, asked)
    alone, _ = comparison.host_alone(asked)
    assert metrics["accuracy"] >= 0.9 > 0.5 > alone["accuracy"]
    assert found["label"].tolist() == [VOCABULARY.index(question(i)["label"]) for i in range(20)]
