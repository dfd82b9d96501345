"""A folder is read by transformers, without torch, without the network, without a word, and out of everybody's way."""

import json
import subprocess
import sys

import pytest
from tiny_tokenizers import wordpiece_folder

from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError
from kinject.hf_folder import open_tokenizer, read_config

OPEN = """
import logging, socket, sys
from pathlib import Path

def refuse(*_):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.getaddrinfo = refuse
from kinject.hf_folder import open_tokenizer, read_config
for _ in range(2):
    config = read_config(Path("host"))
    ids = open_tokenizer(Path("host"))("ka mo")["input_ids"]
print(config["model_type"], config["hidden_act"], len(ids) > 2)
print([name for name in sys.modules if name.partition(".")[0] in ("torch", "tensorflow", "transformers")])
print(logging.getLogger("transformers").handlers)
"""
THEN = """
import transformers, torch
made = transformers.BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
print(tuple(transformers.BertModel(made)(torch.zeros(1, 3, dtype=torch.long)).last_hidden_state.shape))
print(len(logging.getLogger("transformers").handlers))
there = sys.modules["transformers"]
print(open_tokenizer(Path("host"))("ka mo")["input_ids"] == ids, sys.modules["transformers"] is there)
"""


def test_neither_torch_nor_transformers_is_left_behind_and_both_work_afterwards(tmp_path):
    wordpiece_folder(tmp_path / "host")
    done = subprocess.run(
        [sys.executable, "-c", OPEN + THEN], capture_output=True, text=True, cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["bert gelu True", "[]", "[]", "(1, 3, 8)", "1", "True True"]


def test_a_transformers_that_is_there_is_used_and_left_as_it_is(tmp_path):
    import transformers

    before = transformers.logging.get_verbosity()
    folder = wordpiece_folder(tmp_path / "host")
    assert type(open_tokenizer(folder)) is transformers.BertTokenizer
    assert sys.modules["transformers"] is transformers
    assert transformers.logging.get_verbosity() == before


BAD = [
    ("config.json", {"architectures": ["RobertaForMaskedLM"]}, 'model_type is None; add "model_type": "roberta", as'),
    ("config.json", {}, 'model_type is None; add it, such as "model_type": "bert"'),
    ("config.json", {"model_type": "bertt"}, "transformers refuses it: .*bertt"),
    ("config.json", {"model_type": "bert", "auto_map": {"AutoModel": "own.Own"}}, "auto_map asks for code"),
    ("config.json", {"model_type": "bert", "hidden_size": "8"}, "transformers refuses it: .*hidden_size.*int"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_configs(tmp_path, name, content, message):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{name}: {message}"):
        read_config(tmp_path)


def test_what_a_config_leaves_out_is_filled_in(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "num_labels": 3}')
    found = read_config(tmp_path)
    assert (found["pad_token_id"], found["hidden_size"]) == (1, 768)
    assert found["id2label"] == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


@pytest.mark.parametrize("kind", ["BertJapaneseTokenizer", "BertweetTokenizer", "CanineTokenizer"])
def test_tokenizers_without_offsets_are_refused_by_name(tmp_path, kind):
    folder = wordpiece_folder(tmp_path / "host", files=())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(InputError, match=rf"tokenizer_config\.json: tokenizer_class {kind} is written in Python"):
        open_tokenizer(folder)


def test_code_that_came_with_a_tokenizer_is_refused(tmp_path):
    folder = wordpiece_folder(tmp_path / "host")
    settings = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"tokenizer_config\.json: auto_map asks for code"):
        open_tokenizer(folder)


@pytest.mark.parametrize("kind", ["xlm-roberta", "camembert"])
def test_sentencepiece_s_own_file_alone_is_refused_with_what_helps(tmp_path, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x05\n\x03ka\x15")
    with pytest.raises(InputError, match=r"reads no tokenizer there: .*; pip install sentencepiece protobuf"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_without_any_piece_of_a_word_is_refused(tmp_path):
    """Transformers makes one of a SentencePiece file that breaks off, and every word would be unknown."""
    pytest.importorskip("sentencepiece")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\n\x05\n\x03ka\x15")
    with pytest.raises(InputError, match="its tokenizer has no piece of any word"):
        load_tokenizer(tmp_path)
