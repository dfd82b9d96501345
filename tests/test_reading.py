"""What a folder says of its tokenizer is read as transformers reads it, and plugins know when that has changed."""

import json
import shutil

import pytest
from tiny import tiny_host_folder
from tiny_tokenizers import byte_level_folder, wordpiece_folder
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kinject.data.tokenizer import changed_reading, load_tokenizer
from kinject.errors import InputError
from kinject.inference.host import open_host
from kinject.integrity import write_seal
from kinject.plugins.store import check_fits

TEXT = "Lonham, é北京 [E1] mo covid19 Zürgen"


def settings(folder, **values):
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | values))


def lowercased(folder):
    settings(folder, do_lower_case=True)


def without_chinese(folder):
    settings(folder, tokenize_chinese_chars=False)


def stripped_accents(folder):
    settings(folder, strip_accents=True)


def with_prefix_space(folder):
    settings(folder, add_prefix_space=True)


def added_json(folder):
    (folder / "added_tokens.json").write_text(json.dumps({"[E1]": 300, "covid19": 301}))


def added_decoder(folder):
    one = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    found = {str(300 + i): one | {"content": word} for i, word in enumerate(("[E1]", "covid19"))}
    settings(folder, added_tokens_decoder=found)


def extra_special(folder):
    settings(folder, additional_special_tokens=["[E1]", "covid19"])


def special_map(folder):
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["[E1]", "covid19"]}))


def blank_line(folder):
    with (folder / "vocab.txt").open("a") as file:
        file.write("\n")


CASES = [
    (wordpiece_folder, ("tokenizer.json",), lowercased, True),
    (wordpiece_folder, ("tokenizer.json",), without_chinese, True),
    (wordpiece_folder, ("tokenizer.json",), stripped_accents, True),
    (wordpiece_folder, ("tokenizer.json",), added_decoder, True),
    (wordpiece_folder, ("tokenizer.json",), extra_special, True),
    (wordpiece_folder, (), lowercased, False),
    (wordpiece_folder, (), added_json, True),
    (wordpiece_folder, (), special_map, True),
    (wordpiece_folder, (), blank_line, False),
    (byte_level_folder, ("tokenizer.json",), with_prefix_space, True),
    (byte_level_folder, ("tokenizer.json",), added_decoder, True),
    (byte_level_folder, (), added_json, True),
]


@pytest.mark.parametrize(("make", "files", "change", "changed"), CASES)
def test_what_a_folder_says_is_obeyed_as_transformers_obeys_it(tmp_path, make, files, change, changed):
    folder = make(tmp_path / "host", files=files)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 600}))
    before = load_tokenizer(folder)
    change(folder)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    framed = [*ours.before, *ours.pieces([TEXT])[0].ids, *ours.after]
    assert framed == theirs(TEXT)["input_ids"]
    if change is not blank_line:
        assert framed != [*before.before, *before.pieces([TEXT])[0].ids, *before.after]
    assert (changed_reading(ours, folder) is not None) is (changed or (make is byte_level_folder and not files))


@pytest.mark.parametrize("make", [wordpiece_folder, byte_level_folder])
def test_an_unchanged_reading_is_known_as_such(tmp_path, make):
    folder = make(tmp_path / "host")
    assert changed_reading(load_tokenizer(folder), folder) is None


def test_an_id_beyond_the_table_is_refused(tmp_path):
    folder = wordpiece_folder(tmp_path / "host")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(["covid19"])
    backend.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match=r"the tokenizer has the id 300, and by config\.json .* has 300 rows"):
        load_tokenizer(folder)


def test_plugins_of_the_former_reading_are_told_so(tmp_path):
    plain = open_host(tiny_host_folder(tmp_path / "host"))
    folder = shutil.copytree(plain.loaded.folder, tmp_path / "conflict")
    settings(folder, do_lower_case=True)
    write_seal(folder)
    conflict = open_host(folder)
    assert plain.identity.lineage == plain.lineage == conflict.lineage == conflict.identity.former
    assert not set(conflict.identity.lineage) & set(plain.identity.lineage)

    def plugin_of(ready):
        fingerprint = ready.identity.encoder_fingerprint
        return {"hidden_size": 32, "host": {"encoder_fingerprint": fingerprint}, "knowledge": {}}

    check_fits(tmp_path, plugin_of(conflict), conflict.identity, None)
    check_fits(tmp_path, plugin_of(plain), plain.identity, None)
    with pytest.raises(
        InputError, match=r"plugin\.json: it was made when this host's tokenizer was read in another way"
    ):
        check_fits(tmp_path, plugin_of(plain), conflict.identity, None)
    with pytest.raises(InputError, match=r"neither this host's"):
        check_fits(tmp_path, plugin_of(conflict), plain.identity, None)
