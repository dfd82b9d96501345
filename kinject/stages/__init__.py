"""The stages that a config can name, one file a kind, and what runs them in a workdir."""

from typing import Any

import lazy_loader

_own, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"base": ["Stage", "StageConfig"], "experiment": ["Experiment"]},
)
FROM_INFERENCE = {name: name for name in ("PassageEncoder", "attach", "knowledge_identity", "open_host", "sync")}
FROM_INFERENCE |= {"ReadyHost": "HostBundle"}
__all__ += list(FROM_INFERENCE)  # where they were public first


def __getattr__(name: str) -> Any:
    import kinject.inference

    return getattr(kinject.inference, FROM_INFERENCE[name]) if name in FROM_INFERENCE else _own(name)
