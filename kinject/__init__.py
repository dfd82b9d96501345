"""kinject: knowledge plugins for frozen language models, in JAX.

host = kinject.Host.load("my/classifier")
base = kinject.KnowledgeBase.open("my/knowledge")
plugin = kinject.tune(host, base, records)
print(plugin.evaluate(host, base, test_records))
print(host.plug(plugin).predict("Please call Zisolrik back.").label)

Each name is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kinject.errors import InputError

if TYPE_CHECKING:
    from kinject.api import average, tune
    from kinject.knowledge import KnowledgeBase
    from kinject.serving import Evaluation, Host, Plugin, Prediction

from kinject.version import __version__

__all__ = [
    "Evaluation",
    "Host",
    "InputError",
    "KnowledgeBase",
    "Plugin",
    "Prediction",
    "__version__",
    "average",
    "tune",
]
_HOMES = {"average": "kinject.api", "tune": "kinject.api", "KnowledgeBase": "kinject.knowledge"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "kinject.serving")), name)
    raise AttributeError(f"module 'kinject' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
