"""The tasks that come along; importing them registers them."""

from kinject.tasks import (
    cloze,
    dependency_heads,
    description_matching,
    entity_questions,
    entity_typing,
    few_shot_relations,
    lama,
    marker_entity_typing,
    marker_relations,
    masked_lm,
    mention_masked_lm,
    multiple_choice,
    relation_classification,
    sequence_classification,
    span_extraction,
    token_classification,
)

__all__ = [
    "cloze",
    "dependency_heads",
    "description_matching",
    "entity_questions",
    "entity_typing",
    "few_shot_relations",
    "lama",
    "marker_entity_typing",
    "marker_relations",
    "masked_lm",
    "mention_masked_lm",
    "multiple_choice",
    "relation_classification",
    "sequence_classification",
    "span_extraction",
    "token_classification",
]
