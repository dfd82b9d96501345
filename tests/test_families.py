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

from kinject.models.family import family_names  # noqa: E402
from kinject.models.heads import logits as host_logits  # noqa: E402
from kinject.models.pretrained import load_host  # noqa: E402
from kinject.models.saving import save_host  # noqa: E402
from kinject.models.seams import Plugin  # noqa: E402

TOLERANCE, GRADIENT = 2e-5, 1e-4  # the second relative to the largest entry
HALF_COSINE = 0.99  # hidden states in bfloat16 beside float32, of weights that are far larger than trained ones


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
