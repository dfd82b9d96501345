"""Knowledge bases: what the world knows about entities, apart from any model."""

from kinject.knowledge.base import Entity, KnowledgeBase, write_knowledge

__all__ = ["Entity", "KnowledgeBase", "write_knowledge"]
