"""The three seams a knowledge plugin may touch, each the identity, and the names plugins are found by.

A plugin is one file in this folder, called like the plugin, whose class is decorated with `@register(name)`. A third
party's plugin lives in its own distribution, which declares the entry point group `kinject.plugins`
(`my_plugin = "my_package.my_module"`, under the name it registers); the module is imported when that name is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

from kinject.errors import InputError, did_you_mean
from kinject.models.seams import Plugin, Table  # noqa: F401  # Table is public here

if TYPE_CHECKING:
    pass

ENTRY_POINT_GROUP = "kinject.plugins"


_REGISTERED: dict[str, type[Plugin]] = {}
P = TypeVar("P", bound=type[Plugin])


def register(name: str) -> Callable[[P], P]:
    """Class decorator that makes a plugin known by `name`.

    Raises:
      ValueError: the name is another class's, or `Config` is no frozen dataclass.
    """

    def decorate(cls: P) -> P:
        taken = _REGISTERED.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"plugin name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        if not (dataclasses.is_dataclass(cls.Config) and cls.Config.__dataclass_params__.frozen):
            raise ValueError(f"{cls.__qualname__}.Config must be a frozen dataclass")
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return decorate


def plugin_class(name: str) -> type[Plugin]:
    """Returns the plugin registered as `name`, importing the module that brings it.

    Raises:
      InputError: nobody registers that name.
    """
    if name not in _REGISTERED and name in _our_modules():
        importlib.import_module(f"{_package()}.{name}")
    if name not in _REGISTERED:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            entry.load()
    if name not in _REGISTERED:
        raise InputError("plugin", f"there is no plugin called {name!r}", did_you_mean(name, plugin_names()))
    return _REGISTERED[name]


def plugin_names() -> list[str]:
    """Returns every name that can be asked for, sorted. Imports our plugins; of third parties' it reads the names."""
    for module in _our_modules():
        importlib.import_module(f"{_package()}.{module}")
    return sorted(_REGISTERED.keys() | {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})


def _package() -> str:
    return __name__.rpartition(".")[0]


def _our_modules() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(sys.modules[_package()].__path__)]
