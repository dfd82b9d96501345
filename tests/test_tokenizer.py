import json

import pytest
from tiny_tokenizers import byte_level_folder, wordpiece_folder

from kinject.data.encode import EntityEncoder
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError


@pytest.mark.parametrize("make", [wordpiece_folder, byte_level_folder])
def test_vocabulary_files_alone_give_the_same_tokenizer(make, tmp_path):
    """And what transformers makes of the same files, but for the space before a RoBERTa mask: transformers 5 forgets,
    without a tokenizer.json, that the mask swallows it, as it does in every published one."""
    from transformers import AutoTokenizer

    whole = load_tokenizer(make(tmp_path / "whole"))
    bare = load_tokenizer(make(tmp_path / "bare", files=()))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "bare")
    facts = [{k: v for k, v in vars(one).items() if k != "backend"} for one in (whole, bare)]
    assert facts[0] == facts[1]
    swallowed = [EntityEncoder(one).encode("ka [MASK] mo").token_ids.tolist() for one in (whole, bare)]
    assert swallowed[0] == swallowed[1]
    mask = theirs.mask_token
    for text in ("Lonham mo, Zürgen (ri) é北京 ", f"Berdorf{mask}. U.S.  kalan", ""):
        ids = EntityEncoder(bare).encode(text.replace(mask, "[MASK]"), pair="ka # ri")
        assert ids.token_ids.tolist() == theirs(text, "ka # ri")["input_ids"]
        assert EntityEncoder(whole).encode(text, pair="ka # ri").token_ids.tolist() == ids.token_ids.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer in it"),
        (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "trunc'), "tokenizer.json: cannot be read"),
        (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "not a JSON object"),
        (lambda f: (f / "tokenizer_config.json").write_text('{"mask_token": "<m>"}'), "mask_token '<m>' is not in"),
        (lambda f: (f / "config.json").write_text('{"vocab_size": 200}'), "300 ids, .* vocab_size 200"),
    ],
)
def test_bad_host_folders(change, message, tmp_path):
    folder = wordpiece_folder(tmp_path / "host")
    change(folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


def test_other_tokenizer_models_are_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="Unigram is not supported"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_tokenizer(tmp_path / "absent")


def test_roberta_positions_start_behind_the_padding_id(tmp_path):
    folder = byte_level_folder(tmp_path / "host")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert load_tokenizer(folder).max_length == 1024
