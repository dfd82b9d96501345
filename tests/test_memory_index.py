"""The approximate index: what it finds, edits, its file, and a plugin that reads through it inside a compiled step."""

import numpy as np
import pytest
from test_memory_store import SIZES
from test_pluglm import SIZE, plugin_of, read
from tiny import random_host, tiny_batch, tiny_config

from kinject.errors import InputError
from kinject.memory.index import MemoryIndex
from kinject.memory.store import Passage, PassageMemory, build_memory


@pytest.fixture
def folder(tmp_path):
    """300 passages with random keys and values of the sizes that the plugin of test_pluglm reads."""
    draw = np.random.default_rng(0)

    def made(texts):
        tokens = np.zeros((len(texts), SIZES["length"]), np.int32)
        return tokens, draw.normal(size=(len(texts), 8)), draw.normal(size=(len(texts), SIZE))

    sizes = {"hidden_size": SIZE, "key_size": 8, "length": SIZES["length"]}
    about = {"name": "m", "sizes": sizes, "encoder_fingerprint": "sha256:h", "plugin_fingerprint": "sha256:p"}
    build_memory(tmp_path / "m", [Passage(f"text {i}") for i in range(300)], made, **about)
    return tmp_path / "m"


def exact(memory, queries, k):
    scores = np.where(memory.alive, queries @ np.asarray(memory.keys).T, -np.inf)
    return np.argsort(-scores, axis=1)[:, :k]


def recall(index, queries, k=5):
    pairs = zip(index.search(queries, k), exact(index.memory, queries, k), strict=True)
    return np.mean([len(set(one) & set(other)) / k for one, other in pairs])


def test_it_finds_nearly_what_exact_search_finds_and_follows_edits(folder):
    queries = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    with PassageMemory.open(folder, write=True) as memory:
        index = MemoryIndex.build(memory)
        assert recall(index, queries) > 0.95
        best = index.search(queries[:1], 1)[0, 0]
        memory.delete([int(best)])
        index.update(memory.take_changes())
        assert best not in index.search(queries[:1], 5)
        assert recall(index, queries) > 0.95
        index.save()
        again = MemoryIndex.open(memory, expansion_search=256)
        assert recall(again, queries) > 0.95 and again.index.expansion_search == 256
        assert (index.search(queries[:2], 400)[:, 299:] == -1).all()
        memory.delete([0 if best else 1])
        with pytest.raises(InputError, match="it holds 299 passages, the memory 298; build it again"):
            MemoryIndex.open(memory)


def test_a_plugin_reads_through_it(folder):
    host = random_host(tiny_config())
    batch = tiny_batch(host.encoder.config, [7, 5], 7)
    hidden = np.random.default_rng(5).normal(size=(2, 7, SIZE)).astype(np.float32)
    memory = PassageMemory.open(folder)
    plugin = plugin_of()
    plugin.set_tables(*(np.asarray(part) for part in (memory.keys, memory.values, memory.alive)))
    exactly, found, _ = read(plugin, hidden, host, batch)
    plugin.set_tables()
    plugin.lookup = MemoryIndex.build(memory)
    through, other, _ = read(plugin, hidden, host, batch)
    assert np.array_equal(found.rows, other.rows)  # 300 rows are few: the graph's search sees all that matter
    np.testing.assert_allclose(exactly, through, atol=1e-5)
