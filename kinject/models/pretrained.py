"""Hugging Face folder -> host, strictly: what is missing, unexpected or of another shape is an error."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from kinject.errors import InputError, first_line
from kinject.hf_folder import read_config
from kinject.integrity import open_sealed, refuse_special
from kinject.models import hf_tensors
from kinject.models.config import EncoderConfig
from kinject.models.encoder import Encoder
from kinject.models.heads import Head, HostModel, build_head, head_kind
from kinject.models.hf_tensors import Tensors
from kinject.models.host_files import HostFiles, host_files, open_weights
from kinject.models.layers import OneKey
from kinject.models.manifest import NO_HEAD, Digests, array_digest, check_pinned, fingerprints, read_host_manifest
from kinject.models.pooling import read_pooling
from kinject.models.reading import Checkpoint, WeightReading
from kinject.models.shapes import MODEL_ID
from kinject.models.tuning import read_added, saved_tuning
from kinject.models.tuning_base import Tuning, attach
from kinject.tree import unflatten

TEXT_FILES = ["*.json", "*.txt", "*.model"]
Source = tuple[dict[str, Any], Mapping[str, str]]  # arrays and digests by path
OTHER_MODEL = "they may change what the model computes: give a checkpoint of transformers' own class"


@dataclasses.dataclass(frozen=True)
class LoadedHost:
    """A host, and where it is from.

    Attributes:
      host: encoder and head.
      config: the encoder's shape.
      manifest: the parsed `host.json`; empty for a folder that kinject did not write.
      folder: where the files are; its tokenizer is the host's.
      digests: {parameter path: its digest, in the dtype it has on disk (a fresh one in `param_dtype`)}.
      fresh: paths of the head's parameters that the checkpoint lacks and that were drawn at random.
      unused: tensors of other heads in the checkpoint.
      files: where model, tokenizer and adapter are.
      stated: what `hf_folder.read_config` says of the model, `id2label` and `problem_type` among it.
    """

    host: HostModel
    config: EncoderConfig
    manifest: dict[str, Any]
    folder: Path
    digests: Mapping[str, str]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    files: HostFiles | None = None
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return fingerprints(self.digests)

    @property
    def fingerprint(self) -> str:
        """Of all parameters; where these were just read, it is waited for."""
        return self._fingerprints["fingerprint"]

    @property
    def encoder_fingerprint(self) -> str:
        """Of the encoder's alone: the same for every head put on one pretrained model."""
        return self._fingerprints["encoder_fingerprint"]


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
    opened: Callable[[HostFiles, EncoderConfig], object] = lambda files, config: None,
) -> LoadedHost:
    """Loads a host, with what a tuning added to it.

    Args:
      folder_or_id: a folder in Hugging Face's form, or a model id on their hub.
      head: a kind of `kinject.models.heads.HEADS`, or "none" for the bare encoder; None = what `host.json` names, so
        none for a folder that kinject did not write.
      num_labels: outputs of the head; None = as the checkpoint has it.
      fresh_head: draw those parameters of the head that the checkpoint lacks, instead of raising. What it has is kept.
      dtype: what activations are computed in.
      param_dtype: what parameters are held in.
      seed: for fresh parameters.
      remat: recompute each layer in the backward pass.
      dropout: rate in place of the config's, for hidden states and attention alike.
      opened: is called when the files are open and before the weights are read, with where they are and the shape.

    Raises:
      InputError: one line that names file and key: no such folder, a file that is missing, truncated or malformed,
        keys that are missing or unexpected, a wrong shape, or weights that are not those `host.json` was written for.
    """
    files = _plain_files(folder_or_id)
    folder, stated, manifest = files.model, read_config(files.model), read_host_manifest(files.model)
    kind = manifest.get("head") if head is None else head
    kind = None if kind == NO_HEAD else kind
    config = with_pooling(_config(stated, folder, dropout), kind, files)
    checkpoint = _match(open_weights(files), config, kind, fresh_head, stated.get("tie_word_embeddings") is not False)
    labels = _num_labels(checkpoint, kind, num_labels)
    tuning = saved_tuning(manifest, folder)
    opened(files, config)
    with WeightReading(checkpoint, config, param_dtype) as reading:  # beside what follows
        abstract = abstract_host(config, kind, labels, tuning, remat=remat, dtype=dtype, param_dtype=param_dtype)
        graph, state = nnx.split(abstract)
        shapes = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)}
        sources: list[Source] = [reading.arrays(shapes)]
    own = {rule.path for rule in checkpoint.table}
    if added := {path: shape for path, shape in shapes.items() if path not in own}:
        sources.append(read_added(folder, added, param_dtype))
    if checkpoint.fresh and kind is not None:
        drawn = build_head(kind, config, labels, param_dtype=param_dtype, rngs=nnx.Rngs(seed))
        sources.append(_fresh_arrays(drawn, checkpoint.fresh))
    arrays, digests = _joined(sources, shapes.keys())
    host = nnx.merge(graph, unflatten(arrays))
    if manifest and not checkpoint.fresh:
        check_pinned(manifest, kind, fingerprints(digests), folder)
    _check_seals(files, whole=bool(checkpoint.fresh) or not manifest)
    read = LoadedHost(host, config, manifest, files.tokenizer, digests, checkpoint.fresh, checkpoint.unused)
    return dataclasses.replace(read, files=files, stated=stated)


def _plain_files(folder_or_id: str | os.PathLike[str]) -> HostFiles:
    """Where a host's files are, none of which is a pipe: other libraries would wait for it."""
    files = host_files(host_folder(folder_or_id))
    for one in {files.model, files.tokenizer, files.adapter or files.model}:
        refuse_special(one)
    return files


def _check_seals(files: HostFiles, whole: bool) -> None:
    """Holds a host's folders to their seals; `whole` reads weights again that no fingerprint in host.json pins."""
    for folder in dict.fromkeys((files.model, files.tokenizer, files.adapter)):
        if folder is None or "snapshots" in folder.parts:  # the hub's cache, whose files are links to their hashes
            continue
        seal = open_sealed(folder, "its tokenizer, config and weights")
        if seal is not None and (whole or folder != files.model):
            seal.verify()


def _joined(sources: Sequence[Source], paths: Set[str]) -> Source:
    """(arrays, digests) of all sources, which together are the model's."""
    arrays = {path: array for source, _ in sources for path, array in source.items()}
    if arrays.keys() != paths:
        raise AssertionError(f"table and model differ in {sorted(arrays.keys() ^ paths)}")
    return arrays, Digests(*(digests for _, digests in sources))


def abstract_host(
    config: EncoderConfig,
    kind: str | None,
    labels: int | None = None,
    tuning: Tuning | None = None,
    *,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> HostModel:
    """A host with shapes in the place of arrays: nothing is drawn or read.

    Args:
      config: the encoder's shape.
      kind: of the head; None = the bare encoder.
      labels: outputs of the head, where its kind leaves them open.
      tuning: what was added to the encoder.
      remat: recompute each layer in the backward pass.
      dtype: what activations are computed in.
      param_dtype: what parameters are held in.
    """

    def build() -> HostModel:
        key: Any = OneKey()  # in the place of nnx.Rngs
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": key}
        encoder = Encoder(config, remat=remat, **options)
        host = HostModel(encoder, None if kind is None else build_head(kind, config, labels, **options))
        if tuning is not None:
            attach(host, tuning, key)
        return host

    return nnx.eval_shape(build)


def _fresh_arrays(head: Head, fresh: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays and digests by path of those parameters of a new head that the checkpoint lacks."""
    flat = {
        "/".join(("head", *map(str, path))): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(head, nnx.Param))
    }
    return {path: flat[path] for path in fresh}, {path: array_digest(flat[path]) for path in fresh}


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
        folder = Path(
            snapshot_download(name, allow_patterns=[*TEXT_FILES, "model*.safetensors", "adapter_model.safetensors"])
        )
        if not any(folder.glob("*model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # hub, HTTP and cache errors have no common class
        mend = "check the name and the network, or give a folder"
        raise InputError(name, f"is no folder, and the hub did not give it ({first_line(error)})", mend) from error
    return folder


def _config(stated: Mapping[str, Any], folder: Path, dropout: float | None) -> EncoderConfig:
    config = EncoderConfig.from_hf(stated, folder / "config.json")
    if dropout is not None:
        config = dataclasses.replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        config.check("dropout")
    return config


def with_pooling(config: EncoderConfig, kind: str | None, files: HostFiles | None) -> EncoderConfig:
    """The config with what the folder says of pooling, where a head of this kind reads it; see `read_pooling`."""
    if kind is None or not head_kind(kind).pooled or files is None:
        return config
    return dataclasses.replace(config, pooling=read_pooling(files.named, config.hidden_size))


def _match(tensors: Tensors, config: EncoderConfig, kind: str | None, fresh_head: bool, tied: bool) -> Checkpoint:
    names = _untied(hf_tensors.canonical(tensors, config, tensors.path), tensors, config, kind, fresh_head or tied)
    table = hf_tensors.rules(config, kind)
    unused, unexpected = hf_tensors.set_aside(names, (rule.key for rule in table), config)
    missing = [rule for rule in table if rule.key not in names]
    lacks = [hf_tensors.full_key(rule, config, kind) for rule in missing if not rule.path.startswith("head/")]
    # what is missing is told first: with the wrong family of model all keys are unexpected
    if lacks:
        raise InputError(tensors.path, f"lacks {_listed(lacks)}", f"it must be a whole {config.model_type} checkpoint")
    if unexpected:
        described = config.model_type if kind is None else f"{config.model_type} with head {kind}"
        raise InputError(tensors.path, f"has keys that no {described} has: {_listed(unexpected)}", OTHER_MODEL)
    if missing and not fresh_head:
        lacks = [hf_tensors.full_key(rule, config, kind) for rule in missing]
        problem = f"has no whole {kind} head, it lacks {_listed(lacks)}"
        raise InputError(tensors.path, problem, "ask for fresh parameters there (fresh_head=True)")
    return Checkpoint(tensors, table, names, tuple(sorted(rule.path for rule in missing)), tuple(unused))


def _untied(
    names: Mapping[str, str], tensors: Tensors, config: EncoderConfig, kind: str | None, tied: bool
) -> dict[str, str]:
    """Folds second names of tied tensors into the first, where the head that ties them is asked for.

    `tied` False is config.json's word for tensors that must be there under both names.
    """
    names = dict(names)
    if kind != "masked_lm":
        return names
    for second, first in config.family.tied.items():
        key = names.pop(second, None)
        if key is None and not tied:
            problem = f"has no {second}, and by config.json tie_word_embeddings is false"
            raise InputError(tensors.path, problem, "set it to true where the model was trained so")
        if key is None:
            continue
        if first not in names:
            names[first] = key
        elif not np.array_equal(tensors[key], tensors[names[first]]):
            raise InputError(tensors.path, f"{key} differs from {names[first]}", "only tied decoders are computed here")
    return names


def _num_labels(checkpoint: Checkpoint, kind: str | None, asked: int | None) -> int | None:
    if kind is None or not head_kind(kind).own_output:
        return None
    key = next(rule.key for rule in checkpoint.table if rule.path == "head/output/bias")
    tensors, name = checkpoint.tensors, checkpoint.names.get(key)
    stored = None if name is None else len(tensors[name])
    labels = next((n for n in (asked, head_kind(kind).num_labels, stored) if n is not None), None)
    if labels is None:
        raise InputError("num_labels", f"is not given for a new {kind} head", "give the number of labels")
    if stored not in (None, labels):
        mend = f"say num_labels={stored}" if asked else "ask for another kind of head"
        raise InputError(tensors.path, f"has a head of {stored} outputs, not {labels}", mend)
    return labels


def _listed(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return ", ".join(keys[:4]) + rest
