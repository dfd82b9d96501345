"""Knowledge bases: what the world knows about entities, apart from any model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Entity", "KnowledgeBase"],
        "write": ["write_knowledge"],
        "build": ["build_knowledge"],
        "graph": ["GraphConfig", "GraphResult", "train_graph"],
        "ranking": ["filtered_ranking"],
    },
)
