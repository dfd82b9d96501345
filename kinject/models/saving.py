"""Host -> Hugging Face folder, which transformers loads as if it had written it; and a host with LoRA made plain."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from kinject.errors import InputError
from kinject.integrity import write_seal
from kinject.json_file import read_object, write_object
from kinject.models import hf_tensors, manifest
from kinject.models.config import EncoderConfig
from kinject.models.heads import HostModel, head_kind
from kinject.models.lora import merge_lora
from kinject.models.pooling import write_pooling
from kinject.models.pretrained import load_host
from kinject.models.tuning import write_added

OUTSIDE = ("README.md",)  # of a host's seal: a card may be edited
TOKEN_IDS = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")  # pad_token_id is one of our own fields
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
)


def save_host(
    host: HostModel,
    folder: str | os.PathLike[str],
    *,
    tokenizer_files_from: str | os.PathLike[str] | None = None,
    host_json: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a host as a folder that both kinject and transformers load, whole or not at all.

    What a tuning added to the encoder goes into a file of its own, of which transformers knows nothing: there the
    folder is the host without it. `merge_lora` makes a LoRA part of the weights.

    Args:
      host: what to write, in the dtype its parameters are held in. Its arrays must be on this process's devices.
      folder: where to; it must not exist.
      tokenizer_files_from: folder whose tokenizer files are copied, and its config.json's ids of special tokens.
      host_json: what `host.json` shall say of where the host is from: any of "base" (name or fingerprint of the model
        it was tuned from), "task", "labels" (list of names, output by output), "extra" (the task's own dict).

    Returns:
      The folder.

    Raises:
      InputError: the folder exists, there are no tokenizer files to copy, or the labels are not one an output.
    """
    folder, given = Path(folder), dict(host_json or {})
    if folder.exists():
        raise InputError(folder, "exists, and nothing is overwritten", "choose another folder")
    unknown = sorted(given.keys() - set(manifest.GIVEN))
    if unknown:
        raise ValueError(f"host_json has {unknown}; it may have {', '.join(manifest.GIVEN)}")
    config, kind = host.encoder.config, None if host.head is None else host.head.kind
    copied = _tokenizer_files(tokenizer_files_from)
    outputs = getattr(host.head, "num_labels", None)
    hf_config = _hf_config(host, kind, outputs, given.get("labels")) | _kept(tokenizer_files_from, kind, outputs)
    arrays, added = _arrays(host, kind)
    digests = {path: manifest.array_digest(array) for path, array in arrays.items()}
    tuning = None if host.tuning is None else host.tuning.to_json()
    described = manifest.new_manifest(kind, outputs, digests, given, tuning)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write_object(partial / "config.json", hf_config)
        write_object(partial / manifest.NAME, described)
        save_file(_their_arrays(arrays, config, kind), partial / "model.safetensors", metadata={"format": "pt"})
        write_added(partial, added)
        if config.pooling is not None:
            write_pooling(partial, config.pooling, config.hidden_size)
        for file in copied:
            shutil.copyfile(file, partial / file.name)
        write_seal(partial, OUTSIDE)
        partial.chmod(0o755)  # mkdtemp's is the owner's alone
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _arrays(host: HostModel, kind: str | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All parameters by path, and those of them that a tuning added."""
    arrays = {
        "/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(host, nnx.Param))
    }
    own = {rule.path for rule in hf_tensors.rules(host.encoder.config, kind)}
    added = {path: array for path, array in arrays.items() if path not in own}
    if added and host.tuning is None:
        raise ValueError(f"the host has {min(added)}, which no host of its kind has, and names no tuning")
    return arrays, added


def _hf_config(host: HostModel, kind: str | None, outputs: int | None, labels: Sequence[str] | None) -> dict[str, Any]:
    config = host.encoder.config
    values = config.to_hf() | {"architectures": [hf_tensors.architecture(config, kind)]}
    values["dtype"] = host.encoder.embeddings.word.embedding[...].dtype.name
    if kind is None:
        return values
    if head_kind(kind).named and outputs is not None:
        labels = [f"LABEL_{i}" for i in range(outputs)] if labels is None else list(labels)
        if len(labels) != outputs or len(set(labels)) != len(labels):
            problem = f"has {len(set(labels))} different names for {outputs} outputs"
            raise InputError("labels", problem, "name each output once")
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    if head_kind(kind).problem_type is not None and outputs != 1:  # transformers refuses one label of one
        values["problem_type"] = head_kind(kind).problem_type
    return values


def _kept(source: str | os.PathLike[str] | None, kind: str | None, outputs: int | None) -> dict[str, Any]:
    """What the config.json beside the tokenizer says that transformers acts on and no shape or head of ours knows."""
    path = None if source is None else Path(source) / "config.json"
    if path is None or not path.is_file():
        return {}
    stated = read_object(path, "get the file again")
    kept = {name: stated[name] for name in TOKEN_IDS if stated.get(name) is not None}
    same = kind == "classification" and outputs == len(stated.get("id2label") or ("LABEL_0", "LABEL_1"))
    if same and stated.get("problem_type"):  # how a head of that kind is read that kinject did not tune
        kept["problem_type"] = stated["problem_type"]
    return kept


def _their_arrays(arrays: Mapping[str, np.ndarray], config: EncoderConfig, kind: str | None) -> dict[str, np.ndarray]:
    theirs = {}
    for rule in hf_tensors.rules(config, kind):
        array = arrays[rule.path]
        if rule.part is not None:
            array = np.take(array, rule.part, rule.axis)
        theirs[hf_tensors.full_key(rule, config, kind)] = np.ascontiguousarray(rule.transform.theirs(array, config))
    return theirs


def _tokenizer_files(source: str | os.PathLike[str] | None) -> list[Path]:
    if source is None:
        return []
    files = [Path(source) / name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    if not files:
        raise InputError(source, "has no tokenizer files", f"there must be some of {', '.join(TOKENIZER_FILES)}")
    return files


def merge_folder(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Writes a host with LoRA as a plain host in float32, for serving and for programs that know no LoRA of ours.

    Plugins made for the host with LoRA still fit the plain one.

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
