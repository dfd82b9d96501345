"""A saved host with LoRA -> a folder of plain weights, for serving and for programs that know no LoRA of ours."""

from __future__ import annotations

import os
from pathlib import Path

from kinject.models import manifest
from kinject.models.lora import merge_lora
from kinject.models.pretrained import load_host
from kinject.models.saving import TOKENIZER_FILES, save_host


def merge_folder(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Writes a host with LoRA as a plain host in float32, into which the plugins made for the former still fit.

    Args:
      source: the folder of a host with LoRA.
      folder: where to; it must not exist.

    Returns:
      The folder.

    Raises:
      InputError: no host with LoRA there, or the folder exists.
    """
    loaded = load_host(source)
    given = {name: loaded.manifest.get(name) for name in manifest.GIVEN}
    extra = dict(given["extra"] or {})
    # plugins are pinned to an encoder or one that it was made from: the weights change, what they compute does not
    given["extra"] = extra | {"lineage": [loaded.encoder_fingerprint, *extra.get("lineage", [])]}
    has_tokenizer = any((loaded.folder / name).is_file() for name in TOKENIZER_FILES)
    tokenizer = loaded.folder if has_tokenizer else None
    return save_host(merge_lora(loaded.host), folder, tokenizer_files_from=tokenizer, host_json=given)
