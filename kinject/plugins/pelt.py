"""PELT: entities as the frozen host's own outputs, put behind their names. Nothing is trained.

Ye et al., "A Simple but Effective Pluggable Entity Lookup Table for Pre-trained Language Models", ACL 2022
(thunlp/PELT). An entity's vector is the sum of what the host's masked-LM head makes of the mask at the entity's places
in a corpus, before the words are scored (dense, activation, LayerNorm), scaled to a length: `kinject knowledge build
--from-text` makes such a base. The vector then stands as a word in parentheses behind the mention, `mention ( E )`.

Seam: input embeddings. Parameters: none. Needs of the knowledge base: vectors of the size of the host's word
embeddings.

Departures: the release puts E at the end of the input with the position of a hidden word in the parentheses; here E
stands there itself, which is the same to the encoder. An entity without a vector gets no empty parentheses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from kinject.errors import InputError
from kinject.models.seams import Plugin, PluginSizes
from kinject.plugins.base import fill_slots, register

if TYPE_CHECKING:
    from kinject.data.passage import SlotForm

FORMS: dict[str, SlotForm] = {"parentheses": "behind", "concat": "before", "replace": "instead"}


@register("pelt")
class Pelt(Plugin):
    """PELT: vectors that live in the host's input space already, scaled and put behind the mention."""

    maps_entities = True

    @dataclass(frozen=True)
    class Config:
        """How they stand there.

        Attributes:
          norm: the length of every vector; the paper's for RoBERTa-base is 7. None = as they are.
          form: "parentheses" is the paper's, `mention ( E )`; "concat" is `E / mention`, "replace" `E`.
        """

        norm: float | None = 7.0
        form: Literal["parentheses", "concat", "replace"] = "parentheses"

        def __post_init__(self) -> None:
            if self.norm is not None and self.norm <= 0:
                raise ValueError(f"norm is {self.norm}: a length is more than 0")

    def __init__(self, config: Any = None, *, rngs: nnx.Rngs | None = None, **sizes: Unpack[PluginSizes]):
        del rngs
        sizes["knowledge_dim"] = 0  # the vectors' size is the host's
        super().__init__(config, **sizes)
        self.slot_form = FORMS[self.config.form]

    def embed(self, embeddings: jax.Array, batch: Mapping[str, jax.Array], key: jax.Array | None = None) -> jax.Array:
        """Puts the entities in their slots; reads `entity_slot` int32 [B, L], `entity_vectors` float32 [B, M, E].

        Raises:
          InputError: vectors of another size than the host's word embeddings.
        """
        del key
        if "entity_vectors" not in batch:
            return embeddings
        vectors = batch["entity_vectors"].astype(jnp.float32)
        if vectors.shape[-1] != embeddings.shape[-1]:
            problem = f"its vectors have {vectors.shape[-1]} numbers, the host's word embeddings {embeddings.shape[-1]}"
            raise InputError("knowledge", problem, "make it of this host: kinject knowledge build --from-text")
        return fill_slots(embeddings, batch, scaled(vectors, self.config.norm))


def scaled(vectors: jax.Array, norm: float | None) -> jax.Array:
    """Vectors [..., E] of the length; zero vectors stay."""
    if norm is None:
        return vectors
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors * jnp.where(lengths > 0, norm / jnp.maximum(lengths, 1e-30), 0.0)
