"""The tasks that come along; importing them registers them."""

from kinject.tasks import cloze, description_matching, mention_masked_lm

__all__ = ["cloze", "description_matching", "mention_masked_lm"]
