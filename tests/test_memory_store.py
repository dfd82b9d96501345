"""A memory folder: built whole or not at all, edited in place, opened strictly."""

import json
import subprocess
import sys

import numpy as np
import pytest

from kinject.errors import InputError
from kinject.memory.store import Passage, PassageMemory, build_memory

SIZES = {"hidden_size": 6, "key_size": 4, "length": 5}


def encode(texts):
    """Tokens, keys and values that tell their text: its length, and its first letter."""
    tokens = np.full((len(texts), 5), -1, np.int32)
    tokens[:, 0] = [len(text) for text in texts]
    first = np.array([ord(text[0]) for text in texts], np.float32)
    return tokens, np.repeat(first[:, None], 4, 1), np.repeat(first[:, None], 6, 1) + 0.5


def build(folder, passages, **changes):
    about = {"name": "m", "sizes": SIZES, "encoder_fingerprint": "sha256:host", "plugin_fingerprint": "sha256:plugin"}
    return build_memory(folder, passages, encode, **(about | changes))


def some(count):
    return [Passage(f"{chr(97 + i % 26)} says {i}", f"Q{i % 7}") for i in range(count)]


def texts(memory):
    return {row: passage.text for row, passage in memory.passages()}


def check(memory):
    """Every row that is alive holds what its text encodes to."""
    for row, passage in memory.passages():
        tokens, keys, values = encode([passage.text])
        assert np.array_equal(memory.tokens[row], tokens[0])
        assert np.array_equal(memory.keys[row], keys[0]) and np.array_equal(memory.values[row], values[0])


def test_what_is_built_is_read_back_in_another_process(tmp_path):
    memory = build(tmp_path / "m", iter(some(600)), capacity=640, tag="[unused1]", dtype="float16")
    assert memory.size == 600 and memory.capacity == 640 and memory.manifest["tag"] == "[unused1]"
    assert memory.keys.dtype == np.float16 and isinstance(memory.keys, np.memmap)
    check(memory)
    code = f"""
from kinject.memory.store import PassageMemory
memory = PassageMemory.open({str(tmp_path / "m")!r})
print(memory.passage(599), memory.rows_about("Q4")[:2], float(memory.keys[599, 0]))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{some(600)[599]} [4, 11] {ord(some(600)[599].text[0])}.0"


def test_edits_are_there_at_once_and_rows_are_used_again(tmp_path):
    build(tmp_path / "m", some(10), capacity=12)
    with PassageMemory.open(tmp_path / "m", write=True) as memory:
        assert memory.add([Passage("zebra", "Q99")], encode) == [10]
        assert memory.rows_about("Q99") == [10] and memory.passage(10) == Passage("zebra", "Q99")
        memory.delete([0, 10])
        assert memory.size == 9 and memory.rows_about("Q99") == [] and 0 not in texts(memory)
        (new,) = memory.replace([3], [Passage("yak", "Q3")], encode)
        assert new == 0 and texts(memory)[0] == "yak" and 3 not in texts(memory)
        assert memory.take_changes().tolist() == [0, 3, 10] and memory.take_changes().tolist() == []
        check(memory)
        with pytest.raises(InputError, match="4 passages for 3 free rows"):
            memory.add(some(4), encode)
        before = texts(memory)
        with pytest.raises(InputError, match="no passage in row 3"):
            memory.replace([3], [Passage("gnu")], encode)
        assert texts(memory) == before
    again = PassageMemory.open(tmp_path / "m")
    assert texts(again) == before
    check(again)


def test_a_torn_edit_leaves_what_was_there(tmp_path):
    build(tmp_path / "m", some(4), capacity=8)
    before = texts(PassageMemory.open(tmp_path / "m"))

    def torn(texts):
        raise RuntimeError("power cut")

    memory = PassageMemory.open(tmp_path / "m", write=True)
    with pytest.raises(RuntimeError, match="power cut"):
        memory.replace([1], [Passage("lost")], torn)
    memory._lock.close()
    assert texts(PassageMemory.open(tmp_path / "m")) == before


def test_built_whole_or_not_at_all(tmp_path):
    for passages, options, said in (
        ([Passage("a"), Passage(" ")], {}, "passage 1: the field text is empty"),
        (some(5), {"capacity": 4}, "capacity is 4, there are 5 passages"),
        (some(5), {"dtype": "float64"}, "dtype is 'float64'"),
    ):
        with pytest.raises(InputError, match=said):
            build(tmp_path / "m", passages, **options)
        assert list(tmp_path.iterdir()) == []
    build(tmp_path / "m", some(1))
    with pytest.raises(InputError, match="it exists already"):
        build(tmp_path / "m", some(2))
    assert PassageMemory.open(tmp_path / "m").size == 1


def test_refused(tmp_path):
    build(tmp_path / "m", some(3))
    with pytest.raises(InputError, match="there is no memory here"):
        PassageMemory.open(tmp_path)
    with pytest.raises(InputError, match="open for reading; open it with write=True"):
        PassageMemory.open(tmp_path / "m").delete([0])
    with PassageMemory.open(tmp_path / "m", write=True), pytest.raises(InputError, match="another process is editing"):
        PassageMemory.open(tmp_path / "m", write=True)
    np.save(tmp_path / "m" / "keys.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match=r"keys.npy: it is float32 \(3, 4\), memory.json says float32 \(4, 4\)"):
        PassageMemory.open(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "memory.json").read_text())
    for wrong, said in (({"format_version": 2}, "format_version is 2"), ({"capacity": "4"}, "field capacity is '4'")):
        (tmp_path / "m" / "memory.json").write_text(json.dumps(manifest | wrong))
        with pytest.raises(InputError, match=said):
            PassageMemory.open(tmp_path / "m")
