"""ELECTRA: Clark et al., "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators", ICLR 2020.

BERT, but the embeddings may be narrower than the layers: a dense layer brings the normed sum of word, type and position
to the hidden size. The seam `embed` lies before that: a plugin there gets and yields [B, L, E]. Its classification head
has a GELU. The head of masked words is the generator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.families.bert import CLASSIFIER, WORDS, Bert
from kinject.models.family import FIELDS, Form, HeadForm, OwnFields
from kinject.models.layers import Dense, Embeddings, linear_options
from kinject.models.tensor_rules import Rule, dense, norm

PROJECTION = dense("embeddings_project", "encoder/embeddings/project")
MASKED_LM = (
    *dense("generator_predictions.dense", "head/transform"),
    *norm("generator_predictions.LayerNorm", "head/norm"),
    Rule("generator_lm_head.bias", "head/bias"),
)
CLASSIFICATION = (*dense("classifier.dense", "head/pooler"), *dense("classifier.out_proj", "head/output"))
CHOICE = (*dense("sequence_summary.summary", "head/pooler"), *CLASSIFIER)


@dataclass(frozen=True)
class ElectraFields(OwnFields):
    """How its multiple-choice head sums a sequence up."""

    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str = "gelu"
    summary_last_dropout: float = 0.1


class ElectraEmbeddings(Embeddings):
    """BERT's in the embedding size, and a dense layer to the hidden size where that is another."""

    def __init__(self, config: EncoderConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = linear_options(config, dtype, param_dtype, rngs)
        wider = config.word_size != config.hidden_size
        self.project = Dense(config.word_size, config.hidden_size, **options) if wider else None

    def __call__(
        self, words: jax.Array, position_ids: jax.Array, type_ids: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        hidden = super().__call__(words, position_ids, type_ids, key)
        return hidden if self.project is None else self.project(hidden)


class Electra(Bert):
    """ELECTRA."""

    model_type = "electra"
    prefix = "electra"
    class_name = "Electra"
    fields = (*FIELDS, "embedding_size")
    Own = ElectraFields
    defaults = {"embedding_size": 128}
    tied = {"generator_lm_head.weight": WORDS.key}
    other_heads = (
        r"(discriminator|generator)_predictions\..*|generator_lm_head\.(weight|bias)|qa_outputs\.(weight|bias)"
        r"|classifier\.((dense|out_proj)\.)?(weight|bias)|sequence_summary\.summary\.(weight|bias)"
    )

    def own(self, values: Mapping[str, Any], where: object) -> Any:
        own = super().own(values, where)
        if "summary_activation" in values and values["summary_activation"] is None:
            hint = "no activation, as transformers takes it, is not computed here; name one, such as 'gelu'"
            raise InputError(where, "summary_activation is null", hint)
        for name, computed in (("summary_type", "first"), ("summary_use_proj", True)):
            if getattr(own, name) != computed:
                problem = f"{name} is {getattr(own, name)!r}"
                raise InputError(where, problem, f"only {computed!r} is computed here")
        return own

    def embeddings(self, config: EncoderConfig, **options: Any) -> Embeddings:
        return ElectraEmbeddings(config, **options)

    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        wider = config.word_size != config.hidden_size
        return (*super().encoder_rules(config), *(PROJECTION if wider else ()))

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        if form == "masked_lm":
            return HeadForm(MASKED_LM, activation="gelu", norm=True)
        if form == "pooled":
            rate = config.head_dropout
            return HeadForm(CLASSIFICATION, activation="gelu", input_dropout=rate, dropout=rate)
        if form == "multiple_choice":
            own = config.own
            return HeadForm(CHOICE, activation=own.summary_activation, dropout=own.summary_last_dropout)
        return super().head(form, config)


FAMILY = Electra()
