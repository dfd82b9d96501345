"""What the user calls a host: a folder, a model on Hugging Face's hub, or a shape alone, `shape:bert-base`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kinject.errors import InputError, did_you_mean
from kinject.models.config import EncoderConfig
from kinject.models.manifest import read_json

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
TEXT_FILES = ["*.json", "*.txt"]


def host_folder(folder_or_id: str | os.PathLike[str]) -> Path:
    """Returns the folder of a host, downloading it into the hub's cache where an id is given.

    Raises:
      InputError: there is no such folder, and no such model can be had from the hub.
    """
    folder = Path(folder_or_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(folder_or_id)
    if folder.exists() or not isinstance(folder_or_id, str) or not MODEL_ID.fullmatch(name):
        raise InputError(name, "there is no such folder", "give a folder with config.json, or a hub id like owner/name")
    return _snapshot(name)


def _snapshot(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        mend = "install huggingface_hub, or give a folder"
        raise InputError(name, "is no folder, and huggingface_hub is not installed", mend) from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # hub, HTTP and cache errors have no common class
        mend = "check the name and the network, or give a folder"
        raise InputError(name, f"is no folder, and the hub did not give it ({_first_line(error)})", mend) from error
    return folder


SHAPE_MARK = "shape:"


def _bert(vocab_size: int, size: int, layers: int, heads: int) -> EncoderConfig:
    return EncoderConfig("bert", vocab_size, size, layers, heads, 4 * size)


def _roberta(size: int, layers: int, heads: int) -> EncoderConfig:
    return EncoderConfig(
        "roberta",
        50265,
        size,
        layers,
        heads,
        4 * size,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )


SHAPES: dict[str, EncoderConfig] = {
    "minilm-l6": _bert(30522, 384, 6, 12),
    "bert-base": _bert(30522, 768, 12, 12),
    "bert-base-uncased": _bert(30522, 768, 12, 12),
    "bert-base-cased": _bert(28996, 768, 12, 12),
    "bert-large": _bert(30522, 1024, 24, 16),
    "bert-large-uncased": _bert(30522, 1024, 24, 16),
    "bert-large-cased": _bert(28996, 1024, 24, 16),
    "roberta-base": _roberta(768, 12, 12),
    "roberta-large": _roberta(1024, 24, 16),
}
"""Encoders by the last part of their hub ids; sizes as Devlin et al. 2019, Liu et al. 2019 and Wang et al. 2020 say."""


def encoder_shape(reference: str | os.PathLike[str], where: object) -> EncoderConfig:
    """The shape of a host: of `shape:bert-base`, of a folder by its config.json, of a hub id, known ones offline.

    Raises:
      InputError: a name that is none of `SHAPES`, a folder without config.json, an id that the hub does not give.
    """
    name = str(reference)
    if name.startswith(SHAPE_MARK):
        known = name.removeprefix(SHAPE_MARK)
        if known not in SHAPES:
            raise InputError(where, f"there is no {name}", did_you_mean(known, SHAPES))
        return SHAPES[known]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return EncoderConfig.from_hf(read_json(folder / "config.json"), folder / "config.json")
    if name.rpartition("/")[2] in SHAPES and MODEL_ID.fullmatch(name):
        return SHAPES[name.rpartition("/")[2]]
    if not MODEL_ID.fullmatch(name):
        raise InputError(where, f"there is no {name}", "give a folder, a hub id, or shape:NAME such as shape:bert-base")
    return _from_hub(name, where)


def _from_hub(name: str, where: object) -> EncoderConfig:
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # hub, HTTP and cache errors have no common class
        mend = f"give a folder, or shape:NAME of {', '.join(SHAPES)}"
        raise InputError(
            where, f"the hub did not give the config.json of {name} ({_first_line(error)})", mend
        ) from error
    return EncoderConfig.from_hf(read_json(file), file)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
