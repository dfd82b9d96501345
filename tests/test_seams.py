"""The three seams, and what the encoder promises about batches: segments, dropout, gathering, resuming, remat."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import fast_jit, random_host, tiny_batch, tiny_config

from kinject.errors import InputError
from kinject.models.seams import BEYOND_THE_LAST_LAYER, DelegatingPlugin, Plugin
from kinject.plugins import base
from kinject.plugins.base import plugin_class, register

POSITIONS = jnp.asarray([[0, 4, 4], [2, 1, 0]], jnp.int32)
close = {"rtol": 0, "atol": 3e-6}


def key_of(seed):
    return jax.random.key(seed, impl="rbg")  # compiles in a third of the time of the default


class Touching(Plugin):
    """Changes the computation at the seams it is told to, with a parameter of its own."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        seams: tuple[str, ...] = ("embed", "feed_forward", "outputs")
        layer: int = 1

    def __init__(self, config=None, *, hidden_size, knowledge_dim=0, rngs=None):
        super().__init__(config, hidden_size=hidden_size, knowledge_dim=knowledge_dim)
        self.weight = nnx.Param(jnp.linspace(-1.0, 1.0, hidden_size))

    def embed(self, embeddings, batch, key=None):
        return embeddings + self.weight[...] if "embed" in self.config.seams else embeddings

    def feed_forward(self, layer, hidden, output, batch, key=None):
        here = "feed_forward" in self.config.seams and layer == self.config.layer
        return output + hidden * self.weight[...] if here else output

    def outputs(self, hidden_states, batch, key=None):
        if "outputs" not in self.config.seams:
            return hidden_states[-1]
        return hidden_states[-1] + self.weight[...] * hidden_states[0].mean(axis=1, keepdims=True)


class EmbedOnly(Plugin):
    def embed(self, embeddings, batch, key=None):
        return embeddings * 2


def touching(*seams, layer=1):
    return Touching(Touching.Config(seams, layer), hidden_size=32)


@pytest.fixture(params=["bert", "roberta"])
def encoder(request):
    return random_host(tiny_config(request.param)).encoder


@pytest.fixture
def bert():
    return random_host(tiny_config()).encoder


@pytest.fixture
def batch(encoder):
    return tiny_batch(encoder.config, [7, 5], 7)


def compiled(encoder, plugin, positions=None):
    graph, state = nnx.split((encoder, plugin))

    def run(params, batch, key):
        encoder, plugin = nnx.merge(graph, params)
        return encoder(batch, plugin, key, positions=positions)

    return fast_jit(run), nnx.to_pure_dict(state)


def last(encoder, batch, plugin=None, **options):
    run, params = compiled(encoder, plugin, **options)
    return run(params, batch, None).last


@pytest.mark.parametrize("key", [None, key_of(3)])
@pytest.mark.parametrize("positions", [None, POSITIONS])
def test_the_identity_plugin_compiles_to_the_host_itself(encoder, batch, key, positions):
    (bare, params), (identity, same) = (compiled(encoder, p, positions) for p in (None, Plugin(hidden_size=32)))
    assert identity.lower(same, batch, key).as_text() == bare.lower(params, batch, key).as_text()


def test_the_identity_plugin_yields_the_bits_of_the_host(encoder, batch):
    (bare, params), (identity, same) = (compiled(encoder, p) for p in (None, Plugin(hidden_size=32)))
    ours, theirs = identity(same, batch, key_of(3)), bare(params, batch, key_of(3))
    assert len(ours.hidden_states) == 3
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_each_seam_sees_what_it_should(encoder, batch):
    seen = {}

    class Watching(Plugin):
        def embed(self, embeddings, batch, key=None):
            seen["embed"] = embeddings, key
            return embeddings

        def feed_forward(self, layer, hidden, output, batch, key=None):
            seen[layer] = hidden, output, key
            return output

        def outputs(self, hidden_states, batch, key=None):
            seen["outputs"] = hidden_states, key
            return hidden_states[-1]

    key = key_of(0)
    watching = Watching(hidden_size=32)
    encoder(batch, watching, key)
    keys = [values[-1] for values in seen.values()]
    assert len({jax.random.key_data(k).tobytes() for k in keys}) == len(keys) == 4

    output = encoder(batch, watching)
    assert all(values[-1] is None for values in seen.values())
    table = encoder.embeddings.word.embedding[...]
    np.testing.assert_array_equal(seen["embed"][0], table[batch["token_ids"]])
    states, _ = seen["outputs"]
    assert len(states) == 3
    for state, kept in zip(states, output.hidden_states, strict=True):
        np.testing.assert_array_equal(state, kept)
    for i, layer in enumerate(encoder.layers):
        hidden, inner, _ = seen[i]
        np.testing.assert_allclose(hidden, layer.attention(states[i], batch["segment_ids"], None), **close)
        np.testing.assert_allclose(inner, layer.feed_forward.inner(hidden), **close)
        np.testing.assert_allclose(layer.feed_forward.norm(inner + hidden), states[i + 1], **close)


@pytest.mark.parametrize(("layer", "differing"), [(0, [False, True, True]), (1, [False, False, True])])
def test_a_feed_forward_seam_changes_its_layer_and_those_above(bert, layer, differing):
    batch = tiny_batch(bert.config, [7, 5], 7)
    plain, changed = bert(batch).hidden_states, bert(batch, touching("feed_forward", layer=layer)).hidden_states
    assert [float(jnp.abs(a - b).max()) > 1e-3 for a, b in zip(plain, changed, strict=True)] == differing


def test_first_seam_and_reads_sequence_follow_from_what_is_overridden():
    assert Plugin(hidden_size=2).first_seam() == BEYOND_THE_LAST_LAYER
    assert EmbedOnly(hidden_size=2).first_seam() == 0

    class InLayers(Plugin):
        reads_sequence = False

        def feed_forward(self, layer, hidden, output, batch, key=None):
            return output

    class AtTheEnd(Plugin):
        def outputs(self, hidden_states, batch, key=None):
            return hidden_states[-1]

    assert InLayers(hidden_size=2).first_seam() == 1
    assert AtTheEnd(hidden_size=2).first_seam() == BEYOND_THE_LAST_LAYER
    read = [cls.reads_sequence for cls in (Plugin, EmbedOnly, InLayers, AtTheEnd, Touching)]
    assert read == [False, False, False, True, True]


@pytest.mark.parametrize("plugin", [None, EmbedOnly(hidden_size=32), touching("outputs")])
def test_gathering_positions_is_the_whole_row_then_gathered(encoder, batch, plugin):
    whole = last(encoder, batch, plugin)
    run, params = compiled(encoder, plugin, POSITIONS)
    part = run(params, batch, None)
    assert part.last.shape == (2, 3, 32)
    np.testing.assert_allclose(part.last, jnp.take_along_axis(whole, POSITIONS[:, :, None], axis=1), **close)
    gathered_early = part.hidden_states[-1].shape == (2, 3, 32)
    assert gathered_early == (plugin is None or not plugin.reads_sequence)


def test_packed_segments_are_rows_of_their_own(encoder):
    rows = tiny_batch(encoder.config, [6, 3, 5], 6)
    lengths = [6, 3, 5]
    packed = {}
    for name, array in rows.items():
        parts = [np.asarray(array)[i, :n] * (i + 1 if name == "segment_ids" else 1) for i, n in enumerate(lengths)]
        padding = [encoder.config.pad_token_id if name == "token_ids" else 0] * 2
        packed[name] = jnp.asarray(np.concatenate([*parts, padding])[None], jnp.int32)
    together, apart = last(encoder, packed)[0], last(encoder, rows)
    start = 0
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(together[start : start + n], apart[i, :n], **close)
        start += n
    assert np.isfinite(together).all()


def test_padding_is_neither_seen_nor_nan(encoder):
    batch = tiny_batch(encoder.config, [6, 0], 9)
    changed = batch | {"token_ids": jnp.where(batch["segment_ids"] > 0, batch["token_ids"], 11)}
    run, params = compiled(encoder, None)
    ours, theirs = run(params, batch, None).last, run(params, changed, None).last
    np.testing.assert_array_equal(ours[0, :6], theirs[0, :6])
    assert np.isfinite(ours).all()

    gradients = fast_jit(jax.grad(lambda p: jnp.sum(run.__wrapped__(p, batch, None).last[:1, :6] ** 2)))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_an_unknown_token_is_loud(bert):
    batch = tiny_batch(bert.config, [4], 4)
    batch["token_ids"] = batch["token_ids"].at[0, 1].set(bert.config.vocab_size)
    assert np.isnan(bert.embed(batch)[0, 1]).all()


def test_resuming_from_a_kept_layer_is_the_whole_run(encoder, batch):
    plugin, key = touching("feed_forward", layer=1), key_of(5)
    whole = encoder(batch, plugin, key).hidden_states
    below = [encoder.embed(batch, plugin, key), *encoder.run(whole[0], batch, plugin, key, stop=1)]
    above = encoder.run(below[-1], batch, plugin, key, start=1)
    for ours, theirs in zip([*below, *above], whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    gathered = encoder.run(below[-1], batch, plugin, key=None, start=1, positions=POSITIONS)
    assert [g.shape for g in gathered] == [(2, 3, 32)]
    assert encoder.run(whole[0], batch, start=1, stop=1) == []
    for wrong in ({"start": 2, "stop": 1}, {"stop": 3}, {"start": -1}, {"stop": 1, "positions": POSITIONS}):
        with pytest.raises(ValueError, match=r"layer"):
            encoder.run(whole[0], batch, **wrong)


def test_dropout_has_the_rate_it_says_and_one_mask_a_site():
    encoder = random_host(tiny_config(hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.0)).encoder
    batch = tiny_batch(encoder.config, [90] * 8, 90)
    plain, key = encoder.embed(batch), key_of(1)
    dropped = np.asarray(encoder.embed(batch, key=key))
    zero = dropped == 0
    assert abs(zero.mean() - 0.25) < 0.02  # 23,040 draws: 7 standard errors
    np.testing.assert_allclose(dropped[~zero], np.asarray(plain)[~zero] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(dropped, encoder.embed(batch, key=key))
    assert (zero != (np.asarray(encoder.embed(batch, key=key_of(2))) == 0)).any()
    first, second = (encoder.run(plain, batch, key=k, stop=1)[0] for k in (key, key_of(2)))
    assert float(jnp.abs(first - second).max()) > 1e-2


def test_attention_dropout_is_unbiased_and_only_under_a_key():
    encoder = random_host(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.3)).encoder
    batch = tiny_batch(encoder.config, [12], 12)
    hidden = encoder.embed(batch, key=key_of(0))
    np.testing.assert_array_equal(hidden, encoder.embed(batch))  # nothing to drop there
    attention = encoder.layers[0].attention

    def context(key):  # before the LayerNorm, which is not linear
        probe = nnx.clone(attention)
        probe.norm = lambda values: values - hidden
        return probe(hidden, batch["segment_ids"], key)

    keys = jax.random.split(key_of(4), 4000)
    samples = jax.lax.map(context, keys, batch_size=500)
    spread = samples.std(axis=0) / np.sqrt(len(keys))
    assert float(samples.std(axis=0).min()) > 1e-3
    assert float((jnp.abs(samples.mean(axis=0) - context(None)) / spread).max()) < 6


def test_remat_changes_no_value_and_no_gradient():
    config = tiny_config(num_hidden_layers=1)
    batch, key = tiny_batch(config, [7, 5], 7), key_of(9)
    plugin = touching("feed_forward", layer=0)

    def gradient(encoder):
        graph, state = nnx.split((encoder, plugin))

        def loss(params):
            encoder, plugin = nnx.merge(graph, params)
            return jnp.sum(encoder(batch, plugin, key).last[:, :5] ** 3)

        lowered = fast_jit(jax.value_and_grad(loss)).lower(nnx.to_pure_dict(state))
        return lowered.as_text().count("optimization_barrier"), lowered.compile()(nnx.to_pure_dict(state))

    (plain, expected), (rematerialised, got) = (gradient(random_host(config, remat=r).encoder) for r in (False, True))
    assert plain < rematerialised  # attention and activations have some of their own
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_new_plugin_arrays_cost_no_compilation(bert):
    batch = tiny_batch(bert.config, [7, 5], 7)
    run, params = compiled(bert, touching("embed"))
    first = run(params, batch, None).last
    swapped = {0: params[0], 1: {"weight": -params[1]["weight"]}}
    second = run(swapped, batch, None).last
    assert run._cache_size() == 1
    assert float(jnp.abs(first - second).max()) > 1e-3


def test_a_plugin_is_held_to_shape_and_dtype():
    encoder = random_host(tiny_config(), dtype=jnp.bfloat16).encoder
    batch = tiny_batch(encoder.config, [7, 5], 7)
    assert {s.dtype.name for s in encoder(batch, touching("embed", "feed_forward", "outputs")).hidden_states} == {
        "bfloat16"
    }

    class Cutting(Plugin):
        def embed(self, embeddings, batch, key=None):
            return embeddings[:, :3]

    with pytest.raises(AssertionError, match=r"identity: embed must return .* shape that it got, \(2, 7, 32\)"):
        encoder(batch, Cutting(hidden_size=32))


@pytest.fixture
def registry(monkeypatch):
    base.plugin_names()  # what a test imports first, the restored registry would not have, and Python not import again
    monkeypatch.setattr(base, "_REGISTERED", dict(base._REGISTERED))


def test_registration(registry):
    decorated = register("my_touching")(Touching)
    assert decorated is Touching
    assert plugin_class("my_touching") is Touching
    assert Touching.name == "my_touching"
    with pytest.raises(InputError, match=r"no plugin called 'my_tuching'; did you mean my_touching\?"):
        plugin_class("my_tuching")
    with pytest.raises(ValueError, match=r"'my_touching' is taken"):
        register("my_touching")(EmbedOnly)

    class Loose(Plugin):
        class Config:
            pass

    with pytest.raises(ValueError, match=r"frozen dataclass: write @dataclass\(frozen=True\)"):
        register("loose")(Loose)

    class Combined(Plugin):
        @classmethod
        def made_of(cls, config, parts, **sizes):
            return cls(config, **sizes)

    with pytest.raises(ValueError, match=r"Combined\.made_of: the method is called from_parts now"):
        register("combined")(Combined)
    assert "combined" not in base.plugin_names()


def test_a_file_that_registers_another_name_is_named(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["kinject.plugins"], "__path__", [str(tmp_path)])
    (tmp_path / "misnamed.py").write_text(
        "from kinject.plugins.base import Plugin, register\n\n\n@register('other')\nclass Other(Plugin):\n    pass\n"
    )
    with pytest.raises(InputError, match=r"misnamed.py registers 'other'; rename the file, or write @register"):
        plugin_class("misnamed")
    sys.modules.pop("kinject.plugins.misnamed")


def test_a_distribution_of_a_third_party_is_found(registry, tmp_path, monkeypatch):
    code = "from kinject.plugins.base import Plugin, register\n@register('theirs')\nclass Theirs(Plugin):\n    pass\n"
    (tmp_path / "their_module.py").write_text(code)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kinject.plugins]\ntheirs = their_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "theirs" in base.plugin_names()
    assert "their_module" not in sys.modules
    assert plugin_class("theirs").__name__ == "Theirs"
    sys.modules.pop("their_module")


def test_a_stand_in_is_the_plugin_but_for_what_it_overrides():
    class Speaking(Plugin):
        extra = "an attribute that the base class does not have"

        def another_seam(self, hidden):
            return hidden + self.hidden_size

    class Stand(DelegatingPlugin):
        def embed(self, embeddings, batch, key=None):
            return 2 * self.plugin.embed(embeddings, batch, key)

    plugin = Speaking(hidden_size=3)
    stand = Stand(plugin)
    public = {name for name in dir(plugin) if not name.startswith("_")}
    assert {"before", "embed", "feed_forward", "outputs", "prepare", "reads_states", "first_seam"} < public
    for name in public - {"embed"}:
        assert getattr(stand, name) == getattr(plugin, name), name  # bound methods are equal if their objects are one
        if callable(getattr(plugin, name)) and hasattr(getattr(plugin, name), "__self__"):
            assert getattr(stand, name).__self__ in (plugin, Speaking), name
    assert stand.extra == Speaking.extra and stand.another_seam(4) == 7
    assert stand.embed(5, {}) == 10
    with pytest.raises(AttributeError, match="nothing"):
        stand.nothing  # noqa: B018


def test_importing_the_library_imports_no_other_framework():
    code = (
        "import sys, kinject.models.pretrained, kinject.plugins.base\n"
        "print([m for m in ('torch', 'tensorflow', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
