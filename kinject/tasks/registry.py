"""The tasks that come along; importing them registers them."""

from kinject.tasks import (
    cloze,
    description_matching,
    entity_questions,
    entity_typing,
    few_shot_relations,
    mention_masked_lm,
    relation_classification,
)

__all__ = [
    "cloze",
    "description_matching",
    "entity_questions",
    "entity_typing",
    "few_shot_relations",
    "mention_masked_lm",
    "relation_classification",
]
