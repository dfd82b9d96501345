"""Folders of sentence-transformers: their vectors by its formula in torch, as a head for tasks, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from pipeline_folders import folder_of, texts
from safetensors.numpy import load_file
from tiny_world import run_experiment, write_records
from transformers import AutoModel, AutoTokenizer, BertModel

import kinject
from kinject.errors import InputError
from kinject.inference.host import open_host, told_task
from kinject.models.pooling import Pooling, read_pooling, write_pooling
from kinject.models.saving import save_host

CLOSE = 2e-5


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An encoder without a word of how it is pooled."""
    return folder_of(tmp_path_factory.mktemp("bare"), BertModel)


def with_modules(bare, folder, pooling):
    shutil.copytree(bare, folder)
    write_pooling(folder, pooling, 32)
    return folder


def vectors(folder, asked, pooling):
    """sentence-transformers' formula: its Pooling and Normalize on what the encoder yields, text by text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for text in asked:
        inputs = tokenizer(text, truncation=True, max_length=pooling.max_length or 64, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].float()
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        one = mean if pooling.mode == "mean" else hidden[:, 0]
        yield (torch.nn.functional.normalize(one, p=2, dim=1) if pooling.normalize else one)[0].numpy()


WAYS = [Pooling("mean", True, 20), Pooling("cls", False), Pooling("mean", False), Pooling("cls", True, 48)]


@pytest.mark.parametrize("pooling", WAYS)
def test_vectors(bare, tmp_path, pooling):
    """Of empty texts and such as are too long too; a plain encoder is pooled as sentence-transformers pools one."""
    folder = bare if pooling == Pooling() else with_modules(bare, tmp_path / "host", pooling)
    asked = texts(120)[:: 1 if pooling.normalize else 4]
    host = kinject.Host.load(folder, task="sentence_embedding" if folder == bare else None)
    made = host.predict(asked)
    for one, wanted in zip(made, vectors(folder, asked, pooling), strict=True):
        assert one.labels == () and one.vector.dtype == np.float32
        np.testing.assert_allclose(one.vector, wanted, atol=CLOSE)
    assert len(made[0].to_json()["vector"]) == 32 and "labels" not in made[0].to_json()
    again = save_host(host.ready.loaded.host, tmp_path / "again", tokenizer_files_from=folder)
    assert read_pooling(again, 32) == pooling and told_task(again)[0] == "sentence_embedding"
    assert open_host(again, head="embedding").loaded.fingerprint == host.ready.loaded.fingerprint


def test_an_older_layout_and_the_newer_words(bare, tmp_path):
    folder = tmp_path / "whole"
    shutil.copytree(bare, folder / "0_Transformer")
    modules = [("0_Transformer", "sentence_transformers.base.modules.transformer.Transformer")]
    modules += [("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling")]
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in modules]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "cls"}')
    ready = open_host(folder, head="embedding")
    assert ready.loaded.folder == folder / "0_Transformer" and ready.loaded.config.pooling == Pooling("cls")
    assert told_task(folder) == ("sentence_embedding", {})


def test_a_head_for_classes_is_trained_on_the_vector(bare, tmp_path):
    """By a config, through the normed mean; the head's scores are those of its tensors on the vector."""
    base = with_modules(bare, tmp_path / "base", Pooling("mean", True))
    asked = texts(17)[1:]
    records = [{"text": text, "label": "long" if " " in text else "short"} for text in asked]
    data = (str(write_records(tmp_path / "records.jsonl", records)),)
    stage = {"kind": "host", "task": "embedding_classification", "base": str(base), "data": data, "dropout": 0.0}
    stage |= {"task_options": {"labels": ("long", "short")}, "train": (("host/head/.*", "train"), (".*", "freeze"))}
    fit = {"batch_size": 8, "steps": 30, "buckets": 1, "log_every": 15, "checkpoint_every": 30}
    stage["fit"] = fit | {"optimizer": {"learning_rate": 0.3}}
    run_experiment({"seed": 0, "stages": {"host": stage}}, tmp_path / "run")
    folder = tmp_path / "run" / "host"
    made = kinject.Host.load(folder).predict(asked)
    stored = load_file(folder / "model.safetensors")
    weight, bias = stored["embedding.output.weight"], stored["embedding.output.bias"]
    for one, vector in zip(made, vectors(base, asked, Pooling("mean", True)), strict=True):
        scores = np.exp(weight @ vector + bias)
        wanted = dict(zip(("long", "short"), scores / scores.sum(), strict=True))
        assert {label.label: pytest.approx(wanted[label.label], abs=CLOSE) for label in one.labels} == {
            label.label: label.score for label in one.labels
        }
    right = [one.label == record["label"] for one, record in zip(made, records, strict=True)]
    assert np.mean(right) > 0.7
    _, told = BertModel.from_pretrained(folder, output_loading_info=True, add_pooling_layer=False)
    assert not told["missing_keys"]


def change(folder, name, **values):
    path = folder / name
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | values))


def modules(*kinds):
    return [
        {"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


REFUSED = [
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, r"it pools by max and mean; only mean and cls are"),
    ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "it pools by lasttoken"),
    ("1_Pooling/config.json", {"word_embedding_dimension": 768}, "word_embedding_dimension is 768, and the encoder's"),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is true, and texts are not changed"),
    ("sentence_bert_config.json", {"max_seq_length": "all"}, "max_seq_length is 'all'; it must be a whole number"),
    ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "puts a prompt before every text"),
    (
        "modules.json",
        modules("Transformer", "Pooling", "Dense", "Normalize"),
        "its modules are Transformer, Pooling, Dense",
    ),
    ("modules.json", modules("MLMTransformer", "SpladePooling"), "its modules are MLMTransformer, SpladePooling"),
    (
        "modules.json",
        [{"type": "x.Pooling", "path": "../elsewhere"}],
        r"path '\.\./elsewhere' is not a folder beside it",
    ),
    ("modules.json", {"0": "Transformer"}, "is no list of modules, each with type and path"),
]


@pytest.mark.parametrize(("name", "values", "message"), REFUSED)
def test_what_is_not_computed_is_refused_in_a_line(tmp_path, name, values, message):
    write_pooling(tmp_path, Pooling(), 32)
    if name == "modules.json":
        (tmp_path / name).write_text(json.dumps(values))
    else:
        change(tmp_path, name, **values)
    with pytest.raises(InputError, match=message) as told:
        read_pooling(tmp_path, 32)
    assert "\n" not in str(told.value) and str(tmp_path / name.partition("/")[0]) in str(told.value)


def test_vectors_are_neither_trained_nor_scored(bare, tmp_path):
    data = (str(write_records(tmp_path / "records.jsonl", [{"text": "ka mo"}, {"text": "ri"}])),)
    stage = {"kind": "host", "task": "sentence_embedding", "base": str(bare), "data": data}
    stage |= {"fit": {"batch_size": 1, "steps": 1, "buckets": 1}}
    with pytest.raises(InputError, match="sentence_embedding makes vectors, of which none is the right one"):
        run_experiment({"seed": 0, "stages": {"host": stage}}, tmp_path / "run")
