"""What shape a host has, in Hugging Face's words: read from its files, or known by a name such as `shape:bert-base`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean, first_line
from kinject.hf_folder import read_config
from kinject.models.kernels.elementwise import ACTIVATIONS

MODEL_TYPES = ("bert", "roberta")
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SHAPE_MARK = "shape:"


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
        """Reads what `hf_folder.read_config` gives of a BERT or RoBERTa; what is no encoder's concern is passed over.

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


def _bert(vocab_size: int, size: int, layers: int, heads: int) -> EncoderConfig:
    return EncoderConfig("bert", vocab_size, size, layers, heads, 4 * size)


def _roberta(size: int, layers: int, heads: int) -> EncoderConfig:
    return EncoderConfig(
        "roberta",
        50265,
        size,
        layers,
        heads,
        4 * size,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )


SHAPES: dict[str, EncoderConfig] = {
    "minilm-l6": _bert(30522, 384, 6, 12),
    "bert-base": _bert(30522, 768, 12, 12),
    "bert-base-uncased": _bert(30522, 768, 12, 12),
    "bert-base-cased": _bert(28996, 768, 12, 12),
    "bert-large": _bert(30522, 1024, 24, 16),
    "bert-large-uncased": _bert(30522, 1024, 24, 16),
    "bert-large-cased": _bert(28996, 1024, 24, 16),
    "roberta-base": _roberta(768, 12, 12),
    "roberta-large": _roberta(1024, 24, 16),
}
"""Encoders by the last part of their hub ids; sizes as Devlin et al. 2019, Liu et al. 2019 and Wang et al. 2020 say."""


def encoder_shape(reference: str | os.PathLike[str], where: object) -> EncoderConfig:
    """The shape of a host: of `shape:bert-base`, of a folder by its config.json, of a hub id, known ones offline.

    Raises:
      InputError: a name that is none of `SHAPES`, a folder without config.json, an id that the hub does not give.
    """
    name = str(reference)
    if name.startswith(SHAPE_MARK):
        known = name.removeprefix(SHAPE_MARK)
        if known not in SHAPES:
            raise InputError(where, f"there is no {name}", did_you_mean(known, SHAPES))
        return SHAPES[known]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return EncoderConfig.from_hf(read_config(folder), folder / "config.json")
    if name.rpartition("/")[2] in SHAPES and MODEL_ID.fullmatch(name):
        return SHAPES[name.rpartition("/")[2]]
    if not MODEL_ID.fullmatch(name):
        raise InputError(where, f"there is no {name}", "give a folder, a hub id, or shape:NAME such as shape:bert-base")
    return _from_hub(name, where)


def _from_hub(name: str, where: object) -> EncoderConfig:
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # hub, HTTP and cache errors have no common class
        mend = f"give a folder, or shape:NAME of {', '.join(SHAPES)}"
        raise InputError(
            where, f"the hub did not give the config.json of {name} ({first_line(error)})", mend
        ) from error
    return EncoderConfig.from_hf(read_config(file.parent), file)
