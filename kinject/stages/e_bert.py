"""Stage `e_bert`: E-BERT's matrix, fitted in closed form by the words that vectors and host share.

Poerner et al. 2020 (see `kinject.plugins.e_bert`). What it writes is a plugin's folder, as a training writes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from kinject.data.tokenizer import HostTokenizer
from kinject.errors import InputError
from kinject.inference.host import knowledge_identity, open_host
from kinject.knowledge.base import KnowledgeBase
from kinject.plugins.base import make_plugin
from kinject.plugins.e_bert import EBert, fit_words
from kinject.plugins.store import save_plugin
from kinject.stages.base import Stage, StageConfig


class EBertConfig(StageConfig):
    """Whose vectors go where.

    `knowledge` are the entities, `words` the knowledge base of the words that were learned with them: of a
    Wikipedia2Vec file both are imported, with `keep` "entities" and "words". None = vectors that come without words, as
    a graph's: the words are the labels of entities that are one word of the host. `form` is "concat" or "replace".
    """

    kind: Literal["e_bert"] = "e_bert"
    host: str
    knowledge: str
    words: str | None = None
    form: Literal["concat", "replace"] = "concat"


class EBertStage(Stage[EBertConfig]):
    """Fits the matrix; nothing is trained."""

    def execute(self) -> dict[str, Any]:
        config = self.config
        host = open_host(self.run.model(config.host, f"{self.where}.host"))
        knowledge = self.run.knowledge(config.knowledge, f"{self.where}.knowledge")
        words = knowledge if config.words is None else self.run.knowledge(config.words, f"{self.where}.words")
        if words.dim != knowledge.dim:
            problem = f"its vectors have {words.dim} numbers, those of the entities {knowledge.dim}"
            raise InputError(f"{self.where}.words", problem, "take both from one file")
        method = {"name": "e_bert", "form": config.form}
        plugin = make_plugin(method, **host.loaded.config.plugin_sizes, knowledge_dim=knowledge.dim, where=self.where)
        if not isinstance(plugin, EBert):
            raise TypeError(f"e_bert is registered as {type(plugin).__name__}")
        table = np.asarray(host.loaded.host.encoder.embeddings.word.embedding[...], np.float32)
        rows = range(words.size) if words.has_vector is None else np.flatnonzero(words.has_vector).tolist()
        names = words.ids(np.asarray(rows)) if config.words is not None else as_words(words, rows, host.tokenizer)
        metrics = fit_words(plugin, names, words.vectors[np.asarray(rows)], host.tokenizer, table)
        save_plugin(
            self.folder,
            plugin,
            host=host.identity,
            knowledge=knowledge_identity(knowledge),
            config=config.model_dump(mode="json"),
            metrics=metrics,
            replace=True,
        )
        left = f"{metrics['relative_error']:.3f} of their length left"
        self.run.reporter.say(f"{self.name}: {metrics['shared_words']:,} words shared, {left}")
        return metrics


def as_words(knowledge: KnowledgeBase, rows: Sequence[int], tokenizer: HostTokenizer) -> list[str]:
    """The labels of entities; one that is a single piece of the host's is spelt as the host does, in lower case."""
    labels = [knowledge.entity(int(row)).label for row in rows]
    spelt = [
        tokenizer.decode(one.ids).strip() if len(one.ids) == 1 else ""
        for one in tokenizer.pieces([f" {label}" for label in labels])
    ]
    pairs = zip(spelt, labels, strict=True)
    return [piece if piece.casefold() == label.casefold() else label for piece, label in pairs]
