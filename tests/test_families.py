"""Every family against transformers' own in torch: hidden states, heads, gradients, folders, packed rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny import fast_jit, tiny_batch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_families import FAMILIES, FORMS, torch_inputs, torch_logits, torch_model  # noqa: E402

from kinject.errors import InputError  # noqa: E402
from kinject.models.config import EncoderConfig  # noqa: E402
from kinject.models.family import family_names  # noqa: E402
from kinject.models.heads import logits as host_logits  # noqa: E402
from kinject.models.pretrained import load_host  # noqa: E402
from kinject.models.saving import save_host  # noqa: E402
from kinject.models.seams import Plugin  # noqa: E402

TOLERANCE, GRADIENT = 2e-5, 1e-4  # the second relative to the largest entry
HALF_COSINE = 0.98  # of what the head reads in bfloat16 and in float32, of weights far larger than trained ones


class Shift(Plugin):
    """Adds the batch's own array to the word embeddings, so that a gradient can be taken there."""

    def embed(self, embeddings, batch, key=None):
        return embeddings + batch["shift"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(family, head) -> the torch model and its folder, made once."""
    made = {}

    def of(family, head):
        if (family, head) not in made:
            folder = tmp_path_factory.mktemp("families") / f"{family}-{head}"
            model = torch_model(family, head)
            model.save_pretrained(folder)
            made[family, head] = model, folder
        return made[family, head]

    return of


def run(module, function, *arguments):
    graph, state = nnx.split(module)
    return fast_jit(lambda params, *rest: function(nnx.merge(graph, params), *rest))(
        nnx.to_pure_dict(state), *arguments
    )


def worst(ours, theirs, real):
    return np.abs(np.asarray(ours, np.float32)[real] - theirs.detach().numpy()[real]).max()


def test_every_family_is_tested():
    assert set(FAMILIES) == set(family_names())


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradient_at_the_input_embeddings(family, folders):
    model, folder = folders(family, "masked_lm")
    loaded = load_host(folder, head="masked_lm")
    batch = tiny_batch(loaded.config, [23, 15], 23)
    real = np.asarray(batch["segment_ids"]) > 0
    inputs = torch_inputs(batch, family)
    word = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
    inputs |= {"input_ids": None, "inputs_embeds": word}
    offset = loaded.config.position_offset
    if offset:  # with embeddings given they would count padding too
        inputs["position_ids"] = torch.from_numpy(np.array(batch["position_ids"])).long() + offset
    theirs = model(**inputs, output_hidden_states=True)
    weights = np.random.default_rng(3).standard_normal((2, 23, 90)).astype(np.float32) * real[..., None]

    def score(shift, host, batch):
        output = host.encoder(batch | {"shift": shift}, Shift(hidden_size=loaded.config.word_size))
        logits = host.head.logits(output.last, host.encoder.embeddings.word.embedding[...])
        return jnp.sum(logits * weights), (output.hidden_states, logits)

    gradient, (states, logits) = run(
        loaded.host,
        lambda host, shift, batch: jax.grad(score, has_aux=True)(shift, host, batch),
        jnp.zeros(word.shape),
        batch,
    )
    assert len(states) == len(theirs.hidden_states)
    for i, (mine, other) in enumerate(zip(states, theirs.hidden_states, strict=True)):
        assert worst(mine, other, real) <= TOLERANCE, f"hidden state {i}"
    assert worst(logits, theirs.logits, real) <= TOLERANCE * max(1, theirs.logits.abs().max().item())
    (theirs.logits * torch.from_numpy(weights)).sum().backward()
    expected = word.grad.numpy()
    assert np.abs(expected).max() > 1e-2
    assert np.abs(np.asarray(gradient) - expected).max() <= GRADIENT * np.abs(expected).max()


@pytest.mark.parametrize("head", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_head_and_its_folder(family, head, folders, tmp_path):
    model, folder = folders(family, head)
    loaded = load_host(folder, head=head, num_labels=FORMS[head][1])
    assert not loaded.fresh
    batch = tiny_batch(loaded.config, [12, 7, 9, 12], 12)
    inputs = torch_inputs(batch, family)
    if head == "multiple_choice":
        inputs = {key: value.reshape(2, 2, -1) for key, value in inputs.items()}
    expected = torch_logits(model(**inputs)).detach().numpy()
    if FORMS[head][0] in ("MaskedLM", "TokenClassification", "QuestionAnswering"):
        batch["positions"] = jnp.tile(jnp.arange(7), (4, 1))  # real in every row
        expected = expected[:, :7]
    ours = np.asarray(run(loaded.host, host_logits, batch)).reshape(expected.shape)
    assert np.abs(expected).max() > 0.05
    assert np.abs(ours - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())

    again = save_host(loaded.host, tmp_path / "ours")
    mine, theirs = (load_file(one / "model.safetensors") for one in (again, folder))
    assert {key for key in theirs if key not in mine} <= {"pooler.dense.weight"}
    assert all((mine[key] == theirs[key]).all() for key in mine)
    auto = getattr(transformers, f"AutoModelFor{FORMS[head][0]}")
    reread, info = auto.from_pretrained(again, output_loading_info=True, attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        same = torch_logits(reread.eval()(**inputs)).numpy()
    assert np.array_equal(same, torch_logits(model(**inputs)).detach().numpy())
    assert load_host(again).fingerprint == loaded.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close(family, folders):
    _, folder = folders(family, "masked_lm")
    full = load_host(folder, head="none").host.encoder
    half = load_host(folder, head="none", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16).host.encoder
    batch = tiny_batch(full.config, [16, 11], 16)
    real = np.asarray(batch["segment_ids"]) > 0
    a, b = (np.asarray(run(one, lambda one, batch: one(batch).last, batch), np.float32)[real] for one in (full, half))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() > HALF_COSINE


VARIANTS = [
    ("modernbert", "classification", {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True}),
    ("modernbert", "masked_lm", {"attention_bias": True, "mlp_bias": True, "decoder_bias": False}),
    ("deberta-v2", "classification", {"share_att_key": False, "position_biased_input": True, "type_vocab_size": 2}),
    ("deberta-v2", "masked_lm", {"legacy": False, "pos_att_type": ["c2p"], "norm_rel_ebd": "none"}),
    ("deberta-v2", "masked_lm", {"conv_kernel_size": 3, "conv_act": "gelu"}),
    ("deberta-v2", "span", {"conv_kernel_size": 5, "num_hidden_layers": 1, "share_att_key": False}),
    ("deberta-v2", "span", {"position_buckets": -1, "pos_att_type": ["p2c"], "share_att_key": False}),
    ("deberta-v2", "masked_lm", {"embedding_size": 24, "position_biased_input": True, "type_vocab_size": 2}),
    ("deberta-v2", "classification", {"embedding_size": 48, "conv_kernel_size": 3}),
    ("electra", "span", {"embedding_size": 32}),
]


@pytest.mark.parametrize(("family", "head", "values"), VARIANTS)
def test_variants_that_a_config_may_name(family, head, values, tmp_path):
    model = torch_model(family, head, **values)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_host(tmp_path / "theirs", head=head, num_labels=FORMS[head][1])
    batch = tiny_batch(loaded.config, [17, 11], 17)
    inputs = torch_inputs(batch, "bert" if loaded.config.type_vocab_size > 1 else family)
    expected = torch_logits(model(**inputs)).detach().numpy()
    if head != "classification":
        batch["positions"] = jnp.tile(jnp.arange(11), (2, 1))
        expected = expected[:, :11]
    ours = np.asarray(run(loaded.host, host_logits, batch)).reshape(expected.shape)
    assert np.abs(ours - expected).max() <= TOLERANCE * max(1, np.abs(expected).max())
    again = save_host(loaded.host, tmp_path / "ours")
    _, info = type(model).from_pretrained(again, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_distances_fall_into_the_buckets_of_transformers():
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    from kinject.models.families.deberta_v2 import rows_of
    from kinject.models.families.mpnet import bucket
    from kinject.models.shapes import SHAPES

    away = np.arange(-511, 512)
    theirs = make_log_bucket_position(torch.from_numpy(away), 256, 512).long() + 256
    assert np.array_equal(rows_of(away, SHAPES["deberta-v3-base"]), theirs.numpy())
    assert np.array_equal(bucket(away), MPNetEncoder.relative_position_bucket(torch.from_numpy(away)).numpy())


DISENTANGLED = {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": "c2p"}
REFUSED = [
    ({"model_type": "deberta-v2", "relative_attention": False}, "relative_attention is false"),
    ({"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2p"]}, "pos_att_type is"),
    ({**DISENTANGLED, "conv_kernel_size": 4}, "conv_kernel_size is 4; it must be odd"),
    ({**DISENTANGLED, "conv_kernel_size": 3, "conv_groups": 2}, "conv_groups is 2; only one group"),
    ({**DISENTANGLED, "conv_kernel_size": 3, "conv_act": "gleu"}, "conv_act is 'gleu'; did you mean gelu"),
    ({"model_type": "modernbert", "rope_scaling": {"rope_type": "yarn"}}, "rope_scaling is"),
    ({"model_type": "modernbert", "layer_types": ["full_attention"]}, "layer_types is"),
    ({"model_type": "modernbert", "classifier_pooling": "max"}, "classifier_pooling is 'max'; it is cls or mean"),
    ({"model_type": "modernbert", "mlp_dropout": 1.5}, "mlp_dropout is 1.5; a dropout rate is in"),
    ({"model_type": "electra", "summary_type": "mean"}, "summary_type is 'mean'; only 'first' is computed here"),
    ({"model_type": "electra", "summary_activation": None}, "summary_activation is null; no activation"),
    ({"model_type": "mpnet", "relative_attention_num_buckets": 16}, "relative_attention_num_buckets is 16"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_what_is_not_computed_is_refused_in_a_line(values, message):
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(InputError, match=message) as told:
        EncoderConfig.from_hf({**sizes, "intermediate_size": 8, **values}, "config.json")
    assert "\n" not in str(told.value)


def test_narrow_embeddings_have_no_head_for_masked_words_where_transformers_has_none(tmp_path):
    torch_model("deberta-v2", "span", embedding_size=16, legacy=False).save_pretrained(tmp_path)
    load_host(tmp_path, head="span")
    with pytest.raises(InputError, match="embedding_size 16 is not hidden_size, and legacy is false"):
        load_host(tmp_path, head="masked_lm", fresh_head=True)


def test_published_modernberts_config_is_read_in_its_old_form():
    old = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    sizes = {"vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12}
    read = EncoderConfig.from_hf({"model_type": "modernbert", **sizes, "intermediate_size": 1152, **old})
    assert [kind[:4] for kind in read.own.layer_types[:4]] == ["full", "slid", "slid", "full"]
    assert EncoderConfig.from_hf(read.to_hf()) == read
