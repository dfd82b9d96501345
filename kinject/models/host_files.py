"""The weights of a host as people have them: under a wrapper's names, or with a PEFT adapter beside them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kinject.errors import InputError
from kinject.hf_folder import ADAPTER_CONFIG, CONFIG, TOKENIZER, TOKENIZER_CONFIG
from kinject.json_file import read_object
from kinject.models.hf_tensors import Tensors, open_file, open_tensors
from kinject.models.pooling import MODULES, read_modules

MERGE = "save what merge_and_unload() gives, and name that folder"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPED = re.compile(r"^(module\.)+|(?<![^.])_orig_mod\.")  # torch's DataParallel, and torch.compile
_LIGHTNING = "model."
_ADAPTED = re.compile(r"(^|\.)(adapters?|adapter_(up|down|fusion\w*)|lora_\w+|ia3_l|prefix_tunings?|prompt_\w+)(\.|$)")
_PEFT = "base_model.model."
_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
Reader = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class HostFiles:
    """Where the parts of a host are.

    Attributes:
      model: the folder with config.json and weights.
      tokenizer: the folder with the tokenizer.
      adapter: the folder with a PEFT adapter of the model, None where there is none.
      named: the folder that was named: where the modules of sentence-transformers lie, if any.
    """

    model: Path
    tokenizer: Path
    adapter: Path | None
    named: Path

    @property
    def architecture(self) -> str | None:
        """The end of the class that an adapter was trained for, such as ForTokenClassification; None where unsaid."""
        said = None if self.adapter is None else read_object(self.adapter / ADAPTER_CONFIG).get("task_type")
        return _TASKS.get(str(said))


def host_files(folder: Path) -> HostFiles:
    """Finds the model, the tokenizer and the adapter of a host's folder.

    Raises:
      InputError: an adapter alone, whose base is neither a folder nor in the hub's cache.
    """
    named = folder
    if not (folder / CONFIG).is_file() and (folder / MODULES).is_file():
        # as sentence-transformers once laid out its folders
        places = [place for kind, place in read_modules(folder) if kind == "Transformer"]
        folder = next((place for place in places if (place / CONFIG).is_file()), folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        return HostFiles(folder, folder, None, named)
    if (folder / CONFIG).is_file():
        return HostFiles(folder, folder, folder, named)
    base = _base(folder)
    own = any((folder / name).is_file() for name in (TOKENIZER, TOKENIZER_CONFIG))
    return HostFiles(base, folder if own else base, folder, named)


def _base(folder: Path) -> Path:
    path = folder / ADAPTER_CONFIG
    name = read_object(path, "get the file again").get("base_model_name_or_path")
    for place in (Path(str(name)).expanduser(), folder / str(name), folder.parent / str(name)):
        if name and place.is_dir() and (place / CONFIG).is_file():
            return place
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(name), local_files_only=True))
    except Exception as error:  # the hub's errors have no common class
        problem = f"is a PEFT adapter, and its base {name!r} is neither a folder nor in the hub's cache"
        raise InputError(path, problem, f"put the base's files beside it, or {MERGE}") from error


def open_weights(files: HostFiles) -> Tensors:
    """Opens the weights of a host under the names that transformers gives them, an adapter merged into them.

    Raises:
      InputError: see `open_tensors`; weights of adapters that are not merged, a PEFT adapter other than LoRA, or one of
        another model.
    """
    found = _unwrapped(open_tensors(files.model))
    adapted = next((key for key in found if _ADAPTED.search(key)), None)
    if adapted is not None:
        problem = f"has adapters, such as {adapted}, which change what the model computes and are not computed here"
        raise InputError(found.path, problem, "where they can be merged into its weights, " + MERGE)
    return found if files.adapter is None else _merged(found, files.adapter)


def _unwrapped(tensors: Tensors) -> Tensors:
    """The same under the names that they had before torch or Lightning wrapped the model."""
    names = {key: _WRAPPED.sub("", key) for key in tensors}
    while names and all(name.startswith(_LIGHTNING) for name in names.values()):
        names = {key: name.removeprefix(_LIGHTNING) for key, name in names.items()}
    if all(key == name for key, name in names.items()):
        return tensors
    readers: dict[str, Reader] = {}
    for key, name in names.items():
        if name in readers:
            raise InputError(tensors.path, f"has {name} twice, bare and under a wrapper's name", "remove one of them")
        readers[name] = partial(tensors.__getitem__, key)
    return Tensors(tensors.path, readers)


def _merged(base: Tensors, folder: Path) -> Tensors:
    """The base's tensors with a LoRA added to them, and with what the adapter has whole in the place of the base's."""
    path = folder / ADAPTER_CONFIG
    settings = read_object(path, "get the file again")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError(path, f"peft_type is {kind!r}, and only LORA is merged on reading", MERGE)
    adapter = _open_adapter(folder)
    loras: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in adapter:
        if ".original_module." in key:  # what stood where the adapter has a module of its own
            continue
        name = key.removeprefix(_PEFT).replace(".modules_to_save.", ".").replace(".base_layer.", ".")
        module, found, part = re.sub(r"\.default(?=\.|$)", "", name).partition(".lora_")
        if found:
            loras.setdefault(module, {})[part.removesuffix(".weight")] = key
        else:
            whole[name] = key
    readers: dict[str, Reader] = {key: partial(base.__getitem__, key) for key in base}
    for name, key in whole.items():
        readers[_named(name, base) or name] = partial(adapter.__getitem__, key)
    for module, parts in loras.items():
        adapted = _named(f"{module}.weight", base)
        if adapted is None:
            raise InputError(adapter.path, f"adapts {module}, which the model does not have", "take its own base")
        lora = _lora(adapter, parts, _scaling(settings, module), path)
        readers[adapted] = partial(_add, readers[adapted], lora, adapter.path, adapted)
    return Tensors(base.path, readers)


def _open_adapter(folder: Path) -> Tensors:
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return open_file(folder / name)
    raise InputError(folder, f"has {ADAPTER_CONFIG} and no weights of it", f"put {ADAPTER_FILES[0]} there")


def _named(name: str, base: Tensors) -> str | None:
    """The base's name of a tensor, where one of the two may or may not name the encoder at its beginning."""
    if name in base:
        return name
    near = [key for key in base if key.endswith(f".{name}") or name.endswith(f".{key}")]
    return near[0] if len(near) == 1 else None


def _scaling(settings: Mapping[str, Any], module: str) -> float:
    def value(name: str, pattern: str) -> float:
        for wanted, special in (settings.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({wanted})$", module):
                return float(special)
        return float(settings[name])

    rank = value("r", "rank_pattern")
    return value("lora_alpha", "alpha_pattern") / (math.sqrt(rank) if settings.get("use_rslora") else rank)


Change = Callable[[np.ndarray], np.ndarray]


def _lora(adapter: Tensors, parts: Mapping[str, str], scaling: float, path: Path) -> Change:
    """What one LoRA does to a weight [out, in]: W + B A s, of DoRA scaled row by row to the lengths that it learnt."""
    names = {"A", "B"} if "A" in parts else {"embedding_A", "embedding_B"}
    if not names <= parts.keys() <= names | {"magnitude_vector"}:
        raise InputError(path, f"has {', '.join(sorted(parts))} of a LoRA, which is not merged on reading", MERGE)

    def change(weight: np.ndarray) -> np.ndarray:
        low, high = (np.asarray(adapter[parts[name]], np.float32) for name in sorted(names))
        delta = (high @ low) * np.float32(scaling)
        changed = weight.astype(np.float32) + (delta if "A" in parts else delta.T)
        if "magnitude_vector" in parts:
            length = np.asarray(adapter[parts["magnitude_vector"]], np.float32).reshape(-1, 1)
            changed *= length / np.linalg.norm(changed, axis=1, keepdims=True)
        return changed.astype(weight.dtype)

    return change


def _add(weight: Reader, lora: Change, path: Path, name: str) -> np.ndarray:
    try:
        return lora(weight())
    except ValueError as error:
        raise InputError(
            path, f"its LoRA does not have the shape of {name}", "take the base it was made for"
        ) from error
