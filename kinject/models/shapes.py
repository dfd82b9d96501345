"""Shapes of hosts: those of known models by name, such as `shape:bert-base`, and those of folders and hub ids."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from kinject.errors import InputError, did_you_mean, first_line
from kinject.hf_folder import read_config
from kinject.models.config import EncoderConfig

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
SHAPE_MARK = "shape:"


def _of(model_type: str, vocab_size: int, size: int, layers: int, heads: int, **values: Any) -> EncoderConfig:
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * size,
    }
    return EncoderConfig.from_hf({"model_type": model_type, **sizes, **values}, model_type)


def _roberta(model_type: str, vocab_size: int, size: int, layers: int, heads: int) -> EncoderConfig:
    values = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
    return _of(model_type, vocab_size, size, layers, heads, **values)


def _distilbert(vocab_size: int) -> EncoderConfig:
    values = {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072}
    return EncoderConfig.from_hf({"model_type": "distilbert", "vocab_size": vocab_size, **values}, "distilbert")


def _deberta(vocab_size: int, size: int, layers: int, heads: int, **more: Any) -> EncoderConfig:
    values = {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    values |= {"pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0}
    return _of("deberta-v2", vocab_size, size, layers, heads, **values, **more)


SHAPES: dict[str, EncoderConfig] = {
    "minilm-l6": _of("bert", 30522, 384, 6, 12),
    "bert-base": _of("bert", 30522, 768, 12, 12),
    "bert-base-uncased": _of("bert", 30522, 768, 12, 12),
    "bert-base-cased": _of("bert", 28996, 768, 12, 12),
    "bert-large": _of("bert", 30522, 1024, 24, 16),
    "bert-large-uncased": _of("bert", 30522, 1024, 24, 16),
    "bert-large-cased": _of("bert", 28996, 1024, 24, 16),
    "roberta-base": _roberta("roberta", 50265, 768, 12, 12),
    "roberta-large": _roberta("roberta", 50265, 1024, 24, 16),
    "xlm-roberta-base": _roberta("xlm-roberta", 250002, 768, 12, 12),
    "xlm-roberta-large": _roberta("xlm-roberta", 250002, 1024, 24, 16),
    "camembert-base": _roberta("camembert", 32005, 768, 12, 12),
    "distilbert-base-uncased": _distilbert(30522),
    "distilbert-base-cased": _distilbert(28996),
    "electra-small-discriminator": _of("electra", 30522, 256, 12, 4, embedding_size=128),
    "electra-base-discriminator": _of("electra", 30522, 768, 12, 12, embedding_size=768),
    "mpnet-base": _of("mpnet", 30527, 768, 12, 12, max_position_embeddings=514, layer_norm_eps=1e-5),
    "ModernBERT-base": _of("modernbert", 50368, 768, 22, 12, intermediate_size=1152),
    "ModernBERT-large": _of("modernbert", 50368, 1024, 28, 16, intermediate_size=2624),
    "deberta-v3-small": _deberta(128100, 768, 6, 12),
    "deberta-v3-base": _deberta(128100, 768, 12, 12),
    "deberta-v3-large": _deberta(128100, 1024, 24, 16),
    "deberta-v2-xlarge": _deberta(128100, 1536, 24, 24, conv_kernel_size=3, conv_act="gelu"),
    "deberta-v2-xxlarge": _deberta(128100, 1536, 48, 24, conv_kernel_size=3, conv_act="gelu"),
}
"""Encoders by the last part of their hub ids; sizes as the papers named in `families/` and Wang et al. 2020 say."""


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
        return EncoderConfig.from_hf(read_config(folder), folder / "config.json")
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
            where, f"the hub did not give the config.json of {name} ({first_line(error)})", mend
        ) from error
    return EncoderConfig.from_hf(read_config(file.parent), file)
