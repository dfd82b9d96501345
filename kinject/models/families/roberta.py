"""RoBERTa: Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019.

As BERT, but positions begin after the padding id, there is one token type, and transformers' heads differ: that of
masked words always has the exact GELU, and that for classes drops before its dense layer too.
"""

from __future__ import annotations

from kinject.models.config import EncoderConfig
from kinject.models.families.bert import POOLED, WORDS, Bert
from kinject.models.family import Form, HeadForm
from kinject.models.tensor_rules import Rule, dense, norm

MASKED_LM = (
    *dense("lm_head.dense", "head/transform"),
    *norm("lm_head.layer_norm", "head/norm"),
    Rule("lm_head.bias", "head/bias"),
)
CLASSIFICATION = (*dense("classifier.dense", "head/pooler"), *dense("classifier.out_proj", "head/output"))


class Roberta(Bert):
    """RoBERTa."""

    model_type = "roberta"
    prefix = "roberta"
    class_name = "Roberta"
    defaults = {"pad_token_id": 1}
    tied = {"lm_head.decoder.weight": WORDS.key, "lm_head.decoder.bias": "lm_head.bias"}

    def position_offset(self, config: EncoderConfig) -> int:
        return config.pad_token_id + 1

    def head(self, form: Form, config: EncoderConfig) -> HeadForm:
        if form == "masked_lm":
            return HeadForm(MASKED_LM, activation="gelu", norm=True)
        if form == "pooled":
            return HeadForm(CLASSIFICATION, input_dropout=config.head_dropout, dropout=config.head_dropout)
        if form == "multiple_choice":  # pools as BERT does
            return HeadForm(POOLED, dropout=config.head_dropout)
        return super().head(form, config)


FAMILY = Roberta()
