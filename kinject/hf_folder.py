"""A folder in Hugging Face's form, as `transformers` reads it: `AutoConfig` and `AutoTokenizer` decide what is in it.

transformers is imported here and nowhere else, where a host is opened. Left to itself it would import torch wherever
torch is installed, a second and 200 MB for nothing. So it is imported as if there were none, which it supports, and
put out of sight again afterwards: whoever imports transformers later gets a copy of his own, with torch. A transformers
that has been imported before is used as it is. Nothing is fetched, and nothing that it says is printed.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from kinject.errors import InputError, first_line
from kinject.json_file import read_object

CONFIG, TOKENIZER_CONFIG, ADAPTER_CONFIG = "config.json", "tokenizer_config.json", "adapter_config.json"
NAME = "transformers"
TOKENIZER = "tokenizer.json"
GET_AGAIN = "get the file again"
OFFLINE = {"local_files_only": True, "trust_remote_code": False}

_lock = threading.RLock()
_own: dict[str, ModuleType] = {}  # the modules of the transformers that was imported without torch


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's model, those that its config.json leaves out filled in as transformers does.

    Args:
      folder: with a config.json.

    Returns:
      `to_dict()` of the config object; `id2label` has int keys, as many as the model has labels.

    Raises:
      InputError: no config.json, one that is no JSON object, names no `model_type` or one that transformers does not
        know, asks for code of its own (`auto_map`), or has values that transformers refuses.
    """
    path = folder / CONFIG
    stated = stated_config(folder)
    _refuse_code(stated, path)
    with _transformers() as library:
        try:
            return library.AutoConfig.from_pretrained(folder, **OFFLINE).to_dict()
        except Exception as error:  # validators raise classes of their own, of which each library has another
            raise InputError(path, f"transformers refuses it: {_told(error)}", GET_AGAIN) from error


def stated_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json itself says.

    Raises:
      InputError: it is missing, no JSON object, or does not say of what type the model is.
    """
    path = folder / CONFIG
    if not path.is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            problem = f"is a PEFT adapter ({ADAPTER_CONFIG}) without the model that it adapts"
            raise InputError(folder, problem, "put that model's files beside it, or save what merge_and_unload() gives")
        raise InputError(path, "is missing", "give a folder in Hugging Face's form")
    stated = read_object(path, GET_AGAIN)
    if not isinstance(stated.get("model_type"), str):
        raise InputError(path, f"model_type is {stated.get('model_type')!r}", _type_wanted(stated))
    return stated


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, a `transformers.PreTrainedTokenizerFast`.

    Raises:
      InputError: no tokenizer, one that transformers cannot read, that asks for code of its own (`auto_map`), or that
        is written in Python, which does not tell which characters a piece stands for.
    """
    path = folder / TOKENIZER_CONFIG
    settings = read_object(path, GET_AGAIN) if path.is_file() else {}
    _refuse_code(settings, path)
    named = str(settings.get("tokenizer_class"))
    with _transformers() as library:
        try:
            found = library.AutoTokenizer.from_pretrained(folder, **OFFLINE)
        except Exception as error:  # the Rust library raises bare Exception for whatever is wrong with a file
            known = getattr(library, named, None)
            if known is not None and not issubclass(known, library.PreTrainedTokenizerFast):
                raise _in_python(named, path) from error
            raise InputError(folder, f"transformers reads no tokenizer there: {_told(error)}", _mend(folder)) from error
    if not found.is_fast:
        raise _in_python(type(found).__name__, path)
    return found


def _mend(folder: Path) -> str:
    """What helps where a tokenizer cannot be read: of SentencePiece's own file alone transformers needs its library."""
    if (folder / TOKENIZER).is_file() or not any(folder.glob("*.model")):
        return GET_AGAIN
    return f"pip install sentencepiece protobuf, or save it once with transformers, which writes {TOKENIZER}"


def _in_python(kind: str, path: Path) -> InputError:
    problem = f"tokenizer_class {kind} is written in Python and tells of no piece which characters it stands for"
    return InputError(path, problem, "only tokenizers of the library `tokenizers` are computed here")


def _refuse_code(settings: Mapping[str, Any], path: Path) -> None:
    if settings.get("auto_map"):
        problem = "auto_map asks for code that came with the model, and none is executed"
        raise InputError(path, problem, "give a model whose classes are transformers' own")


def _type_wanted(stated: Mapping[str, Any]) -> str:
    named = stated.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    family = first.partition("For")[0].removesuffix("Model").lower()
    if not family:
        return 'add it, such as "model_type": "bert"'
    return f'add "model_type": "{family}", as architectures names {first}'


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or first_line(error)


@contextmanager
def _transformers() -> Iterator[Any]:
    """transformers, silent; without torch, and in nobody else's sight, unless somebody imported it before."""
    with _lock, ExitStack() as after:
        after.enter_context(_silent())
        after.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if NAME not in sys.modules:
            after.enter_context(_without_torch())
            after.enter_context(_without_collection())
        yield importlib.import_module(NAME)


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection: of what imports make there is nothing to collect, and looking for it takes a tenth."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@contextmanager
def _without_torch() -> Iterator[None]:
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # the import system's own word for "there is none"
    sys.modules.update(_own)
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]
        for name in [name for name in list(sys.modules) if name == NAME or name.startswith(f"{NAME}.")]:
            _own[name] = sys.modules.pop(name)


@contextmanager
def _silent() -> Iterator[None]:
    """Its logger as it was before, handlers too: a second copy would add its own and say everything twice."""
    logger, asked = logging.getLogger(NAME), os.environ.get("TRANSFORMERS_VERBOSITY")
    before = logger.level, logger.propagate, list(logger.handlers)
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"  # read as it is imported
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.level, logger.propagate, logger.handlers = before
        logger.setLevel(before[0])
        if asked is None:
            del os.environ["TRANSFORMERS_VERBOSITY"]
        else:
            os.environ["TRANSFORMERS_VERBOSITY"] = asked
