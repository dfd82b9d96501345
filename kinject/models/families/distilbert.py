"""DistilBERT: Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019.

BERT without token types and without dropout behind the attention, under other names. Its LayerNorms have an epsilon of
1e-12 whatever the config says; its classification head has a ReLU, and its span head drops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kinject.models.config import EncoderConfig
from kinject.models.families.bert import CLASSIFIER, EMBEDDINGS_NORM, POSITIONS, SPAN, WORDS, Bert
from kinject.models.family import FIELDS, Form, HeadForm, OwnFields
from kinject.models.kernels.elementwise import Dropout
from kinject.models.layers import Attention, Layer
from kinject.models.tensor_rules import Rule, attention, dense, norm

MASKED_LM = (
    *dense("vocab_transform", "head/transform"),
    *norm("vocab_layer_norm", "head/norm"),
    Rule("vocab_projector.bias", "head/bias"),
)
POOLED = (*dense("pre_classifier", "head/pooler"), *CLASSIFIER)
LAYER = (
    *attention(
        [f"transformer.layer.{{i}}.attention.{name}_lin" for name in "qkv"],
        "transformer.layer.{i}.attention.out_lin",
        "encoder/layers/{i}/attention",
    ),
    *norm("transformer.layer.{i}.sa_layer_norm", "encoder/layers/{i}/attention/norm"),
    *dense("transformer.layer.{i}.ffn.lin1", "encoder/layers/{i}/feed_forward/up"),
    *dense("transformer.layer.{i}.ffn.lin2", "encoder/layers/{i}/feed_forward/down"),
    *norm("transformer.layer.{i}.output_layer_norm", "encoder/layers/{i}/feed_forward/norm"),
)


@dataclass(frozen=True)
class DistilBertFields(OwnFields):
    """Dropout rates of two heads, and whether positions began as sines: they are a table in the checkpoint anyway."""

    sinusoidal_pos_embds: bool = False
    seq_classif_dropout: float = 0.2
    qa_dropout: float = 0.1


class DistilBertAttention(Attention):
    """BERT's, without dropout behind it."""

    def __init__(self, config: EncoderConfig, **options: Any):
        super().__init__(config, **options)
        self.dropout = Dropout(0.0)


class DistilBert(Bert):
    """DistilBERT."""

    model_type = "distilbert"
    prefix = "distilbert"
    class_name = "DistilBert"
    fields = tuple(name for name in FIELDS if name not in ("classifier_dropout", "type_vocab_size", "layer_norm_eps"))
    renamed = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }
    Own = DistilBertFields
    defaults = {"type_vocab_size": 0}
    tied = {"vocab_projector.weight": WORDS.key}
    other_heads = (
        r"(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier|qa_outputs)\.(weight|bias)"
    )

    def layer(self, config: EncoderConfig, kind: Any, **options: Any) -> Layer:
        return Layer(config, **options, attention=DistilBertAttention)

    def encoder_rules(self, config: EncoderConfig) -> tuple[Rule, ...]:
        return WORDS, POSITIONS, *EMBEDDINGS_NORM

    def layer_rules(self, config: EncoderConfig, i: int) -> tuple[Rule, ...]:
        return tuple(rule.of_layer(i) for rule in LAYER)

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        if form == "masked_lm":
            return HeadForm(MASKED_LM, activation=config.hidden_act, norm=True)
        if form == "token_classification":
            return HeadForm(CLASSIFIER, dense=False, dropout=config.hidden_dropout_prob)
        if form == "span":
            return HeadForm(SPAN, dense=False, dropout=config.own.qa_dropout)
        return HeadForm(POOLED, activation="relu", dropout=config.own.seq_classif_dropout)


FAMILY = DistilBert()
