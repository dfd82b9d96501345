"""XLM-RoBERTa: Conneau et al., "Unsupervised Cross-lingual Representation Learning at Scale", ACL 2020.

RoBERTa, with a SentencePiece vocabulary of a hundred languages.
"""

from __future__ import annotations

from kinject.models.families.roberta import Roberta


class XLMRoberta(Roberta):
    """XLM-RoBERTa."""

    model_type = "xlm-roberta"
    class_name = "XLMRoberta"


FAMILY = XLMRoberta()
