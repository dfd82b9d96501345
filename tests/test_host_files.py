"""Weights as people have them are those that torch computes with, or are refused in a line that says what to do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from tiny_tokenizers import wordpiece_folder
from transformers import BertConfig, BertForSequenceClassification

from kinject.errors import InputError
from kinject.inference.host import open_host, told_task
from kinject.models.pretrained import load_host
from kinject.tree import flatten

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 300,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "base"
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).save_pretrained(folder)
    tokenizer = wordpiece_folder(folder.parent / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


@pytest.fixture
def host(base, tmp_path):
    return Path(shutil.copytree(base, tmp_path / "host"))


def parameters(folder):
    return flatten(nnx.to_pure_dict(nnx.state(load_host(folder, head="classification").host, nnx.Param)))


def assert_same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_allclose(one[path], other[path], atol=tolerance, rtol=0, err_msg=path)


def rename(folder, way):
    tensors = load_file(folder / "model.safetensors")
    save_file({way(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "way",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.{name}",
        lambda name: f"model._orig_mod.{name}",
        lambda name: name.replace("bert.", "bert._orig_mod."),
    ],
)
def test_a_wrapper_s_names_are_taken_off(base, host, way):
    rename(host, way)
    assert_same(parameters(host), parameters(base))


def test_one_tensor_under_two_names_is_refused(host):
    tensors = load_file(host / "model.safetensors")
    save_file(tensors | {"module.classifier.bias": torch.zeros(3)}, host / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: has classifier\.bias twice"):
        load_host(host, head="classification")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["query", "dense"], "use_rslora": True, "modules_to_save": ["classifier"]},
        {"target_modules": ["key"], "rank_pattern": {"layer.1.attention.self.key": 2}, "alpha_pattern": {"key": 5}},
        {"target_modules": ["value", "intermediate.dense"], "use_dora": True},
        {"target_modules": ["word_embeddings", "query"]},
        {"target_modules": ["query"], "bias": "all"},
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_lora_is_merged_as_peft_merges_it(base, tmp_path, options, alone):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(
        BertForSequenceClassification.from_pretrained(base), LoraConfig("SEQ_CLS", r=4, lora_alpha=6, **options)
    )
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.requires_grad:
                one.add_(0.1 * torch.randn_like(one) * (0.2 if "magnitude" in name else 1))
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    if not alone:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / name, folder)
    merged = Path(shutil.copytree(base, tmp_path / "merged"))
    model.merge_and_unload().save_pretrained(merged)
    assert_same(parameters(folder), parameters(merged), 1e-6)
    assert load_host(folder, head="classification").fingerprint != load_host(base, head="classification").fingerprint
    assert told_task(folder) == ("sequence_classification", {})
    assert open_host(folder, head="classification").tokenizer.vocab_size == 300


def adapter(folder, **settings):
    folder.mkdir(exist_ok=True)
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "nowhere/at-all"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(values))
    where = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_"
    low, high = torch.ones(2, 32), torch.ones(32, 2)
    save_file({f"{where}A.weight": low, f"{where}B.weight": high}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_without_its_base_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"adapter_config\.json: is a PEFT adapter, and its base .*merge_and_unload\(\)"
    ):
        load_host(adapter(tmp_path / "adapter"))


def test_another_kind_of_adapter_is_refused(host):
    with pytest.raises(InputError, match=r"adapter_config\.json: peft_type is 'IA3', and only LORA"):
        load_host(adapter(host, peft_type="IA3"))


def test_an_adapter_of_another_model_is_refused(host):
    adapter(host)
    where = "base_model.model.bert.encoder.layer.7.attention.self.query.lora_"
    save_file(
        {f"{where}A.weight": torch.ones(2, 32), f"{where}B.weight": torch.ones(32, 2)},
        host / "adapter_model.safetensors",
    )
    with pytest.raises(InputError, match=r"adapts bert\.encoder\.layer\.7\.attention\.self\.query, which the model"):
        load_host(host)


def test_adapters_inside_of_a_checkpoint_are_refused(host):
    tensors = load_file(host / "model.safetensors")
    extra = {"bert.encoder.layer.0.output.adapters.sst.adapter_up.bias": torch.zeros(32)}
    save_file(tensors | extra, host / "model.safetensors")
    with pytest.raises(InputError, match=r"has adapters, such as bert\.encoder\.layer\.0\.output\.adapters"):
        load_host(host)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused(host, value, dtype):
    tensors = {name: one.to(dtype) for name, one in load_file(host / "model.safetensors").items()}
    tensors["bert.encoder.layer.1.output.dense.weight"][3, 5] = value
    save_file(tensors, host / "model.safetensors")
    with pytest.raises(
        InputError, match=r"bert\.encoder\.layer\.1\.output\.dense\.weight has numbers that are not fin"
    ):
        load_host(host)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_shards_of_half_precision_are_read(base, host, dtype):
    model = BertForSequenceClassification.from_pretrained(base).to(dtype)
    (host / "model.safetensors").unlink()
    model.save_pretrained(host, max_shard_size="20KB")
    assert len(list(host.glob("model-*.safetensors"))) > 1
    theirs = {path: np.asarray(torch.tensor(np.array(one)).to(dtype).float()) for path, one in parameters(base).items()}
    assert_same(parameters(host), theirs)
