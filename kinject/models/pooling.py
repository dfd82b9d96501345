"""How one vector of a text is made, as a folder of sentence-transformers says it: its modules, read and written.

`modules.json` names the parts in their order. Of these a Transformer, a Pooling (mean or CLS) and a Normalize are
computed here; anything else, or a setting that would change what a text gives, is refused in a line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kinject.errors import InputError
from kinject.json_file import read_object, read_value, write_object

MODULES = "modules.json"
GET_AGAIN = "get the file again"
Mode = Literal["mean", "cls"]
_MODES = {  # what older versions wrote, one flag a mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_NORMALIZE, _POOLING = "2_Normalize", "1_Pooling"


@dataclass(frozen=True)
class Pooling:
    """What is made of a text's hidden states; the defaults are what sentence-transformers makes of a bare encoder.

    Attributes:
      mode: the mean over all positions of the text, special tokens and slots among them, or the first position's.
      normalize: whether the vector gets the length 1.
      max_length: tokens of a text that are read; None = as many as the encoder has positions for.
    """

    mode: Mode = "mean"
    normalize: bool = False
    max_length: int | None = None


def read_modules(folder: Path) -> list[tuple[str, Path]]:
    """The modules of a folder in their order: (the last word of the type, the module's own folder).

    Raises:
      InputError: no list of objects with `type` and `path`, or a path that leads out of the folder.
    """
    file = folder / MODULES
    stated = read_value(file, GET_AGAIN)
    found = []
    for one in stated if isinstance(stated, list) else [None]:
        kind, path = (one.get("type"), one.get("path")) if isinstance(one, Mapping) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise InputError(file, "is no list of modules, each with type and path", GET_AGAIN)
        if path and Path(path).name != path:
            raise InputError(file, f"path {path!r} is not a folder beside it", GET_AGAIN)
        found.append((kind.rpartition(".")[2], folder / path))
    return found


def pools(folder: Path) -> bool:
    """Whether the folder is one of sentence-transformers that makes a vector of a text."""
    return (folder / MODULES).is_file() and any(kind == "Pooling" for kind, _ in read_modules(folder))


def read_pooling(folder: Path, hidden_size: int) -> Pooling:
    """What the modules of a folder make of hidden states.

    Args:
      folder: with `modules.json`; without, it is a bare encoder.
      hidden_size: D of the encoder.

    Raises:
      InputError: a module, a way of pooling or a setting of texts that is not computed here.
    """
    if not (folder / MODULES).is_file():
        return Pooling()
    modules = read_modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        problem = f"its modules are {', '.join(kinds) or 'none'}"
        raise InputError(folder / MODULES, problem, "computed are a Transformer, a Pooling, and a Normalize or none")
    limit = _check_texts(folder, modules[0][1])
    return Pooling(_mode(modules[1][1] / "config.json", hidden_size), len(kinds) == 3, limit)


def _mode(path: Path, hidden_size: int) -> Mode:
    stated = read_object(path, GET_AGAIN)
    named = stated.get("pooling_mode")
    modes = [mode for flag, mode in _MODES.items() if stated.get(flag)] or ["mean"]
    if named is not None:
        modes = [str(mode) for mode in named] if isinstance(named, list) else [str(named)]
    if len(modes) != 1 or modes[0] not in get_args(Mode):
        raise InputError(path, f"it pools by {' and '.join(modes)}", "only mean and cls are computed here")
    size = stated.get("embedding_dimension", stated.get("word_embedding_dimension", hidden_size))
    if size != hidden_size:
        problem = f"word_embedding_dimension is {size}, and the encoder's hidden_size {hidden_size}"
        raise InputError(path, problem, "take both files of one model")
    mode: Mode = "cls" if modes[0] == "cls" else "mean"
    return mode


def _check_texts(folder: Path, transformer: Path) -> int | None:
    """How many tokens of a text are read; refuses what would change the text itself."""
    path = folder / "config_sentence_transformers.json"
    prompt = read_object(path, GET_AGAIN).get("default_prompt_name") if path.is_file() else None
    if prompt is not None:
        problem = f"default_prompt_name is {prompt!r}, which puts a prompt before every text"
        raise InputError(path, problem, "put it into the texts yourself, and take the entry out")
    limit = None
    for path in sorted(transformer.glob("sentence_*_config.json")):
        stated = read_object(path, GET_AGAIN)
        if stated.get("do_lower_case"):
            mend = "let the tokenizer do it (do_lower_case of tokenizer_config.json), and take the entry out"
            raise InputError(path, "do_lower_case is true, and texts are not changed before they are cut", mend)
        limit = stated.get("max_seq_length")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise InputError(path, f"max_seq_length is {limit!r}", "it must be a whole number from 1, or null")
    return limit


def write_pooling(folder: Path, pooling: Pooling, hidden_size: int) -> None:
    """Writes a folder's modules as sentence-transformers reads them; the encoder lies in the folder itself."""
    parts: Sequence[tuple[str, str]] = [("Transformer", ""), ("Pooling", _POOLING)]
    parts = [*parts, ("Normalize", _NORMALIZE)] if pooling.normalize else parts
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(parts)
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    flags = {flag: mode == pooling.mode for flag, mode in _MODES.items()}
    (folder / _POOLING).mkdir()
    write_object(folder / _POOLING / "config.json", {"word_embedding_dimension": hidden_size, **flags})
    if pooling.normalize:
        (folder / _NORMALIZE).mkdir()
    limit = {"max_seq_length": pooling.max_length, "do_lower_case": False}
    write_object(folder / "sentence_bert_config.json", limit)
