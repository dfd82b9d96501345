"""E-BERT: entity vectors put into the host's input space by the words that both have. Nothing is trained.

Poerner et al., "E-BERT: Efficient-Yet-Effective Entity Embeddings for BERT", Findings of EMNLP 2020 (NPoe/ebert).
Vectors of entities come with vectors of words, learned together (Wikipedia2Vec). W minimises the sum of
||W x_w - b_w||^2 over the words w of the shared vocabulary, x_w their vectors, b_w the host's word embeddings: least
squares without bias and without penalty. An entity e then stands in its slot as W e.

Seam: input embeddings. Fitted: W, k * d numbers (0.59M for 768 and 768). Needs of the knowledge base: one vector an
entity, of the space that the words are of.

Forms: "concat" `[ENTITY] / mention`, "replace" `[ENTITY]`. The paper's ensembles of the plain text and "replace" are an
option of the task (`kinject.tasks.lama`). Departure: a word counts as shared when the host makes one piece of it that
spells it, case included, wherever it is in the vocabulary; the release compares the two lists of words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinject.errors import InputError
from kinject.models.seams import Plugin, PluginSizes
from kinject.plugins.base import fill_slots, register

if TYPE_CHECKING:
    from kinject.data.passage import SlotForm
    from kinject.data.tokenizer import HostTokenizer

FORMS: dict[str, SlotForm] = {"concat": "before", "replace": "instead"}


@register("e_bert")
class EBert(Plugin):
    """E-BERT: a matrix from the entities' space into the host's input space."""

    maps_entities = True

    @dataclass(frozen=True)
    class Config:
        """Where the entity stands.

        Attributes:
          form: "concat", before a slash and the mention; "replace", in the mention's place.
        """

        form: Literal["concat", "replace"] = "concat"

    def __init__(self, config: Any = None, *, rngs: nnx.Rngs | None = None, **sizes: Unpack[PluginSizes]):
        super().__init__(config, **sizes)
        del rngs
        self.slot_form = FORMS[self.config.form]
        self.kernel = nnx.Param(jnp.zeros((self.knowledge_dim, self.embedding_size), jnp.float32))

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Puts W e in the slots; reads `entity_slot` int32 [B, L] and `entity_vectors` float32 [B, M, k]."""
        del key
        if "entity_vectors" not in batch:
            return embeddings
        return fill_slots(embeddings, batch, batch["entity_vectors"].astype(jnp.float32) @ self.kernel[...])


def shared_words(words: Sequence[str], tokenizer: HostTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The words that are one piece of the host's vocabulary.

    Args:
      words: of the vectors; different ones.
      tokenizer: the host's.

    Returns:
      (their numbers in `words` int [n], their pieces int [n]); a piece belongs to one word only.
    """
    special = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id}
    found: dict[int, int] = {}
    for number, one in enumerate(tokenizer.pieces([f" {word}" for word in words])):
        if len(one.ids) != 1 or one.ids[0] in special or one.ids[0] in found:
            continue
        if tokenizer.decode(one.ids).strip() == words[number]:
            found[one.ids[0]] = number
    return np.array(list(found.values()), np.int64), np.array(list(found), np.int64)


def least_squares(vectors: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """W float32 [k, D] that minimises ||X W - Y||^2, of X [n, k] and Y [n, D], in float64.

    Of several (fewer pairs than numbers in a vector) it is the one of least norm, as numpy.linalg.lstsq's.

    Raises:
      InputError: no pair at all.
    """
    if not len(vectors):
        raise InputError("words", "none of them is a word of the host's vocabulary", "take vectors of its language")
    kernel, *_ = np.linalg.lstsq(np.asarray(vectors, np.float64), np.asarray(targets, np.float64), rcond=None)
    return kernel.astype(np.float32)


def fit_words(
    plugin: EBert, words: Sequence[str], vectors: np.ndarray, tokenizer: HostTokenizer, table: np.ndarray
) -> dict[str, float]:
    """Sets the plugin's matrix by the words that vectors and host share.

    Args:
      plugin: whose matrix is set.
      words: different ones.
      vectors: theirs, [len(words), k].
      tokenizer: the host's.
      table: the host's word embeddings [V, D].

    Returns:
      How many words are shared, and the relative error that is left: ||X W - Y|| / ||Y||.

    Raises:
      InputError: no word is shared.
    """
    numbers, pieces = shared_words(words, tokenizer)
    read, aims = np.asarray(vectors, np.float64)[numbers], np.asarray(table, np.float64)[pieces]
    kernel = least_squares(read, aims)
    plugin.kernel[...] = jnp.asarray(kernel)
    left = np.linalg.norm(read @ kernel - aims) / np.linalg.norm(aims)
    return {"shared_words": len(numbers), "relative_error": float(left)}
