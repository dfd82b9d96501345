"""Checkpoints in and out: every form they come in, transformers reading ours, and one line for each bad one."""

import json
import pickle
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from tiny import random_host, tiny_batch, tiny_config, tiny_host_folder

from kinject.errors import InputError
from kinject.models import hf_tensors
from kinject.models.heads import logits as host_logits
from kinject.models.manifest import fingerprint
from kinject.models.pretrained import host_folder, load_host
from kinject.models.saving import save_host

KINDS = [("masked_lm", None), ("classification", 3), ("pair_score", 1), ("multi_label", 4), ("multiple_choice", 1)]
KINDS += [("token_classification", 5), ("span", 2)]
EVERYWHERE = ("masked_lm", "token_classification", "span")  # heads that transformers puts on every position


def params_of(host):
    return nnx.to_pure_dict(nnx.state(host, nnx.Param))


def same_bits(a, b):
    leaves_a, leaves_b = jax.tree.leaves(params_of(a)), jax.tree.leaves(params_of(b))
    return len(leaves_a) == len(leaves_b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(leaves_a, leaves_b, strict=True)
    )


@pytest.fixture(scope="module")
def masters(tmp_path_factory):
    """One masked-LM host a family as `save_host` writes it."""
    folder = tmp_path_factory.mktemp("masters")
    return {
        family: save_host(random_host(tiny_config(family), "masked_lm"), folder / family)
        for family in ("bert", "roberta")
    }


@pytest.fixture
def rewrite(masters, tmp_path):
    """Copies a master with its tensors changed, as another program would have written them: without host.json."""

    def write(change, family="bert"):
        tensors = change(load_file(masters[family] / "model.safetensors"))
        folder = tmp_path / "variant"
        folder.mkdir()
        shutil.copy(masters[family] / "config.json", folder)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
        return folder

    return write


def bare(tensors):
    """A headless checkpoint: no prefix, no head."""
    kept = {k: v for k, v in tensors.items() if k.startswith(("bert.", "roberta."))}
    return {k.partition(".")[2]: v for k, v in kept.items()}


def aged(tensors):
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()}
    return {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in renamed.items()}


def as_google_wrote_it(tensors):
    word = tensors["bert.embeddings.word_embeddings.weight"]
    return aged(tensors) | {
        "bert.embeddings.position_ids": np.arange(96)[None],
        "bert.pooler.dense.weight": np.ones((32, 32), np.float32),
        "bert.pooler.dense.bias": np.ones(32, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "cls.predictions.decoder.weight": word.copy(),
    }


def as_facebook_wrote_it(tensors):
    return tensors | {
        "roberta.embeddings.position_ids": np.arange(98)[None],
        "roberta.pooler.dense.weight": np.ones((32, 32), np.float32),
        "roberta.pooler.dense.bias": np.ones(32, np.float32),
        "lm_head.decoder.weight": tensors["roberta.embeddings.word_embeddings.weight"].copy(),
        "lm_head.decoder.bias": tensors["lm_head.bias"].copy(),
    }


def bias_under_its_second_name(tensors):
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    return tensors


WHOLE = [
    ("bert", aged),
    ("bert", as_google_wrote_it),
    ("bert", bias_under_its_second_name),
    ("roberta", as_facebook_wrote_it),
]


@pytest.mark.parametrize(("family", "change"), WHOLE)
def test_variants_of_a_masked_lm_are_the_same_host(masters, rewrite, family, change):
    master, variant = load_host(masters[family]), load_host(rewrite(change, family), head="masked_lm")
    assert same_bits(master.host, variant.host)
    assert (variant.fingerprint, variant.encoder_fingerprint) == (master.fingerprint, master.encoder_fingerprint)
    assert variant.fresh == ()
    pooler = ("pooler.dense.bias", "pooler.dense.weight")
    assert not variant.unused or set(pooler) <= set(variant.unused)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("change", [bare, lambda tensors: tensors])
def test_the_bare_encoder_of_any_checkpoint(masters, rewrite, family, change):
    loaded = load_host(rewrite(change, family))
    assert loaded.host.head is None
    assert loaded.manifest == {}
    assert loaded.encoder_fingerprint == load_host(masters[family]).encoder_fingerprint
    assert loaded.encoder_fingerprint == fingerprint(params_of(loaded.host)["encoder"])
    other_head = [k for k in change(load_file(masters[family] / "model.safetensors")) if k.startswith(("cls", "lm_"))]
    assert loaded.unused == tuple(sorted(other_head))


def test_shards_torch_files_and_half_precision(masters, rewrite, tmp_path):
    torch = pytest.importorskip("torch")
    master, folder = load_host(masters["bert"]), rewrite(lambda tensors: tensors)
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    parts = {"a": dict(list(tensors.items())[::2]), "b": dict(list(tensors.items())[1::2])}

    def write_shards(index, suffix, write):
        for name, part in parts.items():
            write(part, folder / f"{name}.{suffix}")
        weight_map = {key: f"{name}.{suffix}" for name, part in parts.items() for key in part}
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))

    def write_torch(part, path, dtype=torch.float32):
        torch.save({key: torch.from_numpy(array.copy()).to(dtype) for key, array in part.items()}, path)

    write_torch(tensors, folder / "pytorch_model.bin")
    assert load_host(folder, head="masked_lm").fingerprint == master.fingerprint
    (folder / "pytorch_model.bin").unlink()
    write_shards("pytorch_model.bin.index.json", "bin", write_torch)
    assert load_host(folder, head="masked_lm").fingerprint == master.fingerprint
    write_shards("model.safetensors.index.json", "safetensors", save_file)
    assert load_host(folder, head="masked_lm").fingerprint == master.fingerprint

    (folder / "a.safetensors").unlink()
    with pytest.raises(InputError, match=r"index\.json: names the shard 'a\.safetensors', which is not beside it"):
        load_host(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../escape.safetensors"}}))
    with pytest.raises(InputError, match="not beside it"):
        load_host(folder)

    halves = tmp_path / "halves"
    shutil.copytree(folder, halves)
    (halves / "model.safetensors.index.json").unlink()
    write_torch(tensors, halves / "pytorch_model.bin", torch.bfloat16)
    from_torch = load_host(halves, head="masked_lm")
    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, halves / "model.safetensors")
    half = load_host(halves, head="masked_lm", param_dtype=jnp.bfloat16)
    assert from_torch.fingerprint == half.fingerprint != master.fingerprint
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params_of(half.host))} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params_of(from_torch.host))} == {"float32"}
    assert fingerprint(params_of(half.host)) == half.fingerprint


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("kind", "labels"), KINDS)
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


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("kind", "places"), [("mention", 1), ("mention_pair", 2)])
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


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(("kind", "labels"), [("multiple_choice", 1), ("token_classification", 3), ("span", 2)])
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


def test_a_fresh_head_is_asked_for_and_told(masters, rewrite):
    folder = rewrite(as_google_wrote_it)
    with pytest.raises(InputError, match=r"no whole classification head, it lacks classifier\.weight.*fresh_head=True"):
        load_host(folder, head="classification", num_labels=3)
    with pytest.raises(InputError, match=r"num_labels: is not given for a new classification head"):
        load_host(folder, head="classification", fresh_head=True)
    loaded = load_host(folder, head="classification", num_labels=3, fresh_head=True)
    assert loaded.fresh == ("head/output/bias", "head/output/kernel")
    assert (np.asarray(loaded.host.head.pooler.kernel[...]) == 1).all()  # the checkpoint's own
    kernel = np.asarray(loaded.host.head.output.kernel[...])
    assert kernel.shape == (32, 3)
    assert kernel.std() > 0.01
    same, other = (load_host(folder, head="pair_score", fresh_head=True, seed=seed) for seed in (0, 1))
    assert same.encoder_fingerprint == other.encoder_fingerprint == loaded.encoder_fingerprint
    assert same.fingerprint != other.fingerprint
    assert load_host(masters["bert"], head="none").host.head is None


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


def without(key):
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


def with_key(key, value):
    return lambda tensors: tensors | {key: value(tensors) if callable(value) else value}


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORD = "bert.embeddings.word_embeddings.weight"
BAD_TENSORS = [
    (without(QUERY), rf"model\.safetensors: lacks {QUERY}; it must be a whole bert checkpoint"),
    (with_key("bert.encoder.layer.2.output.dense.bias", np.ones(32, np.float32)), r"has keys .*layer\.2\.output"),
    (with_key("bert.adapter.gamma", np.ones(32, np.float32)), r"has adapters, such as bert\.adapter\.gamma"),
    (
        with_key(QUERY, np.ones((32, 16), np.float32)),
        rf"{QUERY} has shape \[32, 16\], and config\.json says \[32, 32\]",
    ),
    (with_key(WORD, np.ones((119, 32), np.float32)), rf"{WORD} has shape \[119, 32\], .*\[120, 32\]"),
    (with_key(QUERY, np.ones((32, 32), np.int32)), rf"{QUERY} is of int32; weights must be floating point"),
    (with_key("cls.predictions.decoder.weight", lambda t: t[WORD] + 1), r"decoder\.weight differs from .*only tied"),
    (
        with_key("bert.embeddings.LayerNorm.gamma", np.ones(32, np.float32)),
        r"embeddings\.LayerNorm\.(gamma|weight) and .* are the same tensor; remove one",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS)
def test_bad_tensors_are_told_in_one_line(rewrite, change, message):
    with pytest.raises(InputError, match=message) as error:
        load_host(rewrite(change), head="masked_lm")
    assert "\n" not in str(error.value)


BAD_CONFIGS = [
    ({"model_type": "gpt2"}, r"config\.json: model_type is 'gpt2'; hosts are bert, camembert, "),
    ({"hidden_size": None}, r"config\.json: transformers refuses it: .*hidden_size.* expected int"),
    ({"hidden_size": "32"}, r"transformers refuses it: .*hidden_size.* expected int, got str"),
    ({"hidden_size": 34}, r"hidden_size 34 is no multiple of num_attention_heads 4"),
    ({"num_hidden_layers": 0}, r"num_hidden_layers is 0; it must be positive"),
    ({"hidden_act": "gelo"}, r"hidden_act 'gelo'; did you mean gelu\?"),
    ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob is 1\.5; a dropout rate is in \[0, 1\)"),
    ({"position_embedding_type": "relative_key"}, r"position_embedding_type is 'relative_key'"),
    ({"is_decoder": True}, r"is_decoder is true; a host is an encoder"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS)
def test_bad_configs_are_told_in_one_line(rewrite, change, message):
    folder = rewrite(lambda tensors: tensors)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        load_host(folder)


def test_bad_files_are_told_in_one_line(rewrite, tmp_path):
    folder = rewrite(lambda tensors: tensors)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], content[:20], b"", b"not at all a tensor file"):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.safetensors: is truncated or no safetensors file") as error:
            load_host(folder)
        assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(InputError, match=r"has no weights; put one of model\.safetensors"):
        load_host(folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=r"config\.json: it is not JSON"):
        load_host(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: is missing"):
        load_host(folder)
    for missing in (tmp_path / "nowhere", "./nowhere", "a/b/c"):
        with pytest.raises(InputError, match="there is no such folder"):
            host_folder(missing)
    with pytest.raises(InputError, match=r"owner/name: is no folder, and the hub did not give it"):
        host_folder("owner/name")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_no_pickle_is_executed(rewrite, capsys):
    pytest.importorskip("torch")
    folder = rewrite(lambda tensors: tensors)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))
    with pytest.raises(InputError, match=r"pytorch_model\.bin: is no torch file of plain tensors"):
        load_host(folder)
    assert "executed" not in capsys.readouterr().out


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


def test_dropout_can_be_set_at_loading(masters):
    config = load_host(masters["bert"], dropout=0.25).config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0.25)
    with pytest.raises(InputError, match="a dropout rate is in"):
        load_host(masters["bert"], dropout=1.0)


def test_a_fingerprint_sees_every_bit_name_and_dtype():
    tree = {"b": {0: np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": np.float32([1, 2])}
    base = fingerprint(tree)
    assert base.startswith("sha256:")
    assert base == fingerprint({"a": jnp.float32([1, 2]), "b/0": np.asfortranarray(tree["b"][0])})
    flipped = tree["b"][0].copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    changed = [
        {"a": tree["a"], "b": {0: flipped}},
        {"a": tree["a"], "b": {1: tree["b"][0]}},
        {"a": tree["a"], "b": {0: tree["b"][0].reshape(3, 2)}},
        {"a": tree["a"].view(np.int32), "b": tree["b"]},
        {"a": tree["a"]},
    ]
    assert len({base, *map(fingerprint, changed)}) == 6
