import json

import pytest
from tiny_tokenizers import byte_level_folder, wordpiece_folder

from kinject.data.encode import EntityEncoder
from kinject.data.tokenizer import load_tokenizer
from kinject.errors import InputError


@pytest.mark.parametrize("make", [wordpiece_folder, byte_level_folder])
def test_vocabulary_files_alone_give_the_same_tokenizer(make, tmp_path):
    """But for the space before a RoBERTa mask, which transformers 5 keeps where there is no tokenizer.json."""
    from transformers import AutoTokenizer

    folders = [make(tmp_path / "whole"), make(tmp_path / "bare", files=())]
    whole, bare = map(load_tokenizer, folders)
    facts = [{k: v for k, v in vars(one).items() if k != "backend"} for one in (whole, bare)]
    assert facts[0] == facts[1]
    for folder, ours in zip(folders, (whole, bare), strict=True):
        theirs = AutoTokenizer.from_pretrained(folder)
        mask = theirs.mask_token
        for text in ("Lonham mo, Zürgen (ri) é北京 ", f"Berdorf{mask}. U.S.  kalan", f"ka {mask} mo", ""):
            ids = EntityEncoder(ours).encode(text.replace(mask, "[MASK]"), pair="ka # ri")
            assert ids.token_ids.tolist() == theirs(text, "ka # ri")["input_ids"]
            assert EntityEncoder(ours).encode(text, pair="ka # ri").token_ids.tolist() == ids.token_ids.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer in it"),
        (
            lambda f: (f / "tokenizer.json").write_text('{"version": "1.0", "trunc'),
            "transformers reads no tokenizer there",
        ),
        (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "not a JSON object"),
        (
            lambda f: (f / "tokenizer_config.json").write_text('{"mask_token": "<m>"}'),
            "has the id 300, .* has 300 rows",
        ),
        (
            lambda f: (f / "tokenizer_config.json").write_text('{"split_special_tokens": true}'),
            "split_special_tokens is",
        ),
        (lambda f: (f / "config.json").write_text('{"vocab_size": 200}'), "has the id 299, .* has 200 rows"),
    ],
)
def test_bad_host_folders(change, message, tmp_path):
    folder = wordpiece_folder(tmp_path / "host")
    change(folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


def test_a_tokenizer_without_a_frame_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="its tokenizer has no cls_token"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        load_tokenizer(tmp_path / "absent")


def test_the_shortest_limit_counts(tmp_path):
    folder = byte_level_folder(tmp_path / "host")
    assert load_tokenizer(folder).max_length == 1024
    assert load_tokenizer(folder, 514).max_length == 514
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert load_tokenizer(folder, 2000).max_length == 2000
    assert load_tokenizer(folder).max_length == 512
