"""LoRA, Houlsby adapters and BitFit: what they add, what they compute, what trains, and how they are stored."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny import fast_jit, random_host, tiny_config
from tuned import ALL, SITES, SOME, batch_of, params_of, tuned_host

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import HostModel, build_head, logits
from kinject.models.houlsby import Houlsby
from kinject.models.layers import FEED_FORWARD, site
from kinject.models.lora import Lora, LowRankParts, merge_lora
from kinject.models.saving import save_host
from kinject.models.tuning_base import BitFit, attach, rules_for
from kinject.training.partition import label_parameters
from kinject.training.prefix import first_trainable_state
from kinject.tree import flatten


@fast_jit
def run(host, batch, key=None):
    return logits(host, batch, key=key)


@pytest.mark.parametrize(
    ("tuning", "dtype"),
    [(ALL, jnp.float32), (SOME, jnp.bfloat16), (Houlsby(bottleneck=4, zero_init=True), jnp.float32)],
    ids=["all", "some", "houlsby"],
)
def test_start_is_the_host_bit_for_bit(tuning, dtype):
    """Operation by operation; a compiler that fuses two programs differently may round them differently."""
    config = tiny_config(num_hidden_layers=1)
    plain, tuned = (
        random_host(config, dtype=dtype),
        tuned_host(tuning, config=config, head=None, fill=False, dtype=dtype),
    )
    batch, key = batch_of(config), jax.random.key(3)
    for positions, dropped in ((None, None), (batch["positions"], key)):
        want = plain.encoder(batch, key=dropped, positions=positions).last
        got = tuned.encoder(batch, key=dropped, positions=positions).last
        assert got.dtype == dtype and np.asarray(got).tobytes() == np.asarray(want).tobytes()


def test_lora_start_is_drawn_as_kaiming_says():
    host = tuned_host(Lora(rank=400, sites=SITES), fill=False)
    ffn, attention = host.encoder.layers[1].feed_forward, host.encoder.layers[0].attention
    for lora, inputs in ((ffn.up.lora, 32), (ffn.down.lora, 48), (attention.qkv.lora, 32), (attention.output.lora, 32)):
        a = np.asarray(lora.a[...])
        assert not lora.b[...].any()
        assert 0.97 * inputs**-0.5 < abs(a).max() <= inputs**-0.5
        np.testing.assert_allclose(a.std(), (3 * inputs) ** -0.5, rtol=0.03)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_of_a_fused_kernel(count):
    """Every choice of query, key and value, in every slice that the attention asks for, against numpy."""
    qkv = random_host(tiny_config(num_hidden_layers=1)).encoder.layers[0].attention.qkv
    draw = np.random.default_rng(0)
    hidden = draw.standard_normal((2, 5, 32)).astype(np.float32)
    kernel, bias = np.asarray(qkv.kernel[...]), np.asarray(qkv.bias[...])
    for parts in itertools.combinations(range(3), count):
        qkv.lora = LowRankParts(qkv, parts, Lora(rank=2, alpha=3.0), nnx.Rngs(1))
        qkv.lora.b[...] = jnp.asarray(draw.standard_normal(qkv.lora.b.shape), jnp.float32)
        a, b = np.asarray(qkv.lora.a[...]), np.asarray(qkv.lora.b[...])
        whole = np.stack([np.tensordot(hidden, kernel[:, i], 1) + bias[i] for i in range(3)], 2)
        for n, part in enumerate(parts):
            whole[:, :, part] += 1.5 * np.tensordot(hidden @ a[:, n], b[n], 1)
        np.testing.assert_allclose(qkv(hidden), whole, atol=2e-5)
        for start, stop in ((1, 3), (0, 1), (0, 2)):
            np.testing.assert_allclose(qkv.part(hidden, start, stop), whole[:, :, start:stop], atol=2e-5)


def hook_torch(model, added, config, tuning):
    """Does to a transformers model what the tuning says, by torch hooks and from the file of added tensors."""
    import torch

    added = {path: torch.from_numpy(array) for path, array in added.items()}
    for i, layer in enumerate(model.base_model.encoder.layer):
        places = {
            "attention/output": (layer.attention.output.dense, layer.attention.output.dropout),
            "feed_forward/up": (layer.intermediate.dense, None),
            "feed_forward/down": (layer.output.dense, layer.output.dropout),
        }
        own = {
            k.removeprefix(f"encoder/layers/{i}/"): v for k, v in added.items() if k.startswith(f"encoder/layers/{i}/")
        }
        if isinstance(tuning, Lora):
            chosen = [name for name in ("query", "key", "value") if name in tuning.sites]
            for n, name in enumerate(chosen):
                a, b = own["attention/qkv/lora/a"][:, n], own["attention/qkv/lora/b"][n].flatten(1)
                low_rank(getattr(layer.attention.self, name), a, b, tuning.scale)
            for place, (dense, _) in places.items():
                if f"{place}/lora/a" in own:
                    b = own[f"{place}/lora/b"]
                    low_rank(dense, own[f"{place}/lora/a"].reshape(-1, len(b)), b, tuning.scale)
        else:
            for place, path in (
                ("attention/output", "attention/adapter"),
                ("feed_forward/down", "feed_forward/adapter"),
            ):
                names = ("down/kernel", "down/bias", "up/kernel", "up/bias")
                bottleneck(places[place][1], *(own[f"{path}/{name}"] for name in names))


def low_rank(dense, a, b, scale):
    dense.register_forward_hook(lambda _, inputs, output: output + scale * (inputs[0] @ a @ b))


def bottleneck(dropout, down, down_bias, up, up_bias):
    from torch.nn.functional import silu

    dropout.register_forward_hook(lambda _, __, output: output + silu(output @ down + down_bias) @ up + up_bias)


@pytest.mark.parametrize(
    ("family", "tuning"),
    [("bert", ALL), ("roberta", SOME), ("bert", Houlsby(bottleneck=4))],
    ids=["all", "some", "houlsby"],
)
def test_forward_equals_transformers_with_hooks(tuning, family, tmp_path):
    import torch
    from transformers import AutoModelForMaskedLM

    config = tiny_config(family)
    host = tuned_host(tuning, config=config, head="masked_lm")
    folder = save_host(host, tmp_path / "host")
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    hook_torch(model, load_file(folder / "tuning.safetensors"), config, tuning)
    batch = batch_of(config)
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in batch.items()}
    with torch.no_grad():
        want = model(
            input_ids=tensors["token_ids"].long(),
            attention_mask=tensors["segment_ids"].long(),
            token_type_ids=tensors["type_ids"].long(),
        ).logits.numpy()
    real = np.asarray(batch["segment_ids"]) > 0
    everywhere = jnp.broadcast_to(jnp.arange(12), (3, 12))
    np.testing.assert_allclose(run(host, batch | {"positions": everywhere})[real], want[real], atol=3e-5)
    gathered = np.take_along_axis(want, np.asarray(batch["positions"])[:, :, None], 1)
    np.testing.assert_allclose(run(host, batch), gathered, atol=3e-5)


@pytest.mark.parametrize("tuning", [ALL, SOME], ids=["all", "some"])
def test_merged_is_a_plain_host_that_computes_the_same(tuning, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    host, plain = tuned_host(tuning), random_host(tiny_config(), "classification", 3)
    batch = batch_of(host.encoder.config, positions=False)
    want, before = run(host, batch), {path: np.array(leaf) for path, leaf in params_of(host).items()}
    merged = merge_lora(host)
    assert nnx.graphdef(merged) == nnx.graphdef(plain)
    assert abs(want - run(plain, batch)).max() > 0.05
    np.testing.assert_allclose(run(merged, batch), want, atol=1e-5)
    after = params_of(host)
    assert all(np.array_equal(before[path], after[path]) for path in before), "merging changed the host itself"
    folder = save_host(merged, tmp_path / "merged")
    assert not (folder / "tuning.safetensors").exists()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tensors = {name: torch.from_numpy(np.array(values)).long() for name, values in batch.items()}
    with torch.no_grad():
        theirs = model(tensors["token_ids"], tensors["segment_ids"], tensors["type_ids"]).logits.numpy()
    np.testing.assert_allclose(theirs, want[:, 0], atol=1e-5)


def counts(tuning, head, num_labels=None, **shape):
    """{first parts of a path: trained parameters} of a host whose arrays are never made."""
    config = EncoderConfig(**shape)

    def build():
        host = HostModel(Encoder(config, rngs=nnx.Rngs(0)), build_head(head, config, num_labels, rngs=nnx.Rngs(0)))
        attach(host, tuning, nnx.Rngs(0))
        return host

    params = flatten(nnx.to_pure_dict(nnx.state(nnx.eval_shape(build))), "host")
    labels = label_parameters(params, rules_for(tuning, head))
    found = {"encoder": 0, "head": 0}
    for path, leaf in params.items():
        if labels[path] == "train":
            found[path.split("/")[1]] += leaf.size
    return found


def test_bert_base_trains_what_the_paper_counts():
    """Method sheet of map-tuning: 12 r (2 * 1536 + 3840 if up), 1.20M adapters, every bias."""
    output, head = 768 * 80 + 80, {"head": "classification", "num_labels": 80}
    three = ("query", "key", "up")
    assert counts(Lora(rank=32, sites=three), **head) == {"encoder": 12 * 32 * (2 * 1536 + 3840), "head": output}
    assert counts(Lora(rank=4), "masked_lm") == {"encoder": 12 * 4 * (2 * 1536), "head": 0}
    assert counts(Houlsby(), **head) == {"encoder": 1_198_848, "head": output}
    biases = 768 + 12 * (3 * 768 + 768 + 768 + 3072 + 768 + 768)
    assert counts(BitFit(), **head) == {"encoder": biases, "head": 768 + output}  # the pooler's bias is one
    assert counts(BitFit(), "masked_lm") == {"encoder": biases, "head": 768 * 768 + 3 * 768 + 30522}


def test_rules_train_what_was_drawn_at_random():
    fresh = ("head/output/bias", "head/output/kernel", "head/pooler/bias", "head/pooler/kernel")
    host = tuned_host(SOME)
    given = label_parameters(params_of(host), rules_for(SOME, "classification"))
    drawn = label_parameters(params_of(host), rules_for(SOME, "classification", fresh))
    assert {path for path in given if given[path] != drawn[path]} == {
        "host/head/pooler/bias",
        "host/head/pooler/kernel",
    }
    with pytest.raises(InputError, match=r"'host/\.\*lroa\.\*' matches no parameter"):
        label_parameters(params_of(host), (("host/.*lroa.*", "train"), (".*", "freeze")))
    with pytest.raises(InputError, match="matches no parameter"):  # LoRA's rules are an error in a host without it
        label_parameters(params_of(random_host(tiny_config(), "classification", 3)), SOME.rules("classification"))


@pytest.mark.parametrize(
    ("tuning", "variant", "tolerance"),
    [(ALL, {"remat": True, "dtype": jnp.bfloat16}, 0.15), (Houlsby(bottleneck=4), {"remat": True}, 1e-5)],
    ids=["lora", "houlsby"],
)
def test_remat_and_low_precision(tuning, variant, tolerance):
    config = tiny_config(num_hidden_layers=1)
    batch = batch_of(config)

    def gradients(**options):
        graph, state = nnx.split(tuned_host(tuning, config=config, **options))

        def loss(params):
            return jnp.sum(jnp.square(logits(nnx.merge(graph, params), batch)))

        return flatten(fast_jit(jax.grad(loss))(nnx.to_pure_dict(state)))

    plain, other = gradients(), gradients(**variant)
    added = [path for path in plain if "lora" in path or "adapter" in path]
    assert len(added) == 8
    for path in added:
        scale = abs(plain[path]).max()
        assert scale > 0 and other[path].dtype == jnp.float32
        np.testing.assert_allclose(other[path], plain[path], atol=tolerance * scale)


def test_lora_dropout_falls_on_what_lora_reads():
    dropping = Lora(rank=3, alpha=2.0, sites=SITES, dropout=0.5)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_config(num_hidden_layers=1, **off)
    host, still = tuned_host(dropping, config=config, head=None), tuned_host(ALL, config=config, head=None)
    batch = batch_of(config)
    up, values = host.encoder.layers[0].feed_forward.up, jnp.ones((4, 50, 32))
    added = np.stack([up(values, jax.random.key(i)) - up.kernel[...].sum(0) - up.bias[...] for i in range(20)])
    want = still.encoder.layers[0].feed_forward.up(values) - up.kernel[...].sum(0) - up.bias[...]
    assert added.std(0).min() > 0.01
    np.testing.assert_allclose(added.mean((0, 1, 2)), want[0, 0], atol=4 * added.std() / np.sqrt(4000))

    def last(host, key):
        return host.encoder(batch, key=key, positions=batch["positions"]).last

    key = jax.random.key(2)
    assert np.array_equal(last(host, None), last(still, None)) and np.array_equal(last(still, key), last(still, None))
    assert np.array_equal(last(host, key), last(host, key))
    for name in SITES:  # each gets a key
        host = tuned_host(Lora(sites=(name,), dropout=0.5), config=config, head=None)
        assert not np.allclose(last(host, key), last(host, None), atol=1e-4), name
    host = tuned_host(Lora(sites=("query",), dropout=0.5), config=config, head=None)
    assert not np.allclose(host.encoder(batch, key=key).last, host.encoder(batch).last, atol=1e-4)


def test_adapter_stands_between_dropout_and_norm():
    host = tuned_host(Houlsby(bottleneck=4), config=tiny_config(num_hidden_layers=1), head=None)
    block = host.encoder.layers[0].feed_forward
    hidden, output = np.random.default_rng(0).standard_normal((2, 2, 3, 32)).astype(np.float32)
    key = jax.random.key(1)
    dropped = block.dropout(output, site(key, FEED_FORWARD))
    assert (dropped == 0).any()
    np.testing.assert_allclose(block.close(hidden, output, key), block.norm(block.adapter(dropped) + hidden), atol=1e-6)


@pytest.mark.parametrize("tuning", [Lora(layers=(1,)), Houlsby(layers=(1,))], ids=["lora", "houlsby"])
def test_layers_below_a_tuning_can_be_computed_once(tuning):
    params = params_of(tuned_host(tuning, head="masked_lm"))
    labels = label_parameters(params, rules_for(tuning, "masked_lm"))
    assert first_trainable_state(labels, None, 2) == 1
    assert {path.split("/")[3] for path in params if "lora" in path or "adapter" in path} == {"1"}
