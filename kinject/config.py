"""Config files: Python with a `get_config(arg)`, overrides from the command line, and a strict schema.

`--config configs/x.py:arg` calls `get_config("arg")`, which returns a nested dict. `--config.a.b=value` replaces one
entry; the value is read as a Python literal, or else as a string. What the dict may hold is declared by `Section`
classes; an unknown key, a wrong type or a value out of range is one line that names the key.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from kinject.errors import InputError, did_you_mean, first_line


class Section(BaseModel):
    """A part of a config: typed, immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


AnySection = TypeVar("AnySection", bound=Section)
AnyConfig = TypeVar("AnyConfig", bound="Dataclass")


class Dataclass(Protocol):
    """Any instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def read_config(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads `file.py[:arg]`, or `name[:arg]` of a config that comes along, and applies `a.b=value` overrides.

    Raises:
      InputError: no such file or name, no `get_config`, an argument that the file refuses, an override without `=` or
        of a place that does not exist.
    """
    file, _, arg = spec.partition(":")
    path = config_file(file, spec)
    module_spec = importlib.util.spec_from_file_location(f"kinject_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--config {spec}", "not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent.absolute()))  # a config may import its neighbours, as a script may
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{file}:{error.lineno}", f"not valid Python: {error.msg}") from None
    except Exception as error:  # whatever the user's own file does
        raise _in_file(error, path) from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    if not hasattr(module, "get_config"):
        raise InputError(file, "it has no get_config() function")
    try:
        config = module.get_config(arg) if arg else module.get_config()
    except (ValueError, TypeError) as error:
        raise InputError(f"--config {spec}", first_line(error)) from None
    except Exception as error:
        raise _in_file(error, path) from error
    if not isinstance(config, dict):
        raise InputError(file, f"get_config() returned {type(config).__name__}, not a dict")
    for override in overrides:
        apply_override(config, override)
    return config


def ready_made() -> dict[str, Path]:
    """The configs that come along, by name: of the installed package, or of the clone that it runs from."""
    package = Path(__file__).parent
    folder = next((one for one in (package / "configs", package.parent / "configs") if one.is_dir()), package)
    found = sorted(path for path in folder.rglob("*.py") if "def get_config" in path.read_text(encoding="utf-8"))
    return {str(path.relative_to(folder).with_suffix("")): path for path in found}


def config_file(file: str, spec: str) -> Path:
    """The file of a config by its path, or by the name of one that comes along.

    Raises:
      InputError: there is neither.
    """
    path = Path(file)
    if path.is_file():
        return path
    known = ready_made()
    if file in known:
        return known[file]
    if path.suffix or not file:
        problem = f"there is no file {file}"
        raise InputError(f"--config {spec}", problem, "those that come along go by their names, such as own:FOLDER")
    raise InputError(f"--config {spec}", f"no config of that name comes along: {file}", did_you_mean(file, known))


def _in_file(error: Exception, path: Path) -> InputError:
    """What the user's own file raised, and in which of its lines."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else path
    return InputError(where, f"{type(error).__name__}: {first_line(error)}", "mend the file")


def apply_override(config: dict[str, Any], override: str) -> None:
    """Sets one entry, `a.b.c=value`, of a nested dict in place. The parents must exist; the schema judges the leaf."""
    place, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"--config.{override}", "it has no value", f"write --config.{override}=VALUE")
    *parents, leaf = place.split(".")
    node: Any = config
    for depth, part in enumerate(parents):
        if not isinstance(node, dict) or part not in node:
            here = ".".join(parents[:depth]) or "the config"
            known = node if isinstance(node, dict) else ()
            meant = _nearest_place(place, config) or did_you_mean(part, known)
            raise InputError(f"--config.{place}", f"{here} has no entry {part!r}", meant)
        node = node[part]
    if not isinstance(node, dict):
        raise InputError(f"--config.{place}", f"{'.'.join(parents)} is a value, not a section")
    node[leaf] = value_of(text)


def value_of(text: str) -> Any:
    """What stands on a command line, as a Python literal, or else as the text that it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _nearest_place(asked: str, config: Mapping[str, Any]) -> str:
    """'did you mean a.b.c?' for the entry of a config that ends as what was asked for, or is spelt nearly so."""
    places = list(_places(config))
    found = [place for place in places if place.endswith(f".{asked}")]
    found = found or difflib.get_close_matches(asked, places, n=1, cutoff=0.8)
    return f"did you mean {found[0]}?" if found else ""


def _places(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in config.items():
        place = f"{above}{key}"
        yield place
        if isinstance(value, Mapping):
            yield from _places(value, f"{place}.")


def build(section: type[AnySection], values: Mapping[str, Any], where: str) -> AnySection:
    """Makes a `Section` from a dict, strictly.

    Raises:
      InputError: names the first key at fault, with the nearest known one when it is unknown.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])]) if where else ".".join(map(str, first["loc"]))
        key = str(first["loc"][-1]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = known_keys(section, first["loc"])
            inside = [f"{name}.{key}" for name in known if key in known_keys(section, (*first["loc"][:-1], name, key))]
            meant = f"did you mean {inside[0]}?" if inside else did_you_mean(key, known)
            raise InputError(place, f"unknown key {key}", meant) from None
        if first["type"] == "missing":
            raise InputError(place, "it is missing") from None
        raise InputError(place, _problem(first), _nearest(first)) from None


def _problem(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, and the value, unless that is a whole section."""
    if error["type"] == "value_error":
        problem = str(error["ctx"]["error"])
    else:
        problem = error["msg"][0].lower() + error["msg"][1:]
    if isinstance(error.get("input"), Mapping):
        return problem
    given = repr(error.get("input"))
    return f"{problem}, got {given if len(given) <= 60 else given[:57] + '...'}"


def _nearest(error: Mapping[str, Any]) -> str:
    """'did you mean x?' where one of some words was asked for and the one given is near to it; else nothing."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    words = re.findall(r"'([^']*)'", error["ctx"]["expected"])
    near = difflib.get_close_matches(error["input"], words, n=1)
    return f"did you mean {near[0]}?" if near else ""


def build_dataclass(cls: type[AnyConfig], values: Mapping[str, Any], where: str) -> AnyConfig:
    """Makes a plain dataclass (a method's own Config, which need not know this file) from a dict, strictly.

    Values are checked as JSON's: a list is a tuple, and an int is a float, but "4", 4.0 and True are no int.
    """
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in fields:
            raise InputError(f"{where}.{key}", f"unknown key {key}", did_you_mean(key, fields))
    text = ", ".join(f"{json.dumps(key)}: {_as_json(value, f'{where}.{key}')}" for key, value in values.items())
    try:
        return TypeAdapter(cls).validate_json(f"{{{text}}}", strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        mend = "write True or False" if first["type"] == "bool_type" else ""
        raise InputError(".".join([where, *map(str, first["loc"])]), _problem(first), mend) from None


def _as_json(value: Any, where: str) -> str:
    """A value as JSON, also one of numpy's; raises InputError for anything else that JSON does not have."""

    def plain(one: Any) -> Any:
        if hasattr(one, "tolist"):
            return one.tolist()
        if dataclasses.is_dataclass(one) and not isinstance(one, type):
            return dataclasses.asdict(one)
        raise TypeError(f"it is of type {type(one).__name__}")

    try:
        return json.dumps(value, default=plain)
    except (TypeError, ValueError) as error:
        raise InputError(where, first_line(error), "give numbers, words, and lists of them") from None


def known_keys(section: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The field names of the (nested) section in which the key at `location` stands."""
    for part in location[:-1]:
        field = section.__pydantic_fields__.get(str(part))
        if field is None:
            continue
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]
        if nested:
            section = nested[0]
    return list(section.__pydantic_fields__)
