"""The stages that a config can name, one file a kind, and what runs them in a workdir."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["ReadyHost", "Stage", "StageConfig", "knowledge_identity", "open_host"],
        "experiment": ["Experiment"],
        "passages": ["PassageEncoder", "attach", "sync"],
    },
)
