"""CamemBERT: Martin et al., "CamemBERT: a Tasty French Language Model", ACL 2020.

RoBERTa, with a SentencePiece vocabulary of French.
"""

from __future__ import annotations

from kinject.models.families.roberta import Roberta


class Camembert(Roberta):
    """CamemBERT."""

    model_type = "camembert"
    class_name = "Camembert"


FAMILY = Camembert()
