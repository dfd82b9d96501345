"""`kinject.stages.passages`: where code that edits a memory found these; they stand in inference/passages.py."""

from kinject.inference.passages import PassageEncoder, attach, sync

__all__ = ["PassageEncoder", "attach", "sync"]
