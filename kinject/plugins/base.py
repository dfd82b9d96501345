"""Registered plugins: the names by which methods are found, and plugins made from settings.

A plugin is one file in this folder, called like the plugin, whose class is decorated with `@register(name)`. A third
party's plugin lives in its own distribution, which declares the entry point group `kinject.plugins`
(`my_plugin = "my_package.my_module"`, under the name it registers); the module is imported when that name is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from inspect import signature
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from kinject.config import build_dataclass
from kinject.errors import InputError, did_you_mean
from kinject.models.seams import Plugin, Table

__all__ = [
    "Plugin",
    "Table",
    "fill_slots",
    "make_plugin",
    "method_without_parameters",
    "plugin_class",
    "plugin_names",
    "read_method",
    "register",
]

ENTRY_POINT_GROUP = "kinject.plugins"
_REGISTERED: dict[str, type[Plugin]] = {}
P = TypeVar("P", bound=type[Plugin])


def register(name: str) -> Callable[[P], P]:
    """Class decorator that makes a plugin known by `name`.

    Raises:
      ValueError: the name is another class's, `Config` is no frozen dataclass, or `from_parts` has its former name.
    """

    def decorate(cls: P) -> P:
        taken = _REGISTERED.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"plugin name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        params: Any = getattr(cls.Config, "__dataclass_params__", None)
        if params is None or not params.frozen:
            above = "write @dataclass(frozen=True) above it"
            raise ValueError(f"{cls.__qualname__}.Config must be a frozen dataclass: {above}")
        if hasattr(cls, "made_of"):  # nothing calls it any more: the method would be made by what it inherits
            raise ValueError(f"{cls.__qualname__}.made_of: the method is called from_parts now")
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return decorate


def plugin_class(name: str) -> type[Plugin]:
    """Returns the plugin registered as `name`, importing the module that brings it.

    Raises:
      InputError: nobody registers that name, or the file of that name registers another.
    """
    ours = f"{_package()}.{name}"
    if name not in _REGISTERED and name in _our_modules():
        importlib.import_module(ours)
    if name not in _REGISTERED:
        for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
            entry.load()
    others = [other for other, cls in _REGISTERED.items() if cls.__module__ == ours]
    if name not in _REGISTERED and others:
        raise InputError(
            "plugin", f"{name}.py registers {others[0]!r}", f'rename the file, or write @register("{name}") there'
        )
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


def fill_slots(embeddings: jax.Array, batch: Mapping[str, Any], vectors: jax.Array) -> jax.Array:
    """Word embeddings [B, L, E] with vectors [B, M, E] of the batch's entities in their slots, `entity_slot` [B, L]."""
    slot = batch["entity_slot"]
    here = jnp.take_along_axis(vectors, jnp.maximum(slot, 0)[:, :, None], axis=1)
    return jnp.where((slot >= 0)[:, :, None], here.astype(embeddings.dtype), embeddings)


def make_plugin(
    settings: Mapping[str, Any],
    *,
    hidden_size: int,
    knowledge_dim: int,
    embedding_size: int | None = None,
    seed: int = 0,
    where: str = "method",
) -> Plugin:
    """Makes a fresh plugin from `{"name": registered name, **fields of its Config}`.

    Args:
      settings: the method and its settings.
      hidden_size: D of the host.
      knowledge_dim: k of the knowledge base.
      embedding_size: E of the host's word embeddings, None = D.
      seed: of fresh parameters.
      where: what to call the settings in errors.

    Raises:
      InputError: an unknown method, an unknown field, a value of the wrong type, or a method that changes word
        embeddings and cannot be built for an E that is not D.
    """
    cls, config = read_method(settings, where)
    sizes = {"hidden_size": hidden_size, "knowledge_dim": knowledge_dim}
    if embedding_size is not None and embedding_size != hidden_size:
        taken = signature(cls.__init__).parameters.values()
        if any(each.name == "embedding_size" or each.kind is each.VAR_KEYWORD for each in taken):
            sizes["embedding_size"] = embedding_size
        elif cls.embed is not Plugin.embed:
            problem = f"{cls.name} knows no host whose word embeddings ({embedding_size}) are not of its hidden size"
            raise InputError(where, f"{problem} ({hidden_size})", "let its __init__ take embedding_size")
    return cls(config, **sizes, rngs=nnx.Rngs(seed))


def method_without_parameters(settings: Mapping[str, Any], *, hidden_size: int, where: str) -> Plugin:
    """Makes a plugin that nothing trains, from its settings alone: there is no folder to keep it in.

    Raises:
      InputError: as `make_plugin`; a method that has parameters.
    """
    plugin = make_plugin(settings, hidden_size=hidden_size, knowledge_dim=1, where=where)  # a map of 0 numbers is none
    if jax.tree.leaves(nnx.state(plugin, nnx.Param)):
        raise InputError(where, f"{plugin.name} has parameters", "train it in a stage plugin, and name its folder")
    return plugin


def read_method(settings: Mapping[str, Any], where: str = "method") -> tuple[type[Plugin], Any]:
    """The class and the checked Config of `{"name": registered name, **fields of its Config}`.

    Raises:
      InputError: as `make_plugin`.
    """
    settings = dict(settings)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{where}.name", "it is missing", "name a method, such as map_tuning")
    try:
        cls = plugin_class(name)
    except InputError as error:
        raise InputError(f"{where}.name", error.problem, error.hint) from None
    return cls, build_dataclass(cls.Config, settings, where)
