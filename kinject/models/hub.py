"""A folder for what the user calls a host: the folder itself, or a snapshot of a model on Hugging Face's hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kinject.errors import InputError

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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        mend = "check the name and the network, or give a folder"
        raise InputError(name, f"is no folder, and the hub did not give it ({reason})", mend) from error
    return folder
