"""What a family of encoders is: how its config.json is read, what its parts are, and what its tensors are called.

A family is what transformers calls a `model_type`. Each is one file of `kinject/models/families/`, which is found by
its name (`deberta-v2` is in `deberta_v2.py`) and has an instance `FAMILY`; docs/own_family.md adds one step by step.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kinject.errors import InputError, did_you_mean
from kinject.models.tensor_rules import Rule

if TYPE_CHECKING:
    from kinject.models.config import EncoderConfig

FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)
"""What every family's config says, in BERT's words and in the order in which `config.json` is written."""

Form = Literal["masked_lm", "pooled", "multiple_choice", "token_classification", "span"]


@dataclass(frozen=True)
class HeadForm:
    """How a family computes one of its heads: an optional dense layer, and the output layer.

    Attributes:
      rules: its tensors.
      dense: whether there is a dense layer before the output layer; a masked-LM head always has one.
      dense_bias: whether that has a bias.
      activation: after the dense layer.
      norm: whether a LayerNorm comes after that.
      norm_bias: whether that has a bias.
      input_dropout: rate before the dense layer.
      dropout: rate before the output layer.
      size: of what the dense layer yields; None = the hidden size.
      output_bias: whether the words of a masked-LM head have a bias each.
      pooling: what a pooled head reads: the first position, or the mean of all.
    """

    rules: tuple[Rule, ...]
    dense: bool = True
    dense_bias: bool = True
    activation: str = "tanh"
    norm: bool = False
    norm_bias: bool = True
    input_dropout: float = 0.0
    dropout: float = 0.0
    size: int | None = None
    output_bias: bool = True
    pooling: Literal["cls", "mean"] = "cls"


@dataclass(frozen=True)
class OwnFields:
    """Fields of a config.json that only one family has; a subclass names them, in transformers' words, with defaults.

    They are strings, numbers, truth values, or tuples of these, which JSON has as lists.
    """

    @classmethod
    def read(cls, values: Mapping[str, Any], where: object) -> OwnFields:
        """Takes them from a parsed config.json, where it has them.

        Raises:
          InputError: a value of the wrong type or range.
        """
        given = {field.name: values[field.name] for field in fields(cls) if values.get(field.name) is not None}
        for field in fields(cls):
            if field.name in given:
                given[field.name] = _checked(field.name, given[field.name], field.default, where)
        return cls(**given)

    def to_hf(self) -> dict[str, Any]:
        """The fields as config.json has them."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _checked(name: str, value: Any, default: Any, where: object) -> Any:
    """The value of a field, which must be of the kind of its default; rates are in [0, 1)."""
    wanted: Any = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
    if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(default, bool):
        raise InputError(where, f"{name} is {value!r}", f"it must be like {default!r}")
    if name.endswith("dropout") and not 0 <= value < 1:
        raise InputError(where, f"{name} is {value}", "a dropout rate is in [0, 1)")
    return tuple(value) if isinstance(value, list) else value


class Family(ABC):
    """One family; a subclass states what differs.

    Attributes:
      model_type: its name in config.json.
      prefix: of the encoder's tensors in a checkpoint with a head, without the dot.
      class_name: what the names of transformers' classes begin with.
      fields: which of `EncoderConfig`'s fields its config.json has, in our words.
      renamed: {our word for such a field: theirs}, where they differ.
      defaults: of fields, in our words, where they are not those of `EncoderConfig`.
      Own: further fields of its config.json, None where there are none.
      zero: fields, in our words, that may be 0 beside the padding id.
      final_norm: whether a LayerNorm follows the last layer, as it does where each layer norms what it reads.
      tied: {a decoder's second name of a tensor: the first}.
      other_heads: regex of the names of tensors beside the encoder's that a checkpoint may hold unasked.
    """

    model_type: ClassVar[str]
    prefix: ClassVar[str]
    class_name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]] = FIELDS
    renamed: ClassVar[Mapping[str, str]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    Own: ClassVar[type[OwnFields] | None] = None
    zero: ClassVar[tuple[str, ...]] = ()
    final_norm: ClassVar[bool] = False
    tied: ClassVar[Mapping[str, str]] = {}
    other_heads: ClassVar[str]

    def refuse(self, values: Mapping[str, Any], where: object) -> None:
        """Raises InputError for a variant that would be computed differently from what this family's file states."""
        for flag in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
            if values.get(flag):
                raise InputError(where, f"{flag} is true", "a host is an encoder")

    def translated(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a parsed config.json that are `fields`, in our words; unset ones left out."""
        named = {name: values.get(self.renamed.get(name, name)) for name in self.fields}
        return dict(self.defaults) | {name: value for name, value in named.items() if value is not None}

    def own(self, values: Mapping[str, Any], where: object) -> Any:
        """What only this family's config.json says, an `Own`; None where there is no such thing.

        Raises:
          InputError: a value of the wrong type or range.
        """
        return None if self.Own is None else self.Own.read(values, where)

    def to_hf(self, config: EncoderConfig) -> dict[str, Any]:
        """The fields as config.json has them."""
        values = {self.renamed.get(name, name): getattr(config, name) for name in self.fields}
        return values if config.own is None else values | config.own.to_hf()

    def position_offset(self, config: EncoderConfig) -> int:
        """What is added to positions counted from 0 before they are looked up."""
        del config
        return 0

    def has_positions(self, config: EncoderConfig) -> bool:
        """Whether the embedding layer has a table of positions."""
        del config
        return True

    @abstractmethod
    def embeddings(self, config: EncoderConfig, **options: Any) -> Any:
        """Makes the embedding layer, a `layers.Embeddings`; options are `dtype`, `param_dtype`, `rngs`."""

    def layer_kinds(self, config: EncoderConfig) -> tuple[Hashable, ...]:
        """The kind of every layer; those of one kind are built alike."""
        return (None,) * config.num_hidden_layers

    @abstractmethod
    def layer(self, config: EncoderConfig, kind: Any, **options: Any) -> Any:
        """Makes a layer of one of `layer_kinds`, a `layers.Layer`; options as of `embeddings`."""

    def relative(self, config: EncoderConfig, **options: Any) -> Any:
        """Makes what all layers' attention reads beside the hidden states to tell positions apart; None = nothing.

        It is a module: called with the hidden states [B, L, D] that run through the layers and the batch, it returns
        what each `Attention` gets as `relative`.
        """
        del config, options

    @abstractmethod
    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        """Tensors outside of the layers."""

    @abstractmethod
    def layer_rules(self, config: EncoderConfig, i: int) -> tuple[Rule, ...]:
        """Tensors of layer i."""

    @abstractmethod
    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        """How one of transformers' heads is computed and what its tensors are called."""


@cache
def family_names() -> tuple[str, ...]:
    """The `model_type` of every family, sorted."""
    return tuple(sorted(_modules()))


@cache
def _modules() -> dict[str, str]:
    package = importlib.import_module("kinject.models.families")
    return {module.name.replace("_", "-"): module.name for module in pkgutil.iter_modules(package.__path__)}


@cache
def family_of(model_type: str) -> Family:
    """The family called `model_type` in a config.json.

    Raises:
      InputError: there is none.
    """
    modules = _modules()
    if model_type not in modules:
        raise InputError("model_type", f"is {model_type!r}", did_you_mean(str(model_type), modules))
    family: Family = importlib.import_module(f"kinject.models.families.{modules[model_type]}").FAMILY
    return family
