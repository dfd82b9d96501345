"""What shape a host has, in Hugging Face's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kinject.errors import InputError, did_you_mean
from kinject.models.kernels.activations import ACTIVATIONS

MODEL_TYPES = ("bert", "roberta")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder; field names and defaults are those of Hugging Face's `config.json`."""

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

    @property
    def head_dim(self) -> int:
        """Dh, the numbers of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def position_offset(self) -> int:
        """What is added to positions counted from 0: RoBERTa's begin after its padding index."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens that has position embeddings."""
        return self.max_position_embeddings - self.position_offset

    @property
    def head_dropout(self) -> float:
        """Dropout rate inside a pooled head."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], where: object = "config.json") -> EncoderConfig:
        """Reads the parsed `config.json` of a BERT or RoBERTa; fields of no concern to an encoder are passed over.

        Raises:
          InputError: another kind of model, a variant that is computed differently, or values that contradict.
        """
        model_type = values.get("model_type")
        if model_type not in MODEL_TYPES:
            raise InputError(where, f"model_type is {model_type!r}", "hosts are " + " and ".join(MODEL_TYPES))
        _refuse_variants(values, where)
        known = {f.name: f.type for f in dataclasses.fields(cls)}
        given = {name: values[name] for name in known if values.get(name) is not None}
        for name, value in given.items():
            _check_type(name, value, str(known[name]), where)
        needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        lacking = [name for name in needed if name not in given]
        if lacking:
            raise InputError(where, f"lacks {', '.join(lacking)}", "take the file that came with the weights")
        if model_type == "roberta":
            given.setdefault("pad_token_id", 1)
        config = cls(**given)
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
        return dataclasses.asdict(self)


def _refuse_variants(values: Mapping[str, Any], where: object) -> None:
    position = values.get("position_embedding_type") or "absolute"
    if position != "absolute":
        raise InputError(where, f"position_embedding_type is {position!r}", "only absolute positions are computed here")
    for flag in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if values.get(flag):
            raise InputError(where, f"{flag} is true", "a host is an encoder")


def _check_type(name: str, value: Any, wanted: str, where: object) -> None:
    kind: tuple[type, ...] = {"str": (str,), "int": (int,)}.get(wanted, (int, float))
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InputError(where, f"{name} is {value!r}", f"it must be {wanted.removesuffix(' | None')}")
    if wanted == "int" and isinstance(value, int) and value < (0 if name == "pad_token_id" else 1):
        raise InputError(where, f"{name} is {value}", "it must be positive")
