"""What `save_host` writes, whole or not at all: transformers reads it, and what transformers writes is read.

Every head of every family, logits and files, is in tests/test_families.py; here is what stands beside the weights.
"""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import params_of, random_host, same_bits, tiny_batch, tiny_config, tiny_host_folder

from kinject.errors import InputError
from kinject.models import hf_tensors
from kinject.models.heads import logits as host_logits
from kinject.models.manifest import fingerprint
from kinject.models.pretrained import load_host
from kinject.models.saving import save_host

KINDS = [("masked_lm", None), ("classification", 3), ("pair_score", 1), ("multi_label", 4), ("multiple_choice", 1)]
KINDS += [("token_classification", 5), ("span", 2)]
EVERYWHERE = ("masked_lm", "token_classification", "span")  # heads that transformers puts on every position


@pytest.mark.parametrize(
    ("family", "kind", "labels"), [("roberta", "classification", 3), *(("bert", *one) for one in KINDS)]
)
def test_what_we_save_transformers_loads_whole(family, kind, labels, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    host = random_host(tiny_config(family), kind, labels)
    named = kind in ("classification", "multi_label", "token_classification")
    names = [f"is {i}" for i in range(labels)] if named else None
    folder = save_host(host, tmp_path / "host", host_json={"task": "t", "labels": names, "extra": {"n": 1}})
    again = load_host(folder)
    assert same_bits(host, again.host)
    assert again.fingerprint == fingerprint(params_of(host))
    assert (again.manifest["head"], again.manifest["labels"], again.manifest["extra"]) == (kind, names, {"n": 1})

    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    cls = getattr(transformers, architecture)
    model, info = cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info.values()), info
    if names:
        assert model.config.id2label == dict(enumerate(names))
    batch = tiny_batch(host.encoder.config, [9, 6], 9)
    inputs = {"input_ids": "token_ids", "attention_mask": "segment_ids", "token_type_ids": "type_ids"}
    inputs = {theirs: torch.from_numpy(np.array(batch[ours])).long() for theirs, ours in inputs.items()}
    if kind == "multiple_choice":
        inputs = {key: value[None] for key, value in inputs.items()}
    found = model.eval()(**inputs)
    theirs = torch.stack([found.start_logits, found.end_logits], -1) if kind == "span" else found.logits
    expected = theirs.detach().numpy().reshape(2, *([9, -1] if kind in EVERYWHERE else [-1]))
    if kind in EVERYWHERE:
        batch["positions"] = jnp.tile(jnp.arange(6), (2, 1))
        expected = expected[:, :6]
    got = np.asarray(host_logits(host, batch)).reshape(expected.shape)
    assert np.abs(got - expected).max() <= 2e-5


@pytest.mark.parametrize(("family", "kind", "places"), [("bert", "mention", 1), ("roberta", "mention_pair", 2)])
def test_heads_that_transformers_has_not_leave_it_the_encoder(family, kind, places, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    host = random_host(tiny_config(family), kind, 3)
    folder = save_host(host, tmp_path / "host", host_json={"labels": ["a", "b", "c"]})
    again = load_host(folder)
    assert same_bits(host, again.host) and again.fingerprint == fingerprint(params_of(host))
    assert load_host(folder, head="none").unused == tuple(
        f"mentions.{layer}.{name}" for layer in ("dense", "output") for name in ("bias", "weight")
    )
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch = tiny_batch(host.encoder.config, [9, 6], 9)
    batch["positions"] = jnp.asarray([[3, 1], [4, 2]], jnp.int32)[:, :places]
    inputs = {"input_ids": "token_ids", "attention_mask": "segment_ids", "token_type_ids": "type_ids"}
    inputs = {theirs: torch.from_numpy(np.array(batch[ours])).long() for theirs, ours in inputs.items()}
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    joined = torch.cat([hidden[torch.arange(2), batch["positions"][:, i].tolist()] for i in range(places)], -1)
    stored = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    for layer in ("dense", "output"):
        joined = torch.nn.functional.linear(
            joined, stored[f"mentions.{layer}.weight"], stored[f"mentions.{layer}.bias"]
        )
    np.testing.assert_allclose(np.asarray(host_logits(host, batch))[:, 0], joined.numpy(), atol=2e-5)
    with pytest.raises(InputError, match=rf"has no whole {'mention_pair' if places == 1 else 'span'} head|has shape"):
        load_host(folder, head="mention_pair" if places == 1 else "span", num_labels=None if places == 1 else 2)
    with pytest.raises(ValueError, match=f"reads {places} positions"):
        host_logits(host, {**batch, "positions": jnp.zeros((2, 3), jnp.int32)})


@pytest.mark.parametrize(("family", "kind", "labels"), [("bert", "multiple_choice", 1), ("roberta", "span", 2)])
def test_what_transformers_saves_we_load_whole(family, kind, labels, tmp_path):
    transformers = pytest.importorskip("transformers")
    architecture = hf_tensors.architecture(tiny_config(family), kind)
    cls = getattr(transformers, architecture)
    values = {name: value for name, value in tiny_config(family).to_hf().items() if name != "model_type"}
    model = cls(cls.config_class(**values, num_labels=labels))
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_host(tmp_path / "theirs", head=kind)
    assert (loaded.fresh, loaded.unused, loaded.host.head.num_labels) == ((), (), labels)
    theirs = model.qa_outputs if kind == "span" else model.classifier
    np.testing.assert_array_equal(loaded.host.head.output.kernel[...], theirs.weight.detach().numpy().T)
    again = save_host(loaded.host, tmp_path / "ours")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (again, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    name = "qa_outputs.weight" if kind == "span" else "classifier.weight"
    without_head = {key: value for key, value in theirs.items() if key != name}
    for tensors, message in (
        (without_head, f"has no whole {kind} head, it lacks {name}"),
        (theirs | {"odd": theirs[name]}, "odd"),
    ):
        save_file(tensors, tmp_path / "theirs" / "model.safetensors")
        with pytest.raises(InputError, match=message):
            load_host(tmp_path / "theirs", head=kind)


def test_a_bare_encoder_round_trips(tmp_path):
    transformers = pytest.importorskip("transformers")
    host = random_host(tiny_config())
    folder = save_host(host, tmp_path / "host", host_json={"base": "sha256:b"})
    again = load_host(folder)
    assert same_bits(host, again.host)
    assert (again.manifest["head"], again.manifest["base"]) == ("none", "sha256:b")
    _, info = transformers.BertModel.from_pretrained(folder, output_loading_info=True, add_pooling_layer=False)
    assert not any(info.values()), info


def test_a_stored_head_tells_its_outputs(tmp_path):
    folder = save_host(random_host(tiny_config(), "classification", 3), tmp_path / "host")
    for ours in ("host.json", "seal.json"):
        (folder / ours).unlink()
    assert load_host(folder, head="classification").host.head.num_labels == 3
    with pytest.raises(InputError, match=r"has a head of 3 outputs, not 5; say num_labels=3"):
        load_host(folder, head="classification", num_labels=5)
    with pytest.raises(InputError, match=r"has a head of 3 outputs, not 1"):
        load_host(folder, head="pair_score")
    with pytest.raises(InputError, match=r"no head called 'classificaton'; did you mean classification\?"):
        load_host(folder, head="classificaton")


def test_host_json_pins_the_weights(tmp_path):
    folder = save_host(random_host(tiny_config(), "masked_lm", seed=0), tmp_path / "host")
    other = save_host(random_host(tiny_config(), "masked_lm", seed=1), tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(InputError, match=r"host\.json: encoder_fingerprint is sha256:.* but the weights have sha256:"):
        load_host(folder)
    manifest = json.loads((other / "host.json").read_text())
    (other / "host.json").write_text(json.dumps(manifest | {"fingerprint": "sha256:0"}))
    with pytest.raises(InputError, match=r"host\.json: fingerprint is sha256:0"):
        load_host(other)
    with pytest.raises(InputError, match=r"host\.json: it has \d+ bytes, seal\.json says"):
        load_host(other, head="none")
    (other / "seal.json").unlink()
    assert load_host(other, head="none").host.head is None  # whose encoder is as it was
    (other / "host.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(InputError, match=r"format_version is 2, and this kinject reads 1"):
        load_host(other)


def test_saving_overwrites_nothing_and_leaves_nothing_half_done(tmp_path, monkeypatch):
    host = random_host(tiny_config(), "classification", 2)
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(InputError, match="exists, and nothing is overwritten"):
        save_host(host, taken)
    with pytest.raises(InputError, match="has no tokenizer files"):
        save_host(host, tmp_path / "new", tokenizer_files_from=taken)
    with pytest.raises(InputError, match=r"labels: has 1 different names for 2 outputs"):
        save_host(host, tmp_path / "new", host_json={"labels": ["a", "a"]})
    with pytest.raises(ValueError, match="fingerprint"):
        save_host(host, tmp_path / "new", host_json={"fingerprint": "mine"})

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("kinject.models.saving.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_host(host, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_tiny_host_brings_its_tokenizer(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tiny_host_folder(tmp_path / "host", family, "masked_lm")
    assert load_host(folder).config.vocab_size == len(transformers.AutoTokenizer.from_pretrained(folder))
