"""BERT: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", NAACL 2019.

Every sublayer adds to the stream and norms the sum; positions are learned and absolute; texts of a pair have types.
A family that is much like it inherits from here and states what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinject.errors import InputError
from kinject.models.config import EncoderConfig
from kinject.models.family import Family, Form, HeadForm
from kinject.models.layers import Embeddings, Layer
from kinject.models.tensor_rules import Rule, attention, dense, norm

WORDS = Rule("embeddings.word_embeddings.weight", "encoder/embeddings/word/embedding")
POSITIONS = Rule("embeddings.position_embeddings.weight", "encoder/embeddings/position/embedding")
TYPES = Rule("embeddings.token_type_embeddings.weight", "encoder/embeddings/type/embedding")
EMBEDDINGS_NORM = norm("embeddings.LayerNorm", "encoder/embeddings/norm")
FEED_FORWARD = (
    *dense("encoder.layer.{i}.intermediate.dense", "encoder/layers/{i}/feed_forward/up"),
    *dense("encoder.layer.{i}.output.dense", "encoder/layers/{i}/feed_forward/down"),
    *norm("encoder.layer.{i}.output.LayerNorm", "encoder/layers/{i}/feed_forward/norm"),
)
LAYER = (
    *attention(
        [f"encoder.layer.{{i}}.attention.self.{name}" for name in ("query", "key", "value")],
        "encoder.layer.{i}.attention.output.dense",
        "encoder/layers/{i}/attention",
    ),
    *norm("encoder.layer.{i}.attention.output.LayerNorm", "encoder/layers/{i}/attention/norm"),
    *FEED_FORWARD,
)
MASKED_LM = (
    *dense("cls.predictions.transform.dense", "head/transform"),
    *norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Rule("cls.predictions.bias", "head/bias"),
)
CLASSIFIER = dense("classifier", "head/output")
SPAN = dense("qa_outputs", "head/output")
POOLED = (*dense("pooler.dense", "head/pooler", within=True), *CLASSIFIER)


class Bert(Family):
    """BERT."""

    model_type = "bert"
    prefix = "bert"
    class_name = "Bert"
    tied = {
        "cls.predictions.decoder.weight": WORDS.key,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    other_heads = (
        r"cls\.seq_relationship\.(weight|bias)|qa_outputs\.(weight|bias)|pooler\.dense\.(weight|bias)"
        r"|classifier\.((dense|out_proj)\.)?(weight|bias)|lm_head\.((dense|layer_norm|decoder)\.)?(weight|bias)"
        r"|cls\.predictions\.((decoder|transform\.dense|transform\.LayerNorm)\.)?(weight|bias)"
    )

    def refuse(self, values: Mapping[str, Any], where: object) -> None:
        position = values.get("position_embedding_type") or "absolute"
        if position != "absolute":
            problem = f"position_embedding_type is {position!r}"
            raise InputError(where, problem, "only absolute positions are computed here")
        super().refuse(values, where)

    def embeddings(self, config: EncoderConfig, **options: Any) -> Embeddings:
        return Embeddings(config, **options)

    def layer(self, config: EncoderConfig, kind: Any, **options: Any) -> Layer:
        del kind
        return Layer(config, **options)

    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        del config
        return WORDS, POSITIONS, TYPES, *EMBEDDINGS_NORM

    def layer_rules(self, config: EncoderConfig, i: int) -> tuple[Rule, ...]:
        del config
        return tuple(rule.of_layer(i) for rule in LAYER)

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        if form == "masked_lm":
            return HeadForm(MASKED_LM, activation=config.hidden_act, norm=True)
        if form == "token_classification":
            return HeadForm(CLASSIFIER, dense=False, dropout=config.head_dropout)
        if form == "span":
            return HeadForm(SPAN, dense=False)
        return HeadForm(POOLED, dropout=config.head_dropout)


FAMILY = Bert()
