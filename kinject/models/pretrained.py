"""Hugging Face folder <-> host, strict both ways: what is missing, unexpected or of another shape is an error."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from kinject import __version__
from kinject.errors import InputError
from kinject.models import hf_keys
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.fingerprint import array_digest, fingerprint, of_digests
from kinject.models.heads import Host, build_head, head_kind
from kinject.models.hub import host_folder
from kinject.models.weights import Tensors, open_tensors

__all__ = ["NO_HEAD", "LoadedHost", "fingerprint", "load_host", "save_host"]

NO_HEAD = "none"
FORMAT_VERSION = 1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


@dataclasses.dataclass(frozen=True)
class LoadedHost:
    """A host, and where it is from.

    Attributes:
      host: encoder and head.
      config: the encoder's shape.
      manifest: the parsed `host.json`; empty for a folder that kinject did not write.
      folder: where the files are; its tokenizer is the host's.
      fingerprint: of all parameters, in the dtype they have on disk (fresh ones in `param_dtype`).
      encoder_fingerprint: of the encoder's alone: the same for every head put on one pretrained model.
      fresh: paths of the head's parameters that the checkpoint lacks and that were drawn at random.
      unused: tensors of other heads in the checkpoint.
    """

    host: Host
    config: EncoderConfig
    manifest: dict[str, Any]
    folder: Path
    fingerprint: str
    encoder_fingerprint: str
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_host(
    folder_or_id: str | os.PathLike[str],
    *,
    head: str | None = None,
    num_labels: int | None = None,
    fresh_head: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    seed: int = 0,
    remat: bool = False,
    dropout: float | None = None,
) -> LoadedHost:
    """Loads a BERT or RoBERTa.

    Args:
      folder_or_id: a folder in Hugging Face's form, or a model id on their hub.
      head: a kind of `kinject.models.heads.HEADS`, or "none" for the bare encoder; None = what `host.json` names, so
        none for a folder that kinject did not write.
      num_labels: outputs of a pooled head; None = as the checkpoint has it.
      fresh_head: draw those parameters of the head that the checkpoint lacks, instead of raising. What it has is kept.
      dtype: what activations are computed in.
      param_dtype: what parameters are held in.
      seed: for fresh parameters.
      remat: recompute each layer in the backward pass.
      dropout: rate in place of the config's, for hidden states and attention alike.

    Raises:
      InputError: one line that names file and key: no such folder, a file that is missing, truncated or malformed,
        keys that are missing or unexpected, a wrong shape, or weights that are not those `host.json` was written for.
    """
    folder = host_folder(folder_or_id)
    values = _read_json(folder / "config.json")
    config = EncoderConfig.from_hf(values, folder / "config.json")
    if dropout is not None:
        config = dataclasses.replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        config.check("dropout")
    manifest = _manifest(folder)
    kind = manifest.get("head") if head is None else head
    kind = None if kind == NO_HEAD else kind

    tensors = open_tensors(folder)
    names = hf_keys.canonical(tensors, config, tensors.path)
    names = _untied(names, tensors, kind)
    table = hf_keys.rules(config, kind)
    unused, unexpected = hf_keys.set_aside(names, (rule.key for rule in table))
    if unexpected:
        raise InputError(tensors.path, f"has keys no {_described(config, kind)} has: {_listed(unexpected)}")
    missing = [rule for rule in table if rule.key not in names]
    _check_missing(missing, tensors.path, config, kind, fresh_head)
    labels = _num_labels(kind, num_labels, table, names, tensors)

    abstract = nnx.eval_shape(lambda: _build(config, kind, labels, dtype, param_dtype, remat, seed))
    graph, state = nnx.split(abstract)
    shapes = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
    fresh_paths = {rule.path for rule in missing}
    arrays, digests = _read_arrays(table, fresh_paths, shapes, names, tensors, config, param_dtype)
    for path, array in _fresh(fresh_paths, config, kind, labels, param_dtype, seed).items():
        arrays[path], digests[path] = array, array_digest(array)
    host = nnx.merge(graph, _nested(arrays, shapes))
    prints = of_digests(digests.items()), _encoder_fingerprint(digests)
    if not fresh_paths:
        _check_pinned(manifest, kind, prints, folder)
    return LoadedHost(host, config, manifest, folder, *prints, tuple(sorted(fresh_paths)), tuple(unused))


def save_host(
    host: Host,
    folder: str | os.PathLike[str],
    *,
    tokenizer_files_from: str | os.PathLike[str] | None = None,
    host_json: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a host as a folder that both kinject and transformers load, whole or not at all.

    Args:
      host: what to write, in the dtype its parameters are held in. Its arrays must be on this process's devices.
      folder: where to; it must not exist.
      tokenizer_files_from: folder whose tokenizer files are copied.
      host_json: what `host.json` shall say of where the host is from: any of "base" (name or fingerprint of the model
        it was tuned from), "task", "labels" (list of names, output by output), "extra" (the task's own dict).

    Returns:
      The folder.

    Raises:
      InputError: the folder exists, or there are no tokenizer files to copy.
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(folder, "exists, and nothing is overwritten", "choose another folder")
    given = dict(host_json or {})
    unknown = set(given) - {"base", "task", "labels", "extra"}
    if unknown:
        raise ValueError(f"host_json has {sorted(unknown)}; it may have base, task, labels and extra")
    copied = _tokenizer_files(tokenizer_files_from)
    arrays = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(host, nnx.Param))}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_json(partial / "config.json", _hf_config(host, given.get("labels")))
        _write_json(partial / "host.json", _host_json(host, arrays, given))
        kind, config = _kind(host), host.encoder.config
        save_file(_their_arrays(arrays, config, kind), partial / "model.safetensors", metadata={"format": "pt"})
        for file in copied:
            shutil.copyfile(file, partial / file.name)
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _build(
    config: EncoderConfig,
    kind: str | None,
    labels: int | None,
    dtype: DTypeLike,
    param_dtype: DTypeLike,
    remat: bool,
    seed: int,
) -> Host:
    options = {"dtype": dtype, "param_dtype": param_dtype}
    encoder = Encoder(config, remat=remat, rngs=nnx.Rngs(seed), **options)
    return Host(encoder, None if kind is None else build_head(kind, config, labels, rngs=nnx.Rngs(seed), **options))


def _untied(names: dict[str, str], tensors: Tensors, kind: str | None) -> dict[str, str]:
    """Folds second names of tied tensors into the first, where the head that ties them is asked for."""
    names = dict(names)
    for second, first in hf_keys.TIED.items():
        if kind != "masked_lm" or second not in names:
            continue
        key = names.pop(second)
        if first not in names:
            names[first] = key
        elif not np.array_equal(tensors[key], tensors[names[first]]):
            mend = "only tied decoders are computed here"
            raise InputError(tensors.path, f"{key} differs from {names[first]}", mend)
    return names


def _check_missing(
    missing: Sequence[hf_keys.Rule], where: Path, config: EncoderConfig, kind: str | None, fresh_head: bool
) -> None:
    keys = [hf_keys.full_key(rule, config, kind) for rule in missing if not rule.path.startswith("head/")]
    if keys:
        raise InputError(where, f"lacks {_listed(keys)}", f"it must be a whole {config.model_type} checkpoint")
    keys = [hf_keys.full_key(rule, config, kind) for rule in missing]
    if keys and not fresh_head:
        raise InputError(where, f"has no {kind} head: lacks {_listed(keys)}", "ask for a new one (fresh_head=True)")


def _num_labels(
    kind: str | None,
    asked: int | None,
    table: Sequence[hf_keys.Rule],
    names: Mapping[str, str],
    tensors: Tensors,
) -> int | None:
    if kind is None or not head_kind(kind).pooled:
        return None
    key = next(rule.key for rule in table if rule.path == "head/output/bias")
    stored = len(tensors[names[key]]) if key in names else None
    fixed = head_kind(kind).num_labels
    labels = next((n for n in (asked, fixed, stored) if n is not None), None)
    if labels is None:
        raise InputError("num_labels", f"is not given for a new {kind} head", "give the number of labels")
    if stored not in (None, labels):
        raise InputError(tensors.path, f"has a head of {stored} outputs, not {labels}", f"say num_labels={stored}")
    return labels


def _read_arrays(
    table: Sequence[hf_keys.Rule],
    fresh: set[str],
    shapes: Mapping[str, tuple[int, ...]],
    names: Mapping[str, str],
    tensors: Tensors,
    config: EncoderConfig,
    param_dtype: DTypeLike,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads parameter by parameter, so that no more than one is held twice; returns arrays and digests by path."""
    by_path: dict[str, list[hf_keys.Rule]] = {}
    for rule in table:
        if rule.path not in fresh:
            by_path.setdefault(rule.path, []).append(rule)
    arrays, digests = {}, {}
    for path, group in by_path.items():
        parts = [_read_part(rule, names[rule.key], shapes[path], tensors, config) for rule in group]
        array = parts[0] if group[0].part is None else np.stack(parts, group[0].axis)
        array = np.ascontiguousarray(array)
        digests[path] = array_digest(array)
        arrays[path] = jnp.asarray(array.astype(param_dtype, copy=False))
    return arrays, digests


def _read_part(
    rule: hf_keys.Rule, key: str, shape: tuple[int, ...], tensors: Tensors, config: EncoderConfig
) -> np.ndarray:
    """Reads the tensor of one rule, transformed; its shape is compared in their layout, which the user can look up."""
    ours = shape if rule.part is None else tuple(n for axis, n in enumerate(shape) if axis != rule.axis)
    wanted = rule.transform.theirs(np.broadcast_to(np.float32(0), ours), config).shape
    tensor = tensors[key]
    if tensor.shape != wanted:
        mend = "config.json and weights must be of one model"
        raise InputError(tensors.path, f"{key} has shape {list(tensor.shape)}, not {list(wanted)}", mend)
    return rule.transform.ours(tensor, config)


def _fresh(
    paths: set[str], config: EncoderConfig, kind: str | None, labels: int | None, param_dtype: DTypeLike, seed: int
) -> dict[str, Any]:
    if not paths:
        return {}
    drawn = build_head(kind, config, labels, param_dtype=param_dtype, rngs=nnx.Rngs(seed))
    leaves = {"/".join(("head", *path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(drawn))}
    return {path: leaves[path] for path in paths}


def _nested(arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[Any, Any]:
    """Turns {path: array} into the nested pure dict that `nnx.merge` takes; list indices are integers there."""
    if arrays.keys() != shapes.keys():
        raise AssertionError(f"table and model differ in {sorted(arrays.keys() ^ shapes.keys())}")
    nested: dict[Any, Any] = {}
    for path, array in arrays.items():
        *parents, leaf = (int(name) if name.isdigit() else name for name in path.split("/"))
        inner = nested
        for name in parents:
            inner = inner.setdefault(name, {})
        inner[leaf] = array
    return nested


def _encoder_fingerprint(digests: Mapping[str, str]) -> str:
    prefix = "encoder/"
    return of_digests((path[len(prefix) :], digest) for path, digest in digests.items() if path.startswith(prefix))


def _check_pinned(manifest: Mapping[str, Any], kind: str | None, prints: tuple[str, str], folder: Path) -> None:
    pinned = {"encoder_fingerprint": prints[1]}
    if manifest.get("head") == kind:
        pinned["fingerprint"] = prints[0]
    for name, value in pinned.items():
        if manifest and manifest.get(name) != value:
            problem = f"{name} is {manifest.get(name)}, but the weights have {value}"
            raise InputError(folder / "host.json", problem, "take host.json and model.safetensors of one host")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "host.json"
    if not path.exists():
        return {}
    manifest = _read_json(path)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        mend = "load it with the kinject that wrote it, or a newer one"
        raise InputError(path, f"format_version is {version!r}, and this kinject reads {FORMAT_VERSION}", mend)
    return manifest


def _kind(host: Host) -> str | None:
    return None if host.head is None else host.head.kind


def _hf_config(host: Host, labels: Sequence[str] | None) -> dict[str, Any]:
    config, kind = host.encoder.config, _kind(host)
    values = config.to_hf() | {"architectures": [hf_keys.architecture(config, kind)]}
    values["dtype"] = host.encoder.embeddings.word.embedding[...].dtype.name
    if kind is None or not head_kind(kind).pooled:
        return values
    if kind != "multiple_choice":
        labels = [f"LABEL_{i}" for i in range(host.head.num_labels)] if labels is None else list(labels)
        if len(labels) != host.head.num_labels:
            raise InputError("labels", f"has {len(labels)} names for {host.head.num_labels} outputs")
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    if head_kind(kind).problem_type is not None:
        values["problem_type"] = head_kind(kind).problem_type
    return values


def _host_json(host: Host, arrays: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    digests = {path: array_digest(array) for path, array in arrays.items()}
    return {
        "format_version": FORMAT_VERSION,
        "kinject_version": __version__,
        "head": _kind(host) or NO_HEAD,
        "num_labels": getattr(host.head, "num_labels", None),
        "fingerprint": of_digests(digests.items()),
        "encoder_fingerprint": _encoder_fingerprint(digests),
        "base": given.get("base"),
        "task": given.get("task"),
        "labels": None if given.get("labels") is None else list(given["labels"]),
        "extra": dict(given.get("extra") or {}),
    }


def _their_arrays(arrays: Mapping[str, Any], config: EncoderConfig, kind: str | None) -> dict[str, np.ndarray]:
    theirs = {}
    for rule in hf_keys.rules(config, kind):
        array = np.asarray(arrays[rule.path])
        if rule.part is not None:
            array = np.take(array, rule.part, rule.axis)
        key = hf_keys.full_key(rule, config, kind)
        theirs[key] = np.ascontiguousarray(rule.transform.theirs(array, config))
    return theirs


def _tokenizer_files(source: str | os.PathLike[str] | None) -> list[Path]:
    if source is None:
        return []
    files = [Path(source) / name for name in TOKENIZER_FILES if (Path(source) / name).is_file()]
    if not files:
        raise InputError(source, "has no tokenizer files", f"there must be some of {', '.join(TOKENIZER_FILES)}")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(path, "is missing", "give a folder in Hugging Face's form") from error
    except (OSError, ValueError) as error:
        raise InputError(path, f"is no JSON file ({error})", "get the file again") from error
    if not isinstance(values, dict):
        raise InputError(path, "holds no JSON object", "get the file again")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _described(config: EncoderConfig, kind: str | None) -> str:
    return f"{config.model_type} encoder" if kind is None else f"{config.model_type} host with head {kind}"


def _listed(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return ", ".join(keys[:4]) + rest
