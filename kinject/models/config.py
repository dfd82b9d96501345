"""What shape a host has, in Hugging Face's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kinject.errors import InputError, did_you_mean
from kinject.models.family import Family, family_names, family_of
from kinject.models.kernels.elementwise import ACTIVATIONS
from kinject.models.pooling import Pooling


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder; field names and defaults are those of Hugging Face's `config.json` for BERT.

    Attributes:
      type_vocab_size: 0 = there are no token types.
      attention_bias: whether the dense layers of attention have biases; `mlp_bias` and `norm_bias` likewise.
      embedding_size: E, of the word embeddings, where the hidden size is another; None = they are of the hidden size.
      own: what only its family has (`kinject/models/families/`), None where there is no such thing.
      pooling: how a text gets one vector, for heads that read that; None where nobody said it.
    """

    model_type: str = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    embedding_size: int | None = None
    own: Any = None
    pooling: Pooling | None = None

    @property
    def family(self) -> Family:
        """What it has in common with others of its `model_type`."""
        return family_of(self.model_type)

    @property
    def word_size(self) -> int:
        """E, of a word embedding: what a plugin's `embed` gets."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def plugin_sizes(self) -> dict[str, int]:
        """What a plugin for it is built with: D, and E where that is another."""
        sizes = {"hidden_size": self.hidden_size}
        return sizes if self.word_size == self.hidden_size else {**sizes, "embedding_size": self.word_size}

    @property
    def head_dim(self) -> int:
        """Dh, the numbers of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def position_offset(self) -> int:
        """What is added to positions counted from 0: RoBERTa's begin after its padding index."""
        return self.family.position_offset(self)

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that it has positions for."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_dropout(self) -> float:
        """Dropout rate inside a pooled head."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], where: object = "config.json") -> EncoderConfig:
        """Reads what `hf_folder.read_config` gives, or a parsed config.json; what concerns no encoder is passed over.

        Args:
          values: the fields.
          where: what to call them in errors.

        Raises:
          InputError: another kind of model, a variant that is computed differently, or values that contradict.
        """
        model_type = values.get("model_type")
        if model_type not in family_names():
            raise InputError(where, f"model_type is {model_type!r}", "hosts are " + ", ".join(family_names()))
        family = family_of(model_type)
        family.refuse(values, where)
        given = family.translated(values)
        known = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        for name, value in given.items():
            if not (value == 0 and name in family.zero) and value != family.defaults.get(name):
                _check_type(family.renamed.get(name, name), value, known[name], where)
        needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        lacking = [family.renamed.get(name, name) for name in needed if name not in given]
        if lacking:
            raise InputError(where, f"lacks {', '.join(lacking)}", "take the file that came with the weights")
        config = cls(**given, own=family.own(values, where))
        config.check(where)
        return config

    def check(self, where: object = "config") -> None:
        """Raises InputError if the values cannot describe an encoder."""
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise InputError(
                where,
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}",
            )
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(where, f"hidden_act {self.hidden_act!r}", did_you_mean(self.hidden_act, ACTIVATIONS))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "head_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(where, f"{name} is {getattr(self, name)}", "a dropout rate is in [0, 1)")

    def to_hf(self) -> dict[str, Any]:
        """Returns the fields as `config.json` has them."""
        return self.family.to_hf(self)


def _check_type(name: str, value: Any, wanted: str, where: object) -> None:
    wanted = wanted.removesuffix(" | None")
    kind: tuple[type, ...] = {"str": (str,), "int": (int,), "bool": (bool,)}.get(wanted, (int, float))
    if isinstance(value, bool) != (wanted == "bool") or not isinstance(value, kind):
        raise InputError(where, f"{name} is {value!r}", f"it must be {wanted}")
    if wanted == "int" and isinstance(value, int) and value < (0 if name == "pad_token_id" else 1):
        raise InputError(where, f"{name} is {value}", "it must be positive")
