"""Tasks: what an example looks like, its loss and its metric."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Task", "make_task", "register_task"],
    },
)
