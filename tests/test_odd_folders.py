"""Folders as people publish them, after public reports: read as transformers reads them, or refused in one line.

What transformers makes of a folder is saved by it again, in its own plain form, and read: both must be the same host.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from tiny_tokenizers import byte_level_folder, wordpiece_folder
from tokenizers import Tokenizer
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    RobertaConfig,
)

from kinject.data.encode import EntityEncoder, Mention, Passage
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError
from kinject.inference.host import open_host, told_task
from kinject.models.pretrained import load_host
from kinject.tree import flatten

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
AUTO = {
    "masked_lm": AutoModelForMaskedLM,
    "classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
}
TEXTS = ["", "Berlan mo", "KA mo [MASK] ka.", "don't Straße U.S."]
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer_config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(family, head) -> a folder with random weights, which transformers wrote; made once."""
    made = {}

    def of(family, head):
        if (family, head) not in made:
            parent = tmp_path_factory.mktemp("odd")
            bert = family == "bert"
            tokenizer = (wordpiece_folder if bert else byte_level_folder)(parent / "tokenizer")
            size = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
            positions = {"max_position_embeddings": 32} if bert else {"max_position_embeddings": 34, "pad_token_id": 1}
            config = (BertConfig if bert else RobertaConfig)(
                vocab_size=size, **SIZES, **positions, type_vocab_size=2 if bert else 1
            )
            config.num_labels = 3
            torch.manual_seed(0)
            AUTO[head].from_config(config).save_pretrained(parent / "host")
            for name in ("tokenizer.json", TOKENIZER):
                shutil.copy(tokenizer / name, parent / "host")
            made[family, head] = parent / "host"
        return made[family, head]

    return of


def put(folder, name, **values):
    """Sets fields of a JSON file; None takes one out."""
    stated = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    stated |= values
    (folder / name).write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))


def tensors(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def words(folder):
    found = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return sorted(found, key=found.get)


def old_norms(folder):
    def named(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    tensors(folder, lambda found: {named(name): one for name, one in found.items()})


def buffers(folder):
    positions = torch.arange(32)[None]
    tensors(folder, lambda found: {**found, "bert.embeddings.position_ids": positions})


def decoder_again(folder):
    table = "bert.embeddings.word_embeddings.weight"
    tensors(folder, lambda found: {**found, "cls.predictions.decoder.weight": found[table].clone()})


def half(folder):
    tensors(folder, lambda found: {name: one.bfloat16() for name, one in found.items()})
    put(folder, CONFIG, torch_dtype="bfloat16", dtype=None)


def padded(folder):
    def longer(found):
        grown = {}
        for name, one in found.items():
            table = name.endswith("word_embeddings.weight") or name.startswith("cls.predictions.bias")
            more = -len(one) % 64 if table else 0
            grown[name] = torch.cat([one, torch.zeros(more, *one.shape[1:])]) if more else one
        put(folder, CONFIG, vocab_size=len(grown["bert.embeddings.word_embeddings.weight"]))
        return grown

    tensors(folder, longer)


def alone(*kept):
    """Leaves these files of a tokenizer, `vocab.txt` among those that are made."""

    def change(folder):
        if "vocab.txt" in kept:
            (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words(folder)), encoding="utf-8")
        for name in ("tokenizer.json", TOKENIZER):
            if name not in kept:
                (folder / name).unlink()

    return change


def lower_in_config(folder):
    alone("vocab.txt")(folder)
    put(folder, CONFIG, do_lower_case=False)


def other_map(folder):
    put(folder, "special_tokens_map.json", mask_token="[UNK]", sep_token="mo")


def one_more_token(folder):
    token = {"content": "[E1]", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    size = len(words(folder))
    put(folder, TOKENIZER, added_tokens_decoder={str(size): {**token, "single_word": False}})
    padded(folder)


def beside(folder):
    """Pickles of a trainer, which nobody may run, and weights in torch's form that are not those of the safetensors."""
    (folder / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    torch.save({name: one + 1 for name, one in load_file(folder / WEIGHTS).items()}, folder / "pytorch_model.bin")


def no_metadata(folder):
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)


def with_pooler(folder):
    extra = {"bert.pooler.dense.weight": torch.ones(16, 16), "bert.pooler.dense.bias": torch.ones(16)}
    tensors(folder, lambda found: found | extra)


READ = {  # folder, and what was done to it
    "gamma and beta (transformers#11809)": ("bert", "masked_lm", old_norms),
    "position_ids among the weights (transformers#11843)": ("bert", "classification", buffers),
    "the decoder's table stored too (transformers#3998)": ("bert", "masked_lm", decoder_again),
    "torch_dtype bfloat16": ("bert", "masked_lm", half),
    "model_max_length 1e30 (beto#16)": ("bert", "masked_lm", lambda f: put(f, TOKENIZER, model_max_length=int(1e30))),
    "a vocabulary padded to 64 (transformers#25088)": ("bert", "masked_lm", padded),
    "do_lower_case in config.json alone (scibert#79)": ("bert", "masked_lm", lower_in_config),
    "vocab.txt alone (biobert-pytorch#24)": ("bert", "classification", alone("vocab.txt")),
    "tokenizer.json alone": ("bert", "classification", alone("tokenizer.json")),
    "tokenizer.json alone, RoBERTa": ("roberta", "masked_lm", alone("tokenizer.json")),
    "special_tokens_map.json says otherwise": ("bert", "masked_lm", other_map),
    "a token of added_tokens_decoder": ("bert", "masked_lm", one_more_token),
    "classifier_dropout (transformers)": ("bert", "classification", lambda f: put(f, CONFIG, classifier_dropout=0.4)),
    "num_labels beside id2label (transformers#3093)": (
        "bert",
        "classification",
        lambda f: put(f, CONFIG, num_labels=3),
    ),
    "label2id says otherwise": ("bert", "classification", lambda f: put(f, CONFIG, label2id={"a": 0, "b": 1, "c": 2})),
    "a trainer's pickles, and other weights in torch's form": ("bert", "classification", beside),
    "safetensors without metadata": ("bert", "classification", no_metadata),
    "a pooler that the head does not read": ("bert", "token_classification", with_pooler),
    "no architectures": ("bert", "classification", lambda f: put(f, CONFIG, architectures=None)),
    "RoBERTa of 512 positions (transformers#32661)": ("roberta", "masked_lm", lambda f: None),
}


def parameters(loaded):
    return flatten(nnx.to_pure_dict(nnx.state(loaded.host, nnx.Param)))


@pytest.mark.parametrize("case", READ)
def test_what_transformers_reads_is_read_alike(case, saved, tmp_path):
    family, head, change = READ[case]
    folder = Path(shutil.copytree(saved(family, head), tmp_path / "host"))
    change(folder)
    ours, theirs, tokenizer = open_host(folder, head=head), AUTO[head].from_pretrained(folder), None
    theirs.float().save_pretrained(tmp_path / "again")
    again = load_host(tmp_path / "again", head=head)
    assert ours.loaded.config == again.config
    mine, wanted = parameters(ours.loaded), parameters(again)
    assert mine.keys() == wanted.keys()
    assert all(np.array_equal(mine[path], wanted[path]) for path in wanted)
    assert ours.loaded.stated["id2label"] == theirs.config.id2label

    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), EntityEncoder(ours.tokenizer, 32)
    made = encoder.encode_batch([Passage(text) for text in TEXTS if "[MASK]" not in text])
    asked = [text for text in TEXTS if "[MASK]" not in text]
    assert [one.token_ids.tolist() for one in made] == tokenizer(asked)["input_ids"]
    assert (ours.tokenizer.mask_id, ours.tokenizer.pad_id) == (tokenizer.mask_token_id, tokenizer.pad_token_id)
    assert ours.tokenizer.max_length <= 32  # positions that there are
    last = ours.loaded.config.vocab_size - 1  # which may be a row without a word
    assert ours.tokenizer.decode([last]) == tokenizer.decode([last])


def untied(folder):
    decoder_again(folder)
    tensors(
        folder, lambda found: {**found, "cls.predictions.decoder.weight": found["cls.predictions.decoder.weight"] + 1}
    )
    put(folder, CONFIG, tie_word_embeddings=False)


def untied_and_gone(folder):
    put(folder, CONFIG, tie_word_embeddings=False)


def shard_gone(folder):
    names = dict.fromkeys(load_file(folder / WEIGHTS), "model-00002-of-00002.safetensors")
    (folder / WEIGHTS).unlink()
    put(folder, "model.safetensors.index.json", weight_map=names)


def other_class(folder):
    tensors(folder, lambda found: {**found, "score.weight": torch.ones(3, 16)})


def no_pooler(folder):
    tensors(folder, lambda found: {name: one for name, one in found.items() if "pooler" not in name})


REFUSED = {
    "a decoder of its own (transformers#42612)": (
        "masked_lm",
        untied,
        r"model\.safetensors: cls\.predictions\.decoder\.weight differs from .*; only tied decoders are computed here",
    ),
    "tie_word_embeddings false, and no decoder": (
        "masked_lm",
        untied_and_gone,
        r"has no cls\.predictions\.decoder\.weight, and by config\.json tie_word_embeddings is false; set it to true",
    ),
    "an index that names a missing shard": (
        "classification",
        shard_gone,
        r"index\.json: names the shard 'model-00002-of-00002\.safetensors', which is not beside it",
    ),
    "a head of another class": (
        "classification",
        other_class,
        r"has keys that no bert with head classification has: sc",
    ),
    "no pooler (transformers)": (
        "classification",
        no_pooler,
        r"has no whole classification head, it lacks bert\.pooler",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_alike_is_refused_in_a_line(case, saved, tmp_path):
    head, change, message = REFUSED[case]
    folder = Path(shutil.copytree(saved("bert", head), tmp_path / "host"))
    change(folder)
    with pytest.raises(InputError, match=message) as told:
        open_host(folder, head=head)
    assert "\n" not in str(told.value)


def test_without_architectures_the_task_is_asked_for(saved, tmp_path):
    folder = Path(shutil.copytree(saved("bert", "classification"), tmp_path / "host"))
    put(folder, CONFIG, architectures=None)
    with pytest.raises(
        InputError, match=r"its task is not known: .* architectures of config.json nothing; say which one"
    ):
        told_task(folder)


def test_a_vocabulary_without_a_slash_answers_texts_and_has_no_slots(saved, tmp_path):
    folder = Path(shutil.copytree(saved("bert", "classification"), tmp_path / "host"))
    stated = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = stated["model"]["vocab"]
    vocabulary["[unused1]"] = vocabulary.pop("/")
    (folder / "tokenizer.json").write_text(json.dumps(stated))
    encoder = EntityEncoder(load_tokenizer(folder))
    text = Passage("Berlan mo ka", [Mention(0, 6, "Q1")])
    assert (
        encoder.encode_batch([text])[0].token_ids.tolist()
        == AutoTokenizer.from_pretrained(folder)(text.text)["input_ids"]
    )
    with pytest.raises(
        InputError, match="marker '/': the host's vocabulary has no piece for it; choose another marker"
    ):
        encoder.encode_batch([text], lambda entities: np.zeros(len(entities), np.int32))
