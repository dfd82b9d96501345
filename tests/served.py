"""Hosts with heads of every kind and plugins, all random, as folders: what the tests of serving ask."""

import itertools

from tiny import random_host
from tiny_world import CITIES, LANDS, VOCABULARY, tiny_bert, vectors, write_base, write_tokenizer

from kinject.inference.host import knowledge_identity, open_host
from kinject.inference.passages import PassageEncoder
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.memory.store import Passage, build_memory
from kinject.models.saving import save_host
from kinject.plugins.base import make_plugin
from kinject.plugins.store import NO_KNOWLEDGE, load_plugin, save_plugin

PLUGLM = {"name": "pluglm", "layers": [0], "heads": 2, "key_size": 8, "top_k": 2, "query_from": "embeddings"}
MORE = ["@", "Q", "A", ":", "near"]


class Served:
    """Files of hosts, plugins and knowledge bases in a folder, each made when it is asked for."""

    def __init__(self, folder, layers=1):
        self.folder, self.layers = folder, layers
        self.knowledge = write_base(folder / "knowledge")

    def host(self, task="cloze", head="masked_lm", labels=None, seed=0, options=None):
        folder = self.folder / f"host_{task}_{seed}"
        if folder.exists():
            return folder
        config = tiny_bert(len(VOCABULARY) + len(MORE), layers=self.layers, positions=64)
        # one seed, one encoder: heads differ, so a plugin of one fits all
        host = random_host(config, head, None if labels is None else len(labels), seed=seed, scale=0.3)
        tokenizer = write_tokenizer(self.folder / f"tokenizer_{task}_{seed}", MORE)
        about = {"task": task, "labels": labels, "extra": {"task_options": options or {}}}
        return save_host(host, folder, tokenizer_files_from=tokenizer, host_json=about)

    def plugin(self, name="geo", seed=1, knowledge="knowledge", method=None, task="cloze", folder=None):
        """A random plugin of the cloze host (or another task's) on one of the knowledge bases, or on none."""
        folder = self.folder / name if folder is None else folder
        if folder.exists():
            return folder
        base = None if knowledge is None else KnowledgeBase.open(self.folder / knowledge)
        dim = 0 if base is None else base.dim
        made = make_plugin(method or {"name": "map_tuning"}, hidden_size=16, knowledge_dim=dim, seed=seed)
        identity = open_host(self.host() if task == "cloze" else self.folder / f"host_{task}_0").identity
        about = NO_KNOWLEDGE if base is None else knowledge_identity(base)
        return save_plugin(folder, made, host=identity, knowledge=about, config={}, metrics={"loss": 0.5})

    def memory(self, plugin):
        """A memory of one passage a city, for a PlugLM plugin of the cloze host."""
        folder = self.folder / f"{plugin.name}_facts"
        if not folder.exists():
            encoder = PassageEncoder(open_host(self.host()), load_plugin(plugin).plugin, 8, "is")
            facts = [Passage(f"city{i} is in land{i % LANDS} .", f"Q{i}") for i in range(CITIES)]
            build_memory(folder, facts, encoder, name="facts", **encoder.about()).close()
        return folder

    def other_base(self, low=50, dim=5):
        """Cities from `low` on, and others, with other vectors, of another size unless it is 8."""
        name = f"biology{dim}"
        folder = self.folder / name
        if not folder.exists():
            ids = [f"Q{i}" for i in itertools.chain(range(low, 60), range(100, 130))]
            table = vectors(seed=3)[: len(ids), :dim]
            write_knowledge(
                folder,
                name=name,
                ids=ids,
                vectors=table,
                labels=[f"other {one}" for one in ids],
                source="made up",
                license="none",
            )
        return folder
