"""Checkpoints as they come: every form is the same host, and each bad one is told in a line."""

import copy
import json
import os
import pickle
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import params_of, random_host, same_bits, tiny_config

from kinject.errors import InputError
from kinject.models import hf_tensors
from kinject.models.manifest import fingerprint
from kinject.models.pretrained import host_folder, load_host
from kinject.models.reading import _in_order, _stacked
from kinject.models.saving import save_host
from kinject.models.tensor_rules import DENSE, FUSED_OUT, HEADS_IN, HEADS_OUT


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


@pytest.mark.parametrize("transform", [DENSE, HEADS_OUT, HEADS_IN, FUSED_OUT])
def test_what_is_laid_out_anew_in_blocks_has_every_number_in_its_place(transform):
    sizes = SimpleNamespace(hidden_size=60, num_attention_heads=3, head_dim=20)
    rows = {FUSED_OUT: 180, DENSE: 77}.get(transform, 60)  # neither a multiple of a block's
    parts = [np.arange(rows * 60, dtype=np.float32).reshape(rows, 60) + 0.5 * number for number in range(2)]
    ours = [transform.ours(part, sizes) for part in parts]
    assert not ours[0].flags.c_contiguous
    np.testing.assert_array_equal(_in_order(ours[0]), ours[0])
    assert _in_order(ours[0]).flags.c_contiguous
    np.testing.assert_array_equal(_stacked(ours, 1), np.stack(ours, 1))


def test_what_is_still_being_hashed_goes_to_copies_and_to_forked_processes(masters, tmp_path):
    folder = tmp_path / "host"
    shutil.copytree(masters["bert"], folder, ignore=shutil.ignore_patterns("host.json", "seal.json"))
    known = load_host(masters["bert"], head="masked_lm")
    assert copy.deepcopy(load_host(folder, head="masked_lm")).fingerprint == known.fingerprint
    assert pickle.loads(pickle.dumps(load_host(folder, head="masked_lm").digests)) == known.digests
    loaded = load_host(folder, head="masked_lm")
    child = os.fork()
    if not child:
        os._exit(loaded.fingerprint != known.fingerprint)
    assert os.waitpid(child, 0)[1] == 0


def test_too_little_memory_is_told_with_how_much_was_asked(monkeypatch):
    def full(*_):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(hf_tensors.mmap, "mmap", full)
    with pytest.raises(MemoryError, match=r"16\.0 GiB for an array of \[4294967296\]"):
        hf_tensors.aligned((1 << 32,), "f4")
