"""kinject: knowledge plugins for frozen language models, in JAX.

`Host` and `Plugin` answer texts with knowledge plugged in (kinject/serving); they are imported when they are asked for.
"""

from typing import TYPE_CHECKING, Any

from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.serving import Host, Plugin, Prediction

from kinject.version import __version__

__all__ = ["Host", "InputError", "Plugin", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import kinject.serving

        return getattr(kinject.serving, name)
    raise AttributeError(f"module 'kinject' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
