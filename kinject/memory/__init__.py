"""Passage memories: what they look like on disk, how they are edited, and how the nearest passages are found."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "store": ["Passage", "PassageMemory", "build_memory"],
        "index": ["MemoryIndex"],
        "search": ["sharded_top_k", "top_k"],
    },
)
